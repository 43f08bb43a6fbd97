"""In which order samples come: functions of seed and epoch alone, never of ranks or workers.

A source is a row of positions, 0 to its size. Each pass over it is an order of all of them; an epoch takes
the next so many of these endless passes, and lays those of several sources evenly between one another.
A unit is what comes together: one sample, or the images of one prompt.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

BLOCK = 256
"""Neighbours in a shard that are read one after another."""


def pass_order(sizes: Sequence[int], rng: np.random.Generator | None, window: int) -> Positions:
    """All positions of a source whose shards have these sizes: in their order without `rng`, else blocks of
    256 neighbours in a random order, and shuffled within windows of so many samples, shape (sum(sizes),).

    A source that is no larger than the window is shuffled whole.
    """
    total = sum(sizes)
    if rng is None:
        return np.arange(total)
    starts, at = list[int](), 0
    for size in sizes:
        starts += range(at, at + size, BLOCK)
        at += size
    ends = np.array([*starts[1:], total])
    begins = np.array(starts, np.int64)
    order = rng.permutation(len(begins))
    pieces = [np.arange(begins[k], ends[k]) for k in order]
    positions = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    for start in range(0, total, window):
        rng.shuffle(positions[start : start + window])
    return positions


def group_order(groups: npt.NDArray[np.int64], positives: int, rng: np.random.Generator | None) -> Positions:
    """Positions of samples that come together, shape (n, positives): of each group as many whole rows as it
    has, each position at most once. Which of a group are left over changes with `rng`.
    """
    count = len(groups)
    shuffled = np.arange(count) if rng is None else rng.permutation(count)
    ordered = shuffled[np.argsort(groups[shuffled], kind="stable")]
    named = groups[ordered]
    first = np.searchsorted(named, named)  # where each one's group begins
    place = np.arange(count) - first
    whole = np.searchsorted(named, named, side="right") - first
    rows = ordered[place < whole // positives * positives].reshape(-1, positives)
    if rng is None:
        return rows[np.argsort(rows[:, 0], kind="stable")] if len(rows) else rows
    return rng.permutation(rows)


def shares(weights: Sequence[float], total: int) -> list[int]:
    """How many of `total` each weight gets: its part, rounded so that they add up (largest remainders)."""
    exact = np.array(weights, float) / sum(weights) * total
    counts = np.floor(exact + 1e-9).astype(int)
    for k in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[k] += 1
    return [int(count) for count in counts]


def interleaved(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which source each place of an epoch is of, shape (sum(counts),): each evenly spread, and those of one
    size in turns, so that a stretch of any length has of each its part, give or take one (of many sources of
    several sizes: a few).
    """
    of = np.repeat(np.arange(len(counts)), counts)
    alike = [[k for k, other in enumerate(counts) if other == count] for count in counts]
    starts = [(own.index(k) + 0.5) / len(own) for k, own in enumerate(alike)]
    at = np.concatenate(
        [(np.arange(count) + start) / max(count, 1) for count, start in zip(counts, starts, strict=True)]
    )
    return of[np.argsort(at, kind="stable")]


def part_of_rank(start: int, end: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of places `start` to `end` that is a rank's: neighbours, as even as can be."""
    count = end - start
    return start + count * rank // world_size, start + count * (rank + 1) // world_size
