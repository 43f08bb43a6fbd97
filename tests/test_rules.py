"""Every rule against a slow reference in plain Python, and what holds of all of them, on small pools with
ties, missing values and empty cells.
"""

import hashlib
import math
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import wordnet
from synthgen.selection import RULES, datacomp

Columns = dict[str, npt.NDArray[Any]]
Row = dict[str, Any]
NAN = float("nan")
SCORES = [0.0, -0.0, 0.25, 0.2800000011920929, 0.5, 0.29, NAN]
CAPTIONS = [
    "", "dog", "a dog", "two red dogs", "a photo of a dog", "the the the", " x  y ", "a\nb", "thing\n",
    "a\tb\u2003c",
    "rocked out then", "dog, cat; bird!", "un chien noir",
    "\u00e9\u00e8\u00ea \u4e2d", "\x1cone\x85two\xa0three",
]  # fmt: skip
VECTORS = [[1, 0, 0], [0.6, 0.8, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 1, 0], [NAN, 0, 0], [2, 0, 0]]

rows_ = st.lists(
    st.fixed_dictionaries(
        {
            "score": st.sampled_from(SCORES),
            "other": st.sampled_from([0.0, 1.0, 2.0, NAN]),
            "class_name": st.sampled_from(["a", "b", ""]),
            "axis_place": st.sampled_from(["sea", "land"]),
            "cluster": st.integers(0, 2),
            "phash": st.sampled_from([0, 1, 3, 7, 15, 2**63, 2**63 + 1, 0xFF]),
            "turn": st.integers(0, 2),
            "class_id": st.integers(0, 1),
            "text": st.sampled_from(CAPTIONS),
            "language": st.sampled_from(["en", "fr", ""]),
            "width": st.sampled_from([199.0, 200.0, 600.0, 601.0, NAN, 0.0]),
            "height": st.sampled_from([199.0, 200.0, 600.0, NAN]),
            "img": st.sampled_from(VECTORS),
        }
    ),
    max_size=14,
)
KINDS = {"score": np.float32, "cluster": np.int32, "phash": np.uint64, "turn": np.int32, "class_id": np.int32}


def table(rows: list[Row]) -> Columns:
    """The rows as columns; uids are hashes of their places, so that they are in no order."""
    for k, row in enumerate(rows):
        row.setdefault("uid", hashlib.sha256(str(k).encode()).hexdigest()[:32])
        row.setdefault("error", "")
    found: Columns = {}
    for name in ["uid", "error", *rows_.wrapped_strategy.element_strategy.mapping] if rows else EMPTY:
        values = [row[name] for row in rows]
        if name == "img":
            found[name] = np.array(values, np.float16).reshape(-1, 3)
        elif name in KINDS:
            found[name] = np.array(values, KINDS[name])
        else:
            found[name] = np.array(values, object if name in TEXTS else np.float64)
    return found


TEXTS = {"uid", "error", "class_name", "axis_place", "text", "language"}
EMPTY = [
    "uid", "error", "score", "other", "class_name", "axis_place", "cluster", "phash", "turn", "class_id",
    "text", "language", "width", "height", "img",
]  # fmt: skip


def cells(rows: list[Row], per: str | list[str]) -> list[list[int]]:
    names = {"class": "class_name", "place": "axis_place"}
    own = [tuple(row[names.get(n, n)] for n in ([per] if isinstance(per, str) else per)) for row in rows]
    return [[k for k, one in enumerate(own) if one == cell] for cell in dict.fromkeys(own)]


def asked(row: Row) -> tuple[Any, ...]:
    return row["turn"], row["class_id"], row["uid"]


def f32(value: float) -> float:
    return float(np.float32(value))


def drawn(salt: str, uid: str) -> int:
    return int(hashlib.sha256(f"{salt} {uid}".encode()).hexdigest()[:16], 16)


# Each reference gives the rows that are kept.


def slow_range(rows: list[Row], minimum: float, **_: Any) -> set[int]:
    return {k for k, row in enumerate(rows) if row["score"] >= f32(minimum)}


def take(
    rows: list[Row], own: list[int], key: Callable[[Row], float], fraction: float | None, count: int | None
) -> set[int]:
    n = count if fraction is None else math.floor(len(own) * fraction + 0.5)
    known = [k for k in own if not math.isnan(key(rows[k]))]
    return set(sorted(known, key=lambda k: (key(rows[k]), rows[k]["uid"]))[:n])


