"""How workers are started, started again and placed: real processes, a real local Ray cluster."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, command, data_digests

import synthgen
from synthgen import claims, shards
from synthgen.errors import SynthgenError
from synthgen.inspection import verify
from synthgen.workers import local
from synthgen.workers.place import Parent, Place, find_command, find_parent, find_place, is_launched


def kill_a_claimant(root: Path, stop: threading.Event, killed: list[int]) -> None:
    """SIGKILLs the first process that is seen to work on a pool shard."""
    while not stop.wait(0.02):
        for unit, held in claims.claims(root).items():
            if unit.startswith("pool/") and not held["stale"]:
                os.kill(held["pid"], signal.SIGKILL)
                killed.append(held["pid"])
                return


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_worker_that_dies_is_replaced(
    engine: str, small_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop, killed = threading.Event(), list[int]()
    thread = threading.Thread(target=kill_a_claimant, args=(tmp_path / "run", stop, killed))
    thread.start()
    try:
        with caplog.at_level(logging.WARNING):
            synthgen.run("emoji", tmp_path / "run", settings=SMALL, workers=2, engine=engine)
    finally:
        stop.set()
        thread.join()
    assert len(killed) == 1
    if engine == "local":
        assert "died (signal 9); it is started again" in caplog.text
    assert data_digests(tmp_path / "run") == data_digests(small_run)
    assert verify(tmp_path / "run") == []
    made_by = {shards.read_record(tmp_path / "run" / "pool", f"{k:08d}")["pid"] for k in range(3)}
    assert not made_by & set(killed)
    tried = [shards.read_record(tmp_path / "run" / "pool", f"{k:08d}")["attempts"] for k in range(3)]
    assert sorted(tried) == [1, 1, 2]


def test_a_missing_ray_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SynthgenError, match=r'^engine "ray" needs the package ray, which is not'):
        synthgen.run("emoji", tmp_path / "run", settings=SMALL, engine="ray", stages=("plan", "generate"))


def test_an_unknown_engine_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SynthgenError, match=r'^--engine "rai"; did you mean "ray"\? Known: local, ray$'):
        synthgen.run("emoji", tmp_path / "run", engine="rai")


DIES = """
import os, sys
path = sys.argv[1]
with open(path, "a") as file:
    file.write("x")
life, lives = len(open(path).read()), int(sys.argv[2])
if life < lives:
    os.kill(os.getpid(), 9)
