"""What each rule saw in one sample: its value, the bar, its rank.

A rule explains itself by an entry in `EXPLAIN`, a function `(columns, row, **keys) -> str` of the columns and
keys that the rule had, and of the sample's row in them; of one without an entry the values of the columns
that its keys name are told.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.selection import Quota, Rule, Selection, columns_read, key_of
from synthgen.selection.columns import Columns, Survivors, cell_columns, cell_numbers, sequence
from synthgen.selection.funnel import FAILED, NOT_NEEDED, Verdicts

PASSED, REJECTED, NOT_REACHED = "passed", "rejected", "not reached"
Rows = npt.NDArray[np.intp]


class Look(NamedTuple):
    """What a rule saw in a sample, and what it said of it: "passed", "rejected", or "not reached" after one
    that rejected.
    """

    rule: str
    saw: str
    verdict: str


def explain(
    columns: Columns, row: int, chosen: Selection, rules: Sequence[Rule], quota: Quota | None
) -> list[Look]:
    """The verdict of each step on the sample of a row of the pool, in order."""
    found, written = list[Look](), chosen.verdict != FAILED
    alive = np.ones(len(written), dtype=bool)
    for code, label in chosen.steps:
        rule = rules[code] if code >= 0 else None
        name = f"{key_of(rules, code)} {label}" if rule else label
        rows = np.flatnonzero(written if rule and rule.of == "pool" else alive)
        seen, place = Survivors(columns, rows), int(np.searchsorted(rows, row))
        if not alive[row]:
            found.append(Look(name, "", NOT_REACHED))
        else:
            if rule:
                saw = _saw(seen, place, rule)
            elif code == NOT_NEEDED and quota:
                saw = _turn(seen, place, chosen.verdict[rows], quota)
            else:
                saw = str(columns["error"][row]) or "there is an image"
            found.append(Look(name, saw, REJECTED if chosen.verdict[row] == code else PASSED))
        alive &= chosen.verdict != code
    return found


def _saw(columns: Columns, row: int, rule: Rule) -> str:
    if rule.use in EXPLAIN:
        return EXPLAIN[rule.use](columns, row, **rule.keys)
    named = dict.fromkeys(columns_read(rule, columns).values())
    return ", ".join(value_of(columns, row, name) for name in named if columns[name].ndim == 1)


def value_of(columns: Columns, row: int, name: str) -> str:
    """A column's value in a row: "clip_margin = 0.31"."""
    value = columns[name][row]
    is_missing = value is np.ma.masked or value == "" or (isinstance(value, np.floating) and np.isnan(value))
    if is_missing:
        return f"{name} is missing"
    return f"{name} = {float(value):.6g}" if isinstance(value, np.floating) else f"{name} = {value}"


def cell_of(columns: Columns, row: int, per: str | list[str]) -> tuple[Rows, str]:
    """The rows of a row's cell, and what it is called: "of class_name cat"."""
    cells = cell_numbers(columns, per)
    names = [f"{name} {columns[name][row]}" for name in cell_columns(per, columns)]
    return np.flatnonzero(cells == cells[row]), f"of {', '.join(names) or 'all'}"


def rank_of(
    columns: Columns, row: int, score: npt.NDArray[np.floating], per: str | list[str]
) -> tuple[int, int, str]:
    """The rank of a row in its cell by the least score, from 1, of how many, and what the cell is called.
    Ties fall to the smaller uid.
    """
    own, name = cell_of(columns, row, per)
    order = own[np.lexsort((columns["uid"][own], score[own]))]
    return int(np.flatnonzero(order == row)[0]) + 1, len(own), name


def first_of(columns: Columns, rows: Rows, best: str) -> Rows:
    """Rows in the order in which one of those that are the same is kept: the greatest in `best`, else as they
    were asked for.
    """
    keys = [key[rows] for key in sequence(columns)]
    if best:
        keys.append(np.nan_to_num(-_floats(columns, best)[rows], nan=np.inf))
    return rows[np.lexsort(keys)]


def _floats(columns: Columns, name: str) -> npt.NDArray[np.float64]:
    values = columns[name].astype(np.float64)
    return values if not isinstance(values, np.ma.MaskedArray) else values.filled(np.nan)


def _turn(columns: Columns, row: int, verdict: Verdicts, quota: Quota) -> str:
    own, name = cell_of(columns, row, quota.per)
    order = first_of(columns, own, "")
    place, needed = int(np.flatnonzero(order == row)[0]) + 1, int((verdict[own] != NOT_NEEDED).sum())
    return f"number {place} of {len(own)} {name}, in the order asked for; the first {needed} are needed"


def _range(columns: Columns, row: int, *, column: str, minimum: float | None, maximum: float | None) -> str:
    bounds = [("at least", minimum), ("at most", maximum)]
    wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    return f"{value_of(columns, row, column)}; {wanted} is wanted"


def _top(
    columns: Columns,
    row: int,
    *,
    column: str,
    fraction: float | None,
    count: int | None,
    per: str | list[str],
) -> str:
    said = _wanted(rank_of(columns, row, -_floats(columns, column), per), fraction, count)
    return f"{value_of(columns, row, column)}; {said}"


def _sample(
    columns: Columns, row: int, *, fraction: float | None, count: int | None, per: str | list[str], seed: int
) -> str:
    own, _ = cell_of(columns, row, per)
    chance = np.zeros(len(columns["uid"]))
    for one in own.tolist():
        drawn = hashlib.sha256(f"{seed} {columns['uid'][one]}".encode()).digest()
        chance[one] = float(int.from_bytes(drawn[:8], "big"))
    return "by chance " + _wanted(rank_of(columns, row, chance, per), fraction, count)


def _wanted(ranked: tuple[int, int, str], fraction: float | None, count: int | None) -> str:
    rank, number, name = ranked
    wanted = min(number, math.floor(number * fraction + 0.5) if fraction is not None else count or 0)
    return f"rank {rank} of {number} {name}; the first {wanted} are kept"


def _duplicates(columns: Columns, row: int, *, column: str, best: str, per: str | list[str]) -> str:
    own, name = cell_of(columns, row, per)
    same = first_of(columns, own[columns[column][own] == columns[column][row]], best)
    if len(same) < 2:
        return f"{value_of(columns, row, column)}; no other {name} has it"
    why = f"is the greatest in {best}" if best else "was asked for first"
    which = "this one" if same[0] == row else str(columns["uid"][same[0]])
    return f"{value_of(columns, row, column)}; {len(same)} {name} have it, of which {which} {why}"


EXPLAIN: dict[str, Callable[..., str]] = {
    "duplicates": _duplicates,
    "range": _range,
    "sample": _sample,
    "top": _top,
}
