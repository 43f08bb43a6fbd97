"""So many accepted samples of each cell: which rules allow that exactly, and which cells are short."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.columns import Columns, cell_columns, cell_numbers
from synthgen.selection.columns import numbers as as_numbers
from synthgen.selection.named import COLUMN_KINDS, Rule, key_of, verdict_names

if TYPE_CHECKING:
    from synthgen.selection import Selection

Cell = tuple[str, ...]


class Quota(NamedTuple):
    """So many samples are kept of each cell; `per` names what makes a cell, nothing all of the pool."""

    accepted: int
    per: list[str]


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
    columns: Columns, chosen: "Selection", rules: Sequence[Rule], quota: Quota, every: Iterable[Cell]
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
