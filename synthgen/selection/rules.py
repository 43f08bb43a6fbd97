"""Rules: `(columns, **keys) -> bool mask`. NaN (missing) is never kept by a rule that reads it. Ties fall to
the smaller uid, so that a choice depends on the samples alone, not on their order or on other cells."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError

Columns = Mapping[str, npt.NDArray[np.generic]]
Mask = npt.NDArray[np.bool_]
CELL_COLUMNS = {"class": "class_name", "model": "model"}


def cell_columns(per: str | list[str]) -> list[str]:
    """The columns whose values together are a cell: "class", "model", or the name of an axis."""
    return [CELL_COLUMNS.get(name, f"axis_{name}") for name in ([per] if isinstance(per, str) else per)]


def range_(
    columns: Columns, *, column: str, minimum: float | None = None, maximum: float | None = None
) -> Mask:
    """Keeps values between the bounds, both included; compared in the column's own precision.

    Raises:
        RecipeError: no bound is given, or the minimum is above the maximum.
    """
    if minimum is None and maximum is None:
        raise RecipeError("range: neither minimum nor maximum is given; give one of them")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise RecipeError(f"range: minimum {minimum} is above maximum {maximum}; nothing could pass")
    values = _numbers(columns, column)
    keep: Mask = ~np.isnan(values)
    if minimum is not None:
        keep &= values >= values.dtype.type(minimum)
    if maximum is not None:
        keep &= values <= values.dtype.type(maximum)
    return keep


def top(
    columns: Columns,
    *,
    column: str,
    fraction: float | None = None,
    count: int | None = None,
    per: str | list[str] = "class",
) -> Mask:
    """Keeps the best of each cell: `count` of them, or `fraction` rounded to the nearest count (half up).

    Where DataComp's clip_score filter takes everything from the rank int(n * fraction) upward, ties included
    (n * f + 1 rows without ties), this keeps exactly the count. Missing values count in n, and are never
    kept.

    Raises:
        RecipeError: not exactly one of fraction (0 to 1) and count (0 or more) is given.
    """
    _one_of("top", fraction, count)
    return _best(columns, -_numbers(columns, column), fraction, count, per)


def sample(
    columns: Columns,
    *,
    fraction: float | None = None,
    count: int | None = None,
    per: str | list[str] = "class",
    seed: int = 0,
) -> Mask:
    """Keeps a random part of each cell, as `top` does with hash(seed, uid) for a score: repeatable, in any
    order.

    Raises:
        RecipeError: not exactly one of fraction (0 to 1) and count (0 or more) is given.
    """
    _one_of("sample", fraction, count)
    hashed = [hashlib.sha256(f"{seed} {uid}".encode()).digest()[:8] for uid in columns["uid"].tolist()]
    return _best(
        columns, np.frombuffer(b"".join(hashed), dtype=">u8").astype(np.float64), fraction, count, per
    )


def duplicates(columns: Columns, *, column: str, best: str = "", per: str | list[str] = "class") -> Mask:
    """Keeps one of the samples of a cell that share a value: the greatest in column `best`, else the one that
    was asked for first.

    `per = []` looks for the same value in the whole pool. A missing value is no duplicate and is not kept.
    """
    values = columns[column]
    missing = (
        np.isnan(values) if values.dtype.kind == "f" else values == "" if values.dtype.kind in "UO" else None
    )
    _, value_ids = np.unique(values, return_inverse=True)
    cells = cell_numbers(columns, per)
    score = -_numbers(columns, best) if best else np.zeros(len(values))
    order = np.lexsort((*sequence(columns), np.nan_to_num(score, nan=np.inf), value_ids, cells))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(cells[order]) != 0) | (np.diff(value_ids[order]) != 0)
    keep = np.zeros(len(order), dtype=bool)
    keep[order] = first
    return keep if missing is None else keep & ~missing


def sequence(columns: Columns) -> tuple[npt.NDArray[np.generic], ...]:
    """Keys for `np.lexsort`, the first last, that put samples in the order in which they were asked for: by
    turn, within a turn by class.
    """
    return columns["uid"], *(columns[name] for name in ("class_id", "turn") if name in columns)


def _one_of(rule: str, fraction: float | None, count: int | None) -> None:
    if (fraction is None) == (count is None):
        raise RecipeError(f"{rule}: give either fraction or count")
    if fraction is not None and not 0 <= fraction <= 1:
        raise RecipeError(f"{rule}: fraction = {fraction}; 0 to 1 is allowed")
    if count is not None and count < 0:
        raise RecipeError(f"{rule}: count = {count}; 0 or more is allowed")


def _numbers(columns: Columns, column: str) -> npt.NDArray[np.floating]:
    """A column as floats: float32 stays float32, everything else becomes float64."""
    values = columns[column]
    if values.dtype.kind not in "biuf":
        raise RecipeError(f'column "{column}" holds text; a rule that compares wants numbers')
    return values if values.dtype == np.float32 else values.astype(np.float64)  # type: ignore[return-value]


def cell_numbers(columns: Columns, per: str | list[str]) -> npt.NDArray[np.intp]:
    """The number of each row's cell, from 0."""
    cells = np.zeros(len(columns["uid"]), dtype=np.intp)
    for name in cell_columns(per):
        _, ids = np.unique(columns[name], return_inverse=True)
        cells = np.unique(cells * (int(ids.max(initial=0)) + 1) + ids, return_inverse=True)[1]
    return cells


def _best(
    columns: Columns,
    score: npt.NDArray[np.floating],
    fraction: float | None,
    count: int | None,
    per: str | list[str],
) -> Mask:
    """The rows of least score in each cell; NaN sorts last and is never kept."""
    cells = cell_numbers(columns, per)
    order = np.lexsort((columns["uid"], score, cells))
    sizes = np.bincount(cells)
    wanted = (
        np.full(len(sizes), count) if fraction is None else np.floor(sizes * fraction + 0.5).astype(np.intp)
    )
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(order)) - starts[cells[order]]
    keep = np.zeros(len(order), dtype=bool)
    keep[order] = rank < wanted[cells[order]]
    keep &= ~np.isnan(score)
    return keep
