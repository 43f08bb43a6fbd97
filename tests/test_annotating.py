"""Annotators that read each other, look at a subset only, need no pixels, or wait for the whole pool: the
columns of a run, and of runs that were done in other ways.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SMALL, data_digests

import synthgen
from synthgen import annotators, pipeline, pools, recipe
from synthgen.clustering import assign
from synthgen.data import Sample
from synthgen.errors import FolderError, RecipeError
from synthgen.opening import open_job
from synthgen.workers.place import Place

LUMA = 'column = "image_luma"\nmaximum = 0.7'
MORE = f"""
[[annotate]]
name = "groups"
use = "clusters"
features = "clip_img"
count = 4

[[annotate]]
name = "second"
use = "clip"
on = "basic"
batch_size = 7

[[select]]
subset = "basic"
use = "range"
{LUMA}
"""


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji recipe with annotations that depend on others, which stand before what they read."""
    folder = Path(shutil.copytree(ROOT / "prompts" / "emoji", tmp_path_factory.mktemp("more") / "recipe"))
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(
        text.replace("[[annotate]]", MORE.partition("[[select]]")[0] + "[[annotate]]", 1)
        + "[[select]]"
        + MORE.partition("[[select]]")[2]
    )
    return folder


def annotate(folder: Path, root: Path, *settings: str, **options: Any) -> Path:
    return synthgen.run(
        folder, root, stages=("annotate",), settings=[*SMALL, *settings], workers=1, **options
    )


