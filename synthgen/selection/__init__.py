"""Stage 5, choosing: columns -> uids, with every verdict and a funnel. Looks at columns only, never at
images.

A rule is `(columns, **keys) -> bool mask`: it sees the survivors of the rules before it, and keeps where
True; with `of = "pool"` it judges every written sample, as if it stood alone.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.balance import balance
from synthgen.selection.columns import Columns, Survivors, cell_columns, cell_numbers, sequence
from synthgen.selection.columns import numbers as as_numbers
from synthgen.selection.datacomp import (
    datacomp_basic,
    datacomp_clip_score,
    datacomp_image_based,
    datacomp_image_based_intersect_clip_score,
    datacomp_laion2b,
    datacomp_text_based,
    no_filter,
)
from synthgen.selection.decontaminate import decontaminate
from synthgen.selection.duplicates import duplicates
from synthgen.selection.funnel import FAILED, KEPT, NOT_NEEDED, Stage, funnel
from synthgen.selection.lists import listed, not_listed
from synthgen.selection.rules import adaptive_bar, range_, sample, top
from synthgen.uids import repeated, uid_strings

RULES: dict[str, Callable[..., npt.NDArray[np.bool_]]] = {
    "adaptive_bar": adaptive_bar,
    "balance": balance,
    "datacomp_basic": datacomp_basic,
    "datacomp_clip_score": datacomp_clip_score,
    "datacomp_image_based": datacomp_image_based,
    "datacomp_image_based_intersect_clip_score": datacomp_image_based_intersect_clip_score,
    "datacomp_laion2b": datacomp_laion2b,
    "datacomp_text_based": datacomp_text_based,
    "decontaminate": decontaminate,
    "duplicates": duplicates,
    "listed": listed,
    "no_filter": no_filter,
    "not_listed": not_listed,
    "range": range_,
    "sample": sample,
    "top": top,
}

Rows = npt.NDArray[np.intp]
Cell = tuple[str, ...]
RELATIVE = {"adaptive_bar", "balance", "sample", "top"}
"""Rules whose verdict on a sample depends on those that were asked for after it; others do by their keys."""
SEQUENTIAL = {"duplicates"}
"""Rules whose verdict on a sample depends on those that were asked for before it."""


def _column_kinds(rule: Callable[..., object]) -> dict[str, str]:
    hints = get_type_hints(rule, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items() if get_origin(hint) is Annotated}


COLUMN_KINDS = {use: _column_kinds(rule) for use, rule in RULES.items()}
"""The keys of each rule that name a column, and what it has to be: column, numbers, text or features."""
FILES = {
    use: [key for key, hint in get_type_hints(rule).items() if hint is Path] for use, rule in RULES.items()
}
"""The keys of each rule that name a file."""


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
        """The rule as people read it: "range clip_margin minimum=0.0"; what its keys are by default is left
        out, but for the cell.
        """
        column, parameters = self.keys.get("column"), inspect.signature(RULES[self.use]).parameters
        others = [
            f"{key}={value.name if isinstance(value, Path) else value}"
            for key, value in self.keys.items()
            if key == "per" or (key != "column" and value != parameters[key].default)
        ]
        of = [] if self.of == "survivors" else [f"of={self.of}"]
        return " ".join([self.use, *([str(column)] if column else []), *others, *of])

    def found_in(self, folder: Path) -> "Rule":
        """The rule with the files that it names, which are relative to the recipe's folder."""
        files = {
            key: folder / Path(str(self.keys[key])).expanduser()
            for key in FILES[self.use]
            if key in self.keys
        }
        return self._replace(keys=self.keys | files)

    @property
    def is_relative(self) -> bool:
        """Whether samples that are made later can change a verdict."""
        return (
            self.use in RELATIVE
            or bool(self.keys.get("best"))
            or self.compares_freely
            or (self.use.startswith("datacomp_") and self.keys.get("fraction") is not None)
        )

    @property
    def gives_back(self) -> bool:
        """Whether a sample less among those that it sees can leave more than before: with one more, at most
        one more is left all the same.
        """
        likeness = self.keys.get("distance") or self.keys.get("features")
        return self.use in ("adaptive_bar", "balance") or bool(self.keys.get("best") and likeness)

    @property
    def compares_freely(self) -> bool:
        """Whether it is a SemDeDup by clusters, or by distance to a centre: what one sample more leaves then
        has no bound.
        """
        is_semantic = self.use == "duplicates" and bool(self.keys.get("features"))
        return is_semantic and (self.keys.get("order") != "first" or self.keys.get("clusters") != 0)

    @property
    def judges_alone(self) -> bool:
        """Whether no other sample can change a verdict."""
        return not self.is_relative and self.use not in SEQUENTIAL


