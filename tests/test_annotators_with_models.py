"""All annotators that look with models, in one run: each reads what the others made, whatever the cut."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_networks
from conftest import SMALL

from synthgen import shards
from synthgen.annotators import COLUMNS
from synthgen.cli import main
from synthgen.pools import read_images

TABLES = """
[sources.real]
path = "real"

[[annotate]]
name = "near"
use = "references"
source = "sources.real"
features = "clip_img"

[[annotate]]
name = "copies"
use = "references"
source = "sources.real"
features = "dino_img"
per = ""

[[annotate]]
name = "dino"
use = "embeddings"
model = "dino"

[[annotate]]
name = "sure"
use = "classifier"
model = "vit"
source = "sources.real"

[[annotate]]
name = "looks"
use = "aesthetic"
features = "clip_img"
weights = "head.safetensors"

[[annotate]]
name = "safe"
use = "nsfw"
model = "vit"
positive = ["zebra"]

[[annotate]]
name = "caption"
use = "language"
"""


@pytest.fixture
def root(small_run: Path, recipe_folder: Path, tmp_path: Path) -> Path:
    """A run that has its images, and a recipe that wants more to be known of them. The real images are those
    of its first shard.
    """
    tiny_networks.vit_classifier(recipe_folder / "vit")
    tiny_networks.dinov2(recipe_folder / "dino")
    tiny_networks.sequential(recipe_folder / "head.safetensors", {0: (192, 8), 2: (8, 1)})
    with (recipe_folder / "recipe.toml").open("a") as recipe:
        recipe.write(TABLES)
    table = shards.read_table(small_run / "pool/00000000.parquet")
    images = read_images(small_run, "00000000", table)
    for uid, name, image in zip(
        table["uid"].to_pylist(), table["class_name"].to_pylist(), images, strict=True
    ):
        path = recipe_folder / "real" / name / f"{uid}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def command(root: Path, recipe: Path) -> list[str]:
    settings = [part for setting in ("name=emoji", *SMALL) for part in ("--set", setting)]
    return ["annotate", str(recipe), "-o", str(root), "--workers", "1", *settings]


def columns(root: Path, name: str, stem: str) -> dict[str, list[object]]:
    read: dict[str, list[object]] = pq.read_table(root / f"annotations/{name}/{stem}.parquet").to_pydict()
    return read


def test_all_of_them_in_one_run(root: Path, recipe_folder: Path) -> None:
    assert main(command(root, recipe_folder)) == 0
    pool = pq.read_table(root / "pool/00000000.parquet").to_pydict()
    for name in ("near", "copies"):
        first = columns(root, name, "00000000")
        assert first[f"{name}_nearest"] == pool["uid"]
        assert first[f"{name}_max"] == pytest.approx([1] * 20, abs=1e-5)
        assert set(first[f"{name}_phash_distance"]) == {0}
    last = columns(root, "near", "00000002")
    real = {path.name for path in (recipe_folder / "real").iterdir()}
    labels = pq.read_table(root / "pool/00000002.parquet")["class_name"].to_pylist()
    assert [value is not None for value in last["near_max"]] == [name in real for name in labels]
    others = columns(root, "copies", "00000002")
    assert all(value is not None and 0 < value < 1 for value in others["copies_max"])
    assert len(columns(root, "sure", "00000002")["sure_confidence"]) == 8
    for name, use in (("looks", "aesthetic"), ("safe", "nsfw"), ("caption", "language")):
        for column in COLUMNS[use]:
            assert None not in columns(root, name, "00000002")[f"{name}_{column}"], (name, column)
    assert np.isfinite(shards.read_npz(root / "annotations/dino/00000002.npz")["dino_img"]).all()


def test_real_images_are_part_of_what_was_asked(
    root: Path, recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(root, recipe_folder)) == 0
    capsys.readouterr()
    first = next((recipe_folder / "real").rglob("*.webp"))
    first.write_bytes(first.read_bytes() + b"more")
    assert main(command(root, recipe_folder)) == 2
    error = capsys.readouterr().err
    assert "annotate.near.real" in error
    assert "give the annotation another name" in error
