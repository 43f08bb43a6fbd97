"""Stage 5, choosing: columns -> uids, with every verdict and a funnel. Looks at columns only, never at
images.

A rule is `(columns, **keys) -> bool mask`: it sees the survivors of the rules before it, and keeps where
True; with `of = "pool"` it judges every written sample, as if it stood alone.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.rules import (
    Columns,
    cell_columns,
    cell_numbers,
    duplicates,
    range_,
    sample,
    sequence,
    top,
)

RULES: dict[str, Callable[..., npt.NDArray[np.bool_]]] = {
    "duplicates": duplicates,
    "range": range_,
    "sample": sample,
    "top": top,
}

Rows = npt.NDArray[np.intp]
Cell = tuple[str, ...]
RELATIVE = {"sample", "top"}
"""Rules whose verdict on a sample depends on those that were asked for after it."""


class Rule(NamedTuple):
    """One `[[select]]` of the recipe; `use` is its name in `RULES`.

    `of` is what it sees: the "survivors" of the rules before it, or every written sample of the "pool".
    `number` is its place in the recipe's list, None where it is the place among the rules that are given.
    """

    use: str
    keys: dict[str, object]
    of: str = "survivors"
    number: int | None = None

    @property
    def label(self) -> str:
        """The rule as people read it: "range clip_margin minimum=0.0"."""
        column = self.keys.get("column")
        others = [
            f"{key}={value}"
            for key, value in self.keys.items()
            if key != "column" and value not in (None, "")
        ]
        of = [] if self.of == "survivors" else [f"of={self.of}"]
        return " ".join([self.use, *([str(column)] if column else []), *others, *of])

    @property
    def is_relative(self) -> bool:
        """Whether samples that are made later can change a verdict."""
        return self.use in RELATIVE or bool(self.keys.get("best"))


class Quota(NamedTuple):
    """So many samples are kept of each cell; `per` names what makes a cell, nothing all of the pool."""

    accepted: int
    per: list[str]


class Stage(NamedTuple):
    """One step of the funnel. `before - after` samples were rejected by `rule`."""

    rule: str
    before: int
    after: int
    after_by_class: dict[str, int]


class Selection(NamedTuple):
    """`kept` (bool) and `verdict` (index of the rule that rejected; -1 kept, -2 failed, -3 not needed for the
    quota) for each row of the pool.
    """

    kept: npt.NDArray[np.bool_]
    verdict: npt.NDArray[np.int32]
    funnel: list[Stage]


KEPT, FAILED, NOT_NEEDED = -1, -2, -3


def columns_read(keys: Mapping[str, object]) -> dict[str, str]:
    """The columns that a rule's keys name: key -> column."""
    named = {
        key: str(keys[key]) for key in ("column", "best") if key in keys and (key, keys[key]) != ("best", "")
    }
    per = keys.get("per")
    if isinstance(per, str | list):
        named |= {
            "per" if isinstance(per, str) else f"per.{k}": name for k, name in enumerate(cell_columns(per))
        }
    return named


def key_of(rules: Sequence[Rule], place: int) -> str:
    """What the recipe calls the rule at a place of those of a subset: "select.3"."""
    number = rules[place].number
    return f"select.{place if number is None else number}"


