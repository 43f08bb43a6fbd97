"""scripts/train.py, as a user runs it, on the real set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from synthgen.errors import FolderError
from synthgen.loader import class_names, join_classes

REAL = ROOT / "shards" / "emoji-real"


def script(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_training_learns_something_and_says_on_what() -> None:
    done = script(
        str(REAL / "train"), "--evaluate", str(REAL / "train"), str(REAL / "validation"), "--steps", "50"
    )
    assert done.returncode == 0, done.stderr
    seen, unseen = (json.loads(line) for line in done.stdout.splitlines())
    assert (seen["split"], unseen["split"]) == (str(REAL / "train"), str(REAL / "validation"))
    assert seen["samples"] == unseen["samples"] == 480
    assert seen["classes"] == seen["classes_trained_on"] == 48
    assert seen["accuracy"] > 4 / 48  # chance is 1/48
    assert unseen["accuracy"] > 3 / 48


def test_a_folder_without_shards_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    done = script(str(tmp_path / "nothing"))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        f"train.py: {tmp_path / 'nothing'}: no .tar shards there; a split such as final/main/train is wanted"
    )


def test_classes_are_joined_by_name(emoji_run: Path, tmp_path: Path) -> None:
    made = emoji_run / "final" / "main" / "train"
    assert join_classes([made, REAL / "train"]) == class_names(REAL / "train")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(FolderError, match='class id 0 is "dog", elsewhere 1 is "dog"'):
        join_classes([REAL / "train", tmp_path / "train"])
    with pytest.raises(FolderError, match=r"no classes\.txt"):
        class_names(tmp_path / "deeper" / "train")
