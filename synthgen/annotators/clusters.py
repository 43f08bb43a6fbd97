"""Clusters of features: centroids fitted once to a sample of the pool, and each sample's nearest."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from synthgen.clustering import cosines, fit
from synthgen.data import Sample
from synthgen.errors import RecipeError

CLUSTERS_COLUMNS = {"id": "int32", "distance": "float32"}
Arrays = dict[str, npt.NDArray[np.generic]]
Part = tuple[npt.NDArray[np.uint64], npt.NDArray[np.str_], npt.NDArray[np.str_], npt.NDArray[np.float16]]
"""Hashes, uids, class names and features of some samples."""


def clusters(
    *,
    device: str,
    fitted: Mapping[str, npt.NDArray[np.generic]],
    features: str,
    count: int,
    sample: int = 100_000,
    iterations: int = 20,
    seed: int = 0,
    per: Literal["", "class"] = "",
) -> Callable[[list[Sample]], Arrays]:
    """`id`, the number of the nearest centroid, and `distance`, 1 less the cosine with it; null where a
    sample has no class and each class has its own.

    Args:
        device: not used; all is done on the CPU.
        fitted: what `fit_clusters` made.
        features: the features that are clustered, such as "clip_img".
        count: of centroids; with `per = "class"` of each class.
        sample: the centroids are fitted to so many samples at most.
        iterations: of k-means at most.
        seed: of that choice, and of the first centroids.
        per: "class" fits centroids to each class alone; the ids go on from class to class.
    """
    centroids = fitted["centroids"].astype(np.float32)
    owners = fitted["class_names"]

    def annotate(samples: list[Sample]) -> Arrays:
        if not len(centroids):
            nothing = np.full(len(samples), np.nan, np.float32)
            return {"id": np.ma.array(np.zeros(len(samples), np.int32), mask=True), "distance": nothing}
        similarity = cosines(np.stack([one.read[features] for one in samples]), centroids)
        if per:  # of all centroids, so that the product of matrices always has one shape, and these bits
            own = np.array([one.class_name or "" for one in samples])
            similarity[owners != own[:, None]] = -np.inf
        nearest = similarity.argmax(axis=1)
        distance = 1 - similarity[np.arange(len(samples)), nearest]
        is_far = np.isinf(distance)
        return {
            "id": np.ma.array(nearest.astype(np.int32), mask=is_far),
            "distance": np.where(is_far, np.float32(np.nan), distance),
        }

    annotate.needs_pixels = False  # type: ignore[attr-defined]
    annotate.fingerprint = hashlib.sha256(centroids.tobytes()).hexdigest()[:32]  # type: ignore[attr-defined]
    return annotate


def fit_clusters(
    shards: Iterable[tuple[list[str], list[str | None], npt.NDArray[np.float16]]],
    *,
    count: int,
    sample: int,
    iterations: int,
    seed: int,
    per: str,
) -> Arrays:
    """`centroids`, float32 of shape (n, width), and `class_names`, the class of each, "" where they are
    everyone's.

    Those of least hash(seed, uid) are the sample, in the order of their uids: the same whatever the order of
    the shards.

    Args:
        shards: uids, class names and features of each shard; rows with NaN are left out.
    """
    nothing: Part = np.empty(0, np.uint64), np.empty(0, "U"), np.empty(0, "U"), np.empty((0, 0), np.float16)
    parts = list[Part]()
    for own_uids, own_names, features in shards:
        whole = np.flatnonzero(~np.isnan(features).any(axis=1))
        digests = [hashlib.sha256(f"{seed} {own_uids[row]}".encode()).digest()[:8] for row in whole]
        parts.append((
            np.frombuffer(b"".join(digests), ">u8").astype(np.uint64),
            np.array([own_uids[row] for row in whole], "U32"),
            np.array([own_names[row] or "" for row in whole], "U"),
            features[whole],
        ))  # fmt: skip
        if sum(len(part[0]) for part in parts) > 2 * sample:  # seldom, as all of it is copied
            parts = [_least(parts, sample)]
    _, uids, names, rows = _least(parts, sample) if parts else nothing
    order = np.argsort(uids)
    names, rows = names[order], rows[order]
    centroids = {
        name: fit(rows[names == name] if per else rows, count, iterations=iterations, seed=seed)
        for name in (np.unique(names[names != ""]).tolist() if per else [""])
    }
    return {
        "centroids": np.concatenate([*centroids.values(), np.empty((0, rows.shape[1]), np.float32)]),
        "class_names": np.array([name for name, own in centroids.items() for _ in own], "U"),
    }


def _least(parts: list[Part], sample: int) -> Part:
    """Those of all parts that have the least hashes."""
    hashed, uids, names, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    least = np.lexsort((uids, hashed))[:sample]
    return hashed[least], uids[least], names[least], rows[least]


def check_clusters(*, count: int, sample: int, iterations: int, **others: object) -> None:
    """Raises RecipeError where a number is too small."""
    for key, value in (("count", count), ("sample", sample), ("iterations", iterations)):
        if value < 1:
            raise RecipeError(f"{key}: {value}; 1 or more is wanted")
    if sample < count:
        raise RecipeError(f"sample: {sample} is less than count = {count}; each centroid needs a sample")