def slow_top(
    rows: list[Row], per: Any, fraction: float | None = None, count: int | None = None, **_: Any
) -> set[int]:
    own = [take(rows, cell, lambda row: -f32(row["score"]), fraction, count) for cell in cells(rows, per)]
    return set().union(*own)


def slow_sample(
    rows: list[Row], per: Any, seed: int, fraction: float | None = None, count: int | None = None
) -> set[int]:
    own = [
        take(rows, cell, lambda row: float(drawn(str(seed), row["uid"])), fraction, count)
        for cell in cells(rows, per)
    ]
    return set().union(*own)


def slow_adaptive_bar(rows: list[Row], bar: float, tolerance: float, per: Any, **_: Any) -> set[int]:
    kept = set()
    for cell in cells(rows, per):
        known = [k for k in cell if not math.isnan(rows[k]["score"])]
        if known:
            best = np.float32(max(rows[k]["score"] for k in known))
            least = min(np.float32(bar), best - np.float32(tolerance))
            kept |= {k for k in known if np.float32(rows[k]["score"]) >= least}
    return kept


def slow_balance(rows: list[Row], target: int, per: Any, seed: int) -> set[int]:
    kept = set()
    for cell in cells(rows, per):
        chance = target / max(len(cell), target)
        kept |= {k for k in cell if (drawn(f"balance {seed}", rows[k]["uid"]) >> 11) / 2**53 < chance}
    return kept


def slow_duplicates(
    rows: list[Row],
    per: Any,
    column: str = "",
    distance: int = 0,
    epsilon: float = 0.0,
    best: str = "",
    order: str = "first",
    **_: Any,
) -> set[int]:
    def known(row: Row) -> bool:
        value = row[column] if column else row["img"][0]
        return value != "" and value == value

    def unit(row: Row) -> npt.NDArray[np.float64]:
        vector = np.array(row["img"], np.float16).astype(np.float64)
        return vector / np.linalg.norm(vector)

    def alike(one: Row, other: Row) -> bool:
        if not column:
            return float(unit(one) @ unit(other)) > 1 - epsilon
        if distance:
            return (one[column] ^ other[column]).bit_count() <= distance
        return bool(one[column] == other[column])

    kept = set()
    for cell in cells(rows, per):
        own = sorted((k for k in cell if known(rows[k])), key=lambda k: asked(rows[k]))
        if best:
            own.sort(key=lambda k: -rows[k][best] if rows[k][best] == rows[k][best] else math.inf)
        if order != "first" and own:
            middle = sum(unit(rows[k]) for k in own)
            near = {k: round(float(unit(rows[k]) @ middle), 6) for k in own}
            own.sort(key=lambda k: near[k] if order == "hard" else -near[k])
        kept |= {k for n, k in enumerate(own) if not any(alike(rows[k], rows[other]) for other in own[:n])}
    return kept


def slow_decontaminate(rows: list[Row], similarity: float, distance: int, **_: Any) -> set[int]:
    return {k for k, row in enumerate(rows) if row["score"] < f32(similarity) and row["other"] > distance}


def slow_datacomp_basic(rows: list[Row], **_: Any) -> set[int]:
    kept = set()
    for k, row in enumerate(rows):
        least, most = sorted((row["width"], row["height"]))
        if math.isnan(row["width"]) or math.isnan(row["height"]):
            continue
        words, is_large = len(row["text"].split()), least >= 200
        if (
            row["language"] == "en"
            and words > 2
            and len(row["text"]) > 5
            and is_large
            and most / least <= 3.0
        ):
            kept.add(k)
    return kept


def slow_datacomp_clip_score(
    rows: list[Row], threshold: float | None = None, fraction: float | None = None, **_: Any
) -> set[int]:
    every = [f32(row["score"]) for row in rows]
    if threshold is None:
        ranked = sorted((s for s in every if s == s), reverse=True) + [s for s in every if s != s]
        rank = int(len(every) * fraction)  # type: ignore[operator]
        threshold = ranked[rank] if rank < len(ranked) else -math.inf
    return {k for k, score in enumerate(every) if score >= f32(threshold)}


def slow_datacomp_laion2b(rows: list[Row], **_: Any) -> set[int]:
    return {k for k, row in enumerate(rows) if row["score"] >= f32(0.28) and row["language"] == "en"}