def check_quota(rules: Sequence[Rule], quota: Quota) -> None:
    """Raises RecipeError where a quota of accepted samples cannot be met exactly by these rules."""
    relative = ""
    for place, rule in enumerate(rules):
        per, key = rule.keys.get("per"), key_of(rules, place)
        if rule.is_relative:
            relative = relative or f"{key} {rule.use}"
        elif relative:
            raise RecipeError(
                f"{key}: {rule.use} judges a sample by itself, and stands after {relative}, which "
                "compares; with quota.accepted, put it before"
            )
        if isinstance(per, str | list) and not set(quota.per) <= set([per] if isinstance(per, str) else per):
            raise RecipeError(
                f"{key}.per: {json.dumps(per)} reaches over the cells of the quota, "
                f"{json.dumps(quota.per)}; with quota.accepted, a rule works within them: name at least these"
            )
        if rule.is_relative and rule.of == "pool":
            raise RecipeError(
                f'{key}.of: "pool"; with quota.accepted, a rule that compares looks at the samples that are '
                "needed alone: leave `of` out"
            )
        count, share = rule.keys.get("count"), rule.keys.get("fraction")
        if share == 0 or (isinstance(count, int) and count < quota.accepted):
            raise RecipeError(
                f"{key}: {rule.label} keeps less than quota.accepted = {quota.accepted} of a cell"
            )


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
        RecipeError: a rule does not return one bool for each row that it was given.
    """
    written = columns["error"] == ""
    verdict = np.where(written, KEPT, FAILED).astype(np.int32)
    class_names = columns["class_name"]

    def stage(name: str, before: int) -> Stage:
        found, counts = np.unique(class_names[verdict == KEPT], return_counts=True)
        by_class = dict(zip(found.tolist(), counts.tolist(), strict=True))
        return Stage(name, before, int((verdict == KEPT).sum()), by_class)

    def judge(place: int, rule: Rule) -> None:
        rows = np.flatnonzero(verdict == KEPT)
        seen = rows if rule.of == "survivors" else np.flatnonzero(written)
        rejected = seen[~_apply(columns, seen, key_of(rules, place), rule)]
        verdict[rejected[verdict[rejected] == KEPT]] = place
        funnel.append(stage(rule.label, len(rows)))

    funnel = [stage("generated", len(written))]
    numbered = list(enumerate(rules))
    own = [(k, rule) for k, rule in numbered if not (quota and rule.is_relative)]
    relative = numbered[len(own) :]
    for place, rule in own:
        judge(place, rule)
    if quota:
        rows = np.flatnonzero(verdict == KEPT)
        comparing = [(key_of(rules, place), rule) for place, rule in relative]
        verdict[rows[~_first(columns, rows, comparing, quota)]] = NOT_NEEDED
        label = f"quota accepted={quota.accepted}" + (f" per={','.join(quota.per)}" if quota.per else "")
        funnel.append(stage(label, len(rows)))
        for place, rule in relative:
            judge(place, rule)
    return Selection(verdict == KEPT, verdict, funnel)


def _apply(columns: Columns, rows: Rows, key: str, rule: Rule) -> npt.NDArray[np.bool_]:
    """What a rule says of some rows."""
    keep = RULES[rule.use](_Survivors(columns, rows), **rule.keys)
    if keep.shape != rows.shape or keep.dtype != np.bool_:
        raise RecipeError(
            f'{key}: rule "{rule.use}" returned {keep.dtype} of shape {keep.shape}; '
            f"a bool for each of the {len(rows)} rows is wanted"
        )
    return keep


def _first(
    columns: Columns, rows: Rows, relative: Sequence[tuple[str, Rule]], quota: Quota
) -> npt.NDArray[np.bool_]:
    """The first K rows of each cell, as `select` has it."""
    survivors = _Survivors(columns, rows)
    cells = cell_numbers(survivors, quota.per)
    order, sizes = np.lexsort((*sequence(survivors), cells)), np.bincount(cells)
    place = np.empty(len(rows), dtype=np.intp)
    place[order] = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[cells[order]]
    first = np.minimum(sizes, quota.accepted)  # K, in each cell
    while True:
        taken = place < first[cells]
        left = rows[taken]
        for key, rule in relative:
            left = left[_apply(columns, left, key, rule)]
        lacking = quota.accepted - np.bincount(cells[np.isin(rows, left)], minlength=len(sizes))
        # one more sample leaves one more at most
        more = np.minimum(sizes, first + np.maximum(lacking, 0))
        if (more == first).all():
            return taken
        first = more


def verdicts(chosen: Selection, rules: Sequence[Rule]) -> list[str]:
    """The verdict on each row in words."""
    names = {KEPT: "kept", FAILED: "failed", NOT_NEEDED: "quota"}
    names |= {k: f"{key_of(rules, k)} {rule.label}" for k, rule in enumerate(rules)}
    return [names[code] for code in chosen.verdict.tolist()]


def cells_of_rows(columns: Columns, per: Sequence[str]) -> list[Cell]:
    """The cell of each row: the values of its columns."""
    names = [columns[name].tolist() for name in cell_columns(list(per))]
    return list(zip(*names, strict=True)) if names else [()] * len(columns["uid"])


def count_cells(
    columns: Columns, kept: npt.NDArray[np.bool_], per: Sequence[str]
) -> tuple[Counter[Cell], Counter[Cell]]:
    """How many samples each cell has, and how many of these are kept."""
    cells = cells_of_rows(columns, per)
    return Counter(cells), Counter(cell for cell, is_kept in zip(cells, kept, strict=True) if is_kept)


class ShortCell(NamedTuple):
    """A cell that has fewer samples than its quota wants, and why: how many each rule rejected, and of each
    column that a rule compares the least, median and greatest value.
    """

    cell: Cell
    made: int
    kept: int
    rejected: dict[str, int]
    scores: dict[str, list[float]]


def short_cells(
    columns: Columns, chosen: Selection, rules: Sequence[Rule], quota: Quota, every: Iterable[Cell]
) -> list[ShortCell]:
    """The cells, of all that the quota counts, that have fewer samples than it wants; least kept first."""
    made, kept = count_cells(columns, chosen.kept, quota.per)
    cells, said = cells_of_rows(columns, quota.per), verdicts(chosen, rules)
    compared = dict.fromkeys(str(rule.keys["column"]) for rule in rules if rule.use in ("range", "top"))
    found, rows_of = [], dict[Cell, list[int]]()
    for row, own in enumerate(cells):
        rows_of.setdefault(own, []).append(row)
    for cell in sorted((cell for cell in every if kept[cell] < quota.accepted), key=lambda cell: kept[cell]):
        rows = rows_of.get(cell, [])
        scores = {}
        for name in compared:
            values = columns[name][rows].astype(
                np.float64
            )  # of a failed row NaN, or nothing that means something
            values = values[~np.isnan(values) & (columns["error"][rows] == "")]
            if len(values):
                scores[name] = [float(of(values)) for of in (np.min, np.median, np.max)]
        rejected = Counter(said[row] for row in rows if said[row] != "kept")
        found.append(ShortCell(cell, made[cell], kept[cell], dict(rejected.most_common()), scores))
    return found


class _Survivors(Mapping[str, npt.NDArray[np.generic]]):
    """The columns at some rows; a column is cut when a rule asks for it."""

    def __init__(self, columns: Columns, rows: npt.NDArray[np.intp]) -> None:
        self._columns, self._rows = columns, rows

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        return self._columns[name][self._rows]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)
