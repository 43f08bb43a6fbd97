"""The committed real set is what its card says. No network, no drawing: only the files are read."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from synthgen import tars

ROOT = Path(__file__).parents[1] / "shards" / "emoji-real"
SPLITS = ("train", "validation", "heldout-pairs", "heldout-style")
SUFFIXES = ["jpg", "txt", "cls", "json", "mask.png"]
TYPES = {
    "uid": str,
    "class_id": int,
    "class_name": str,
    "text": str,
    "group": str,
    "axis_background": str,
    "axis_style": str,
    "source": str,
    "seed": int,
    "original_width": int,
    "original_height": int,
    "sha256": str,
}
# Captions of these classes may use the other noun only.
SYNONYMS = {
    "cat": "kitty",
    "dog": "puppy",
    "frog": "toad",
    "rabbit": "bunny",
    "turtle": "tortoise",
    "ladybug": "ladybird",
    "palm tree": "palm",
    "mushroom": "toadstool",
    "hamburger": "burger",
    "donut": "doughnut",
    "car": "automobile",
    "fire truck": "fire engine",
    "bicycle": "bike",
    "sailboat": "sailing boat",
    "airplane": "plane",
    "rocket": "spaceship",
    "soccer ball": "football",
    "gift": "present",
}


def read_json(path: Path):
    return json.loads(path.read_text(encoding="ascii"))


@pytest.fixture(scope="module")
def samples() -> dict[str, dict[str, dict[str, bytes]]]:
    """split -> uid -> suffix -> bytes"""
    return {split: dict(tars.samples((ROOT / split / "00000000.tar").read_bytes())) for split in SPLITS}


@pytest.fixture(scope="module")
def rows(samples) -> dict[str, list[dict]]:
    """split -> the samples' json"""
    return {split: [json.loads(members["json"]) for members in samples[split].values()] for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_record_agrees_with_the_shard(split: str) -> None:
    data = (ROOT / split / "00000000.tar").read_bytes()
    record = read_json(ROOT / split / "00000000_stats.json")
    assert record["files"] == {
        "00000000.tar": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    }
    assert (record["version"], record["stage"], record["inputs"]["split"]) == (1, "real_set", split)
    assert [record[key] for key in ("requested", "written", "successes", "failed")] == [480, 480, 480, 0]
    assert read_json(ROOT / split / "sizes.json") == {"00000000.tar": 480}
    assert read_json(ROOT / "_info.json")["splits"][split] == {
        "name": split,
        "num_samples": 480,
        "filenames": [f"{split}/00000000.tar"],
        "shard_lengths": [480],
    }


# webdataset leaves closing its files to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("split", SPLITS)
def test_opens_with_tarfile_and_webdataset(split: str, samples) -> None:
    path = ROOT / split / "00000000.tar"
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names == [f"{uid}.{suffix}" for uid in sorted(samples[split]) for suffix in SUFFIXES]
    read = list(wds.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == sorted(samples[split])
    assert all(sample["jpg"] == samples[split][sample["__key__"]]["jpg"] for sample in read)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_agree(split: str, samples) -> None:
    classes = (ROOT / "classes.txt").read_text(encoding="ascii").splitlines()
    assert len(set(classes)) == 48
    for uid, members in samples[split].items():
        row = json.loads(members["json"])
        assert {key: type(value) for key, value in row.items()} == TYPES
        assert row["uid"] == uid
        assert len(uid) == 32
        assert int(members["cls"]) == row["class_id"]
        assert classes[row["class_id"]] == row["class_name"]
        assert members["txt"].decode() == row["text"]
        name = row["class_name"]
        assert name in row["text"] or SYNONYMS.get(name, name) in row["text"]
        assert row["group"] == f"{name}/{row['axis_background']}"
        assert row["sha256"] == hashlib.sha256(members["jpg"]).hexdigest()
        assert 0 <= row["seed"] < 2**63


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_have_masks(split: str, samples) -> None:
    for uid, members in samples[split].items():
        image = Image.open(io.BytesIO(members["jpg"]))
        mask = Image.open(io.BytesIO(members["mask.png"]))
        image.load()
        assert (image.mode, image.size, mask.size) == ("RGB", (64, 64), (64, 64)), uid
        assert 0.05 < np.asarray(mask.convert("L"), bool).mean() < 0.75, uid


@pytest.mark.parametrize("split", SPLITS)
def test_classes_and_styles_are_balanced(split: str, rows) -> None:
    styles = {"openmoji"} if split == "heldout-style" else {"fluent", "noto", "twemoji"}
    assert {row["source"] for row in rows[split]} == styles
    assert set(Counter(row["class_id"] for row in rows[split]).values()) == {10}
    assert set(Counter(row["axis_style"] for row in rows[split]).values()) == {480 // len(styles)}
    in_class = Counter((row["class_id"], row["axis_style"]) for row in rows[split])
    assert set(in_class.values()) <= ({10} if len(styles) == 1 else {3, 4})
    if split != "heldout-pairs":  # where the pairs do not allow it
        assert set(Counter(row["axis_background"] for row in rows[split]).values()) == {34, 35}


def test_held_out_pairs_are_in_no_other_split(rows) -> None:
    groups = {split: {row["group"] for row in rows[split]} for split in SPLITS}
    held = groups.pop("heldout-pairs")
    assert len(held) == 67
    assert all(held.isdisjoint(others) and len(others) == 480 for others in groups.values())


def test_no_sample_comes_twice(rows) -> None:
    every = [row for split in SPLITS for row in rows[split]]
    assert len({row["uid"] for row in every}) == len({row["sha256"] for row in every}) == 4 * 480


def test_is_small_and_licensed() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 15_000_000
    licence = (ROOT / "heldout-style" / "LICENSE").read_text(encoding="utf-8")
    assert "Attribution-ShareAlike 4.0 International" in licence
    assert "OpenMoji" in licence
