"""Stage 5, choosing: columns -> uids, with every verdict and a funnel. Looks at columns only, never at
images.

A rule is `(columns, **keys) -> bool mask`: it sees the survivors of the rules before it, and keeps where
True; with `of = "pool"` it judges every written sample, as if it stood alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.columns import Columns, Survivors, cell_numbers, sequence
from synthgen.selection.funnel import FAILED, KEPT, NOT_NEEDED, Stage, funnel
from synthgen.selection.named import (
    COLUMN_KINDS,
    FILES,
    RULES,
    Rule,
    columns_read,
    key_of,
    verdict_names,
    whole_numbers_read,
)
from synthgen.selection.quotas import Quota, ShortCell, check_quota, count_cells, short_cells
from synthgen.uids import repeated, uid_strings

__all__ = [
    "COLUMN_KINDS",
    "FILES",
    "RULES",
    "Quota",
    "Rule",
    "Selection",
    "ShortCell",
    "check_quota",
    "columns_read",
    "count_cells",
    "key_of",
    "passing",
    "select",
    "short_cells",
    "verdict_names",
    "whole_numbers_read",
]
Rows = npt.NDArray[np.intp]


class Selection(NamedTuple):
    """`kept` (bool) and `verdict` (index of the rule that rejected; -1 kept, -2 failed, -3 not needed for the
    quota) for each row of the pool; `steps` are the verdicts that reject in the order in which they were
    given.
    """

    kept: npt.NDArray[np.bool_]
    verdict: npt.NDArray[np.int32]
    steps: list[tuple[int, str]]

    @property
    def funnel(self) -> list[Stage]:
        return funnel(self.verdict, self.steps)


def select(columns: Columns, rules: Sequence[Rule], quota: Quota | None = None) -> Selection:
    """Applies rules in order, each to the survivors of those before, or to every written row where its `of`
    is "pool". Failed rows are never kept; what several rules reject is the first one's.

    With a quota: of the samples of a cell that pass the rules which judge a sample by itself, in the order in
    which they were asked for, the first K go on to those that compare; K is the least that leaves the quota,
    or all of them where that is too few. So samples that are made later change nothing.

    Args:
        columns: the pool's and the annotations' columns; `error` is "" in a written row.
        quota: for rules that `check_quota` passes.

    Raises:
        RecipeError: `check_quota` refuses the rules; two rows have one uid; or a rule does not return one
            bool for each row that it was given.
    """
    if quota:
        check_quota(rules, quota)
    pool = Survivors(columns)
    _check_uids(pool)
    written = pool.is_missing("error")
    verdict = np.full(len(written), FAILED, np.int32)
    verdict[written] = KEPT
    steps = [(FAILED, "generated")]

    def judge(place: int, rule: Rule) -> None:
        alive = verdict == KEPT
        seen = alive if rule.of == "survivors" else written
        rejects = seen.copy()
        rows = None if seen.all() else np.flatnonzero(seen)
        rejects[seen] = ~_apply(pool, rows, key_of(rules, place), rule)
        verdict[rejects & alive] = place
        steps.append((place, rule.label))

    numbered = list(enumerate(rules))
    own = [(k, rule) for k, rule in numbered if not (quota and rule.is_relative)]
    relative = numbered[len(own) :]
    for place, rule in own:
        judge(place, rule)
    if quota:
        rows = np.flatnonzero(verdict == KEPT)
        comparing = [(key_of(rules, place), rule) for place, rule in relative]
        verdict[rows[~_first(pool, rows, comparing, quota)]] = NOT_NEEDED
        label = f"quota accepted={quota.accepted}" + (f" per={','.join(quota.per)}" if quota.per else "")
        steps.append((NOT_NEEDED, label))
        for place, rule in relative:
            judge(place, rule)
    return Selection(verdict == KEPT, verdict, steps)


def _check_uids(pool: Survivors) -> None:
    """Raises RecipeError where a uid is there twice: a subset could not say which of the two it holds."""
    twice, counts = repeated(pool.uids())
    if len(twice):
        (name,) = uid_strings(twice[:1])
        raise RecipeError(
            f"uid {name} is in the pool {counts[0]} times, and {len(twice) - 1} others are there several "
            "times; a subset names samples by uid, so each needs its own: import the data anew"
        )


def passing(columns: Columns, rules: Sequence[Rule]) -> npt.NDArray[np.bool_]:
    """Which rows pass all of the rules, each of which judges a sample by itself."""
    pool, keep = Survivors(columns), np.ones(len(columns["uid"]), np.bool_)
    for place, rule in enumerate(rules):
        keep[keep] = _apply(pool, np.flatnonzero(keep), key_of(rules, place), rule)
    return keep


def _apply(pool: Survivors, rows: Rows | None, key: str, rule: Rule) -> npt.NDArray[np.bool_]:
    """What a rule says of some rows, None being all. Those where a whole number is missing that it looks up,
    or that makes a cell, are not shown to it, and not kept.
    """
    part = pool.at(rows)
    shown = part.is_there(whole_numbers_read(rule, pool))
    if not shown.all():
        part = pool.at(np.flatnonzero(shown) if rows is None else rows[shown])
    keep = RULES[rule.use](part, **rule.keys)
    if keep.shape != (shown.sum(),) or keep.dtype != np.bool_:
        raise RecipeError(
            f'{key}: rule "{rule.use}" returned {keep.dtype} of shape {keep.shape}; '
            f"a bool for each of the {shown.sum()} rows is wanted"
        )
    shown[shown] = keep
    return shown


def _first(
    pool: Survivors, rows: Rows, relative: Sequence[tuple[str, Rule]], quota: Quota
) -> npt.NDArray[np.bool_]:
    """The first K rows of each cell, as `select` has it."""
    survivors = pool.at(rows)
    cells = cell_numbers(survivors, quota.per)
    order, sizes = np.lexsort((*sequence(survivors), cells)), np.bincount(cells)
    place = np.empty(len(rows), dtype=np.intp)
    place[order] = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[cells[order]]
    first = np.minimum(sizes, quota.accepted)  # K, in each cell
    while True:
        taken = place < first[cells]
        left = rows[taken]
        for key, rule in relative:
            left = left[_apply(pool, left, key, rule)]
        lacking = quota.accepted - np.bincount(cells[np.isin(rows, left)], minlength=len(sizes))
        # one more sample leaves one more at most
        more = np.minimum(sizes, first + np.maximum(lacking, 0))
        if (more == first).all():
            return taken
        first = more
