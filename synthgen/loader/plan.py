"""The plan of an epoch: which samples each batch of a rank has, by numbers alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from synthgen.loader.ordering import group_order, interleaved, part_of_rank, pass_order

Places = npt.NDArray[np.int64]
"""Samples of a batch, a row each: epoch, place in the epoch, source, shard, row, group."""


@dataclass(frozen=True)
class Plan:
    """What decides the order of samples, and which of them are a rank's. A unit is a sample, or the
    `positives` that come together. `len` counts the batches of this rank.
    """

    rows: list[list[npt.NDArray[np.int64]]]
    """Of each source, of each shard: the rows that are loaded."""
    ties: list[npt.NDArray[np.int64]]
    """Of each source, the group of each of its positions; empty where nobody asks for it."""
    per_pass: list[int]
    """Of each source, its units."""
    per_epoch: list[int]
    """Of each source, units an epoch."""
    batch_size: int
    positives: int
    seed: int
    window: int
    """Samples that are shuffled among one another; 0 keeps the order."""
    is_mixed: bool
    rank: int
    world_size: int
    last: str

    @property
    def units(self) -> int:
        """Units of an epoch."""
        return sum(self.per_epoch)

    @property
    def step(self) -> int:
        """Units of one batch of every rank."""
        return self.batch_size // self.positives * self.world_size

    def __len__(self) -> int:
        whole, rest = divmod(self.units, self.step)
        return whole + (len(self._last(rest)) > 0)

    def _last(self, rest: int) -> range:
        """This rank's part of the places, from 0, of the last step of an epoch, which is not whole."""
        if self.last == "drop" or not rest:
            return range(0)
        if self.last == "equal":
            rest += -rest % self.world_size
        return range(*part_of_rank(0, rest, self.rank, self.world_size))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Places]:
        """The batches of this rank in an epoch, from the unit `start` on."""
        source, positions = self._epoch(epoch)
        for first in range(start, self.units, self.step):
            rest = min(self.step, self.units - first)
            if rest == self.step:
                units = np.arange(*part_of_rank(first, first + rest, self.rank, self.world_size))
            else:
                units = (first + np.array(self._last(rest), np.int64)) % self.units
            if len(units):
                yield self._located(epoch, units, source[units], positions[units])

    def _epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The source of each unit of an epoch, shape (n,), and its positions in it, shape (n, positives)."""
        taken = [self._take(number, epoch * count, count) for number, count in enumerate(self.per_epoch)]
        whole = np.concatenate(taken)
        if not self.is_mixed:
            return np.repeat(np.arange(len(taken)), self.per_epoch), whole
        source = interleaved(self.per_epoch)
        positions = np.empty_like(whole)
        for number, own in enumerate(taken):
            positions[source == number] = own
        return source, positions

    def _take(self, number: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """`count` units of a source from `start` on, of its passes one after another."""
        turn, skip = divmod(start, self.per_pass[number])
        parts, have = [np.empty((0, self.positives), np.int64)], 0
        while have < count + skip:
            parts.append(self._pass(number, turn + len(parts) - 1))
            have += self.per_pass[number]
        return np.concatenate(parts)[skip : skip + count]

    def _pass(self, number: int, turn: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, number, turn]) if self.window else None
        if self.positives > 1:
            return group_order(self.ties[number], self.positives, rng)
        return pass_order([len(own) for own in self.rows[number]], rng, self.window)[:, None]

    def _located(
        self, epoch: int, units: npt.NDArray[np.int64], source: npt.NDArray[np.int64], positions: Places
    ) -> Places:
        """Where the samples of a batch lie."""
        places = np.empty((positions.size, 6), np.int64)
        places[:, 0] = epoch
        places[:, 1] = (units[:, None] * self.positives + np.arange(self.positives)).ravel()
        places[:, 2] = np.repeat(source, self.positives)
        flat, offset = positions.ravel(), 0
        for number, (ends, rows) in enumerate(self._places):
            own = places[:, 2] == number
            at = flat[own]
            places[own, 3] = np.searchsorted(ends, at, side="right")
            places[own, 4] = rows[at]
            places[own, 5] = offset + (self.ties[number][at] if len(self.ties[number]) else at)
            offset += len(rows)
        return places

    @cached_property
    def _places(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Of each source, where each shard ends and the row of each position."""
        return [(np.cumsum([len(own) for own in rows]), np.concatenate(rows)) for rows in self.rows]
