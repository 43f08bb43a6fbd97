"""How diverse texts are, and how evenly classes meet the words of axes: planned, and again of what was kept.

Figures are of a seeded sample where a whole dataset would take long; balance is of all rows.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from synthgen.errors import SynthgenError, nearest

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
SAMPLE, CLASS_SAMPLE, WIDTH, NEIGHBOURS, LEAST_EXPECTED = 10_000, 1000, 512, 5, 5.0
NEAR = 0.7
SHINGLE_WORDS = 5
PERMUTATIONS, BANDS, ROWS = 125, 25, 5
"""MinHash LSH finds a pair of Jaccard similarity 0.7 with probability 0.99, of 0.8 with 0.9999; what it
finds is then compared exactly.
"""
CHUNK = 10_000


def measure(
    texts: Sequence[str],
    class_names: Sequence[str],
    axes: Mapping[str, Sequence[str]],
    *,
    embed: Embed | None = None,
    reference: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The figures of a set of prompts, by name; NaN where one is not defined.

    `distinct_texts`, `distinct_1`, `distinct_2` (share of different texts, words, pairs of words),
    `self_bleu`, `commonest_opener`, `near_duplicates` (shares, less is more diverse), `vendi`, `vendi_class`
    (in effect so many different texts: of all, of a class on average), `coverage` of the reference,
    `cramers_v_<axis>` (0 is no tie between class and axis).

    Args:
        texts: the prompts.
        class_names: the class of each.
        axes: each axis's word of each prompt, "" where it has none.
        embed: gives n texts as unit vectors of shape (n, width); None counts words and pairs of words.
        reference: what is to be covered; None leaves `coverage` out.
        seed: of the samples: at most 10,000 texts, and for the figures of single classes as many classes as
            have about that many, at most 1,000 texts of each.
    """
    if not texts:
        raise SynthgenError("diversity: there are no texts to measure")
    rows = sample_of(len(texts), seed)
    some = [texts[row] for row in rows]
    whole = _some_classes(texts, class_names, seed)
    others = [] if reference is None else [reference[row] for row in sample_of(len(reference), seed)]
    within = [(embed or word_vectors(own))(own) for own in whole]
    embed = embed or word_vectors([*some, *others])
    vectors = embed(some)
    found = {
        "texts": float(len(texts)),
        "distinct_texts": len(set(zip(class_names, texts, strict=True))) / len(texts),
        "distinct_1": distinct(some, 1),
        "distinct_2": distinct(some, 2),
        "self_bleu": self_bleu(some),
        "commonest_opener": commonest_opener(some),
        "near_duplicates": _near_duplicates(whole),
        "vendi": vendi(vectors),
        "vendi_class": float(np.mean([vendi(own) for own in within])),
    }
    if reference is not None:
        found["coverage"] = coverage(vectors, embed(others))
    for axis, words in axes.items():
        there = [(name, word) for name, word in zip(class_names, words, strict=True) if word]
        found[f"cramers_v_{axis}"] = cramers_v(there)
    return found


def unmet(found: Mapping[str, float], bounds: Sequence[str], *, least: bool) -> list[str]:
    """The bounds "KEY=VALUE" that do not hold, in words. A figure that is not defined holds no bound.

    Raises:
        SynthgenError: a bound is malformed, or of an unknown figure.
    """
    failed, option = [], "--fail-under" if least else "--fail-over"
    for bound in bounds:
        key, _, text = bound.partition("=")
        try:
            value = float(text)
        except ValueError:
            raise SynthgenError(f"{option} {bound}: KEY=VALUE is wanted, such as vendi=20") from None
        if key not in found:
            raise SynthgenError(f'{option} {bound}: unknown figure "{key}"{nearest(key, list(found))}')
        if not (found[key] >= value if least else found[key] <= value):
            own = "not defined (too few)" if np.isnan(found[key]) else f"{found[key]:.4g}"
            failed.append(f"{key} is {own}, {'at least' if least else 'at most'} {text} is wanted")
    return failed