@pytest.fixture(scope="module")
def annotated(more: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `small_run` with the annotations of `more`, none of which was there."""
    root = tmp_path_factory.mktemp("annotated") / "run"
    for part in ("plan", "pool", "recipes"):
        shutil.copytree(small_run / part, root / part)
    return annotate(more, root)


def read(root: Path, name: str, column: str) -> list[Any]:
    return [
        value
        for path in sorted((root / "annotations" / name).glob("*.parquet"))
        for value in pq.read_table(path)[column].to_pylist()
    ]


def test_only_the_subset_is_annotated(annotated: Path, small_run: Path) -> None:
    kept = [luma <= np.float32(0.7) for luma in read(annotated, "image", "image_luma")]
    assert 5 < sum(kept) < 43
    for column in ("similarity", "margin", "top1", "rank"):
        whole = read(annotated, "clip", f"clip_{column}")
        found = read(annotated, "second", f"second_{column}")
        assert [value is not None for value in found] == kept
        near = [(a, b) for a, b in zip(whole, found, strict=True) if b is not None]
        assert np.array([a for a, _ in near]) == pytest.approx(np.array([b for _, b in near]), abs=1e-5)
    start = 0
    for path in sorted((annotated / "annotations" / "second").glob("*_stats.json")):
        record, rows = (
            json.loads(path.read_text()),
            len(pq.read_table(str(path).replace("_stats.json", ".parquet"))),
        )
        own = kept[start : start + rows]
        counts = [record[key] for key in ("requested", "written", "failed", "skipped")]
        assert counts == [sum(own), sum(own), 0, rows - sum(own)]
        features = np.load(str(path).replace("_stats.json", ".npz"))["second_img"]
        assert (~np.isnan(features).any(axis=1)).tolist() == own
        start += rows


def test_what_others_made_is_the_same_whether_it_is_read_or_not(annotated: Path, small_run: Path) -> None:
    for name in ("clip", "image", "hashes"):
        for path in sorted((small_run / "annotations" / name).glob("0*.[np]*")):
            assert path.read_bytes() == (annotated / "annotations" / name / path.name).read_bytes(), path


def test_annotations_added_later_are_the_same_and_touch_no_file(
    more: Path, annotated: Path, small_run: Path, tmp_path: Path
) -> None:
    """Here all that they read is finished, there it was made beside them."""
    root = Path(shutil.copytree(small_run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in root.glob("annotations/*/*")}
    annotate(more, root)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    theirs = {path: sum_ for path, sum_ in data_digests(annotated).items() if path.startswith("annotations")}
    ours = data_digests(root)
    assert {path: ours[path] for path in theirs} == theirs
    assert len(theirs) > 20


def test_what_others_read_is_made_again_where_its_record_has_gone(
    more: Path, annotated: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(annotated, tmp_path / "run"))
    (root / "annotations" / "clip" / "00000001_stats.json").unlink()
    (root / "annotations" / "clip" / "00000001.parquet").unlink()
    annotate(more, root)
    assert data_digests(root) == data_digests(annotated)


def test_the_order_of_shards_changes_nothing(more: Path, annotated: Path, tmp_path: Path) -> None:
    """The second of two workers begins in the middle; what a prompt was encoded with must not matter."""
    root = Path(shutil.copytree(annotated, tmp_path / "run", ignore=shutil.ignore_patterns("annotations")))
    job = open_job(more, root, settings=list(SMALL))
    job.place = Place(1, 2)
    pipeline.work(job, ["annotate"])
    assert data_digests(root) == data_digests(annotated)
    assert synthgen.verify(root) == []
    assert synthgen.status(root)["stages"]["annotate groups"]["done"] == 3


def test_each_sample_has_its_nearest_centroid(annotated: Path) -> None:
    folder = annotated / "annotations" / "groups"
    centroids = np.load(folder / "centroids.npz")["centroids"]
    paths = sorted((annotated / "annotations" / "clip").glob("*.npz"))
    features = np.concatenate([np.load(path)["clip_img"] for path in paths])
    ids, similarity = assign(features, centroids)
    assert read(annotated, "groups", "groups_id") == ids.tolist()
    assert read(annotated, "groups", "groups_distance") == pytest.approx((1 - similarity).tolist(), abs=1e-6)
    assert set(ids.tolist()) == {0, 1, 2, 3}


def test_clusters_of_a_class_are_its_own() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 8)).astype(np.float16)
    names: list[str | None] = [[None, "a", "b", "c"][k % 4] for k in range(40)]
    features[1] = np.nan
    keys: dict[str, Any] = {"count": 3, "sample": 100, "iterations": 5, "seed": 0, "per": "class"}
    uids = [f"{k:032x}" for k in range(40)]
    fitted = annotators.FITS["clusters"]([(uids, names, features)], **keys)
    halves = [(uids[a:b], names[a:b], features[a:b]) for a, b in ((25, 40), (0, 25))]
    again = annotators.FITS["clusters"](halves, **keys)
    assert all((fitted[key] == again[key]).all() for key in fitted)
    assert fitted["class_names"].tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    made = annotators.ANNOTATORS["clusters"](device="cpu", fitted=fitted, features="f", **keys)
    pixels = np.empty((0, 0, 3), np.uint8)
    some = [
        Sample(uid, None, name, None, pixels, b"", {"f": row})
        for uid, name, row in zip(uids, names, features, strict=True)
        if uid != uids[1]
    ]
    out = made(some)
    for sample, own, distance in zip(some, out["id"].tolist(), out["distance"], strict=True):
        if sample.class_name is None:
            assert own is None
            assert np.isnan(distance)
        else:
            assert fitted["class_names"][own] == sample.class_name
            mine = fitted["class_names"] == sample.class_name
            [near], [similarity] = assign(sample.read["f"][None], fitted["centroids"][mine])
            assert np.flatnonzero(mine)[near] == own
            assert 1 - distance == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize("missing", ["groups", "words"])
def test_what_needs_no_pixels_reads_no_tar(
    missing: str, more: Path, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(annotated, tmp_path / "run"))
    shutil.rmtree(root / "annotations" / "groups")
    for tar in root.glob("pool/*.tar"):
        tar.write_bytes(b"")
    if missing == "groups":
        annotate(more, root)
        assert read(root, "groups", "groups_id") == read(annotated, "groups", "groups_id")
        return

    def count_words(*, device: str, column: str) -> Callable[[list[Sample]], dict[str, Any]]:
        def count(samples: list[Sample]) -> dict[str, Any]:
            words = [len((sample.text or "").split()) for sample in samples]
            ranks = [sample.read[column] for sample in samples]
            return {"count": np.array(words, np.int32), "rank": np.array(ranks, np.int32)}

        count.needs_pixels = False  # type: ignore[attr-defined]
        return count

    monkeypatch.setitem(annotators.ANNOTATORS, "words", count_words)
    monkeypatch.setitem(annotators.COLUMNS, "words", {"count": "int32", "rank": "int32"})
    monkeypatch.setitem(annotators.READS, "words", ("column",))
    added = '[[annotate]]\nname = "words"\nuse = "words"\ncolumn = "second_rank"\n\n[[annotate]]'
    other = Path(shutil.copytree(more, tmp_path / "recipe")) / "recipe.toml"
    without_groups = other.read_text().replace(
        MORE.partition("[[select]]")[0].partition('name = "second"')[0], "\n[[annotate]]\n"
    )
    other.write_text(without_groups.replace("[[annotate]]", added, 1))
    annotate(other, root)
    # a sample that the other one has no value for has none here
    ranks = read(root, "second", "second_rank")
    assert read(root, "words", "words_rank") == ranks
    texts = [
        text
        for path in sorted(root.glob("pool/*.parquet"))
        for text in pq.read_table(path)["text"].to_pylist()
    ]
    assert read(root, "words", "words_count") == [
        None if rank is None else len(text.split()) for text, rank in zip(texts, ranks, strict=True)
    ]


def test_null_ranks_are_not_zero(annotated: Path) -> None:
    """A rule that keeps the small ones must not keep those that nobody looked at."""
    stems = [path.stem for path in sorted(annotated.glob("pool/*.tar"))]
    columns = pools.PoolColumns(annotated, stems, ["second"])
    ranks = read(annotated, "second", "second_rank")
    assert np.isnan(columns["second_rank"]).tolist() == [rank is None for rank in ranks]
    assert columns["class_id"].dtype == np.int32


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'features = "clip_img"',
            'features = "clip_image"',
            'annotate.0.features: unknown features "clip_image"; did you mean "clip_img"? Known: clip_img, '
            "clip_txt, second_img, second_txt",
        ),
        (
            'features = "clip_img"',
            'features = "clip_margin"',
            'annotate.0.features: unknown features "clip_margin"',
        ),
        ("count = 4", "", 'annotate.0: missing key "count"'),
        (
            'column = "image_luma"',
            'column = "second_margin"',
            "annotate: second read each other in a circle; none can be the first",
        ),
        (
            f'use = "range"\n{LUMA}',
            'use = "top"\ncolumn = "image_luma"\ncount = 3',
            'annotate.1.on: "basic" has the rule top, which compares samples',
        ),
        (
            f'use = "range"\n{LUMA}',
            'use = "duplicates"\ncolumn = "hashes_phash"',
            'annotate.1.on: "basic" has the rule duplicates, which compares samples',
        ),
        (
            "requests = 6 ",
            "accepted = 6\nmax_requests = 999 ",
            "annotate.0.use: clusters is fitted to the whole pool, which grows until quota.accepted is met",
        ),
    ],
)
def test_bad_annotations(old: str, new: str, message: str, more: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(more, tmp_path / "recipe")) / "recipe.toml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RecipeError) as error:
        recipe.load(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_changed_source_is_an_error_that_names_the_key(more: Path, annotated: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(annotated, tmp_path / "run"))
    setting = "annotate.clip.templates=['a {class}']"
    shutil.rmtree(root / "annotations" / "clip")
    with pytest.raises(
        FolderError, match=r"groups.centroids was made with annotate\.groups\.reads\.clip_img"
    ):
        annotate(more, root, setting)
    shutil.rmtree(root / "annotations" / "groups")
    with pytest.raises(FolderError, match=r"second.0* was made with annotate\.second\.on\.rules"):
        annotate(more, root, setting, "select.3.maximum=0.6")


def test_a_larger_pool_has_other_centroids(more: Path, annotated: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(annotated, tmp_path / "run"))
    with pytest.raises(
        FolderError, match=r"was made with requests = 48, now it would be 96; .* another name"
    ):
        synthgen.run(more, root, settings=[*SMALL, "quota.requests=2"], workers=1)


def test_a_subset_that_is_there_says_what_is_annotated(
    more: Path, annotated: Path, small_run: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(annotated, tmp_path / "run"))
    shutil.rmtree(root / "annotations" / "second")
    with pytest.raises(
        RecipeError, match=r"annotate.second.on: no \[\[select\]\] has subset = \"mine\", and .*mine.npy"
    ):
        annotate(more, root, "annotate.second.on=mine")
    (root / "subsets").mkdir(exist_ok=True)
    shutil.copy(small_run / "subsets" / "main.npy", root / "subsets" / "mine.npy")
    annotate(more, root, "annotate.second.on=mine")
    kept = [
        row["verdict"] == "kept" for row in pq.read_table(small_run / "subsets" / "main.parquet").to_pylist()
    ]
    assert [value is not None for value in read(root, "second", "second_rank")] == kept
    np.save(root / "subsets" / "mine.npy", np.load(root / "subsets" / "mine.npy")[:5])
    with pytest.raises(FolderError, match=r"was made with annotate\.second\.on\.sha256 = "):
        annotate(more, root, "annotate.second.on=mine")
