"""The only file that opens anything in a run's folder: list, read, stage, publish once, replace, claim,
remove.

Publishing is a hard link from a private temporary file, so a file is whole as soon as it has its name, and
the first of two publishers wins. A claim is a lease: a file with a heartbeat, stale when its process is dead
(same host) or when it has not been touched for `LEASE_SECONDS` by the file system's own clock.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from synthgen.errors import FolderError, LostClaimError, WorkError

LEASE_SECONDS = 60.0
WORK = ".work"


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def exists(path: Path) -> bool:
    return path.exists()


def is_blank(folder: Path) -> bool:
    """Whether a folder is absent, or holds nothing but the leftovers of a start that was cut short."""
    return all(name == WORK or name.startswith(".probe-") for name in names(folder))


def is_folder(path: Path) -> bool:
    return path.is_dir()


def names(folder: Path) -> list[str]:
    """Sorted names of the entries of a folder; empty where there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        WorkError: it is missing.
    """
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise WorkError(
            f"{path}: missing; delete the _stats.json of its shard and run again to make it anew"
        ) from None


def read(path: Path, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `start`; None reads to the end.

    Raises:
        WorkError: the file is missing or shorter than that.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read() if size is None else file.read(size)
    except FileNotFoundError:
        raise WorkError(
            f"{path}: missing; delete the _stats.json of its shard and run again to make it anew"
        ) from None
    if size is not None and len(data) != size:
        raise WorkError(f"{path}: cut: {size} bytes wanted at {start}, got {len(data)}")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Raises WorkError where the file is missing or is not a JSON object."""
    try:
        value = json.loads(read(path))
    except ValueError:
        raise WorkError(f"{path}: not valid JSON; `synthgen verify` lists what else is damaged") from None
    if not isinstance(value, dict):
        raise WorkError(f"{path}: a JSON object was expected, got {type(value).__name__}")
    return value


def to_json(value: object) -> bytes:
    """JSON as all files of a run hold it: UTF-8, indented, keys in the given order, no NaN."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def checksum(path: Path) -> dict[str, int | str]:
    """`bytes` and `sha256` of a file, as the records hold them."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def checksum_of(data: bytes) -> dict[str, int | str]:
    """`checksum` of a file that is to be written."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def make_folder(path: Path) -> None:
    """Creates a folder where files can be made.

    Raises:
        FolderError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FolderError(
            f"{path}: cannot write there ({error.strerror}); choose another folder with -o DIR"
        ) from None


@contextlib.contextmanager
def staging(root: Path, unit: str = "view") -> Iterator[Path]:
    """A private folder for unfinished files, removed at the end.

    Who holds a unit's claim names the unit: what a killed worker left of it is removed.
    """
    folder = root / WORK / "tmp" / f"{unit}.{uuid.uuid4().hex}"
    for name in names(folder.parent) if unit != "view" else ():
        if name.rpartition(".")[0] == unit:
            shutil.rmtree(folder.parent / name, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def create(path: Path) -> BinaryIO:
    """Opens a new file in a staging folder for writing."""
    return open(path, "xb")


def publish(staged: Path, path: Path) -> bool:
    """Gives a staged file its name, durably. False: the name is taken, and that file is left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sync(staged)
    named = _give_name(staged, path)
    _sync(path.parent)
    return named


def _give_name(staged: Path, path: Path) -> bool:
    """Links a file to a name that nothing has yet; False where something has it."""
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        if path.exists():  # a file system without hard links: a small window is left open
            return False
        os.replace(staged, path)
    return True


def replace(root: Path, path: Path, data: bytes) -> None:
    """Writes a view (subset, report): the old file or the new one is there at any moment, never a part."""
    with staging(root) as folder:
        staged = folder / path.name
        with create(staged) as file:
            file.write(data)
        _sync(staged)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, path)


def remove(path: Path) -> None:
    """Removes a file that synthgen made, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Claim:
    """A unit that this process holds. The heartbeat also carries how many samples of the unit are done."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.done = path, 0
        self._descriptor, self._lock, self._stop = descriptor, threading.Lock(), threading.Event()
        self._token = uuid.uuid4().hex
        self.beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Rewrites the lease in place: into this file's inode, so never into another's claim."""
        lease = {"host": host(), "pid": os.getpid(), "done": self.done, "token": self._token}
        with self._lock:
            os.pwrite(self._descriptor, json.dumps(lease).ljust(200).encode(), 0)

    def _run(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 4):
            self.beat()

    def progress(self, done: int) -> None:
        """Says how many samples of the unit are done, for `status` to show."""
        self.done = done
        self.beat()

    def check(self) -> None:
        """Raises LostClaimError where another worker has taken the unit over."""
        if _lease(self.path).get("token") != self._token:
            raise LostClaimError(f"{self.path.name}: another worker has taken it over")

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if _lease(self.path).get("token") == self._token:
            remove(self.path)
        os.close(self._descriptor)


@contextlib.contextmanager
def claim(root: Path, unit: str) -> Iterator[Claim | None]:
    """Holds a unit ("pool/00000003") while the block runs; None where another worker holds it."""
    folder = root / WORK / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / unit.replace("/", "--")
    held = _take(path)
    try:
        yield held
    finally:
        if held:
            held.release()


def claims(root: Path) -> dict[str, dict[str, object]]:
    """The units that living workers hold, with their leases."""
    folder = root / WORK / "claims"
    held = {name: _lease(folder / name) for name in names(folder) if not name.startswith(".")}
    return {name.replace("--", "/"): lease for name, lease in held.items() if _alive(lease)}


def _take(path: Path) -> Claim | None:
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    made = Claim(path, os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    try:
        if _give_name(draft, path):  # with its lease in it: who finds it can tell whether we live
            return made
    finally:
        remove(draft)
    made.release()
    lease = _lease(path)
    if not _stale(path, lease):
        return None
    # rename has one winner; who finds a fresh lease in hand has taken a live one and puts it back
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    if _lease(aside).get("token") != lease.get("token"):
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        remove(aside)
        return None
    remove(aside)
    return _take(path)


def _lease(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes() or b"{}")
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _alive(lease: dict[str, object]) -> bool:
    """False only where the process is known to be dead."""
    pid = lease.get("pid")
    if lease.get("host") != host() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stale(path: Path, lease: dict[str, object]) -> bool:
    if not _alive(lease):
        return True
    clock = path.with_name(f".clock-{uuid.uuid4().hex}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime > LEASE_SECONDS
    except FileNotFoundError:
        return False
    finally:
        remove(clock)
