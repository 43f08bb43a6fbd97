"""What became of samples, counted: step by step for all, and for each class, model or template."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

KEPT, FAILED, NOT_NEEDED = -1, -2, -3
"""Verdicts that are no rule's: 0 and more is the place of the rule that rejected."""
Verdicts = npt.NDArray[np.int32]
Steps = Sequence[tuple[int, str]]
"""The verdicts that reject, in the order in which they were given, with what the funnel calls them."""


class Stage(NamedTuple):
    """One step of the funnel. `before - after` samples were rejected by `rule`."""

    rule: str
    before: int
    after: int


def funnel(verdict: Verdicts, steps: Steps) -> list[Stage]:
    """The steps with the number of samples before and after each."""
    (left,) = left_by(np.zeros(len(verdict), np.intp), verdict, steps, 1)
    return [
        Stage(label, before, after)
        for (_, label), before, after in zip(steps, left[:-1], left[1:], strict=True)
    ]


def left_by(group: npt.NDArray[np.intp], verdict: Verdicts, steps: Steps, n_groups: int) -> list[list[int]]:
    """How many samples of each group there are, and are left after each step.

    Args:
        group: the number of each sample's group, shape (rows,).

    Returns:
        For each group 1 + steps counts.
    """
    codes = [code for code, _ in steps]
    step_of = np.full(max([*codes, 0]) + 4, len(codes), dtype=np.intp)  # from the end: -1, -2 and -3
    step_of[codes] = np.arange(len(codes))
    n = len(codes) + 1
    counts = np.bincount(group * n + step_of[verdict], minlength=n_groups * n).reshape(n_groups, n)
    left = counts.sum(axis=1, keepdims=True) - np.cumsum(counts[:, :-1], axis=1)
    return np.hstack([counts.sum(axis=1, keepdims=True), left]).tolist()  # type: ignore[no-any-return]


def left_by_value(values: pa.ChunkedArray, verdict: Verdicts, steps: Steps) -> dict[str, list[int]]:
    """`left_by` for a column of texts: value, in order of first appearance -> its counts; missing is ""."""
    encoded = values.cast(pa.string()).fill_null("").dictionary_encode().combine_chunks()
    names = encoded.dictionary.to_pylist()
    found = left_by(encoded.indices.to_numpy().astype(np.intp), verdict, steps, len(names))
    return dict(zip(names, found, strict=True))
