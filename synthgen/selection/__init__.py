"""Stage 5, choosing: columns -> uids, with every verdict and a funnel. Looks at columns only, never at
images.

A rule is `(columns, **keys) -> bool mask`: it sees the survivors of the rules before it, and keeps where
True.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.rules import cell_columns, duplicates, range_, sample, top

RULES: dict[str, Callable[..., npt.NDArray[np.bool_]]] = {
    "duplicates": duplicates,
    "range": range_,
    "sample": sample,
    "top": top,
}

Columns = Mapping[str, npt.NDArray[np.generic]]


class Rule(NamedTuple):
    """One `[[select]]` of the recipe; `use` is its name in `RULES`."""

    use: str
    keys: dict[str, object]

    @property
    def label(self) -> str:
        """The rule as people read it: "range clip_margin minimum=0.0"."""
        column = self.keys.get("column")
        others = [
            f"{key}={value}"
            for key, value in self.keys.items()
            if key != "column" and value not in (None, "")
        ]
        return " ".join([self.use, *([str(column)] if column else []), *others])


class Stage(NamedTuple):
    """One step of the funnel. `before - after` samples were rejected by `rule`."""

    rule: str
    before: int
    after: int
    after_by_class: dict[str, int]


class Selection(NamedTuple):
    """`kept` (bool) and `verdict` (index of the rule that rejected; -1 kept, -2 failed) for each row of the
    pool.
    """

    kept: npt.NDArray[np.bool_]
    verdict: npt.NDArray[np.int32]
    funnel: list[Stage]


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


def select(columns: Columns, rules: Sequence[Rule]) -> Selection:
    """Applies rules in order, each to the survivors of those before. Failed rows are never kept.

    Args:
        columns: the pool's and the annotations' columns; `error` is "" in a written row.

    Raises:
        RecipeError: a rule does not return one bool for each row that it was given.
    """
    alive = columns["error"] == ""
    verdict = np.where(alive, -1, -2).astype(np.int32)
    class_names = columns["class_name"]

    def stage(name: str, before: int) -> Stage:
        found, counts = np.unique(class_names[verdict == -1], return_counts=True)
        by_class = dict(zip(found.tolist(), counts.tolist(), strict=True))
        return Stage(name, before, int((verdict == -1).sum()), by_class)

    funnel = [stage("generated", len(alive))]
    for number, rule in enumerate(rules):
        rows = np.flatnonzero(verdict == -1)
        keep = RULES[rule.use](_Survivors(columns, rows), **rule.keys)
        if keep.shape != rows.shape or keep.dtype != np.bool_:
            raise RecipeError(
                f'select.{number}: rule "{rule.use}" returned {keep.dtype} of shape {keep.shape}; '
                f"a bool for each of the {len(rows)} rows is wanted"
            )
        verdict[rows[~keep]] = number
        funnel.append(stage(rule.label, len(rows)))
    return Selection(verdict == -1, verdict, funnel)


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
