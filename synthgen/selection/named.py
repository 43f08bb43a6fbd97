"""The rules by their names, as a recipe asks for them; what they read, and whether they compare samples."""

import inspect
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from synthgen.selection.balance import balance
from synthgen.selection.columns import cell_columns
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
from synthgen.selection.funnel import FAILED, KEPT, NOT_NEEDED
from synthgen.selection.lists import listed, not_listed
from synthgen.selection.rules import adaptive_bar, range_, sample, top

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


def verdict_names(rules: Sequence[Rule]) -> dict[int, str]:
    """Each verdict in words."""
    return {KEPT: "kept", FAILED: "failed", NOT_NEEDED: "quota"} | {
        place: f"{key_of(rules, place)} {rule.label}" for place, rule in enumerate(rules)
    }
