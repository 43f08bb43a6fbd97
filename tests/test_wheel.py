"""What pip installs is enough: the emoji recipe runs from the wheel alone, in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_weights_recipes_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {
        "synthgen/embedded/pipeline/unet/diffusion_pytorch_model.safetensors",
        "synthgen/embedded/clip/open_clip_model.safetensors",
        "synthgen/recipes/emoji/recipe.toml",
        "synthgen/recipes/emoji/backgrounds.txt",
        "synthgen/reporting/page.html",
        "synthgen/py.typed",
    } <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not [
        name
        for name in names
        if name.startswith(("tests", "shards", "scripts")) or name.endswith((".bin", ".pt", ".pkl"))
    ]
    assert wheel.stat().st_size < 40e6


def test_it_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import synthgen; print(synthgen.__file__)"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    done = subprocess.run(
        [sys.executable, str(site / "bin" / "synthgen"), "run", "emoji", "--limit", "16"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "shards/emoji: 16 requested, 16 written, 0 failed"
    assert done.stdout.splitlines()[-1] == "report: shards/emoji/report/index.html"
    assert (empty / "shards" / "emoji" / "report" / "index.html").is_file()
    assert [path.name for path in empty.iterdir()] == ["shards"]