class Quota(NamedTuple):
    """So many samples are kept of each cell; `per` names what makes a cell, nothing all of the pool."""

    accepted: int
    per: list[str]


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


def columns_read(rule: Rule, known: Container[str] | None = None) -> dict[str, str]:
    """The columns and features that a rule's keys name: key -> name.

    Args:
        known: the columns that are there, as `cell_columns` has it.
    """
    named = {key: str(rule.keys[key]) for key in COLUMN_KINDS[rule.use] if rule.keys.get(key)}
    per = rule.keys.get("per")
    if isinstance(per, str | list):
        named |= {
            "per" if isinstance(per, str) else f"per.{k}": name
            for k, name in enumerate(cell_columns(per, known))
        }
    if rule.use == "decontaminate":
        for key, column in (("similarity", "max"), ("distance", "phash_distance")):
            if rule.keys.get(key) is not None:
                named[key] = f"{rule.keys['annotation']}_{column}"
    return named


def whole_numbers_read(rule: Rule, known: Container[str] | None = None) -> dict[str, str]:
    """Those of them that a rule does not read as floats, which have NaN where a number is missing."""
    kinds = COLUMN_KINDS[rule.use]
    return {key: name for key, name in columns_read(rule, known).items() if kinds.get(key) != "numbers"}


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
        if rule.compares_freely:
            raise RecipeError(
                f"{key}: with quota.accepted, duplicates by features compare all pairs, in the order in "
                "which samples were asked for or of `best`: give clusters = 0, and leave `order` out"
            )
        if rule.use.startswith("datacomp_") and rule.is_relative:
            raise RecipeError(
                f"{key}: {rule.use} keeps all that tie with the last, in the whole pool; with "
                "quota.accepted, use top"
            )
        if rule.gives_back and relative != f"{key} {rule.use}":
            raise RecipeError(
                f"{key}: {rule.use} can keep more of fewer samples; with quota.accepted, put it before "
                f"{relative}"
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
        count, share = rule.keys.get("count", rule.keys.get("target")), rule.keys.get("fraction")
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


def verdict_names(rules: Sequence[Rule]) -> dict[int, str]:
    """Each verdict in words."""
    return {KEPT: "kept", FAILED: "failed", NOT_NEEDED: "quota"} | {
        place: f"{key_of(rules, place)} {rule.label}" for place, rule in enumerate(rules)
    }


def _cells(columns: Columns, per: Sequence[str]) -> tuple[npt.NDArray[np.intp], list[Cell]]:
    """The number of each row's cell, and the cells: the values of their columns."""
    cells = cell_numbers(columns, list(per))
    first = np.unique(cells, return_index=True)[1]
    names = [columns[name][first].tolist() for name in cell_columns(list(per), columns)]
    return cells, list(zip(*names, strict=True)) if names else [()] * len(first)


def count_cells(
    columns: Columns, kept: npt.NDArray[np.bool_], per: Sequence[str]
) -> tuple[Counter[Cell], Counter[Cell]]:
    """How many samples each cell has, and how many of these are kept."""
    numbers, cells = _cells(columns, per)
    made, left = (
        Counter(dict(zip(cells, np.bincount(own, minlength=len(cells)).tolist(), strict=True)))
        for own in (numbers, numbers[kept])
    )
    return made, +left


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
    numbers, cells = _cells(columns, quota.per)
    order = np.argsort(numbers, kind="stable")
    rows_of = dict(zip(cells, np.split(order, np.cumsum(np.bincount(numbers))[:-1]), strict=True))
    names, nothing = verdict_names(rules), np.empty(0, dtype=np.intp)
    # of a failed row NaN, or nothing that means something
    scores = {
        name: np.where(columns["error"] == "", as_numbers(columns, name), np.nan)
        for name in dict.fromkeys(
            str(rule.keys["column"]) for rule in rules if COLUMN_KINDS[rule.use].get("column") == "numbers"
        )
    }

    def look(cell: Cell) -> ShortCell:
        rows = rows_of.get(cell, nothing)
        rejected = Counter(names[code] for code in chosen.verdict[rows].tolist())
        kept = rejected.pop("kept", 0)
        known = {name: values[rows][~np.isnan(values[rows])] for name, values in scores.items()}
        told = {
            name: [float(of(own)) for of in (np.min, np.median, np.max)]
            for name, own in known.items()
            if len(own)
        }
        return ShortCell(cell, len(rows), kept, dict(rejected.most_common()), told)

    short = [look(cell) for cell in every if chosen.kept[rows_of.get(cell, nothing)].sum() < quota.accepted]
    return sorted(short, key=lambda one: one.kept)
