"""The nouns of WordNet 3.0, offline: what a word can mean, of what that is a kind, how far apart two meanings
are; and what any word means first.

Names, senses and path similarity are NLTK's. A synset's id is "n" and its offset, as ImageNet has it. The
data was made by scripts/wordnet.py; its licence lies beside it.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthgen.errors import RecipeError, nearest
from synthgen.shards import make_seed

Rows = npt.NDArray[np.int32]
ENDINGS = {
    "n": "s- ses-s ves-f xes-x zes-z ches-ch shes-sh men-man ies-y",
    "v": "s- ies-y es-e es- ed-e ed- ing-e ing-",
    "a": "er- est- er-e est-e",
    "r": "",
}
"""What the regular forms of nouns, verbs, adjectives and adverbs end with, and their base forms (morphy)."""
FAR = np.int32(1_000_000)
"""The distance to nothing: longer than any path."""


class Synset(NamedTuple):
    """A meaning: `id` "n02084071", `name` "dog.n.01", the words for it, and the ids of what it is a kind (or
    an instance) of.
    """

    id: str
    name: str
    lemmas: tuple[str, ...]
    definition: str
    hypernyms: tuple[str, ...]


class Nouns(NamedTuple):
    """All synsets in order of offset; the parents of row k are `parents[starts[k]:starts[k + 1]]`."""

    offsets: Rows
    parents: Rows
    starts: Rows
    table: pa.Table


def find(name: str) -> Synset:
    """The synset of an id "n02084071", or of a name "dog.n.01": a word of its and the number of the sense.

    Raises:
        RecipeError: WordNet 3.0 has no such noun.
    """
    return _synset(_row(name))


def is_known(name: str) -> bool:
    """Whether WordNet 3.0 has a synset."""
    try:
        find(name)
    except RecipeError:
        return False
    return True


def senses(lemma: str) -> list[Synset]:
    """What a word can mean, in WordNet's order, the most frequent first; nothing for an unknown word."""
    return [_synset(row) for row in _words().get(_key(lemma), ())]


@functools.lru_cache(1_000_000)
def first_offset(word: str) -> int | None:
    """The offset of the first meaning of a word in any form, None for an unknown word.

    It is NLTK's `synsets(word)[0].offset()` (3.7 and later): meanings as a noun before those as a verb, an
    adjective, an adverb; of each the word itself before what it is an irregular or else a regular form of.
    Offsets of the four kinds are numbered apart, so the offset of a verb can be some noun's too.
    """
    word = word.lower()
    first, forms = _first_senses()
    for pos, endings in _endings().items():
        regular = [word.removesuffix(old) + new for old, new in endings if word.endswith(old)]
        for form in (word, *forms[pos].get(word, regular)):
            if form in first[pos]:
                return first[pos][form]
    return None


def ancestors(name: str) -> dict[str, int]:
    """The ids of a synset and of all that it is a kind of, with their least distance; nearest first."""
    _, rows, distances = _climb(np.array([_row(name)], np.int32))
    order = np.argsort(distances, kind="stable")
    return {
        _id(row): steps for row, steps in zip(rows[order].tolist(), distances[order].tolist(), strict=True)
    }


def is_a(name: str, what: str) -> bool:
    """Whether a synset is, or is a kind of, `what`: a synset, or a word in any of its senses.

    `is_a("n01558993", "bird")` is True: a robin. An unknown word is nothing's hypernym.

    Raises:
        RecipeError: WordNet 3.0 has no synset `name`, or `what` looks like a synset and is none.
    """
    return (find(what).id if _looks_like_synset(what) else _key(what)) in _kinds(name)


@functools.lru_cache(100_000)
def _kinds(name: str) -> frozenset[str]:
    """The ids of a synset and of all above it, and their words as `_key` spells them."""
    above = [find(one) for one in ancestors(name)]
    return frozenset(word for synset in above for word in (synset.id, *map(_key, synset.lemmas)))


