"""The same bytes whatever the number of workers and whatever stopped them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, command, data_digests, killed_until_done

import synthgen
from synthgen import checks, claims, shards, storage
from synthgen.data import Sample
from synthgen.inspection import verify
from synthgen.job import Job
from synthgen.opening import open_job
from synthgen.pipeline import work

START = {"start_new_session": True, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}


def wait_for(what: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    for _ in range(1200):
        if what() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened in a minute")


def pool_records(root: Path) -> int:
    return len(shards.records(root / shards.POOL))


def test_the_undisturbed_run_is_whole(small_run: Path) -> None:
    assert verify(small_run) == []
    assert len(data_digests(small_run)) == 1 + 3 * 2 + 3 * (2 + 1 + 1) + 2 + len(
        list(small_run.glob("final/*/*/*.tar"))
    )
    assert storage.names(small_run / ".work" / "tmp") == storage.names(small_run / ".work" / "claims") == []


def test_the_same_recipe_again_changes_nothing(small_run: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in small_run.rglob("*.*") if path.parent.name != "recipes"
    }
    assert synthgen.run("emoji", small_run, settings=SMALL, workers=1) == small_run
    after = {
        path: path.stat().st_mtime_ns for path in small_run.rglob("*.*") if path.parent.name != "recipes"
    }
    assert {path: when for path, when in after.items() if ".work" not in path.parts} == {
        path: when for path, when in before.items() if ".work" not in path.parts
    }


def test_two_workers_killed_and_started_again(small_run: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path / "run", "--workers", "2"), **START)  # type: ignore[call-overload]
    wait_for(lambda: pool_records(tmp_path / "run") >= 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = pool_records(tmp_path / "run")
    assert done >= 1
    assert not storage.exists(tmp_path / "run" / "report" / "index.html")
    again = subprocess.run(
        command(tmp_path / "run", "--workers", "2"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert data_digests(tmp_path / "run") == data_digests(small_run)
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_politely_and_started_again(
    small_run: Path, tmp_path: Path, number: int, status: int
) -> None:
    process = subprocess.Popen(command(tmp_path / "run", "--workers", "1"), **START)  # type: ignore[call-overload]
    wait_for(lambda: any(unit.startswith("pool/") for unit in claims.claims(tmp_path / "run")), process)
    os.killpg(process.pid, number)
    error = process.communicate()[1]
    assert process.returncode == status
    assert "Traceback" not in error
    assert storage.names(tmp_path / "run" / ".work" / "claims") == []
    assert storage.names(tmp_path / "run" / ".work" / "tmp") == []
    synthgen.run("emoji", tmp_path / "run", settings=SMALL, workers=1)
    assert data_digests(tmp_path / "run") == data_digests(small_run)


class Killed(BaseException):
    """Ends the process at once, as far as the code under test can see."""


def test_killed_after_each_publish_step(small_run: Path, tmp_path: Path) -> None:
    work = "synthgen.run('emoji', sys.argv[1], settings=json.loads(sys.argv[2]), workers=1)"
    arguments = str(tmp_path / "run"), json.dumps(SMALL)
    # after the first, the second, the third link, or after the record in turn
    assert killed_until_done(work, *arguments, period=4, imports="diffusers, open_clip") > 10
    assert data_digests(tmp_path / "run") == data_digests(small_run)
    assert verify(tmp_path / "run") == []
    left = tmp_path / "run" / ".work"
    assert [storage.names(left / name) for name in ("claims", "tmp", "attempts")] == [[], [], []]


def test_a_kill_while_selecting_leaves_no_half_subset(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the files of other rules, then back to the first rules."""
    settings = ["quota.requests=2"]
    before = (run_copy / "subsets" / "main.parquet").read_bytes()
    replace = storage.replace

    def dies(root: Path, path: Path, data: bytes) -> None:
        if path.name == "main.npy":
            raise Killed
        replace(root, path, data)

    monkeypatch.setattr(storage, "replace", dies)
    with pytest.raises(Killed):
        synthgen.run(
            "emoji",
            run_copy,
            stages=("select",),
            settings=[*settings, "select.0.minimum=0.2"],
            subset="main",
            replace=True,
        )
    monkeypatch.undo()
    assert (run_copy / "subsets" / "main.parquet").read_bytes() != before
    synthgen.run("emoji", run_copy, settings=settings, workers=1)
    assert (run_copy / "subsets" / "main.parquet").read_bytes() == before
    assert verify(run_copy) == []


def test_a_killed_worker_s_unfinished_files_are_removed(tmp_path: Path) -> None:
    with claims.claim(tmp_path, "pool/0") as claim:
        assert claim
        left = tmp_path / ".work" / "tmp" / f"{claim.path.name}.0123"
        left.mkdir(parents=True)
        with shards.new_unit(tmp_path, tmp_path / "pool", "0", {}, claim) as create:
            create(".tar").write(b"data")
        assert not left.exists()


