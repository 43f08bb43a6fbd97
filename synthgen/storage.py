"""The only file, with `claims`, that opens anything in a run's folder: list, read, stage, publish once,
replace, remove.

Publishing is a hard link from a private temporary file, so a file is whole as soon as it has its name, and
the first of two publishers wins.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from synthgen.errors import FolderError, WorkError

WORK = ".work"


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def exists(path: Path) -> bool:
    return path.exists()


def is_blank(folder: Path) -> bool:
    """Whether a folder is absent, or holds nothing but the leftovers of a start that was cut short."""
    return all(name == WORK or name.startswith(".probe-") for name in names(folder))


def free_bytes(folder: Path) -> int | None:
    """What the disk has left for a folder, which need not be there yet; None where it does not say."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    usage = shutil.disk_usage(there)
    return usage.free if usage.total else None


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


def read_spans(path: Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several pieces of a file, each (start, size); a piece that the file has not is shorter.

    Raises:
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        found = []
        for start, size in spans:
            file.seek(start)
            found.append(file.read(size))
        return found


def open_read(path: Path) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        WorkError: it is missing.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise WorkError(f"{path}: missing; make its shard anew") from None


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file that is not empty, of which those are read that are looked at; closed when nothing
    looks any more.

    Raises:
        WorkError: it is missing.
    """
    with open_read(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class OpenFiles:
    """Files that small pieces are read from: each is opened once, and of too many the first is closed."""

    MOST = 128

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def _descriptor(self, path: str) -> int:
        if path not in self._descriptors:
            if len(self._descriptors) >= self.MOST:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            try:
                self._descriptors[path] = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise WorkError(f"{path}: missing; put it back") from None
        return self._descriptors[path]

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        """Fills a buffer with what the file holds from `start` on.

        Raises:
            WorkError: it is missing or shorter than that.
        """
        size = os.preadv(self._descriptor(path), [buffer], start)
        while 0 < size < len(buffer):  # a signal, or more than a call may read
            more = os.preadv(self._descriptor(path), [buffer[size:]], start + size)
            size = size + more if more else -1
        if size != len(buffer):
            raise WorkError(f"{path}: cut: {len(buffer)} bytes wanted at {start}")

    def will_read(self, path: str, start: int, size: int) -> None:
        """Lets the system read ahead."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor(path), start, size, os.POSIX_FADV_WILLNEED)

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


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
    for left in staged(root, unit) if unit != "view" else ():
        remove_staged(left)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove_staged(folder)


def staged(root: Path, unit: str) -> list[Path]:
    """The folders that `staging` has made for a unit and not removed."""
    folder = root / WORK / "tmp"
    return [folder / name for name in names(folder) if name.rpartition(".")[0] == unit]


def remove_staged(folder: Path) -> None:
    """Removes a folder that `staging` made and that was not removed in time."""
    shutil.rmtree(folder, ignore_errors=True)


def create(path: Path) -> BinaryIO:
    """Opens a new file in a staging folder for writing."""
    return open(path, "xb")


def publish(staged: Path, path: Path) -> bool:
    """Gives a staged file its name, durably. False: the name is taken, and that file is left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sync(staged)
    named = give_name(staged, path)
    _sync(path.parent)
    return named


def give_name(staged: Path, path: Path) -> bool:
    """Links a file to a name that nothing has yet; False where something has it."""
    try:
        os.link(staged, path)
    except (FileExistsError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        if path.exists():  # a file system without hard links: a small window is left open
            return False
        os.replace(staged, path)
    return True


def replace(root: Path, path: Path, data: bytes, unit: str = "view") -> None:
    """Writes a view (subset, report): the old file or the new one is there at any moment, never a part.

    Args:
        unit: as of `staging`.
    """
    with staging(root, unit) as folder:
        staged = folder / path.name
        with create(staged) as file:
            file.write(data)
        _sync(staged)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, path)


def append(path: Path, lines: bytes) -> None:
    """Adds whole lines to a file, durably. A last line that a kill has cut short gets its end first, so that
    it hurts no other. One process at a time: who appends holds a claim.
    """
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        _sync(path.parent)


def write(path: Path, data: bytes) -> None:
    """Writes a file outside of a run's folder: the old one or the new one is there at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with create(staged) as file:
            file.write(data)
        _sync(staged)
        os.replace(staged, path)
    finally:
        remove(staged)


def remove(path: Path) -> None:
    """Removes a file that synthgen made, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def move(path: Path, staged: Path) -> None:
    """Takes a view away into a staging folder, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, staged)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
