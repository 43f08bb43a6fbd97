"""Who works on which unit: leases with a heartbeat, and the attempts that did not end well. Knows no stage.

A claim is a file that one worker links and keeps touching. It is stale when its process is dead (same
machine) or when it was not touched for `LEASE_SECONDS` by the file system's own clock, so the clocks of
workers do not matter. Who takes over a stale claim notes an attempt of the worker that held it.
"""

import contextlib
import errno
import functools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from synthgen import storage
from synthgen.errors import LostClaimError

LEASE_SECONDS = 60.0
GONE = (errno.ENOENT, errno.ESTALE)
"""What reading a file gives that another machine removes."""
MAX_ATTEMPTS = 3
"""A unit that ends badly so many times in one command is given up by it."""
BEAT_SECONDS = 1.0
"""How often progress is written; without any, the heartbeat comes four times a lease."""


class Lease(TypedDict, total=False):
    """What the file of a claim says. `done` samples of the unit were made in `seconds`."""

    host: str
    machine: str
    pid: int
    command: str
    token: str
    done: int
    seconds: float


class Attempt(TypedDict):
    """A worker that began a unit and did not end it."""

    command: str
    host: str
    pid: int
    error: str


@functools.cache
def machine() -> str:
    """What decides whether a pid seen here is the one in a lease: this boot, this space of pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return storage.host()


class Claim:
    """A unit that this process holds."""

    def __init__(self, path: Path, descriptor: int, command: str, at_step: Callable[[], None]) -> None:
        self.path, self.done = path, 0
        self.root, self.unit = path.parents[2], path.name.replace("--", "/")
        self._descriptor, self._command, self._at_step = descriptor, command, at_step
        self._token, self._started, self._seconds = uuid.uuid4().hex, time.monotonic(), 0.0
        self._stop, self._news = threading.Event(), False
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        """Rewrites the lease in place: into this file's inode, so never into another's claim."""
        lease: Lease = {
            "host": storage.host(),
            "machine": machine(),
            "pid": os.getpid(),
            "command": self._command,
            "token": self._token,
            "done": self.done,
            "seconds": round(self._seconds, 3),
        }
        os.pwrite(self._descriptor, json.dumps(lease).ljust(400).encode(), 0)
        os.fsync(self._descriptor)  # a network file system would keep it for itself

    def _run(self) -> None:
        waited = 0.0
        while not self._stop.wait(BEAT_SECONDS):
            waited += BEAT_SECONDS
            if self._news or waited >= LEASE_SECONDS / 4:
                self._news, waited = False, 0.0
                with contextlib.suppress(OSError):  # a full disk: the file that it hurts will say so
                    self._beat()

    def progress(self, done: int) -> None:
        """Called between two micro-batches: says how many samples of the unit are done. 0 is the start, when
        models are loaded.
        """
        if not done:
            self._started = time.monotonic()
        self.done, self._seconds, self._news = done, time.monotonic() - self._started, True
        self._at_step()

    def is_held(self) -> bool:
        """Whether no other worker has taken the unit over."""
        return _lease(self.path).get("token") == self._token

    def check(self) -> None:
        """Raises LostClaimError where another worker has taken the unit over."""
        if not self.is_held():
            raise LostClaimError(f"{self.path.name}: another worker has taken it over")

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.is_held():
            storage.remove(self.path)
        os.close(self._descriptor)


@contextlib.contextmanager
def claim(
    root: Path,
    unit: str,
    *,
    command: str = "",
    at_step: Callable[[], None] = lambda: None,
    ask_clock: bool = True,
) -> Iterator[Claim | None]:
    """Holds a unit ("pool/00000003") while the block runs; None where another worker holds it.

    Args:
        command: what this process belongs to; attempts are counted for each.
        at_step: called at each `progress`.
        ask_clock: whether to ask the file system how old another's claim is; without, only a process that is
            known to be dead is robbed.
    """
    held = _take(root / storage.WORK / "claims" / _file_name(unit), command, at_step, ask_clock)
    try:
        yield held
    finally:
        if held:
            held.release()


def _take(path: Path, command: str, at_step: Callable[[], None], ask_clock: bool) -> Claim | None:
    if storage.exists(path):
        lease = _lease(path)
        is_stale = _stale(path, lease) if ask_clock else not _alive(lease)
        if not is_stale or not _put_aside(path, lease):
            return None
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    made = Claim(path, os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR), command, at_step)
    try:
        if storage.give_name(draft, path):  # with its lease in it: who finds it can tell whether we live
            return made
    finally:
        storage.remove(draft)
    made.release()
    return None


def _put_aside(path: Path, lease: Lease) -> bool:
    """Removes a stale claim; False where somebody else was faster."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)  # has one winner
    except FileNotFoundError:
        return False
    if _lease(aside).get("token") != lease.get("token"):  # a fresh one is in hand: put it back
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        storage.remove(aside)
        return False
    storage.remove(aside)
    error = "the worker died" if not _alive(lease) else "the worker gave no sign of life"
    note_attempt(
        path.parents[2],
        path.name,
        {
            "command": str(lease.get("command", "")),
            "host": str(lease.get("host", "")),
            "pid": int(lease.get("pid", 0)),
            "error": error,
        },
    )
    return True


