"""The models that ship are what their cards say, and the scripts that made them run, go on and learn."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

from synthgen.embedded import clip_folder, pipeline_folder
from synthgen.generation.models import fingerprint

SCRIPTS = ROOT / "scripts" / "embedded"
sys.path.insert(0, str(SCRIPTS))

import judge  # noqa: E402
import measure  # noqa: E402
import world  # noqa: E402

MODELS = ("vae", "vae-decoder", "clip", "generator", "judge")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of every object by every vendor, made here: nothing is fetched. Shape and colour say what it is."""
    folder = tmp_path_factory.mktemp("drawings")
    for number, thing in enumerate(world.THINGS):
        rng = np.random.default_rng(number)
        colour, points = tuple(rng.integers(0, 256, 3).tolist()), rng.uniform(4, 60, (5, 2))
        for style in range(len(world.STYLES)):
            image = Image.new("RGBA", (64, 64))
            outline = "black" if style % 2 else None
            ImageDraw.Draw(image).polygon(
                [tuple(p) for p in points], fill=(*colour, 255), outline=outline, width=style
            )
            path = folder / world.STYLES[style].name / f"{thing.codepoint}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
    return folder


def command(script: str, *options: object) -> list[str]:
    return [sys.executable, str(SCRIPTS / script), *(str(option) for option in options)]


def run(script: str, *options: object) -> str:
    done = subprocess.run(command(script, *options), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trial(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of every model."""
    work = tmp_path_factory.mktemp("trial")
    run(
        "train.py",
        "--work",
        work,
        "--drawings",
        drawings,
        "--processes",
        1,
        "--steps",
        24,
        "--batch-size",
        12,
    )
    return work


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_in_a_short_training(trial: Path, name: str) -> None:
    losses = [json.loads(line)["loss"] for line in (trial / f"{name}.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_what_was_trained_is_exported_and_measured(trial: Path, drawings: Path, tmp_path: Path) -> None:
    models, results = tmp_path / "models", tmp_path / "results"
    run("export.py", "--work", trial, "--drawings", drawings, "-o", models)
    kinds = {
        str(tensor.dtype)
        for path in models.rglob("*.safetensors")
        for tensor in load_file(path).values()
        if tensor.is_floating_point()
    }
    assert kinds == {"torch.float16"}
    before = {path: path.read_bytes() for path in ROOT.glob("s*/embedded/**/*.md")}
    options = ("--models", models, "--per-class", 1, "--beside", pipeline_folder(), "-o", results)
    figures = json.loads(run("measure.py", "--drawings", drawings, *options))
    assert before == {path: path.read_bytes() for path in before}  # the cards are of what ships
    assert figures["generated, seen pairs"]["images"] == len(world.THINGS)
    assert figures["seconds_an_image"]["ratio"] > 0
    assert {path.name for path in results.iterdir()} == {"results.json", "results.md", "generated.jpg"}


def test_a_training_that_was_killed_ends_with_the_same_weights(drawings: Path, tmp_path: Path) -> None:
    def options(work: Path) -> tuple[object, ...]:
        return ("--work", work, "--drawings", drawings, "--processes", 2, "--steps", 32, "--batch-size", 4)

    run("judge.py", *options(tmp_path / "whole"))
    checkpoint = tmp_path / "cut" / "judge.safetensors"
    process = subprocess.Popen(command("judge.py", *options(tmp_path / "cut")), start_new_session=True)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with safe_open(checkpoint, "pt") as file:
        assert int(file.metadata()["step"]) < 32
    run("judge.py", *options(tmp_path / "cut"))
    whole, cut = load_file(tmp_path / "whole" / "judge.safetensors"), load_file(checkpoint)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