def greatest_similarity(candidates: Sequence[str], known: Sequence[str]) -> npt.NDArray[np.float64]:
    """For each candidate its greatest path similarity to any known synset: float64 of shape (candidates,).

    The similarity is 1 / (1 + d), d the number of steps of the shortest path up to a common hypernym and
    down again: 1 for the same, 1/2 for parent and child, 1/3 for siblings. It is 0 where nothing is known.

    Raises:
        RecipeError: WordNet 3.0 has no such synset.
    """
    least = _least(_paths(_rows(candidates)), _nearest_known(_rows(known)), len(candidates))
    similarity: npt.NDArray[np.float64] = np.where(least < FAR, 1 / (1 + least), 0)
    return similarity


def farthest(candidates: Sequence[str], known: Sequence[str], count: int) -> list[int]:
    """The places of `count` candidates, each as far by path as can be from the known and those before it.

    Greedy k-center: no candidate is left more than twice as far from its nearest as the best choice would
    leave it (Gonzalez, 1985). A smaller count gives the beginning of a greater one's. Of candidates that are
    equally far a hash of the synset decides: class lists go by kind, so their first would be all of one kind.

    Raises:
        RecipeError: WordNet 3.0 has no such synset.
    """
    rows = _rows(candidates)
    order = sorted(range(len(rows)), key=lambda place: make_seed(_id(int(rows[place]))))
    paths = _paths(rows[order])
    best = _nearest_known(_rows(known))
    chosen: list[int] = []
    is_free = np.ones(len(rows), bool)
    for _ in range(min(count, len(rows))):
        least = _least(paths, best, len(rows))
        place = int(np.argmax(np.where(is_free, least, -1)))
        is_free[place] = False
        chosen.append(order[place])
        _, above, distances = _climb(rows[[order[place]]])
        best[above] = np.minimum(best[above], distances)
    return chosen


class Paths(NamedTuple):
    """Each synset's ancestors one after another: those of the k-th begin at `firsts[k]`."""

    firsts: npt.NDArray[np.intp]
    rows: Rows
    distances: Rows


def _paths(rows: Rows) -> Paths:
    owners, above, distances = _climb(rows)
    return Paths(np.searchsorted(owners, np.arange(len(rows))), above, distances)


def _least(paths: Paths, best: Rows, count: int) -> Rows:
    """The shortest path from each synset to what is known, given how far each ancestor is from that."""
    if not count:
        return np.empty(0, np.int32)
    least: Rows = np.minimum.reduceat(best[paths.rows] + paths.distances, paths.firsts)
    return least


def _nearest_known(known: Rows) -> Rows:
    """For each synset of WordNet the least number of steps up to it from any known one, or FAR."""
    _, above, distances = _climb(known)
    best = np.full(len(_nouns().offsets), FAR)
    np.minimum.at(best, above, distances)
    return best


