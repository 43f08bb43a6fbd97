"""One of several samples that are the same: exactly, nearly (by a perceptual hash), or in meaning (by
features).
"""

import itertools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from synthgen import clustering
from synthgen.errors import RecipeError
from synthgen.selection.columns import (
    AnyColumn,
    Columns,
    Features,
    Mask,
    NumberColumn,
    cell_numbers,
    codes,
    n_rows,
    numbers,
    sequence,
)
from synthgen.selection.columns import (
    features as read_features,
)

Rows = npt.NDArray[np.intp]
MOST_BITS = 16
"""The greatest `distance`: two of any images differ in about 32 of the 64 bits."""
WHOLE_CELL = 20_000
"""Up to so many samples of a cell, all pairs are compared where `clusters` says nothing."""
PER_CLUSTER = 64
"""So many samples for each cluster are enough to find its centre."""
TILE = 256
"""So many rows are compared with so many at a time, always, padded where there are fewer: the last bits of a
cosine depend on the shape of a product, and samples that are made later must not change them.
"""


def duplicates(
    columns: Columns,
    *,
    column: AnyColumn = "",
    distance: int = 0,
    features: Features = "",
    epsilon: float | None = None,
    best: NumberColumn = "",
    order: Literal["first", "hard", "easy"] = "first",
    clusters: int | None = None,
    per: str | list[str] = "class",
    seed: int = 0,
) -> Mask:
    """Keeps one of the samples of a cell that are the same: the greatest in `best`, else the one that was
    asked for first; of equals in `best` also that. What has no value in `best` comes last.

    - `column` alone: the same value. A missing value is no duplicate and is not kept.
    - `column` with a `distance`: whole numbers of 64 bits, such as a perceptual hash, that differ in at most
      so many bits.
    - `features` with `epsilon`: a cosine above 1 - epsilon (SemDeDup).

    With `distance` or `epsilon`, sameness leads on: a may be like b, and b like c, but a not like c. A sample
    is dropped where any sample of its cell that stands before it is like it, be that one dropped itself or
    not. So without `best` a sample is judged by those that were asked for before it alone, and b and c go.

    SemDeDup compares within clusters of the cell. `clusters = 0` compares all pairs; None does so in a cell
    of up to 20,000 samples, and cuts a greater one into the root of their number by k-means, as all pairs of
    1M would take hours. `order` is theirs: "hard" keeps what is far from the cluster's centre, "easy" what is
    near; "first" compares by `best`, or by what was asked for first.

    `per = []` looks for the same in the whole pool.

    Source: SemDeDup (arXiv 2303.09540, section 3), whose published code orders by distance to the centre and
    lets dropped samples count as here.

    Raises:
        RecipeError: keys that do not go together, or a column of the wrong kind.
    """
    _check_keys(column, distance, features, epsilon, best, order, clusters)
    cells = cell_numbers(columns, per)
    if features:
        values = read_features(columns, features)
        known = np.flatnonzero(_is_known(values))
        ranks = _ranks(columns, best)
        dropped = _same_meaning(values, known, cells, ranks, 1 - float(epsilon or 0), order, clusters, seed)
    else:
        ids, missing = codes(columns, column)
        known = np.flatnonzero(~missing)
        # the first of those with the same value stands for all of them
        _, groups = np.unique(cells[known] * (int(ids.max(initial=0)) + 2) + ids[known], return_inverse=True)
        repeated = known[np.bincount(groups)[groups] > 1] if len(known) else known
        own = np.empty(len(ids), np.intp)
        own[known] = groups
        dropped = np.zeros(len(ids), bool)
        if len(repeated):
            ranked = in_order(columns, best, repeated, own[repeated])
            again = ranked[1:][own[ranked[1:]] == own[ranked[:-1]]]
            dropped[again] = True
        if distance:
            hashes = _hashes(columns, column)
            firsts = known[~dropped[known]]
            near = _near(hashes[firsts], cells[firsts], _ranks(columns, best)[firsts], distance)
            dropped[firsts[near]] = True
    keep = np.zeros(len(cells), bool)
    keep[known] = ~dropped[known]
    return keep


def _check_keys(
    column: str,
    distance: int,
    features: str,
    epsilon: float | None,
    best: str,
    order: str,
    clusters: int | None,
) -> None:
    if bool(column) == bool(features):
        raise RecipeError("duplicates: give either column or features")
    if not 0 <= distance <= MOST_BITS:
        raise RecipeError(f"duplicates: distance = {distance}; 0 to {MOST_BITS} of the 64 bits is allowed")
    if features and epsilon is None:
        raise RecipeError("duplicates: features want epsilon, such as 0.05 for a cosine above 0.95")
    if epsilon is not None and not 0 < epsilon < 2:
        raise RecipeError(f"duplicates: epsilon = {epsilon}; between 0 and 2 is allowed")
    for key, given in (
        ("epsilon", epsilon is not None),
        ("order", order != "first"),
        ("clusters", clusters is not None),
    ):
        if column and given:
            raise RecipeError(f"duplicates: {key} is for features; leave it out")
    if features and distance:
        raise RecipeError("duplicates: distance is for a column of hashes; features want epsilon")
    if best and order != "first":
        raise RecipeError(f'duplicates: give either best or order = "{order}"')
    if clusters is not None and clusters < 0:
        raise RecipeError(f"duplicates: clusters = {clusters}; 0 or more is allowed")


