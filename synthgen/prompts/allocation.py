"""The designed order of templates and words: which row meets which word of each axis.

A round of an axis is as many rows as it has words, each word once: over any prefix the counts of two words
differ by at most one. Which row of the round gets which word is an assignment problem, solved exactly: of
whole rows, then of pairs with the words that are there already, then of triples as few repeat as can be.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

REPEAT, PAIR, TRIPLE, NOISE = 2.0**40, 2.0**28, 2.0**14, 2**6
"""What a whole row, a pair or a triple costs that was there before; noise below `NOISE` decides between
equals.
"""
NEVER = 2.0**50
MOST_TRIPLES = 2**21
"""Three axes with more combinations than this are not counted: their triples hardly repeat."""

IsAllowed = Callable[[dict[int, int]], bool]


class Design:
    """Endless rows of word numbers, made as they are asked for; row k depends on nothing but the arguments.

    Args:
        sizes: how many templates there are (axis 0), and how many words each axis has.
        uses: for each template, whether it has each axis (entry 0 is true).
        seed: decides between assignments that are equally good.
        is_allowed: whether these words (axis -> word number), chosen so far for a row, may stand together.
    """

    def __init__(
        self, sizes: Sequence[int], uses: Sequence[Sequence[bool]], seed: int, is_allowed: IsAllowed | None
    ) -> None:
        self._sizes, self._uses, self._seed, self._is_allowed = sizes, uses, seed, is_allowed
        n = len(sizes)
        self._values: list[list[int]] = [[] for _ in range(n)]  # -1 where the row's template lacks the axis
        self._rounds = [0] * n
        self._met = [np.zeros(size, np.int64) for size in sizes]
        self._rows = Counter[tuple[int, ...]]()
        self._last = [max(axis for axis, used in enumerate(own) if used) for own in uses]
        # a last row for "not there", which is never counted
        self._pairs = {(i, j): _table(sizes, i, j) for i, j in combinations(range(n), 2)}
        self._triples = {
            (i, j, k): _table(sizes, i, j, k)
            for i, j, k in combinations(range(n), 3)
            if sizes[i] * sizes[j] * sizes[k] <= MOST_TRIPLES
        }

    def row(self, number: int) -> list[int]:
        """The template of a row and its word of each axis, -1 where the template lacks the axis.

        Raises:
            ValueError: no word of an axis may stand beside those of the row; its argument is the axis.
        """
        for axis in range(len(self._sizes)):
            self._fill(axis, number)
        return [values[number] for values in self._values]

    def _fill(self, axis: int, row: int) -> None:
        values = self._values[axis]
        while len(values) <= row:
            rows = self._next_rows(axis)
            chosen = self._assign(axis, rows)
            values.extend([-1] * (rows[-1] + 1 - len(values)))
            for place, word in zip(rows, chosen, strict=True):
                values[place] = word
            self._count(axis, rows, chosen)

    def _next_rows(self, axis: int) -> list[int]:
        """The rows of the axis's next round; all axes before it are filled that far."""
        row, rows = len(self._values[axis]), list[int]()
        while len(rows) < self._sizes[axis]:
            if axis:
                self._fill(0, row)
            if axis == 0 or self._uses[self._values[0][row]][axis]:
                rows.append(row)
            row += 1
        for other in range(1, axis):
            self._fill(other, rows[-1])
        return rows

    def _assign(self, axis: int, rows: list[int]) -> list[int]:
        words = _least_used(self._met[axis])
        before = [np.array([self._values[other][row] for row in rows]) for other in range(axis)]
        cost = np.zeros((len(rows), self._sizes[axis]))
        for other, values in enumerate(before):
            cost += PAIR * self._pairs[other, axis][values]
        for one, other in combinations(range(axis), 2):
            if (one, other, axis) in self._triples:
                cost += TRIPLE * self._triples[one, other, axis][before[one], before[other]]
        forbidden = np.zeros(cost.shape, bool)
        for place, row in enumerate(zip(*(values.tolist() for values in before), strict=True)):
            if axis and axis == self._last[row[0]]:
                cost[place] += [REPEAT * self._rows[*row, word] for word in range(self._sizes[axis])]
            if self._is_allowed:
                there = {other: value for other, value in enumerate(row) if value >= 0}
                forbidden[place] = [
                    not self._is_allowed({**there, axis: word}) for word in range(self._sizes[axis])
                ]
        # the same for all words of a row changes nothing, and the noise has to be seen beside it
        cost += self._noise(axis, len(rows)) - cost.min(axis=1, keepdims=True)
        chosen = words[linear_sum_assignment((cost + NEVER * forbidden)[:, words])[1]]
        if forbidden[np.arange(len(rows)), chosen].any():
            chosen = self._relax(axis, cost, forbidden, chosen)
        return [int(word) for word in chosen]

    def _relax(
        self,
        axis: int,
        cost: npt.NDArray[np.float64],
        forbidden: npt.NDArray[np.bool_],
        chosen: npt.NDArray[np.intp],
    ) -> npt.NDArray[np.intp]:
        """Rows that no round fits: each takes the least used word that may stand there. The next rounds give
        the others what they lack.
        """
        met = self._met[axis] + np.bincount(chosen, minlength=self._sizes[axis])
        for row, word in enumerate(chosen.tolist()):
            if forbidden[row, word]:
                if forbidden[row].all():
                    raise ValueError(axis)
                met[word] -= 1
                allowed = np.flatnonzero(~forbidden[row])
                chosen[row] = min(allowed.tolist(), key=lambda other: (met[other], cost[row, other]))
                met[chosen[row]] += 1
        return chosen

    def _noise(self, axis: int, n: int) -> npt.NDArray[np.int64]:
        """Whole numbers below `NOISE`, shape (n, n), of a hash: the same with any library."""
        text = f"{self._seed} {axis} {self._rounds[axis]}".encode()
        self._rounds[axis] += 1
        return (np.frombuffer(hashlib.shake_128(text).digest(n * n), "u1") % NOISE).reshape(n, n).astype("i8")

    def _count(self, axis: int, rows: list[int], chosen: list[int]) -> None:
        self._met[axis] += np.bincount(chosen, minlength=self._sizes[axis])
        for row, word in zip(rows, chosen, strict=True):
            if axis == self._last[self._values[0][row]]:
                self._rows[tuple(self._values[other][row] for other in range(axis + 1))] += 1
            values = [(other, self._values[other][row]) for other in range(axis)]
            there = [(other, value) for other, value in values if value >= 0]
            for other, value in there:
                self._pairs[other, axis][value, word] += 1
            for (one, a), (other, b) in combinations(there, 2):
                if (one, other, axis) in self._triples:
                    self._triples[one, other, axis][a, b, word] += 1


def _table(sizes: Sequence[int], *axes: int) -> npt.NDArray[np.int32]:
    return np.zeros([sizes[axis] + 1 for axis in axes[:-1]] + [sizes[axes[-1]]], np.int32)


def _least_used(met: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """As many words as there are, those that level the counts most: each once where all are equal."""
    met, words = met.copy(), []
    for _ in range(len(met)):
        words.append(int(met.argmin()))
        met[words[-1]] += 1
    return np.array(sorted(words))
