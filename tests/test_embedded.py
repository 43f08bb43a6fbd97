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
import webdataset
from conftest import ROOT
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

from synthgen.embedded import clip_folder, pipeline_folder
from synthgen.generation.models import fingerprint, load

SCRIPTS = ROOT / "scripts" / "embedded"
sys.path.append(str(SCRIPTS))

import clip  # noqa: E402
import generator  # noqa: E402
import judge  # noqa: E402
import measure  # noqa: E402
import vae  # noqa: E402
import world  # noqa: E402
from loop import Options, Step  # noqa: E402

MODELS = ("vae", "vae-decoder", "clip", "generator", "judge")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of every object by every vendor, made here, so that nothing is fetched."""
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
    run("export.py", "--work", trial, "-o", models)
    kinds = {
        str(tensor.dtype)
        for path in models.rglob("*.safetensors")
        for tensor in load_file(path).values()
        if tensor.is_floating_point()
    }
    assert kinds == {"torch.float16"}
    before = {path: path.read_bytes() for path in ROOT.glob("s*/embedded/**/*.md")}
    options = ("--models", models, "--per-class", 1, "-o", results)
    figures = json.loads(run("measure.py", "--drawings", drawings, *options))
    assert before == {path: path.read_bytes() for path in before}  # the cards are of what ships
    assert figures["generated, seen pairs"]["images"] == len(world.THINGS)
    assert measure.seconds_an_image([models / "pipeline"], "float32", rounds=1)[0] > 0
    assert {path.name for path in results.iterdir()} == {"results.json", "results.md", "generated.jpg"}


def test_a_training_that_was_killed_ends_with_the_same_weights(drawings: Path, tmp_path: Path) -> None:
    def options(work: Path) -> tuple[object, ...]:
        return ("--work", work, "--drawings", drawings, "--processes", 2, "--steps", 24, "--batch-size", 4)

    run("clip.py", *options(tmp_path / "whole"))
    checkpoint = tmp_path / "cut" / "clip.safetensors"
    process = subprocess.Popen(command("clip.py", *options(tmp_path / "cut")), start_new_session=True)
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["step"]) < 24
    run("clip.py", *options(tmp_path / "cut"))
    whole, cut = load_file(tmp_path / "whole" / "clip.safetensors"), load_file(checkpoint)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_another_training_does_not_go_on_from_this_one(trial: Path, drawings: Path) -> None:
    arguments = ("--work", trial, "--drawings", drawings, "--processes", 1, "--steps", 32)
    done = subprocess.run(command("judge.py", *arguments), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {trial / 'judge.safetensors'}: was begun with {{")
    assert done.stderr.count("\n") == 1


def test_no_export_without_all_trainings(tmp_path: Path) -> None:
    arguments = ("--work", tmp_path / "none", "-o", tmp_path / "models")
    done = subprocess.run(command("export.py", *arguments), capture_output=True, text=True)
    assert done.returncode == 1
    missing = tmp_path / "none" / "generator.safetensors"
    assert done.stderr == f"error: {missing}: not trained to the end; run train.py first\n"
    assert not list(tmp_path.iterdir())


def test_no_training_but_the_judge_s_sees_what_is_held_out(
    trial: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(rng, count, pairs, styles, *more):
        asked.append((set(pairs), set(styles)))
        return compose_batch(rng, count, pairs, styles, *more)

    compose_batch = world.compose_batch
    for module in (vae, clip, generator):
        monkeypatch.setattr(module, "compose_batch", spy)
    options = Options(work=trial, drawings=drawings, processes=1)
    step = Step(np.random.default_rng(0), torch.Generator().manual_seed(0), 0.0, 8)
    for lesson in (vae.learn_both, vae.learn_decoder, clip.learn):
        lesson(options, 0).loss(step)
    generator.encoder(options)
    assert len(asked) > 4
    assert not any(pairs & world.held_out_pairs() for pairs, _ in asked)
    assert not any(world.HELD_OUT_STYLE in styles for _, styles in asked)


SHIPPED = [*pipeline_folder().rglob("*.safetensors"), *clip_folder().glob("*.safetensors"), judge.WEIGHTS]


def test_what_ships_is_small_and_half_precision() -> None:
    assert len(SHIPPED) == 5
    for path in SHIPPED:
        kinds = {t.dtype for t in load_file(path).values() if t.is_floating_point()}
        assert kinds == {torch.float16}, path
    folders = (pipeline_folder().parent, judge.WEIGHTS.parent)
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*")) <= 40e6


def test_the_cards_are_of_these_weights() -> None:
    """Else measure.py was not run after export.py."""
    card = (pipeline_folder().parent / "README.md").read_text()
    assert fingerprint(pipeline_folder()) in card
    assert digest(clip_folder() / "open_clip_model.safetensors") in card
    assert digest(judge.WEIGHTS) in (judge.WEIGHTS.parent / "README.md").read_text()
    for path in SHIPPED:
        place = judge.WEIGHTS.parent if path == judge.WEIGHTS else pipeline_folder().parent
        assert f"{path.stat().st_size:,}" in (place / "README.md").read_text()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def real(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the committed real set, and their thing, background and style."""
    images, labels = [], []
    names = [[x.name for x in words] for words in (world.THINGS, world.BACKGROUNDS, world.STYLES)]
    for sample in webdataset.WebDataset(
        str(ROOT / "shards" / "emoji-real" / split / "00000000.tar"), shardshuffle=False
    ).decode("pil"):
        images.append(np.asarray(sample["jpg"].convert("RGB")))
        row = sample["json"]
        values = row["class_name"], row["axis_background"], row["axis_style"]
        labels.append([known.index(value) for known, value in zip(names, values, strict=True)])
    return np.stack(images), np.array(labels)


@pytest.mark.parametrize("split", ["validation", "heldout-pairs"])
def test_judge_and_clip_read_the_real_set(split: str) -> None:
    images, labels = real(split)
    right = (judge.look(judge.load(), images).labels.numpy() == labels).mean(0)
    assert right[0] >= 0.98
    assert right[1] >= 0.96
    assert right[2] >= 0.9
    assert ((measure.ZeroShot(clip_folder()).look(images) == labels[:, :2]).mean(0) >= 0.95).all()


def test_clip_reads_a_style_that_it_has_not_seen() -> None:
    images, labels = real("heldout-style")
    assert (measure.ZeroShot(clip_folder()).look(images) == labels[:, :2]).mean(0)[0] >= 0.6


def test_the_generator_makes_what_is_asked() -> None:
    """Of 96 pictures, pairs held out: the judge names object and background."""
    asked = measure.plan(sorted(world.held_out_pairs()), 2, world.TRAINING_STYLES, seed=7)
    pipeline = load(pipeline_folder(), device="cpu", dtype="float32")
    seen = judge.look(judge.load(), measure.generate(pipeline, asked.captions, 7, steps=10))
    right = (seen.labels.numpy() == asked.labels).mean(0)
    assert right[0] >= 0.95
    assert right[1] >= 0.93


def test_any_text_can_be_asked_for() -> None:
    pipeline = load(pipeline_folder(), device="cpu", dtype="float32")
    for text in ("Zażółć gęślą 猫 🙂 <|endoftext|> xyzzy-42!", "a very long prompt " * 40, ""):
        assert measure.generate(pipeline, [text], 1, steps=1).shape == (1, 64, 64, 3)