LAUNCHERS = {
    "torchrun": "--standalone --nproc_per_node 2",
    # `--cpu` would start one process only
    "accelerate": "launch --multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no "
    "--dynamo_backend no",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_of_two_processes(small_run: Path, tmp_path: Path, launcher: str) -> None:
    program = str(Path(sys.executable).parent / launcher)
    arguments = [program, *LAUNCHERS[launcher].split(), *command(tmp_path / "run")[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("48 requested") == 1  # one of the two speaks
    assert data_digests(tmp_path / "run") == data_digests(small_run)
    made_by = {shards.read_record(tmp_path / "run" / "pool", f"{k:08d}")["pid"] for k in range(3)}
    assert len(made_by) == 2


def test_a_launched_process_with_nothing_to_do_does_not_stop_the_others(tmp_path: Path) -> None:
    """Accelerate's processes meet when they look for their device; there is one shard for two of them."""
    settings = ["--set", "images.shard_size=50", "--stages", "plan,generate"]
    program = str(Path(sys.executable).parent / "torchrun")
    arguments = [program, *LAUNCHERS["torchrun"].split(), *command(tmp_path / "run")[1:], *settings]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert shards.records(tmp_path / "run" / "pool") == ["00000000"]


def test_a_world_that_accelerate_does_not_see_is_an_error(tmp_path: Path) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "1"}
    done = subprocess.run(
        command(tmp_path / "run"), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert "synthgen: WORLD_SIZE is 2 and Accelerate sees 1 (" in done.stderr
    assert not storage.names(tmp_path / "run" / "pool")


def test_a_pilot_is_a_prefix_and_grows(small_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    synthgen.run("emoji", root, settings=SMALL, limit=7, workers=1)
    pilot = data_digests(root)
    with pytest.raises(
        synthgen.SynthgenError, match=r"made with requests = 7, now it would be 48; add --subset NEW"
    ):
        synthgen.run("emoji", root, settings=SMALL, workers=1)
    assert data_digests(root) == pilot
    synthgen.run("emoji", root, settings=SMALL, workers=1, replace=True)
    assert verify(root) == []
    grown, whole = (
        {
            (row["uid"], row["sha256"])
            for path in sorted(run.glob("pool/*.parquet"))
            for row in shards.read_table(path).to_pylist()
        }
        for run in (root, small_run)
    )
    assert grown == whole
    with pytest.raises(synthgen.SynthgenError, match="--limit 7: 48 requests are planned already"):
        synthgen.run("emoji", root, settings=SMALL, limit=7, workers=1)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("threads", "1", "2"), ("torch", '"2.0.0"', None), ("device", '"cuda H100"', None)],
)
def test_strict_refuses_a_mixture_of_stacks(
    key: str, old: str, new: str | None, run_copy: Path, tmp_path: Path
) -> None:
    """Without --strict the run goes on, and its records say so."""
    record = run_copy / "pool" / "00000000_stats.json"
    made = json.loads(record.read_text())
    made["stack"][key] = json.loads(old)
    record.write_text(json.dumps(made))
    options = {"settings": ["quota.requests=2"], "workers": 1, "threads": int(new or 1)}
    with pytest.raises(
        synthgen.SynthgenError, match=rf"pool/00000000 was made with {key} = {old}, now it"
    ) as e:
        synthgen.run("emoji", run_copy, strict=True, **options)
    assert "--strict refuses a mixture" in str(e.value)
    synthgen.run("emoji", run_copy, **options)


def test_selecting_looks_at_every_record(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start a worker looks at some records; another command may have made the others."""
    record = run_copy / "annotations" / "image" / "00000000_stats.json"
    made = json.loads(record.read_text())
    made["inputs"]["annotate.image.near_constant"] = 0.5
    record.write_text(json.dumps(made))
    monkeypatch.setattr(checks, "SPOT_CHECKS", 0)
    monkeypatch.setattr(checks, "_spread", lambda entries, at_most: entries if at_most is None else [])
    with pytest.raises(
        synthgen.SynthgenError, match=r"made with annotate\.image\.near_constant = 0\.5, now it would be"
    ):
        synthgen.run("emoji", run_copy, settings=["quota.requests=2"], subset="new", workers=1)


def test_spot_checks_are_spread() -> None:
    assert checks._spread(range(5), 16) == range(5)
    assert checks._spread(range(100), None) == range(100)
    spread = checks._spread(range(1000), 16)
    assert (len(spread), spread[0], spread[-1]) == (16, 0, 999)


def test_a_shard_is_annotated_by_its_maker_in_one_pass(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the files are those of a later `annotate`."""
    from synthgen.annotators import shard

    decode, decoded = shard._decode, list[str]()

    def count(sample: Sample) -> Sample | None:
        decoded.append(sample.uid)
        return decode(sample)

    monkeypatch.setattr(shard, "_decode", count)
    root = tmp_path / "run"
    synthgen.run("emoji", root, settings=SMALL, stages=("plan", "generate"), workers=1)
    assert not decoded
    synthgen.run("emoji", root, settings=SMALL, stages=("annotate",), workers=1)
    assert len(decoded) == len(set(decoded)) == 48  # three annotators
    synthgen.run("emoji", root, settings=SMALL, workers=1)
    assert data_digests(root) == data_digests(small_run)
    for k in range(2):  # made while the next pool shard was not there yet
        scored = small_run / "annotations" / "hashes" / f"{k:08d}_stats.json"
        following = small_run / "pool" / f"{k + 1:08d}_stats.json"
        assert scored.stat().st_mtime_ns < following.stat().st_mtime_ns


def test_two_commands_that_plan_at_once_both_get_what_they_want(tmp_path: Path) -> None:
    """The second wants more than the first, and finds the name of its part of the plan taken."""
    root = tmp_path / "run"
    larger = open_job("emoji", root, settings=SMALL)
    checks.check(larger)
    list_new = larger.requests.new

    def then_another_plans() -> object:
        found = list_new()
        larger.requests.new = list_new  # type: ignore[method-assign]
        synthgen.run("emoji", root, settings=SMALL, stages=("plan",), limit=7)
        return found

    larger.requests.new = then_another_plans  # type: ignore[method-assign,assignment]
    work(larger, ["plan"])
    assert shards.planned_requests(root) == 48
    assert len(shards.records(root / "plan")) == 2


def test_a_final_is_of_one_selection(run_copy: Path) -> None:
    """Another command has selected by other rules between this one's select and reshard."""
    settings = ["quota.requests=2"]
    job = open_job("emoji", run_copy, settings=[*settings, "select.0.minimum=0.15"], subset="other")
    work(job, ["select"])
    other = open_job("emoji", run_copy, settings=[*settings, "select.0.minimum=0.2"], subset="other")
    work(other, ["select"])
    with pytest.raises(synthgen.SynthgenError, match="another command has selected since; add --subset NEW"):
        work(job, ["reshard"])
    assert not storage.names(run_copy / "final" / "other")


def test_annotations_by_another_model_or_of_other_images_are_not_selected(run_copy: Path) -> None:
    record = run_copy / "annotations" / "clip" / "00000000_stats.json"
    made = json.loads(record.read_text())
    record.write_text(json.dumps(made | {"pool": {}}))
    with pytest.raises(synthgen.SynthgenError, match="was made from other images than the pool holds"):
        synthgen.run("emoji", run_copy, settings=["quota.requests=2"], subset="new", workers=1)


def test_strict_refuses_halved_micro_batches(run_copy: Path) -> None:
    record = run_copy / "pool" / "00000000_stats.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"smallest_batch": 8}))
    with pytest.raises(synthgen.SynthgenError, match="made with smallest_batch = 8, now it would be 16"):
        synthgen.run("emoji", run_copy, settings=["quota.requests=2"], workers=1, strict=True)


def test_two_commands_that_plan_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has looked at an empty folder; meanwhile the first has planned other requests."""
    root = tmp_path / "run"
    check = checks.check

    def then_another_plans(job: Job, **keys: bool) -> None:
        check(job, **keys)
        monkeypatch.undo()
        synthgen.run("emoji", root, settings=[*SMALL, "images.format=png"], stages=("plan",))

    monkeypatch.setattr(checks, "check", then_another_plans)
    with pytest.raises(
        synthgen.SynthgenError, match=r'made with images\.format = "png", now it would be "webp"'
    ):
        synthgen.run("emoji", root, settings=SMALL, workers=1)
    assert not storage.names(root / "pool")


def test_five_random_kills_change_nothing(small_run: Path, tmp_path: Path) -> None:
    """Of three workers that are commands of their own; `scripts/bench/storm.py` does a hundred."""
    dice, root = random.Random(0), tmp_path / "run"

    def start(k: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command(root, "--share", f"{k}/3", "--workers", "1"), stderr=subprocess.DEVNULL
        )

    workers, kills, end = [start(k) for k in range(3)], 0, time.monotonic() + 240
    while kills < 5:
        assert time.monotonic() < end
        time.sleep(dice.random())
        busy = {held["pid"] for held in claims.claims(root).values() if not held["stale"]}
        for k, worker in enumerate(workers):
            if kills < 5 and (worker.pid in busy or worker.poll() is not None):
                kills += worker.poll() is None
                worker.kill()
                worker.communicate()
                workers[k] = start(k)
                break
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    assert data_digests(root) == data_digests(small_run)
    assert verify(root) == []
    assert storage.names(root / ".work" / "tmp") == storage.names(root / ".work" / "claims") == []
    assert storage.names(root / ".work" / "attempts") == []
