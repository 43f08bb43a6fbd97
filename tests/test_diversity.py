"""Figures of diversity and balance, against slow or known ones."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import diversity
from synthgen.errors import SynthgenError

WORDS = st.sampled_from(["a", "cat", "owl", "on", "grass", "at", "sea", "snow"])
TEXTS = st.lists(st.lists(WORDS, max_size=9).map(" ".join), min_size=2, max_size=9)


def slow_self_bleu(texts: list[str]) -> float:
    """BLEU-4 of each text with the others as references, from its definition."""
    split, scores = [text.split() for text in texts], []
    for k, words in enumerate(split):
        others, logs = split[:k] + split[k + 1 :], []
        for n in range(1, 5):
            counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            if not counts:
                continue
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
            logs.append(math.log(max(sum((counts & most).values()), 0.1) / counts.total()))
        nearest = min((len(other) for other in others), key=lambda m: (abs(m - len(words)), m))
        brevity = min(1.0, math.exp(1 - nearest / max(len(words), 1)))
        scores.append(brevity * math.exp(sum(logs) / len(logs)) if logs else 0.0)
    return sum(scores) / len(scores)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_self_bleu_is_that_of_its_definition(texts: list[str]) -> None:
    assert diversity.self_bleu(texts) == pytest.approx(slow_self_bleu(texts))


def test_self_bleu_of_equal_and_of_different_texts() -> None:
    assert diversity.self_bleu(["a cat sat on the mat"] * 3) == pytest.approx(1.0)
    assert diversity.self_bleu(["a b c d e", "f g h i j"]) < 0.1
    assert diversity.self_bleu(["alone"]) == 0.0


def test_distinct_and_openers() -> None:
    texts = ["A photo of a cat.", "a photo of an owl", "two owls"]
    assert diversity.distinct(texts, 1) == 8 / 12
    assert diversity.distinct(texts, 2) == 7 / 9
    assert diversity.commonest_opener(texts) == 2 / 3
    assert diversity.distinct([""], 2) == 0.0


def test_vendi_counts_what_is_different() -> None:
    same, other = np.tile(np.eye(8)[:1], (20, 1)), np.eye(8)
    assert diversity.vendi(same.astype(np.float32)) == pytest.approx(1.0, abs=1e-4)
    assert diversity.vendi(other.astype(np.float32)) == pytest.approx(8.0, abs=1e-4)
    tall = np.tile(np.eye(4), (10, 1)).astype(np.float32)  # 40 rows, 4 wide: the other kernel
    assert diversity.vendi(tall) == pytest.approx(4.0, abs=1e-4)


def test_coverage_is_the_part_of_the_reference_that_is_near() -> None:
    reference = np.repeat(np.eye(6, dtype=np.float32), 6, axis=0)
    assert diversity.coverage(reference, reference) == 1.0
    assert diversity.coverage(reference[:6], reference) == pytest.approx(1 / 6)
    assert diversity.coverage(reference[[0, 35]], reference) == pytest.approx(2 / 6)


def test_farthest_points_are_a_greedy_k_center() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = [0]
    while len(chosen) < 12:
        left = [k for k in range(40) if k not in chosen]
        chosen.append(min(left, key=lambda k: max(float(vectors[k] @ vectors[j]) for j in chosen)))
    assert diversity.farthest_points(vectors, 12) == chosen
    assert sorted(diversity.farthest_points(vectors, 99)) == list(range(40))
    assert diversity.farthest_points(vectors, 0) == diversity.farthest_points(vectors[:0], 3) == []


def test_word_vectors_are_near_where_words_are_shared() -> None:
    texts = ["an owl on grass", "an owl on a lawn", "two rockets at night"]
    vectors = diversity.word_vectors(texts)(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > 0.2 > abs(vectors[0] @ vectors[2])


def test_cramers_v() -> None:
    even = [(name, word) for name in "ab" for word in "xyz"] * 20
    assert diversity.cramers_v(even) == 0.0
    assert diversity.cramers_v([("a", "x"), ("b", "y")] * 20) == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(diversity.cramers_v(even[:18]))  # 3 are expected in each cell
    assert math.isnan(diversity.cramers_v([("a", "x"), ("a", "y")] * 20))
    assert math.isnan(diversity.cramers_v([]))
    # what chance makes of independent labels is corrected for
    draws = [random.Random(k).choices("abcd", k=2000) for k in range(2)]
    assert diversity.cramers_v(list(zip(*draws, strict=True))) < 0.05


def test_a_sample_of_many_is_seeded() -> None:
    assert diversity.sample_of(10_000, 0) == list(range(10_000))
    some = diversity.sample_of(50_000, 0)
    assert len(set(some)) == 10_000
    assert some == sorted(some) == diversity.sample_of(50_000, 0)
    assert some != diversity.sample_of(50_000, 1)
    assert 0.18 < sum(k < 10_000 for k in some) / 10_000 < 0.22


def test_the_figures_of_a_class_do_not_depend_on_how_many_there_are() -> None:
    texts = [f"thing {name} of kind {k} seen {k % 7}" for name in range(400) for k in range(100)]
    names = [f"class {name}" for name in range(400) for _ in range(100)]
    many, few = diversity.measure(texts, names, {}), diversity.measure(texts[:4000], names[:4000], {})
    assert many["vendi_class"] == pytest.approx(few["vendi_class"], rel=0.05)
    assert many["near_duplicates"] == pytest.approx(few["near_duplicates"], abs=0.02)
    assert few["vendi_class"] > 20


def test_measure_and_bounds() -> None:
    texts = ["a cat on grass", "a cat at sea", "an owl on grass", "an owl at sea"] * 10
    names = ["cat", "cat", "owl", "owl"] * 10
    places = ["on grass", "at sea"] * 20
    found = diversity.measure(texts, names, {"place": places})
    assert found["texts"] == 40
    assert found["distinct_texts"] == 0.1
    assert found["cramers_v_place"] == 0
    tied = diversity.measure(texts, names, {"place": names})
    assert tied["cramers_v_place"] == pytest.approx(1, abs=1e-6)
    assert diversity.measure(texts[:2], names[:2], {}, reference=texts)["coverage"] == 0.5
    assert diversity.unmet(found, ["distinct_texts=0.05"], least=True) == []
    assert diversity.unmet(found, ["distinct_texts=0.5"], least=True) == [
        "distinct_texts is 0.1, at least 0.5 is wanted"
    ]
    assert diversity.unmet(tied, ["cramers_v_place=0.05"], least=False) == [
        "cramers_v_place is 1, at most 0.05 is wanted"
    ]
    few = diversity.measure(texts[:4], names[:4], {"place": places[:4]})
    assert diversity.unmet(few, ["cramers_v_place=0.05"], least=False)  # not defined holds no bound
    with pytest.raises(
        SynthgenError, match='--fail-under vendy=1: unknown figure "vendy"; did you mean "vendi"'
    ):
        diversity.unmet(found, ["vendy=1"], least=True)
    with pytest.raises(SynthgenError, match="--fail-over vendi: KEY=VALUE is wanted, such as vendi=20"):
        diversity.unmet(found, ["vendi"], least=False)
    with pytest.raises(SynthgenError, match="no texts"):
        diversity.measure([], [], {})
