"""Splits of imported data: those that it was published with, and parts that groups are too large for."""

import csv
import json
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import data_digests
from test_curating import plain
from test_import import images

import synthgen
from synthgen import storage
from synthgen.errors import RecipeError
from synthgen.importing.forms import Keys
from synthgen.inspection import verify
from synthgen.intake import bring


def table(folder: Path, **columns: Sequence[object]) -> Path:
    """A table of as many images as a column has values."""
    count = len(next(iter(columns.values())))
    images(folder, *(f"{k}.jpg" for k in range(count)))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        writer.writerows([f"{k}.jpg", *row] for k, row in enumerate(zip(*columns.values(), strict=True)))
    return folder / "table.csv"


def splits_of(final: Path) -> dict[str, list[int]]:
    """The numbers of the images in each split."""
    found = dict[str, list[int]]()
    for path in final.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            told = [tar.extractfile(one).read() for one in tar if one.name.endswith(".json")]  # type: ignore[union-attr]
        found.setdefault(path.parent.name, []).extend(json.loads(each)["at"] for each in told)
    return {name: sorted(numbers) for name, numbers in found.items()}


@pytest.mark.parametrize("is_named", [True, False])
def test_samples_keep_the_split_they_were_published_with(tmp_path: Path, is_named: bool) -> None:
    """By --split as Waterbirds numbers them, or by any column as it is; the same files for any workers."""
    source = table(tmp_path / "birds", fold=[k % 3 for k in range(9)], place=["sea"] * 9, at=range(9))
    keys = Keys("image", group="place", split="fold" if is_named else "")
    root = bring([source], tmp_path / "out", keys=keys, workers=1)
    column = "split" if is_named else "fold"
    own = plain(tmp_path / "recipe", f'[reshard]\nsplit = "{column}"\nshard_size = 2')
    digests = []
    for workers in (1, 3):
        synthgen.run(own, root, stages=("select", "reshard"), workers=workers, replace=True)
        digests.append(data_digests(root / "final" / "main"))
        for path in [*root.glob("final/main/*/*"), root / "final" / "main" / "_stats.json"]:
            path.unlink()
    assert digests[0] == digests[1]
    synthgen.run(own, root, stages=("select", "reshard"), workers=1)
    info = storage.read_json(root / "final" / "main" / "_info.json")
    assert list(info["splits"]) == ["train", "val", "test"]
    assert splits_of(root / "final" / "main") == {"train": [0, 3, 6], "val": [1, 4, 7], "test": [2, 5, 8]}
    assert verify(root) == []


@pytest.mark.parametrize(
    ("reshard", "parts", "has_next"),
    [
        ("", {"train": 0.8, "val": 0.2}, True),
        ("stratify = []", {"train": 0.8, "val": 0.2}, False),
        ('stratify = "class"', {"train": 0.8, "val": 0.2}, False),
        ("stratify = []", {"train": 1.0, "val": 3}, False),
    ],
)
def test_groups_that_are_larger_than_a_split_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reshard: str, parts: dict[str, float], has_next: bool
) -> None:
    """Whoever makes the shards, and again when all is done."""
    places = ["sea"] * 20 + ["land"] * 20
    source = table(tmp_path / "birds", y=[k % 2 for k in range(40)], place=places, at=range(40))
    keys = Keys("image", "y", group="place")
    root = bring([source], tmp_path / "out", keys=keys, workers=1)
    told = ", ".join(f"{name} = {part}" for name, part in parts.items())
    own = plain(tmp_path / "recipe", f"[reshard]\nsplit = {{ {told} }}\n{reshard}\n")
    for workers in (2, 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "synthgen"):
            synthgen.run(own, root, stages=("select", "reshard"), workers=workers)
        got = splits_of(root / "final" / "main")
        assert all({*range(20)} <= {*found} or {*found} <= {*range(20, 40)} for found in got.values())
        wanted = 8 if parts["val"] == 0.2 else 3
        worst = (
            f"val has {len(got.get('val', []))} of 40 samples, {wanted} were wanted: groups stay whole, and "
        )
        (said,) = caplog.messages
        assert said.startswith(f"{root / 'final' / 'main'}: reshard.split: {worst}")
        assert '" has 20; ' in said
        assert ("set reshard.stratify = [] to come as near" in said) == has_next
        assert said.endswith(
            "make groups smaller: import without --group or with another column, ask for more prompts"
        )


@pytest.mark.parametrize("reshard", ["", "stratify = []", 'stratify = "class"'])
def test_groups_that_are_small_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reshard: str
) -> None:
    pairs = [k // 2 for k in range(80)]
    source = table(tmp_path / "birds", y=[k // 20 for k in range(80)], pair=pairs, at=range(80))
    root = bring([source], tmp_path / "out", keys=Keys("image", "y", group="pair"), workers=1)
    own = plain(tmp_path / "recipe", f"[reshard]\nsplit = {{ train = 0.8, val = 0.2 }}\n{reshard}\n")
    with caplog.at_level(logging.WARNING, "synthgen"):
        synthgen.run(own, root, stages=("select", "reshard"), workers=1)
    assert caplog.messages == []
    got = splits_of(root / "final" / "main")
    assert all(k ^ 1 in found for found in got.values() for k in found)  # both of each pair


def test_what_is_no_published_split(tmp_path: Path) -> None:
    told = {"split": ["train", "", "val", ""], "part": ["a b", "c", "a b", "c"], "score": [0.5] * 4}
    source = table(tmp_path / "birds", **told, fold=[0, 1, 2, 3], at=range(4))
    root = bring([source], tmp_path / "out", keys=Keys("image"), workers=1)
    own = plain(tmp_path / "recipe", "")
    for settings, message in (
        (["split=split"], '2 of 4 samples have nothing in column "split"; leave them out by a rule'),
        (["split=part"], '2 samples have "a b" in column "part", which is no name of a split; letters'),
        (["split=fold"], '1 samples have "3" in column "fold", which is no name of a split; letters'),
        (["split=splt"], 'reshard.split: unknown "splt"; did you mean "split"'),
        (["split=score"], 'reshard.split: "score" holds measured numbers; names or whole numbers are wanted'),
        (["split=part", "stratify=[]"], 'reshard.stratify: decides nothing where split is a column, "part"'),
        (["split=[1.0]"], "reshard.split: input should be a valid dictionary, got [1.0]"),
    ):
        with pytest.raises(RecipeError) as error:
            synthgen.run(own, root, settings=[f"reshard.{one}" for one in settings], workers=1)
        assert str(error.value).startswith(f"{own / 'recipe.toml'}: reshard.")
        assert message in str(error.value)
        assert not (root / "final").exists()