def slow_datacomp_text_based(rows: list[Row], **_: Any) -> set[int]:
    ids = {int(line[1:]) for line in TIMM.read_text().split()}
    return {
        k
        for k, row in enumerate(rows)
        if row["language"] == "en" and any(wordnet.first_offset(word) in ids for word in row["text"].split())
    }


CENTROIDS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], np.float32)
REFERENCES = np.array([[0.9, 0.1, 0], [0, 0, 5]], np.float32)


def slow_datacomp_image_based(rows: list[Row], **_: Any) -> set[int]:
    def nearest(vector: Any) -> int:
        products = [float(np.dot(vector, centroid)) for centroid in CENTROIDS]
        return products.index(max(products))

    targets = {nearest(vector) for vector in REFERENCES}
    kept = set()
    for k, row in enumerate(rows):
        text = row["text"].replace("\n", " </s> ") if "\n" in row["text"] else row["text"]
        for space in "\r\t\v\f\0":
            text = text.replace(space, " ")
        words = [word for word in text.split(" ") if word]
        is_caption = row["language"] == "en" and len(words) > 1 and len(row["text"]) > 5
        if is_caption and row["img"][0] == row["img"][0] and nearest(row["img"]) in targets:
            kept.add(k)
    return kept


def slow_both(rows: list[Row], **keys: Any) -> set[int]:
    return slow_datacomp_image_based(rows) & slow_datacomp_clip_score(rows, fraction=keys["fraction"])


def slow_listed(rows: list[Row], **_: Any) -> set[int]:
    return {k for k, row in enumerate(rows) if row["text"] in LISTED}


def slow_not_listed(rows: list[Row], **_: Any) -> set[int]:
    return {k for k, row in enumerate(rows) if row["text"] and row["text"] not in LISTED}


LISTED = ["dog", "a dog", "nobody has this"]
TIMM = Path(find_spec("timm").submodule_search_locations[0]) / datacomp.IDS  # type: ignore[union-attr,index]
FILES: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lists")
    FILES["list.txt"], FILES["c.npz"] = folder / "list.txt", folder / "c.npz"
    FILES["list.txt"].write_text("\n".join(LISTED) + "\n\n")
    np.savez(FILES["c.npz"], centroids=CENTROIDS, references=REFERENCES)


per_ = st.sampled_from(["class", [], ["class", "place"], "cluster", "axis_place"])
how_many = st.fixed_dictionaries({"fraction": st.sampled_from([0.0, 0.3, 0.5, 1.0])}) | st.fixed_dictionaries(
    {"count": st.integers(0, 4)}
)
LANGUAGE = st.fixed_dictionaries({"language": st.just("language")})
SIZES = st.fixed_dictionaries({"width": st.just("width"), "height": st.just("height")})


def keys_of(**own: Any) -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries(
        {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in own.items()}
    )


def merged(*parts: st.SearchStrategy[Row]) -> st.SearchStrategy[Row]:
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


