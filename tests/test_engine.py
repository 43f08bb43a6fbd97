"""The loop: order, waiting, attempts, stopping. Units here are small files; the real ones are in
test_resume.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from synthgen import claims, engine, storage
from synthgen.claims import Claim
from synthgen.engine import Stopped, Unit, Worker
from synthgen.errors import DeviceError, ModelError, WorkError


def unit(root: Path, name: str, make: Callable[[Claim], object] = lambda claim: None, **more: object) -> Unit:
    """A unit that is done when its file is there, which it makes after `make`."""
    path = root / name

    def make_file(claim: Claim) -> None:
        make(claim)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    return Unit(name, path.exists, make_file, **more)  # type: ignore[arg-type]


def test_what_needs_a_unit_follows_it_at_once(tmp_path: Path) -> None:
    made: list[str] = []
    pool = [unit(tmp_path, f"pool/{k}", lambda claim: made.append(claim.unit)) for k in range(3)]
    scores = [
        unit(tmp_path, f"scores/{k}", lambda claim: made.append(claim.unit), needs=pool[k]) for k in range(3)
    ]
    Worker(tmp_path).work([*pool, *scores])
    assert made == ["pool/0", "scores/0", "pool/1", "scores/1", "pool/2", "scores/2"]


def test_units_of_the_loaded_model_come_first(tmp_path: Path) -> None:
    made: list[str] = []
    units = [
        unit(tmp_path, f"pool/{k}", lambda claim: made.append(claim.unit[-1]), model=model)
        for k, model in enumerate("ABABA")
    ]
    worker = Worker(tmp_path)
    worker.work(units)
    assert made == ["0", "2", "4", "1", "3"]


def test_no_model_is_loaded_for_a_unit_that_somebody_else_has(tmp_path: Path) -> None:
    units = [unit(tmp_path, "pool/0", model="A"), unit(tmp_path, "pool/1", model="B")]
    worker = Worker(tmp_path)
    with claims.claim(tmp_path, "pool/1"):
        thread = threading.Thread(target=worker.work, args=(units,))
        thread.start()
        while not units[0].done():
            time.sleep(0.01)
        time.sleep(2 * engine.WAIT_SECONDS)
        assert worker.model == "A"
        (tmp_path / "pool" / "1").touch()
    thread.join()
    assert worker.model == "A"


def test_what_another_holds_is_waited_for_and_taken_when_it_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from synthgen import claims\n"
        "with claims.claim(Path(sys.argv[1]), 'pool/0'): print(flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    thread = threading.Thread(target=Worker(tmp_path).work, args=([unit(tmp_path, "pool/0")],))
    thread.start()
    time.sleep(2 * engine.WAIT_SECONDS)
    assert thread.is_alive()
    holder.kill()
    thread.join(20)
    assert (tmp_path / "pool" / "0").exists()
    holder.communicate()
    assert claims.claims(tmp_path) == {}
    assert claims.attempted(tmp_path) == []


def test_a_poison_unit_is_given_up_after_three_attempts_and_the_rest_is_made(tmp_path: Path) -> None:
    tried: list[int] = []

    def poison(claim: Claim) -> None:
        tried.append(1)
        raise RuntimeError("such a\nshard")

    bad = unit(tmp_path, "pool/1", poison)
    units = [unit(tmp_path, "pool/0"), bad, unit(tmp_path, "scores/1", needs=bad), unit(tmp_path, "pool/2")]
    expected = r"1 units given up after 3 attempts each, first pool/1 \(RuntimeError: such a shard\); "
    with pytest.raises(WorkError, match=expected):
        Worker(tmp_path, command="one").work(units)
    assert len(tried) == 3
    assert [each.done() for each in units] == [True, False, False, True]
    with pytest.raises(WorkError, match="given up"):  # another worker of this command does not try
        Worker(tmp_path, command="one").work(units)
    assert len(tried) == 3
    with pytest.raises(WorkError, match="given up"):  # the next command does
        Worker(tmp_path, command="two").work(units)
    assert len(tried) == 6
    Worker(tmp_path).work([unit(tmp_path, "pool/1"), *units[2:]])
    assert claims.attempted(tmp_path) == []


def test_a_unit_that_fails_once_is_made(tmp_path: Path) -> None:
    failures = [RuntimeError("once"), OSError(5, "Input/output error")]

    def flaky(claim: Claim) -> None:
        if failures:
            raise failures.pop()

    Worker(tmp_path).work([unit(tmp_path, "pool/0", flaky)])
    assert (tmp_path / "pool" / "0").exists()
    assert claims.attempted(tmp_path) == []


def test_what_the_user_has_to_mend_ends_the_worker_at_once(tmp_path: Path) -> None:
    def vanished(claim: Claim) -> None:
        raise ModelError("models.tiny: no such model")

    def full(claim: Claim) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "a.tar"))

    with pytest.raises(ModelError, match="no such model"):
        Worker(tmp_path).work([unit(tmp_path, "pool/0", vanished)])
    with pytest.raises(WorkError, match=r"a\.tar: No space left on device; what is finished stays; when "):
        Worker(tmp_path).work([unit(tmp_path, "pool/0", full)])
    assert claims.attempted(tmp_path) == []
    assert claims.claims(tmp_path) == {}


def test_a_damaged_file_ends_its_own_unit_only(tmp_path: Path) -> None:
    def damaged(claim: Claim) -> None:
        raise WorkError("pool/0.tar: cut")

    units = [unit(tmp_path, "scores/0", damaged), unit(tmp_path, "scores/1")]
    with pytest.raises(WorkError, match=r"1 units given up .* scores/0 \(WorkError: pool/0\.tar: cut\)"):
        Worker(tmp_path).work(units)
    assert units[1].done()


def test_a_unit_that_ended_badly_is_tried_last(tmp_path: Path) -> None:
    made: list[str] = []
    claims.note_attempt(tmp_path, "pool/0", {"command": "", "host": "", "pid": 0, "error": ""})
    Worker(tmp_path).work(
        [unit(tmp_path, f"pool/{k}", lambda claim: made.append(claim.unit)) for k in range(3)]
    )
    assert made == ["pool/1", "pool/2", "pool/0"]


def test_what_fails_after_the_claim_is_lost_is_no_attempt(tmp_path: Path) -> None:
    lost: list[int] = []

    def suspended(claim: Claim) -> None:
        if not lost:
            lost.append(1)
            claim.path.unlink()
            raise FileNotFoundError(2, "the new owner has removed it")

    Worker(tmp_path).work([unit(tmp_path, "pool/0", suspended)])
    assert (tmp_path / "pool" / "0").exists()


def test_a_broken_device_needs_a_new_process(tmp_path: Path) -> None:
    import torch

    def fault(claim: Claim) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceError, match="illegal memory access"):
        Worker(tmp_path, command="one").work([unit(tmp_path, "pool/0", fault)])
    assert [each["command"] for each in claims.attempts(tmp_path, "pool/0")] == ["one"]


def test_a_signal_waits_for_the_micro_batch_and_a_second_one_does_not(tmp_path: Path) -> None:
    seen: list[str] = []

    def interrupted(claim: Claim) -> None:
        engine.stop(signal.SIGTERM)
        seen.append("the micro-batch goes on")
        claim.progress(1)
        seen.append("never")

    def twice(claim: Claim) -> None:
        engine.stop(signal.SIGINT)
        engine.stop(signal.SIGINT)

    for make, number in ((interrupted, signal.SIGTERM), (twice, signal.SIGINT)):
        with pytest.raises(Stopped) as stopped:
            Worker(tmp_path).work([unit(tmp_path, "pool/0", make)])
        assert stopped.value.number == number
        assert claims.claims(tmp_path) == {}
        engine._Stop.asked = 0
    assert seen == ["the micro-batch goes on"]
    with pytest.raises(Stopped):  # between units there is nothing to wait for
        engine.stop(signal.SIGTERM)
    engine._Stop.asked = 0


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    made: list[str] = []

    def steps(claim: Claim) -> None:
        claim.progress(1)
        made.append(claim.unit)

    Worker(tmp_path, parent=os.getppid()).work([unit(tmp_path, "pool/0", steps)])
    with pytest.raises(Stopped):
        Worker(tmp_path, parent=1 << 30).work([unit(tmp_path, "pool/1", steps)])
    assert made == ["pool/0"]


HANGS = """
import sys, time
from pathlib import Path
from synthgen.engine import Unit, Worker
def make(claim):
    claim.progress(0)
    time.sleep(float(sys.argv[2]))
Worker(Path(sys.argv[1]), command="one", deadline=0.5).work([Unit("pool/0", lambda: False, make)])
"""


def test_a_micro_batch_that_hangs_ends_its_process(tmp_path: Path) -> None:
    hung = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path), "60"], capture_output=True, text=True, check=False
    )
    assert hung.returncode == 1
    assert "Timeout (0:00:00.500000)!" in hung.stderr
    Worker(tmp_path).work([unit(tmp_path, "pool/0")])
    assert storage.names(tmp_path / ".work" / "claims") == []
