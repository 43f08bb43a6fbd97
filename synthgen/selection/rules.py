"""Rules about one column: `(columns, **keys) -> bool mask`. NaN (missing) is never kept by a rule that reads
it. Ties fall to the smaller uid, so that a choice depends on the samples alone, not on their order or on
other cells.
"""

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.selection.columns import Columns, Mask, NumberColumn, cell_numbers, hashed, numbers, uids


def range_(
    columns: Columns, *, column: NumberColumn, minimum: float | None = None, maximum: float | None = None
) -> Mask:
    """Keeps values between the bounds, both included; compared in the column's own precision.

    Raises:
        RecipeError: no bound is given, or the minimum is above the maximum.
    """
    if minimum is None and maximum is None:
        raise RecipeError("range: neither minimum nor maximum is given; give one of them")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise RecipeError(f"range: minimum {minimum} is above maximum {maximum}; nothing could pass")
    values = numbers(columns, column)
    keep: Mask = ~np.isnan(values)
    if minimum is not None:
        keep &= values >= values.dtype.type(minimum)
    if maximum is not None:
        keep &= values <= values.dtype.type(maximum)
    return keep


def top(
    columns: Columns,
    *,
    column: NumberColumn,
    fraction: float | None = None,
    count: int | None = None,
    per: str | list[str] = "class",
) -> Mask:
    """Keeps the best of each cell: `count` of them, or `fraction` rounded to the nearest count (half up).

    Where DataComp's clip_score filter takes everything from the rank int(n * fraction) upward, ties included
    (n * f + 1 rows without ties; `datacomp_clip_score` does that), this keeps exactly the count. Missing
    values count in n, and are never kept.

    Raises:
        RecipeError: not exactly one of fraction (0 to 1) and count (0 or more) is given.
    """
    _one_of("top", fraction, count)
    return _least(columns, -numbers(columns, column), fraction, count, per)


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
    return _least(columns, hashed(columns, str(seed)).astype(np.float64), fraction, count, per)


def adaptive_bar(
    columns: Columns,
    *,
    column: NumberColumn,
    bar: float,
    tolerance: float,
    per: str | list[str] = "class",
) -> Mask:
    """Keeps what is at least min(bar, best - tolerance), best being the greatest value of the cell: a cell
    whose best does not reach the bar still keeps what is about as good. Compared in the column's own
    precision.

    Source: X-Paste (arXiv 2212.03863), with bar = 0.21 and tolerance = 0.01 of a cosine; DiverGen
    (arXiv 2405.10185) too.

    Raises:
        RecipeError: the tolerance is negative.
    """
    if tolerance < 0:
        raise RecipeError(f"adaptive_bar: tolerance = {tolerance}; 0 or more is allowed")
    values, cells = numbers(columns, column), cell_numbers(columns, per)
    best = np.full(int(cells.max(initial=-1)) + 1, -np.inf, values.dtype)
    np.maximum.at(best, cells, np.nan_to_num(values, nan=-np.inf, posinf=np.inf, neginf=-np.inf))
    bars = np.minimum(values.dtype.type(bar), best - values.dtype.type(tolerance))
    keep: Mask = values >= bars[cells]
    return keep


def _one_of(rule: str, fraction: float | None, count: int | None) -> None:
    if (fraction is None) == (count is None):
        raise RecipeError(f"{rule}: give either fraction or count")
    if fraction is not None and not 0 <= fraction <= 1:
        raise RecipeError(f"{rule}: fraction = {fraction}; 0 to 1 is allowed")
    if count is not None and count < 0:
        raise RecipeError(f"{rule}: count = {count}; 0 or more is allowed")


def _least(
    columns: Columns,
    score: npt.NDArray[np.floating],
    fraction: float | None,
    count: int | None,
    per: str | list[str],
) -> Mask:
    """The rows of least score in each cell; NaN counts in a fraction, and is never kept.

    Only the score of the last row that is taken is looked for, and uids are compared where several have it.
    """
    cells = cell_numbers(columns, per)
    sizes = np.bincount(cells)
    wanted = (
        np.full(len(sizes), count) if fraction is None else np.floor(sizes * fraction + 0.5).astype(np.intp)
    )
    known = ~np.isnan(score)
    wanted = np.minimum(wanted, np.bincount(cells[known], minlength=len(sizes)))
    last = np.full(len(sizes), -np.inf, score.dtype)
    if len(sizes) == 1 and wanted[0]:
        last[0] = np.partition(score[known], wanted[0] - 1)[wanted[0] - 1]
    elif len(sizes) > 1:
        order = np.argsort(score)
        short = cells.astype(np.uint16) if len(sizes) <= 2**16 else cells  # small numbers are sorted faster
        order = order[np.argsort(short[order], kind="stable")]
        some = wanted > 0
        last[some] = score[order[(np.cumsum(sizes) - sizes + wanted - 1)[some]]]
    keep: Mask = score < last[cells]
    tied = np.flatnonzero(score == last[cells])
    lacking = wanted - np.bincount(cells[keep], minlength=len(sizes))
    if lacking.sum() == len(tied):
        keep[tied] = True
        return keep
    pairs, own = uids(columns)[tied], cells[tied]
    order = np.lexsort((pairs["f1"], pairs["f0"], own))
    counts = np.bincount(own, minlength=len(sizes))
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[own[order]]
    keep[tied[order]] = rank < lacking[own[order]]
    return keep
