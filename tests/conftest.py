"""What many tests share: small recipes, and one run of the emoji recipe that tests look at but never
change.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, chat_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
SMALL = ("quota.requests=1", "models.0.steps=2", "models.0.batch_size=5", "images.shard_size=20")
"""Overrides that make the emoji recipe small: 48 requests in shards of 20, 20 and 8 (its last micro-batch
padded).
"""
KEY = "sk-secret-0123456789abcdef"


@pytest.fixture(scope="session")
def emoji_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the emoji recipe as it ships, with 2 requests a class."""
    import synthgen

    return synthgen.run(
        "emoji", tmp_path_factory.mktemp("shared") / "emoji", settings=["quota.requests=2"], workers=1
    )


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run by one worker, which all others must equal."""
    import synthgen

    return synthgen.run("emoji", tmp_path_factory.mktemp("small") / "emoji", settings=SMALL, workers=1)


@pytest.fixture
def run_copy(emoji_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    return Path(shutil.copytree(emoji_run, tmp_path / "emoji"))


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    """A copy of the emoji recipe, to be edited."""
    target = tmp_path / "prompts" / "birds"
    shutil.copytree(ROOT / "prompts" / "emoji", target)
    return target


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny pipeline, by its name in `tiny_models`; built when it is first asked for."""
    import tiny_models

    parent = tmp_path_factory.mktemp("models")
    builders = tiny_models.FAMILIES | tiny_models.UNTESTED | tiny_models.WRONG | tiny_models.CHECKED

    @functools.cache
    def build(name: str) -> Path:
        builders[name](parent / name)
        return parent / name

    return build


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker has it: with more threads a row's last bits may depend on its place in the batch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A language model's server, at OPENAI_BASE_URL with the key `KEY`."""
    with chat_server() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


def command(root: Path, *more: str) -> list[str]:
    """The command line that makes `small_run`'s dataset in another folder."""
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return [sys.executable, "-m", "synthgen", "run", "emoji", "-o", str(root), *settings, *more]


def data_digests(root: Path) -> dict[str, str]:
    """sha256 of every data file of a run: tars, parquet, npz, npy; by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".tar", ".parquet", ".npz", ".npy") and ".work" not in path.parts
    }


DYING = """
import json, os, signal, sys
import {imports}
import synthgen
from synthgen import storage

def dies(change):
    def act(*arguments):
        global steps
        done = change(*arguments)
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return act

deaths = 0
while True:
    steps = deaths % {period}  # after the first step, the second, and so on, in turn
    child = os.fork()
    if not child:
        for name in {changes}:
            setattr(storage, name, dies(getattr(storage, name)))
        {work}
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    deaths += 1
    assert deaths < 60, "no progress"
print(deaths)
"""


def killed_until_done(
    work: str,
    *arguments: str,
    period: int,
    changes: tuple[str, ...] = ("publish",),
    imports: str = "synthgen.pipeline",
) -> int:
    """How often work was killed by SIGKILL until it came to its end, starting again each time.

    Args:
        work: a line of Python, which has `arguments` as sys.argv[1:].
        period: it is killed after 1, 2, ... so many steps, in turn.
        changes: the functions of `storage` that are steps.
        imports: what is imported once, for all tries.
    """
    script = DYING.format(work=work, period=period, changes=changes, imports=imports)
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