def sample_of(count: int, seed: int, most: int = SAMPLE) -> list[int]:
    """At most so many different numbers below `count`, sorted; all of them where there are no more."""
    if count <= most:
        return list(range(count))
    bits = hashlib.shake_128(f"{seed} {count}".encode()).digest(8 * count)
    return sorted(np.argsort(np.frombuffer(bits, "<u8"), kind="stable")[:most].tolist())


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words among all of them, 0 to 1. Source: Li et al., arXiv 1510.03055."""
    grams = [gram for text in texts for gram in _grams(normalised(text).split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def commonest_opener(texts: Sequence[str]) -> float:
    """The share of the texts that begin with the commonest first three words."""
    openers = Counter(tuple(normalised(text).split()[:3]) for text in texts)
    return max(openers.values()) / len(texts)


def self_bleu(texts: Sequence[str]) -> float:
    """The mean BLEU-4 of each text with all others as its references: 1 is all alike, 0 nothing in common.

    A clipped count is by the most of any other text, so the two greatest of each n-gram are all that is
    needed. An n-gram length without a match counts as 0.1 matches, one longer than the text is left out.
    Source: Zhu et al., arXiv 1802.01886.
    """
    if len(texts) < 2:
        return 0.0
    split = [normalised(text).split() for text in texts]
    logs, orders = np.zeros(len(texts)), np.zeros(len(texts))
    for n in range(1, 5):
        counts = [Counter(_grams(words, n)) for words in split]
        most: dict[tuple[str, ...], tuple[int, int, int]] = {}  # greatest, whose, second
        for k, own in enumerate(counts):
            for gram, count in own.items():
                first, who, second = most.get(gram, (0, -1, 0))
                most[gram] = (count, k, first) if count > first else (first, who, max(second, count))
        for k, own in enumerate(counts):
            if not own:
                continue
            matched = 0
            for gram, count in own.items():
                first, who, second = most[gram]
                matched += min(count, second if who == k else first)
            logs[k] += np.log(max(matched, 0.1) / own.total())
            orders[k] += 1
    lengths = np.array([len(words) for words in split])
    known = np.unique(lengths, return_counts=True)
    scores = [
        _brevity(int(length), known) * np.exp(log / order) if order else 0.0
        for length, log, order in zip(lengths, logs, orders, strict=True)
    ]
    return float(np.mean(scores))


def _brevity(length: int, known: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]) -> float:
    """BLEU's penalty of a text that is shorter than the other whose length is nearest."""
    lengths, counts = known
    others = lengths[counts - (lengths == length) > 0]
    nearest_length = others[np.lexsort((others, np.abs(others - length)))[0]]
    return float(min(1.0, np.exp(1 - nearest_length / max(length, 1))))


def duplicates(texts: Sequence[str]) -> list[str]:
    """For each text, "exact duplicate" or "near duplicate" of an earlier one that is neither, or ""."""
    if len(texts) < 2:
        return [""] * len(texts)
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
    reasons, seen, kept = list[str](), set[str](), dict[int, frozenset[str]]()
    for place, (words, shingles, minhash) in enumerate(_shingled(texts)):
        whole = " ".join(words)
        if whole in seen:
            reasons.append("exact duplicate")
            continue
        if any(_jaccard(shingles, kept[other]) >= NEAR for other in index.query(minhash)):
            reasons.append("near duplicate")
            continue
        index.insert(place, minhash, check_duplication=False)
        seen.add(whole)
        kept[place] = shingles
        reasons.append("")
    return reasons


