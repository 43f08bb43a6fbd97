"""What each rule saw in one sample: its value, the bar, its rank.

A rule explains itself by an entry in `EXPLAIN`, a function `(columns, row, **keys) -> str` of the columns and
keys that the rule had, and of the sample's row in them; of one without an entry the values of the columns
that its keys name are told.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen import clustering
from synthgen.selection import Quota, Rule, Selection, columns_read, key_of, whole_numbers_read
from synthgen.selection.columns import (
    Columns,
    Survivors,
    cell_columns,
    cell_numbers,
    hashed,
    numbers,
)
from synthgen.selection.columns import features as read_features
from synthgen.selection.duplicates import in_order
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
    pool, alive = Survivors(columns), np.ones(len(written), dtype=bool)
    for code, label in chosen.steps:
        rule = rules[code] if code >= 0 else None
        name = f"{key_of(rules, code)} {label}" if rule else label
        rows = np.flatnonzero(written if rule and rule.of == "pool" else alive)
        if not alive[row]:
            found.append(Look(name, "", NOT_REACHED))
        else:
            if rule:
                saw = _saw(pool, rows, row, rule)
            elif code == NOT_NEEDED and quota:
                saw = _turn(pool.at(rows), int(np.searchsorted(rows, row)), chosen.verdict[rows], quota)
            else:
                saw = str(columns["error"][row]) or "there is an image"
            found.append(Look(name, saw, REJECTED if chosen.verdict[row] == code else PASSED))
        alive &= chosen.verdict != code
    return found


def _saw(pool: Survivors, rows: Rows, row: int, rule: Rule) -> str:
    """What a rule that is shown some rows of the pool saw in one of them."""
    read, looked_up = columns_read(rule, pool), whole_numbers_read(rule, pool)
    shown = rows[pool.at(rows).is_there(looked_up)]
    if row not in shown:
        return f"a whole number is missing of {', '.join(dict.fromkeys(looked_up.values()))}"
    columns, place = pool.at(shown), int(np.searchsorted(shown, row))
    if rule.use in EXPLAIN:
        return EXPLAIN[rule.use](columns, place, **rule.keys)
    named = dict.fromkeys(read.values())
    return ", ".join(value_of(columns, place, name) for name in named if columns[name].ndim == 1)


def value_of(columns: Columns, row: int, name: str) -> str:
    """A column's value in a row: "clip_margin = 0.31"."""
    shown = _shown((columns.masked(name) if isinstance(columns, Survivors) else columns[name])[row])
    return f"{name} = {shown}" if shown else f"{name} is missing"