def sweep(root: Path) -> None:
    """Removes stale claims, and the unfinished files that nobody is at work on."""
    work = root / storage.WORK
    held = [name for name in storage.names(work / "claims") if not name.startswith(".")]
    for name in storage.names(work / "claims"):  # drafts and clocks of workers that died with them in hand
        if name.startswith(".") and age(work / "claims" / name) > LEASE_SECONDS:
            storage.remove(work / "claims" / name)
    for name in held:
        path, left = work / "claims" / name, storage.staged(root, name)
        lease = _lease(path)
        # the lease that is judged is the one that is removed, and with it what was there before
        if lease and _stale(path, lease) and _put_aside(path, lease):
            for folder in left:
                storage.remove_staged(folder)
    for name in storage.names(work / "tmp"):
        if name.rpartition(".")[0] not in held and age(work / "tmp" / name) > LEASE_SECONDS:
            storage.remove_staged(work / "tmp" / name)


def _file_name(unit: str) -> str:
    return unit.replace("/", "--")


def _lease(path: Path) -> Lease:
    try:
        value = json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in GONE:
            raise
        return {}
    return value if isinstance(value, dict) else {}  # type: ignore[return-value]


def _alive(lease: Lease) -> bool:
    """False only where the process is known to be dead."""
    pid = lease.get("pid")
    if lease.get("machine") != machine() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no /proc
        return True
    return state not in ("Z", "X")  # a zombie waits for its parent only


def _stale(path: Path, lease: Lease) -> bool:
    return not _alive(lease) or age(path) > LEASE_SECONDS


def age(path: Path) -> float:
    """Seconds since a file was written, by the clock of its file system; 0 where it is gone."""
    clock = path.parent / f".clock-{uuid.uuid4().hex}"
    try:
        with open(clock, "xb"):
            return clock.stat().st_mtime - path.stat().st_mtime
    except OSError as error:
        if error.errno not in GONE:
            raise
        return 0.0
    finally:
        storage.remove(clock)


class Held(TypedDict):
    """A claim as `status` shows it. `stale`: whoever comes next takes it over."""

    host: str
    pid: int
    done: int
    seconds: float
    stale: bool


def claims(root: Path) -> dict[str, Held]:
    """The units that are claimed."""
    folder = root / storage.WORK / "claims"
    held: dict[str, Held] = {}
    for name in storage.names(folder):
        lease = _lease(folder / name) if not name.startswith(".") else {}
        if "token" in lease:
            try:
                stale = _stale(folder / name, lease)
            except OSError:  # a folder that we may only read
                stale = not _alive(lease)
            held[name.replace("--", "/")] = {
                "host": lease["host"],
                "pid": lease["pid"],
                "done": lease["done"],
                "seconds": lease["seconds"],
                "stale": stale,
            }
    return held


def note_attempt(root: Path, unit: str, attempt: Attempt) -> None:
    """Adds to the attempts of a unit; only who holds its claim, or has just removed a stale one, does."""
    path = root / storage.WORK / "attempts" / _file_name(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(json.dumps(attempt).encode() + b"\n")


def attempts(root: Path, unit: str) -> list[Attempt]:
    """The attempts at a unit that did not end well, the oldest first."""
    try:
        lines = (root / storage.WORK / "attempts" / _file_name(unit)).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def attempted(root: Path) -> list[str]:
    """The units that have such attempts."""
    return [name.replace("--", "/") for name in storage.names(root / storage.WORK / "attempts")]


def forget_attempts(root: Path, unit: str) -> None:
    storage.remove(root / storage.WORK / "attempts" / _file_name(unit))