def _shingled(texts: Sequence[str]) -> Iterator[tuple[list[str], frozenset[str], Any]]:
    """Words, shingles and MinHash of each text."""
    from datasketch import MinHash

    for start in range(0, len(texts), CHUNK):
        words = [normalised(text).split() for text in texts[start : start + CHUNK]]
        shingles = [
            frozenset(
                " ".join(entry[k : k + SHINGLE_WORDS]) for k in range(max(1, len(entry) - SHINGLE_WORDS + 1))
            )
            for entry in words
        ]
        hashes = MinHash.bulk(
            [[shingle.encode() for shingle in sorted(entry)] for entry in shingles],
            num_perm=PERMUTATIONS,
            seed=1,
        )
        yield from zip(words, shingles, hashes, strict=True)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def normalised(text: str) -> str:
    """Words in small letters with one space between: texts that differ in nothing else are equal."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def word_vectors(corpus: Sequence[str]) -> Embed:
    """An embedding that needs no model: words and pairs of words, hashed to 512 numbers, the rarer in the
    corpus the heavier. Texts with no word in common are about orthogonal.
    """
    seen = Counter(gram for text in corpus for gram in set(_words_and_pairs(text)))
    weights = {gram: np.log((1 + len(corpus)) / count) for gram, count in seen.items()}
    places = {gram: int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest()) for gram in seen}

    def embed(texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in enumerate(texts):
            for gram in _words_and_pairs(text):
                place = places.get(gram, 0)
                vectors[row, place % WIDTH] += weights.get(gram, 0.0) * (1 if place >> 32 & 1 else -1)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    return embed


def vendi(vectors: Vectors) -> float:
    """How many different rows there are in effect, 1 to n: the exponential of the entropy of the eigenvalues
    of the cosine kernel, of unit vectors (n, width).

    Source: Friedman and Dieng, arXiv 2210.02410, definition 3.1. The kernel and the covariance have the same
    eigenvalues, so the smaller of the two is taken.
    """
    unit = vectors.astype(np.float64)
    kernel = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    values = np.linalg.eigvalsh(kernel / len(unit)).clip(1e-12)
    return float(np.exp(-(values * np.log(values)).sum()))


def coverage(vectors: Vectors, reference: Vectors) -> float:
    """The share of the reference that has one of the vectors no farther off than its fifth neighbour in the
    reference, 0 to 1. Source: Naeem et al., arXiv 2002.09797, equation 5.
    """
    k, near = min(NEIGHBOURS, len(reference) - 1), 0
    for start in range(0, len(reference), 1000):
        part = reference[start : start + 1000]
        own = part @ reference.T
        # itself is the nearest
        radius = -np.partition(-own, k, axis=1)[:, k]
        near += int(((part @ vectors.T).max(axis=1) >= radius - 1e-6).sum())
    return near / len(reference)


def farthest_points(vectors: Vectors, count: int, known: Vectors | None = None) -> list[int]:
    """The rows of a diverse choice, in the order chosen: always the one that is least like any that is known
    or chosen (cosine of unit vectors; a tie falls to the earlier row, so that without known ones the first
    row begins).
    """
    likeness = np.full(len(vectors), -1.0)
    if known is not None:
        likeness = (vectors @ known.T).max(axis=1, initial=-1.0)
    chosen = list[int]()
    while len(chosen) < min(count, len(vectors)):
        chosen.append(int(likeness.argmin()))
        likeness = np.maximum(likeness, vectors @ vectors[chosen[-1]])
        likeness[chosen] = np.inf
    return chosen


def cramers_v(pairs: Sequence[tuple[str, str]]) -> float:
    """How closely two labels go together, 0 to 1, corrected for the bias of small counts.

    NaN where a count expected of independence is below 5, where chi-squared means little, or there is but one
    value. Source: Bergsma, J. Korean Stat. Soc. 42 (2013).
    """
    if not pairs:
        return float("nan")
    rows, columns = (
        {value: k for k, value in enumerate(dict.fromkeys(side))} for side in zip(*pairs, strict=True)
    )
    if min(len(rows), len(columns)) < 2:
        return float("nan")
    table = np.zeros((len(rows), len(columns)))
    for (row, column), count in Counter(pairs).items():
        table[rows[row], columns[column]] = count
    n = table.sum()
    expected = table.sum(1, keepdims=True) @ table.sum(0, keepdims=True) / n
    if expected.min() < LEAST_EXPECTED:
        return float("nan")
    phi = ((table - expected) ** 2 / expected).sum() / n
    r, c = table.shape
    phi = max(0.0, phi - (r - 1) * (c - 1) / (n - 1))
    r, c = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
    return float(np.sqrt(phi / min(r - 1, c - 1)))


def _near_duplicates(whole: Sequence[Sequence[str]]) -> float:
    """The share of texts that say nearly what an earlier one of their class says, and not the very same."""
    reasons = [reason for own in whole for reason in duplicates(own)]
    return reasons.count("near duplicate") / len(reasons)


def _some_classes(texts: Sequence[str], class_names: Sequence[str], seed: int) -> list[list[str]]:
    """The texts of some classes, class by class, so that a figure of a class does not depend on how many
    there are.
    """
    of: dict[str, list[str]] = {}
    for name, text in zip(class_names, texts, strict=True):
        of.setdefault(name, []).append(text)
    found, count = list[list[str]](), 0
    for name in sorted(of, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if count >= SAMPLE:
            break
        found.append([of[name][row] for row in sample_of(len(of[name]), seed, CLASS_SAMPLE)])
        count += len(found[-1])
    return found


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def _words_and_pairs(text: str) -> list[str]:
    words = normalised(text).split()
    return words + [" ".join(gram) for gram in _grams(words, 2)]
