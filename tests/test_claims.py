"""Leases: one holder, taken over when it is dead or silent, and what is noted then."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synthgen import claims, shards, storage
from synthgen.errors import LostClaimError

HOLDER = """
import sys, time
from pathlib import Path
from synthgen import claims
with claims.claim(Path(sys.argv[1]), "unit", command="first") as claim:
    claim.progress(3)
    print(flush=True)
    time.sleep(60)
"""


def start_holder(root: Path) -> "subprocess.Popen[bytes]":
    """A process that holds the claim of "unit"."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def make_old(path: Path, seconds: float) -> None:
    past = path.stat().st_mtime - seconds
    os.utime(path, (past, past))


def test_a_unit_has_one_claimant(tmp_path: Path) -> None:
    with claims.claim(tmp_path, "pool/00000000") as mine:
        assert mine
        with claims.claim(tmp_path, "pool/00000000") as other:
            assert other is None
        with claims.claim(tmp_path, "pool/00000001") as another:
            assert another
        assert list(claims.claims(tmp_path)) == ["pool/00000000"]
    assert claims.claims(tmp_path) == {}
    with claims.claim(tmp_path, "pool/00000000") as again:
        assert again


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from synthgen import claims\n"
        "with claims.claim(Path(sys.argv[1]), 'unit'): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert storage.names(tmp_path / ".work" / "claims") == ["unit"]
    with claims.claim(tmp_path, "unit") as mine:
        assert mine


def test_a_claim_has_its_lease_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right after taking it, a worker does not hold a unit up for the length of a lease."""
    seen = []
    link = os.link

    def look(staged: Path, path: Path) -> None:
        link(staged, path)
        seen.append(claims.claims(tmp_path)["unit"]["pid"])

    monkeypatch.setattr(os, "link", look)
    with claims.claim(tmp_path, "unit") as mine:
        assert mine
    assert seen == [os.getpid()]


def test_a_claim_without_heartbeat_is_taken_over_and_its_loser_does_not_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claims.claim(tmp_path, "unit") as slow:
        assert slow
        past = slow.path.stat().st_mtime - claims.LEASE_SECONDS - 1
        os.utime(slow.path, (past, past))
        with claims.claim(tmp_path, "unit") as other:
            assert other
            with (
                pytest.raises(LostClaimError),
                shards.new_unit(tmp_path, tmp_path / "pool", "0", {}, slow) as create,
            ):
                create(".tar").write(b"late")
            slow._beat()
            other.check()
        assert not (tmp_path / "pool").exists()


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    assert not claims.claims(tmp_path)["unit"]["stale"]
    process.send_signal(signal.SIGKILL)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert claims.claims(tmp_path)["unit"]["stale"]
    with claims.claim(tmp_path, "unit") as mine:
        assert mine
    process.communicate()


def test_a_pid_of_another_boot_or_container_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_holder(tmp_path)
    process.kill()
    process.communicate()
    monkeypatch.setattr(claims, "machine", lambda: "another")
    assert not claims.claims(tmp_path)["unit"]["stale"]
    with claims.claim(tmp_path, "unit") as other:
        assert other is None
    make_old(tmp_path / ".work" / "claims" / "unit", claims.LEASE_SECONDS + 1)
    with claims.claim(tmp_path, "unit") as mine:
        assert mine


def test_who_takes_over_notes_the_attempt(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    process.kill()
    process.communicate()
    with claims.claim(tmp_path, "unit", command="second"):
        tried = claims.attempts(tmp_path, "unit")
    assert [(each["command"], each["pid"], each["error"]) for each in tried] == [
        ("first", process.pid, "the worker died")
    ]
    with claims.claim(tmp_path, "unit") as slow:
        assert slow
        make_old(slow.path, claims.LEASE_SECONDS + 1)
        claims.sweep(tmp_path)
    assert claims.attempts(tmp_path, "unit")[1]["error"] == "the worker gave no sign of life"
    assert claims.attempted(tmp_path) == ["unit"]
    claims.forget_attempts(tmp_path, "unit")
    assert claims.attempted(tmp_path) == claims.attempts(tmp_path, "unit") == []


def test_a_sweep_leaves_a_claim_that_was_taken_over_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_holder(tmp_path)
    process.kill()
    process.communicate()
    is_stale = claims._stale

    def then_another_takes_over(path: Path, lease: claims.Lease) -> bool:
        monkeypatch.undo()
        assert is_stale(path, lease)
        other.append(claims._take(path, "", lambda: None, True))
        return True

    other: list[claims.Claim | None] = []
    monkeypatch.setattr(claims, "_stale", then_another_takes_over)
    claims.sweep(tmp_path)
    assert other[0]
    other[0].check()
    other[0].release()
    assert [each["error"] for each in claims.attempts(tmp_path, "unit")] == ["the worker died"]


def test_a_record_that_a_slow_worker_published_last_is_that_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made other bytes, on another device, and had looked at its claim just before it lost it."""
    publish, folder = storage.publish, tmp_path / "pool"

    def just_before(staged: Path, path: Path) -> bool:
        if path.name == "0_stats.json" and not path.exists():
            path.write_bytes(storage.to_json({"files": {"0.tar": {"bytes": 5, "sha256": "other"}}}))
        return publish(staged, path)

    monkeypatch.setattr(storage, "publish", just_before)
    with claims.claim(tmp_path, "unit") as mine:
        assert mine
        with shards.new_unit(tmp_path, folder, "0", {}, mine) as create:
            create(".tar").write(b"data")
    assert shards.read_record(folder, "0")["files"] == {"0.tar": storage.checksum(folder / "0.tar")}


def test_the_clock_of_the_worker_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claims.claim(tmp_path, "unit") as mine:
        assert mine
        for skew in (-86400, 86400):
            monkeypatch.setattr(time, "time", lambda skew=skew: 1.7e9 + skew)
            assert not claims.claims(tmp_path)["unit"]["stale"]


def test_the_heartbeat_says_how_far_the_unit_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    steps: list[int] = []
    with claims.claim(tmp_path, "unit", at_step=lambda: steps.append(1)) as mine:
        assert mine
        mine.progress(0)
        mine.progress(16)
        for _ in range(500):
            if claims.claims(tmp_path)["unit"]["done"] == 16:
                break
            time.sleep(0.01)
        assert claims.claims(tmp_path)["unit"]["done"] == 16
    assert len(steps) == 2


def test_a_worker_that_lost_its_claim_between_two_links_leaves_no_record_without_data(tmp_path: Path) -> None:
    """What it published stays, as it is what the other would publish; other bytes go."""
    with claims.claim(tmp_path, "unit") as other:
        assert other
        folder = tmp_path / "pool"
        folder.mkdir()
        (folder / "0.tar").write_bytes(b"data")
        (folder / "0.parquet").write_bytes(b"half")
        (folder / "0.npz").write_bytes(b"not wanted")
        inode = (folder / "0.tar").stat().st_ino
        with shards.new_unit(tmp_path, folder, "0", {}, other) as create:
            assert (folder / "0.tar").exists()
            create(".tar").write(b"data")
            create(".parquet").write(b"rows")
        assert (folder / "0.tar").stat().st_ino == inode
        assert (folder / "0.parquet").read_bytes() == b"rows"
        assert storage.names(folder) == ["0.parquet", "0.tar", "0_stats.json"]