best_ = st.sampled_from(["", "other"])
CASES: dict[str, tuple[Callable[..., set[int]], str, st.SearchStrategy[Row]]] = {
    "range": (slow_range, "range", keys_of(column="score", minimum=st.sampled_from([0.25, 0.29, 0.0]))),
    "top": (slow_top, "top", merged(keys_of(column="score", per=per_), how_many)),
    "sample": (slow_sample, "sample", merged(keys_of(per=per_, seed=st.integers(0, 3)), how_many)),
    "adaptive_bar": (
        slow_adaptive_bar,
        "adaptive_bar",
        keys_of(
            column="score", bar=st.sampled_from([0.29, 0.1]), tolerance=st.sampled_from([0.0, 0.21]), per=per_
        ),
    ),
    "balance": (slow_balance, "balance", keys_of(target=st.integers(1, 6), per=per_, seed=st.integers(0, 3))),
    "exact": (
        slow_duplicates,
        "duplicates",
        keys_of(column=st.sampled_from(["score", "text", "phash"]), best=best_, per=per_),
    ),
    "near": (
        slow_duplicates,
        "duplicates",
        keys_of(column="phash", distance=st.integers(1, 8), best=best_, per=per_),
    ),
    "semantic": (
        slow_duplicates,
        "duplicates",
        keys_of(features="img", epsilon=st.sampled_from([0.01, 0.05, 0.25, 1.5]), best=best_, per=per_),
    ),
    "semantic by centre": (
        slow_duplicates,
        "duplicates",
        keys_of(features="img", epsilon=0.05, order=st.sampled_from(["hard", "easy"]), clusters=0, per=per_),
    ),
    "decontaminate": (
        slow_decontaminate,
        "decontaminate",
        keys_of(annotation="eval", similarity=st.sampled_from([0.28, 0.5, 1.0]), distance=st.integers(0, 2)),
    ),
    "no_filter": (lambda rows: set(range(len(rows))), "no_filter", keys_of()),
    "basic": (slow_datacomp_basic, "datacomp_basic", merged(LANGUAGE, SIZES)),
    "clip_score fraction": (
        slow_datacomp_clip_score,
        "datacomp_clip_score",
        keys_of(column="score", fraction=st.sampled_from([0.0, 0.1, 0.3, 0.9, 1.0]) | st.floats(0, 1)),
    ),
    "clip_score threshold": (
        slow_datacomp_clip_score,
        "datacomp_clip_score",
        keys_of(column="score", threshold=st.sampled_from([0.28, 0.29, 0.0, 0.5])),
    ),
    "laion2b": (slow_datacomp_laion2b, "datacomp_laion2b", merged(keys_of(column="score"), LANGUAGE)),
    "text_based": (slow_datacomp_text_based, "datacomp_text_based", LANGUAGE),
    "image_based": (
        slow_datacomp_image_based,
        "datacomp_image_based",
        merged(keys_of(file="c.npz", features="img"), LANGUAGE),
    ),
    "intersection": (
        slow_both,
        "datacomp_image_based_intersect_clip_score",
        merged(
            keys_of(file="c.npz", features="img", column="score", fraction=st.sampled_from([0.3, 0.8])),
            LANGUAGE,
        ),
    ),
    "listed": (slow_listed, "listed", keys_of(file="list.txt", column="text")),
    "not_listed": (slow_not_listed, "not_listed", keys_of(file="list.txt", column="text")),
}


def apply(use: str, columns: Columns, keys: Row) -> set[int]:
    columns = columns | {"eval_max": columns["score"], "eval_phash_distance": columns["other"]}
    keys = {key: FILES.get(value, value) if key == "file" else value for key, value in keys.items()}
    keep = RULES[use](columns, **keys)
    assert keep.dtype == np.bool_
    assert keep.shape == (len(columns["uid"]),)
    return set(np.flatnonzero(keep).tolist())


def test_every_rule_has_a_slow_reference() -> None:
    assert {use for _, use, _ in CASES.values()} == set(RULES)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=rows_)
def test_rules_agree_with_a_slow_reference(name: str, data: st.DataObject, rows: list[Row]) -> None:
    slow, use, keys_strategy = CASES[name]
    keys = data.draw(keys_strategy)
    assert apply(use, table(rows), keys) == slow(rows, **keys)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rows=rows_)
def test_the_order_of_the_rows_changes_nothing(name: str, data: st.DataObject, rows: list[Row]) -> None:
    _, use, keys_strategy = CASES[name]
    keys = data.draw(keys_strategy)
    columns = table(rows)
    order = np.array(data.draw(st.permutations(range(len(rows)))), np.intp)
    shuffled = {key: values[order] for key, values in columns.items()}
    uids, again = columns["uid"].tolist(), shuffled["uid"].tolist()
    assert {uids[k] for k in apply(use, columns, keys)} == {again[k] for k in apply(use, shuffled, keys)}


@pytest.mark.parametrize("name", CASES)
def test_no_row_and_one(name: str) -> None:
    slow, use, _ = CASES[name]
    keys = FIRST[name]
    one: Row = dict(zip(EMPTY, [
        "0" * 32, "", 0.5, 1.0, "a", "sea", 0, 1, 0, 0, "a photo of a dog", "en", 200.0, 600.0, [1, 0, 0],
    ], strict=True))  # fmt: skip
    assert apply(use, table([]), keys) == set()
    assert apply(use, table([one]), keys) == slow([one], **keys)


