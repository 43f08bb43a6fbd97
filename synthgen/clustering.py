"""Spherical k-means over features: centroids of unit length, nearest by cosine. Knows arrays only.

Features are read in chunks, so that a million rows of float16 need little more than themselves.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]
CELLS = 2**23
"""Similarities, float32, that are in memory at a time."""
ROUNDS, PER_CENTROID, TRIALS = 1024, 8, 4
"""The first centroids are drawn in at most so many rounds, from so many samples for each; in each round so
many times as many are tried.
"""


def fit(features: Features, count: int, *, iterations: int = 20, seed: int = 0) -> npt.NDArray[np.float32]:
    """Centroids of unit length, shape (count, width), fewer where there are fewer rows; the same for the same
    rows in the same order.

    The first are drawn as k-means++ does (Arthur and Vassilvitskii, 2007), each with a chance in proportion
    to its distance to those before; more than `ROUNDS` are drawn several at a time, as in k-means|| (Bahmani
    et al., arXiv 1203.6402). A centroid that loses all its samples goes to the one that is farthest from its
    own.

    Args:
        features: shape (rows, width), finite; their length does not matter.
        iterations: of Lloyd's algorithm at most; it ends before where no sample moves.
        seed: of the first centroids.
    """
    random = np.random.default_rng(seed)
    centroids = _first(features, min(count, len(features)), random)
    ids = np.full(len(features), -1, np.int32)
    for _ in range(iterations):
        before = ids
        ids, similarity = assign(features, centroids)
        if (ids == before).all():
            break
        sums = np.zeros((len(centroids), features.shape[1]))
        for start, rows in _chunks(features, len(centroids)):
            own = ids[start : start + len(rows)]
            order = np.argsort(own, kind="stable")
            present, starts = np.unique(own[order], return_index=True)
            sums[present] += np.add.reduceat(unit(rows)[order], starts, axis=0)
        empty = np.flatnonzero(np.bincount(ids, minlength=len(centroids)) == 0)
        farthest = np.argsort(similarity, kind="stable")[: len(empty)]
        sums[empty] = unit(features[farthest])
        centroids = unit(sums)
    return centroids


def assign(
    features: Features, centroids: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The number of each row's nearest centroid, and the cosine with it; of equals the first.

    Args:
        features: shape (rows, width), finite; their length does not matter.
        centroids: unit length, shape (count, width).
    """
    ids, similarity = np.empty(len(features), np.int32), np.empty(len(features), np.float32)
    for start, rows in _chunks(features, len(centroids)):
        similar = cosines(rows, centroids)
        nearest = similar.argmax(axis=1)
        ids[start : start + len(rows)] = nearest
        similarity[start : start + len(rows)] = similar[np.arange(len(rows)), nearest]
    return ids, similarity


def cosines(rows: Features, others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The cosines of rows with vectors of unit length, shape (rows, others)."""
    return products(unit(rows), others)


def products(rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The products of rows with others, shape (rows, others)."""
    import torch  # its threads are those that a worker was given; numpy's BLAS takes all, and the bits change

    found: npt.NDArray[np.float32] = (torch.from_numpy(rows) @ torch.from_numpy(others).T).numpy()
    return found


def _first(features: Features, count: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """`count` rows that lie far from each other, of a sample."""
    drawn = random.choice(len(features), min(len(features), PER_CENTROID * count), replace=False)
    rows = unit(features[np.sort(drawn)])
    chosen = [int(random.integers(len(rows)))] if count else []
    distance = 1 - cosines(rows, rows[chosen]).sum(axis=1)  # to the nearest that is chosen
    while len(chosen) < count:
        distance = np.maximum(distance, 0).astype(np.float64)
        distance[chosen] = 0
        wanted = min(-(-count // ROUNDS), count - len(chosen))
        far = np.flatnonzero(distance)
        if len(far) < TRIALS * wanted:  # the others equal one that is chosen
            chosen += np.setdiff1d(np.arange(len(rows)), chosen)[: count - len(chosen)].tolist()
            break
        chance = distance[far] / distance[far].sum()
        tried = random.choice(far, TRIALS * wanted, replace=False, p=chance)
        nearest = np.minimum(distance[:, None], 1 - cosines(rows, rows[tried]))
        best = np.argsort(nearest.sum(axis=0), kind="stable")[:wanted]
        distance = nearest[:, best].min(axis=1)
        chosen += tried[best].tolist()
    return rows[chosen]


def unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The rows at unit length, zero where they are."""
    rows = rows.astype(np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    np.divide(rows, length, out=rows, where=length > 0)
    return rows


def _chunks(features: Features, count: int) -> Iterator[tuple[int, Features]]:
    """The rows in chunks, with the number of each chunk's first."""
    size = max(64, CELLS // max(count, features.shape[1], 1))
    for start in range(0, len(features), size):
        yield start, features[start : start + size]
