"""The best part of more rows than fit in memory: exact, from counters that can be added up.

A score and a uid are a key of ten digits of 16 bits, the score's two first. One pass over the rows counts
each value of one digit among the rows that can still be the last one taken, so two passes find its score, and
a third is needed only where several rows tie there. Counters of parts of the rows may be made anywhere, and
added.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BUCKETS = 2**16
DIGITS = 10


class Part(NamedTuple):
    """Some of the rows: `score` float32, `uid` dtype "u8,u8", `cell` the number of each row's cell; all of
    shape (rows,).
    """

    score: npt.NDArray[np.float32]
    uid: npt.NDArray[np.void]
    cell: npt.NDArray[np.intp]


class Bound(NamedTuple):
    """The last row that is taken of each cell: the first `length` digits of its key, shape (cells, length),
    and which cells take none; all rows with these digits are taken.
    """

    digits: npt.NDArray[np.int64]
    is_empty: npt.NDArray[np.bool_]


def ordered(score: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Numbers that rise as scores fall; -0.0 is 0.0, and NaN is not to be looked at."""
    bits = (score + np.float32(0)).view(np.uint32)
    sign = (bits >> np.uint32(31)).astype(bool)
    return np.where(sign, bits, ~bits & np.uint32(0x7FFFFFFF))


def digit(part: Part, place: int) -> npt.NDArray[np.int64]:
    """The digit of each row's key at a place, 0 to 9."""
    if place < 2:
        return ((ordered(part.score) >> np.uint32(16 * (1 - place))) & np.uint32(0xFFFF)).astype(np.int64)
    half = part.uid["f0" if place < 6 else "f1"]
    return ((half >> np.uint64(16 * (3 - (place - 2) % 4))) & np.uint64(0xFFFF)).astype(np.int64)


def top_bound(
    parts: Callable[[], Iterable[Part]],
    *,
    n_cells: int = 1,
    fraction: float | None = None,
    count: int | None = None,
) -> Bound:
    """The bound of the best `fraction` (rounded half up) or `count` of each cell, as the rule `top` has it.

    Args:
        parts: gives all rows, the same each time it is called; it is called once for each digit that is
            needed: twice, or more where scores tie.
        n_cells: half a megabyte of counters is held for each.
    """
    found = np.zeros((n_cells, 0), np.int64)
    wanted, is_empty = np.zeros(n_cells, np.int64), np.zeros(n_cells, bool)
    for place in range(DIGITS):
        counts, sizes = np.zeros(n_cells * BUCKETS, np.int64), np.zeros(n_cells, np.int64)
        for part in parts():
            open_, values = _still_open(part, found)
            counts += np.bincount(part.cell[open_] * BUCKETS + values, minlength=len(counts))
            sizes += np.bincount(part.cell, minlength=n_cells)
        table = counts.reshape(n_cells, BUCKETS)
        if place == 0:
            asked = (
                np.full(n_cells, count)
                if fraction is None
                else np.floor(sizes * fraction + 0.5).astype(np.int64)
            )
            wanted = np.minimum(asked, table.sum(axis=1))
            is_empty = wanted == 0
        before = np.cumsum(table, axis=1)
        last = np.minimum((before < np.maximum(wanted, 1)[:, None]).sum(axis=1), BUCKETS - 1)
        own = table[np.arange(n_cells), last]
        wanted = wanted - (before[np.arange(n_cells), last] - own)
        found = np.hstack([found, last[:, None]])
        if place and ((wanted == own) | is_empty).all():
            break
    return Bound(found, is_empty)


def is_within(part: Part, bound: Bound) -> npt.NDArray[np.bool_]:
    """Which rows are taken."""
    better, same = np.zeros(len(part.score), bool), ~np.isnan(part.score)
    for place in range(bound.digits.shape[1]):
        values, last = digit(part, place), bound.digits[part.cell, place]
        better |= same & (values < last)
        same &= values == last
    return (better | same) & ~bound.is_empty[part.cell]


def _still_open(
    part: Part, found: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """The rows whose first digits are those that were found, and the next digit of each."""
    rows = np.flatnonzero(~np.isnan(part.score))
    for place in range(found.shape[1]):
        own = _at(part, rows)
        rows = rows[digit(own, place) == found[own.cell, place]]
    return rows, digit(_at(part, rows), found.shape[1])


def _at(part: Part, rows: npt.NDArray[np.intp]) -> Part:
    return Part(part.score[rows], part.uid[rows], part.cell[rows])
