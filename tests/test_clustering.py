"""Spherical k-means against planted clusters, scipy's k-means, and a slow assignment."""

import numpy as np
import numpy.typing as npt
import pytest

from synthgen.clustering import assign, fit


def planted(rows: int, count: int, noise: float, seed: int = 0) -> tuple[npt.NDArray[np.float16], ...]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(count, 64))
    ids = random.integers(count, size=rows)
    return (centres[ids] + noise * random.normal(size=(rows, 64))).astype(np.float16), ids


def test_planted_clusters_are_found() -> None:
    features, ids = planted(2000, 12, noise=0.3)
    found, similarity = assign(features, fit(features, 12))
    assert len({*zip(ids.tolist(), found.tolist(), strict=True)}) == 12
    assert similarity.min() > 0.8


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
@pytest.mark.parametrize(("count", "noise"), [(20, 0.5), (60, 1.0)])
def test_the_clusters_are_as_tight_as_scipy_s(count: int, noise: float) -> None:
    from scipy.cluster.vq import kmeans2

    features, _ = planted(3000, count, noise)
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    ours, theirs = [], []
    for seed in range(4):
        ours.append(assign(features, fit(features, count, seed=seed))[1].mean())
        other = kmeans2(unit, count, iter=20, minit="++", seed=seed)[0]
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        theirs.append(assign(features, other.astype(np.float32))[1].mean())
    assert np.mean(ours) > np.mean(theirs) - 0.002


def test_each_row_goes_to_the_nearest_whatever_its_length() -> None:
    features, _ = planted(500, 7, noise=1.0)
    centroids = fit(features, 7, iterations=2)
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(7), abs=1e-6)
    ids, similarity = assign(features, centroids)
    for row, own, cosine in zip(features.astype(np.float64), ids, similarity, strict=True):
        cosines = centroids @ row / np.linalg.norm(row)
        assert cosines[own] == pytest.approx(cosines.max(), abs=1e-6) == cosine
    assert (assign(features * np.float16(0.5), centroids)[0] == ids).all()


def test_the_same_rows_and_seed_give_the_same_centroids() -> None:
    features, _ = planted(400, 5, noise=1.0)
    assert fit(features, 9, seed=3).tobytes() == fit(features, 9, seed=3).tobytes()
    assert fit(features, 9, seed=3).tobytes() != fit(features, 9, seed=4).tobytes()


@pytest.mark.parametrize(("rows", "count", "wanted"), [(0, 4, 0), (1, 4, 1), (3, 3, 3), (50, 8, 8)])
def test_few_rows_and_equal_rows(rows: int, count: int, wanted: int) -> None:
    features = np.ones((rows, 4), np.float16)
    centroids = fit(features, count)
    assert centroids.shape == (wanted, 4)
    assert np.isfinite(centroids).all()
    assert len(assign(features, centroids)[0]) == rows if wanted else True


def test_no_centroid_is_left_without_samples() -> None:
    features, _ = planted(300, 2, noise=0.1)
    ids, _ = assign(features, fit(features, 40))
    assert len(set(ids.tolist())) == 40