def _climb(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """All ancestors of some rows, themselves among them: whose (a place in `rows`), which row, how far above.

    Sorted by owner, and within an owner by row.
    """
    _, parents, starts, _ = _nouns()
    owners, at = np.arange(len(rows), dtype=np.int64), rows.astype(np.int64)
    size, level = len(starts), 0
    keys, levels = [owners * size + at], [np.zeros(len(rows), np.int32)]
    while len(at):
        counts = starts[at + 1] - starts[at]
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        above = parents[np.repeat(starts[at], counts) + step]
        level += 1
        keys.append(np.unique(np.repeat(owners, counts) * size + above))
        levels.append(np.full(len(keys[-1]), level, np.int32))
        owners, at = np.divmod(keys[-1], size)
    # levels rise, so the first of equal keys is the shortest way up
    found, first = np.unique(np.concatenate(keys), return_index=True)
    owners, at = np.divmod(found, size)
    return owners.astype(np.int32), at.astype(np.int32), np.concatenate(levels)[first]


@functools.cache
def _nouns() -> Nouns:
    table = pq.read_table(Path(__file__).with_name("wordnet-3.0-nouns.parquet"), use_threads=False)
    table = table.combine_chunks()
    offsets = table["offset"].to_numpy().astype(np.int32)
    above = table["hypernyms"].combine_chunks()
    parents = np.searchsorted(offsets, above.flatten().to_numpy()).astype(np.int32)
    return Nouns(offsets, parents, above.offsets.to_numpy().astype(np.int32), table)


@functools.cache
def _words() -> dict[str, list[int]]:
    """Each word, as `_key` spells it, with the rows of its synsets in the order of its senses."""
    table = _nouns().table
    lemmas, numbers = table["lemmas"].combine_chunks(), table["senses"].combine_chunks().flatten().to_numpy()
    rows = np.repeat(np.arange(len(table)), np.diff(lemmas.offsets.to_numpy()))
    order = np.argsort(numbers, kind="stable")
    words: dict[str, list[int]] = {}
    for word, row in zip(
        pc.utf8_lower(lemmas.flatten()).take(pa.array(order)).to_pylist(), rows[order].tolist(), strict=True
    ):
        meanings = words.setdefault(word, [])
        if row not in meanings[-1:]:  # a synset may have one word in two cases, "Ra" and "RA"
            meanings.append(row)
    return words


@functools.cache
def _endings() -> dict[str, list[tuple[str, str]]]:
    pairs = {pos: [pair.partition("-") for pair in endings.split()] for pos, endings in ENDINGS.items()}
    return {pos: [(old, new) for old, _, new in found] for pos, found in pairs.items()}


@functools.cache
def _first_senses() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, list[str]]]]:
    """By kind of word: the offset of each base form's first meaning; the bases of each irregular form."""
    offsets = _nouns().offsets.tolist()
    first = {pos: dict[str, int]() for pos in ENDINGS}
    first["n"] = {word: offsets[rows[0]] for word, rows in _words().items()}
    forms = {pos: dict[str, list[str]]() for pos in ENDINGS}
    path = Path(__file__).with_name("wordnet-3.0-first-senses.parquet")
    for pos, word, offset, bases in zip(
        *pq.read_table(path, use_threads=False).to_pydict().values(), strict=True
    ):
        if offset is None:
            forms[pos][word] = bases
        else:
            first[pos][word] = offset
    return first, forms


def _key(lemma: str) -> str:
    return lemma.strip().lower().replace(" ", "_")


def _id(row: int) -> str:
    return f"n{int(_nouns().offsets[row]):08d}"


def _synset(row: int) -> Synset:
    _, parents, starts, table = _nouns()
    lemmas = table["lemmas"][row].as_py()
    number = table["senses"][row][0].as_py()
    return Synset(
        _id(row),
        f"{lemmas[0].lower()}.n.{number:02d}",
        tuple(lemma.replace("_", " ") for lemma in lemmas),
        table["definition"][row].as_py(),
        tuple(_id(parent) for parent in parents[starts[row] : starts[row + 1]]),
    )


def _rows(names: Sequence[str]) -> Rows:
    return np.array([_row(name) for name in names], np.int32)


def _is_id(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdecimal()


def _looks_like_synset(name: str) -> bool:
    word, _, number = name.rpartition(".n.")
    return _is_id(name) or bool(word and number.isdecimal())


def _row(name: str) -> int:
    """The row of a synset's id or name."""
    offsets = _nouns().offsets
    if _is_id(name):
        row = int(np.searchsorted(offsets, int(name[1:])))
        if row < len(offsets) and offsets[row] == int(name[1:]):
            return row
        raise RecipeError(
            f'unknown synset "{name}": no noun of WordNet 3.0 has this id; ids of 3.1 are others'
        )
    if not _looks_like_synset(name):
        raise RecipeError(
            f'"{name}" is no synset; an id of WordNet 3.0 such as "n02084071", or a name such as "dog.n.01" '
            "is wanted"
        )
    word, _, number = name.rpartition(".n.")
    rows = _words().get(_key(word), [])
    if 1 <= int(number) <= len(rows):
        return rows[int(number) - 1]
    if rows:
        allowed = f"{word}.n.01 to {word}.n.{len(rows):02d}" if len(rows) > 1 else f"{word}.n.01 alone"
        raise RecipeError(f'unknown synset "{name}": as a noun "{word}" has {allowed}')
    raise RecipeError(
        f'unknown synset "{name}": WordNet 3.0 has no noun "{word}"{nearest(_key(word), list(_words()))}'
    )