FIRST: dict[str, Row] = {
    "range": {"column": "score", "minimum": 0.1},
    "top": {"column": "score", "count": 1, "per": "class"},
    "sample": {"count": 1, "per": "class", "seed": 0},
    "adaptive_bar": {"column": "score", "bar": 0.9, "tolerance": 0.1, "per": "class"},
    "balance": {"target": 1, "per": "class", "seed": 0},
    "exact": {"column": "text", "per": "class"},
    "near": {"column": "phash", "distance": 4, "per": "class"},
    "semantic": {"features": "img", "epsilon": 0.1, "per": "class"},
    "semantic by centre": {"features": "img", "epsilon": 0.1, "order": "hard", "per": "class"},
    "decontaminate": {"annotation": "eval", "similarity": 0.9, "distance": 0},
    "no_filter": {},
    "basic": {"language": "language", "width": "width", "height": "height"},
    "clip_score fraction": {"column": "score", "fraction": 0.5},
    "clip_score threshold": {"column": "score", "threshold": 0.5},
    "laion2b": {"column": "score", "language": "language"},
    "text_based": {"language": "language"},
    "image_based": {"file": "c.npz", "features": "img", "language": "language"},
    "intersection": {
        "file": "c.npz", "features": "img", "column": "score", "fraction": 0.5, "language": "language",
    },
    "listed": {"file": "list.txt", "column": "text"},
    "not_listed": {"file": "list.txt", "column": "text"},
}  # fmt: skip

MORE: dict[str, tuple[Row, str, list[Any]]] = {
    "range": ({"column": "score"}, "minimum", [0.5, 0.29, 0.0]),
    "top": ({"column": "score"}, "count", [0, 1, 3, 9]),
    "sample": ({}, "fraction", [0.0, 0.4, 0.8, 1.0]),
    "adaptive_bar": ({"column": "score", "bar": 0.9}, "tolerance", [0.0, 0.2, 0.5]),
    "balance": ({}, "target", [1, 2, 5, 20]),
    "near": ({"column": "phash"}, "distance", [8, 4, 2, 1]),
    "semantic": ({"features": "img"}, "epsilon", [1.5, 0.3, 0.05, 0.01]),
    "decontaminate": ({"annotation": "eval", "distance": 0}, "similarity", [-1.0, 0.28, 0.5, 1.0]),
    "clip_score threshold": ({"column": "score"}, "threshold", [0.5, 0.28, 0.0]),
}
"""A key of a rule, and values that keep more and more."""


@pytest.mark.parametrize("name", MORE)
@settings(max_examples=25, deadline=None)
@given(rows=rows_)
def test_a_rule_that_asks_less_keeps_more(name: str, rows: list[Row]) -> None:
    keys, key, values = MORE[name]
    found = [apply(CASES[name][1], table(rows), keys | {key: value}) for value in values]
    assert all(less <= more for less, more in pairwise(found))


@given(rows=rows_.filter(lambda rows: all(row["score"] == row["score"] for row in rows)))
def test_a_greater_fraction_of_datacomp_s_keeps_more(rows: list[Row]) -> None:
    """Without missing scores: where the rank falls on one, nothing is kept."""
    found = [
        apply("datacomp_clip_score", table(rows), {"column": "score", "fraction": fraction})
        for fraction in (0.0, 0.3, 0.31, 0.9, 1.0)
    ]
    assert all(less <= more for less, more in pairwise(found))


def test_datacomp_keeps_one_more_than_the_fraction() -> None:
    columns = {"uid": np.array(["0" * 32] * 10), "score": np.arange(10, dtype=np.float32) / 10}
    assert datacomp.datacomp_clip_score(columns, column="score", fraction=0.3).sum() == 4
    columns["score"] = np.array([0.29, 0.3, 0.28], np.float32)
    keep = datacomp.datacomp_clip_score(columns, column="score", threshold=0.29)
    assert keep.tolist() == [True, True, False]  # 0.29 in float64 is above the float32


def test_words_of_the_text_baseline_are_imagenet_s() -> None:
    ids = datacomp.imagenet_offsets()
    assert len(ids) == 21843
    words = ["dog", "Dogs", "bird", "rocked", "geese", "dog,", "thxxx", "of", "beautiful"]
    assert [wordnet.first_offset(word) in ids for word in words] == [True] * 5 + [False] * 4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.sampled_from("ab \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u00e9")),
        max_size=5,
    )
)
def test_words_and_characters_are_counted_as_python_does(texts: list[str]) -> None:
    columns = {"text": np.array(texts, object)}
    captions = datacomp.texts(columns, "text")
    assert datacomp.count_words(captions).tolist() == [len(text.split()) for text in texts]
    assert datacomp._lengths(captions).tolist() == [len(text) for text in texts]