def _shown(value: object) -> str:
    """A value as text, "" where it is missing. Whole numbers of which some are missing are floats here."""
    if value is np.ma.masked or (isinstance(value, np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, np.floating):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 2**53 else f"{float(value):.6g}"
    return str(value)


def cell_of(columns: Columns, row: int, per: str | list[str]) -> tuple[Rows, str]:
    """The rows of a row's cell, and what it is called: "of class_name cat"."""
    cells = cell_numbers(columns, per)
    names = [f"{name} {_shown(columns[name][row]) or '(none)'}" for name in cell_columns(per, columns)]
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


def _turn(columns: Columns, row: int, verdict: Verdicts, quota: Quota) -> str:
    own, name = cell_of(columns, row, quota.per)
    order = in_order(columns, "", own)
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
    said = _wanted(rank_of(columns, row, -numbers(columns, column), per), fraction, count)
    return f"{value_of(columns, row, column)}; {said}"


def _sample(
    columns: Columns, row: int, *, fraction: float | None, count: int | None, per: str | list[str], seed: int
) -> str:
    chance = hashed(columns, str(seed)).astype(np.float64)
    return "by chance " + _wanted(rank_of(columns, row, chance, per), fraction, count)


def _wanted(ranked: tuple[int, int, str], fraction: float | None, count: int | None) -> str:
    rank, number, name = ranked
    wanted = min(number, math.floor(number * fraction + 0.5) if fraction is not None else count or 0)
    return f"rank {rank} of {number} {name}; the first {wanted} are kept"


def _adaptive_bar(
    columns: Columns, row: int, *, column: str, bar: float, tolerance: float, per: str | list[str]
) -> str:
    own, name = cell_of(columns, row, per)
    values = numbers(columns, column)[own]
    best = float(np.max(values[~np.isnan(values)], initial=-np.inf))
    return (
        f"{value_of(columns, row, column)}; at least {min(bar, best - tolerance):.6g} is wanted, as the best "
        f"{name} has {best:.6g}"
    )


def _balance(columns: Columns, row: int, *, target: int, per: str | list[str], seed: int) -> str:
    own, name = cell_of(columns, row, per)
    drawn = int(hashed(columns, f"balance {seed}")[row] >> np.uint64(11)) * 2.0**-53
    chance = target / max(len(own), target)
    return f"one of {len(own)} {name}; drew {drawn:.6g}, and less than {chance:.6g} is wanted"


def _decontaminate(
    columns: Columns, row: int, *, annotation: str, similarity: float | None, distance: int | None
) -> str:
    found = []
    if similarity is not None:
        found.append(f"{value_of(columns, row, f'{annotation}_max')}; less than {similarity:g} is wanted")
    if distance is not None:
        bits = value_of(columns, row, f"{annotation}_phash_distance")
        found.append(f"{bits}; more than {distance} bits are wanted")
    return "; ".join(found)


def _listed(columns: Columns, row: int, *, file: Path, column: str, **_: object) -> str:
    return f"{value_of(columns, row, column)}; what {file.name} lists is wanted"


def _not_listed(columns: Columns, row: int, *, file: Path, column: str, **_: object) -> str:
    return f"{value_of(columns, row, column)}; what {file.name} does not list is wanted"


def _clip_score(
    columns: Columns, row: int, *, column: str, threshold: float | None, fraction: float | None
) -> str:
    said = value_of(columns, row, column)
    if fraction is None:
        return f"{said}; at least {threshold:g} is wanted"
    rank, number, name = rank_of(columns, row, -numbers(columns, column), [])
    kept = int(number * fraction) + 1
    return f"{said}; rank {rank} of {number} {name}; the first {kept}, and what ties with the last, are kept"


def _duplicates(
    columns: Columns,
    row: int,
    *,
    column: str,
    best: str,
    per: str | list[str],
    distance: int = 0,
    features: str = "",
    epsilon: float | None = None,
    order: str = "first",
    **_: object,
) -> str:
    own, name = cell_of(columns, row, per)
    why = f"is the greatest in {best}" if best else "was asked for first"
    if features:
        vectors = read_features(columns, features)
        cosines = clustering.cosines(vectors[own], clustering.unit(vectors[[row]]))[:, 0]
        others = own != row
        if order == "first":
            others &= np.isin(own, _before(columns, own, row, best))
        if not others.any() or np.isnan(cosines[others]).all():
            return f"{features}: the first {name}"
        most = own[others][np.nanargmax(cosines[others])]
        cosine = float(np.nanmax(cosines[others]))
        return (
            f"{features}: cosine {cosine:.6g} with {columns['uid'][most]}, {_stands(order, name)}; at most "
            f"{1 - float(epsilon or 0):g} is wanted in a cluster"
        )
    said, values = value_of(columns, row, column), columns[column]
    same = in_order(columns, best, own[values[own] == values[row]])
    if len(same) > 1 and (same[0] != row or not distance):
        which = "this one" if same[0] == row else str(columns["uid"][same[0]])
        return f"{said}; {len(same)} {name} have it, of which {which} {why}"
    earlier = _before(columns, own, row, best) if distance else own[:0]
    if not len(earlier):
        return f"{said}; no other {name} has it" if not distance else f"{said}; the first {name}"
    bits = np.bitwise_count(values[earlier].astype(np.uint64) ^ np.uint64(values[row]))
    near = columns["uid"][earlier[np.argmin(bits)]]
    return f"{said}; {bits.min()} bits from {near}, {_stands('first', name)}; more than {distance} are wanted"


def _stands(order: str, name: str) -> str:
    return f"the most like it {'before it' if order == 'first' else ''} {name}".replace("  ", " ")


def _before(columns: Columns, own: Rows, row: int, best: str) -> Rows:
    """The rows of a cell that stand before a row."""
    order = in_order(columns, best, own)
    return order[: int(np.flatnonzero(order == row)[0])]


EXPLAIN: dict[str, Callable[..., str]] = {
    "adaptive_bar": _adaptive_bar,
    "balance": _balance,
    "datacomp_clip_score": _clip_score,
    "decontaminate": _decontaminate,
    "duplicates": _duplicates,
    "listed": _listed,
    "not_listed": _not_listed,
    "range": _range,
    "sample": _sample,
    "top": _top,
}