if life == lives:
    print("pool/0", flush=True)
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("lives", "status", "ends"), [(3, 0, (3, 0)), (9, 0, (6, -9)), (2, 1, (8, 1)), (1, 2, (1, 2))]
)
def test_how_often_a_process_is_started_again(
    lives: int, status: int, ends: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six deaths in a row without having made anything are enough; statuses that say why are final. In the
    third case the process makes something before it first ends with 1.
    """
    script = tmp_path / "dies.py"
    script.write_text(DIES)

    class Worker(local._Worker):
        def start(self) -> None:
            with open(self.made, "wb") as made:
                self.process = subprocess.Popen([sys.executable, str(script), *self.arguments], stdout=made)

    (tmp_path / "log").touch()
    worker = Worker([str(tmp_path / "lives"), str(lives), str(status)], dict(os.environ), tmp_path / "log")
    while not worker.is_over():
        time.sleep(0.01)
    assert worker.is_over()
    assert ((tmp_path / "lives").stat().st_size, worker.process.returncode) == ends


def test_a_worker_whose_parent_is_killed_stops(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        command(tmp_path / "run", "--workers", "2"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    pids: set[int] = set()
    while len(pids) < 2:
        assert parent.poll() is None
        pids |= {held["pid"] for unit, held in claims.claims(tmp_path / "run").items() if "pool/" in unit}
        time.sleep(0.02)
    parent.kill()
    parent.communicate()
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert claims.claims(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("variables", "place", "launched"),
    [
        ({}, Place(0, 1), False),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Place(1, 2, 1), True),
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}, Place(9, 16, 1), True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, Place(0, 1), False),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"},
            Place(1, 2),
            True,
        ),
    ],
)
def test_places(
    variables: dict[str, str], place: Place, launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_place() == place
    assert is_launched() is launched
    assert find_place("1/3")[:2] == (1, 3)
    for wrong in ("3/3", "1", "a/b", "-1/2"):
        with pytest.raises(SynthgenError, match=f"--share {wrong}: k/n with k from 0 to n - 1"):
            find_place(wrong)


def test_a_worker_knows_what_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_parent() is None
    monkeypatch.setenv("SYNTHGEN_WORKER", "abc 12")
    assert find_parent() == Parent("abc", 12)
    assert is_launched()
    monkeypatch.setenv("SYNTHGEN_WORKER", "abc 0")
    assert find_parent() == Parent("abc", None)


def test_two_slurm_tasks_share_the_work(small_run: Path, tmp_path: Path) -> None:
    """As srun would start them. Each takes its own share first."""
    tasks = [
        subprocess.Popen(
            command(tmp_path / "run"),
            env=os.environ | {"SLURM_PROCID": str(k), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(k)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for k in range(2)
    ]
    for task in tasks:
        error = task.communicate()[1]
        assert task.returncode == 0, error
    assert data_digests(tmp_path / "run") == data_digests(small_run)
    made_by = [shards.read_record(tmp_path / "run" / "pool", f"{k:08d}")["pid"] for k in range(3)]
    assert made_by[0] == tasks[0].pid
    assert made_by[1] == tasks[1].pid


def test_a_poison_shard_that_kills_its_process_is_given_up(tmp_path: Path) -> None:
    """As a fault of a driver would kill it, in the workers of one command; the next command makes it."""
    recipe = ROOT / "prompts" / "emoji" / "recipe.toml"
    settings = [*SMALL, "images.shard_size=60"]
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Poison:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'synthgen.generation.shard' and 'SYNTHGEN_WORKER' in os.environ:\n"
        "            import synthgen.generation.sampling as sampling\n"
        "            sampling.call = lambda *arguments: os.kill(os.getpid(), 9)\n"
        "sys.meta_path.insert(0, Poison())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "synthgen", "run", str(recipe), "-o", str(tmp_path / "run"), "--workers", "2"]
        + [part for setting in settings for part in ("--set", setting)],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "1 units given up after 3 attempts each, first pool/00000000 (the worker died)" in done.stderr
    found = synthgen.status(tmp_path / "run")
    assert found["given_up"] == {"pool/00000000": "the worker died"}
    assert found["stages"]["generate"]["given_up"] == 1
    synthgen.run(recipe, tmp_path / "run", settings=settings, workers=1)
    assert synthgen.status(tmp_path / "run")["given_up"] == {}


def test_the_slurm_script_starts_tasks_and_requeues(tmp_path: Path) -> None:
    """With an srun that starts two tasks as SLURM does, and an scontrol that notes what it is told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(
        "#!/bin/bash\nshift\nexport SLURM_NTASKS=2\n"
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!\n'
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@"; second=$?\n'
        "wait $first; first=$?\nexit $((first > second ? first : second))\n"
    )
    (tools / "synthgen").write_text('#!/bin/bash\necho "$SLURM_PROCID/$SLURM_NTASKS $*"\nexit $ENDS\n')
    (tools / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    for ends, requeued in ((0, False), (143, True), (1, False)):
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "slurm.sbatch"), "prompts/birds", "-o", "a folder"],
            env=os.environ
            | {"PATH": f"{tools}:{os.environ['PATH']}", "ENDS": str(ends), "SLURM_JOB_ID": "77"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == ends, done.stderr
        lines = done.stdout.splitlines()
        assert sorted(lines[:2]) == [f"{k}/2 run prompts/birds -o a folder" for k in range(2)]
        assert lines[2:] == (["scontrol requeue 77"] if requeued else [])


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"SYNTHGEN_WORKER": "abc 12", "SLURM_JOB_ID": "7"}, "abc"),
        ({"RANK": "0", "TORCHELASTIC_RUN_ID": "x1", "TORCHELASTIC_RESTART_COUNT": "2"}, "torch x1 2"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_RESTART_COUNT": "1"}, "slurm 7 3 1"),
    ],
)
def test_processes_of_one_launch_are_one_command(
    variables: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that together they try a poison shard three times, and not three times each."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_command() == found


def test_a_launcher_without_a_name_is_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert (find_command() or "").endswith(f" {os.getppid()}")


def test_ctrl_c_ends_a_run_on_ray(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "run", "--engine", "ray", "--workers", "1", "--set", "models.0.steps=50"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(unit.startswith("pool/") for unit in claims.claims(tmp_path / "run")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert error.endswith("synthgen: stopped; the same command goes on from here\n")
    assert "Error" not in error