def in_order(columns: Columns, best: str, rows: Rows, groups: npt.NDArray[np.intp] | None = None) -> Rows:
    """Some rows in the order in which one of those that are the same is kept: the greatest in `best`, then as
    they were asked for; by group first, where there are `groups`.
    """
    keys = [key[rows] for key in sequence(columns)]
    if best:
        keys.append(np.nan_to_num(-numbers(columns, best)[rows], nan=np.inf))
    if groups is not None:
        keys.append(groups)
    return rows[np.lexsort(keys)]


def _ranks(columns: Columns, best: str) -> Rows:
    """The place of each row in that order."""
    order = in_order(columns, best, np.arange(n_rows(columns)))
    ranks = np.empty(len(order), np.intp)
    ranks[order] = np.arange(len(order))
    return ranks


def _hashes(columns: Columns, column: str) -> npt.NDArray[np.uint64]:
    values = columns[column]
    if values.dtype not in (np.uint64, np.int64):
        raise RecipeError(
            f'duplicates: distance compares bits, and "{column}" holds {values.dtype}; a column of whole '
            'numbers of 64 bits is wanted, such as "hashes_phash"'
        )
    return values.view(np.uint64)


def _near(hashes: npt.NDArray[np.uint64], cells: npt.NDArray[np.intp], ranks: Rows, distance: int) -> Rows:
    """The rows that have one of a lower rank in their cell within a Hamming distance.

    Two hashes that differ in at most d bits agree in r of d + r bands of bits; for each choice of r bands,
    those that agree there are compared. r is what makes that the least work; every pair within the distance
    is found.
    """
    crowd = float((np.bincount(cells).astype(np.float64) ** 2).sum()) if len(cells) else 0.0

    def work(r: int) -> float:
        return math.comb(distance + r, r) * (25 * len(hashes) + crowd / 2 ** (64 * r / (distance + r)))

    r = min(range(1, 5), key=work)
    bands = [sum(1 << int(bit) for bit in band) for band in np.array_split(np.arange(64), distance + r)]
    dropped = np.zeros(len(hashes), bool)
    salt = cells.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # cells may meet: they are compared below
    for chosen in itertools.combinations(bands, r):
        keys = (hashes & np.uint64(sum(chosen))) ^ salt
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        step, at = 1, np.flatnonzero(keys[1:] == keys[:-1])
        while len(at):
            a, b = order[at], order[at + step]
            close = (np.bitwise_count(hashes[a] ^ hashes[b]) <= distance) & (cells[a] == cells[b])
            dropped[np.where(ranks[a] > ranks[b], a, b)[close]] = True
            step += 1
            at = at[: np.searchsorted(at, len(keys) - step)]
            at = at[keys[at] == keys[at + step]]
    return np.flatnonzero(dropped)


def _is_known(values: npt.NDArray[np.floating]) -> Mask:
    known = np.empty(len(values), bool)
    for start in range(0, len(values), 2**16):
        known[start : start + 2**16] = np.isfinite(values[start : start + 2**16]).all(axis=1)
    return known


def _same_meaning(
    values: npt.NDArray[np.floating],
    known: Rows,
    cells: npt.NDArray[np.intp],
    ranks: Rows,
    limit: float,
    order: str,
    clusters: int | None,
    seed: int,
) -> Mask:
    """Which rows have one before them in their cluster with a cosine above the limit."""
    dropped = np.zeros(len(values), bool)
    known = known[np.lexsort((ranks[known], cells[known]))]
    for cell in np.split(known, np.flatnonzero(np.diff(cells[known])) + 1):
        number = clusters
        if number is None:
            number = round(math.sqrt(len(cell))) if len(cell) > WHOLE_CELL else 0
        for rows in _clusters(values, cell, number, seed) if number else [cell]:
            unit = clustering.unit(values[rows])
            if order != "first":
                centre = unit.sum(axis=0, dtype=np.float64)
                near = clustering.cosines(unit, clustering.unit(centre[None]))[:, 0]
                by = np.argsort(near if order == "hard" else -near, kind="stable")
                rows, unit = rows[by], unit[by]
            dropped[rows[_has_earlier(unit, limit)]] = True
    return dropped


def _clusters(values: npt.NDArray[np.floating], rows: Rows, number: int, seed: int) -> list[Rows]:
    """The rows of a cell by cluster, in each in their order."""
    random = np.random.default_rng(seed)
    drawn = random.choice(len(rows), min(len(rows), PER_CLUSTER * number), replace=False)
    centroids = clustering.fit(values[rows[np.sort(drawn)]], number, seed=seed)
    ids = np.empty(len(rows), np.int32)
    for start in range(0, len(rows), 2**16):
        part = rows[start : start + 2**16]
        ids[start : start + len(part)], _ = clustering.assign(values[part], centroids)
    order = np.argsort(ids, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(ids[order])) + 1)


def _has_earlier(unit: npt.NDArray[np.float32], limit: float) -> Mask:
    """Which rows have a cosine above the limit with one before them."""
    tiles = np.zeros((-(-len(unit) // TILE), TILE, unit.shape[1]), np.float32)
    tiles.reshape(-1, unit.shape[1])[: len(unit)] = unit
    found, is_earlier = np.zeros(tiles.shape[:2], bool), np.tri(TILE, k=-1, dtype=bool)
    for place, tile in enumerate(tiles):
        for other in range(place + 1):
            is_like = clustering.products(tile, tiles[other]) > np.float32(limit)
            found[place] |= (is_like & is_earlier if other == place else is_like).any(axis=1)
    return found.ravel()[: len(unit)]
