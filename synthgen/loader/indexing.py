"""Where the members of a shard's samples lie, so that any of them can be read by itself.

A tar's headers are walked once in each process, when the first of its samples is wanted; nothing is kept on
disk. What cannot be read is found here: a shard has as many rows as it is said to have, and those that are
cut off or damaged have an error.
"""

import json
import logging
import mmap
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from synthgen import shards, storage, tars
from synthgen.errors import FolderError, WorkError
from synthgen.loader.fetching import fetch, is_url
from synthgen.loader.locating import ShardFile
from synthgen.pools import source_paths
from synthgen.tars import BLOCK, Member

log = logging.getLogger(__name__)
MANY = 2**20
"""Bytes between the first and the last member of a sample that are read in one piece."""
PLAIN = b"ustar\x0000"


class ShardIndex:
    """The samples of a shard by row. `key(row)` names one; `read(row, files)` gives its members."""

    def __init__(self, count: int, error: str) -> None:
        self.count, self.error = count, error
        self._suffixes: list[str] = []
        self._keys: npt.NDArray[np.bytes_] = np.empty(0, "S1")
        self._files: list[str] = []
        self._file_of: npt.NDArray[np.int64] | None = None
        self._first = np.zeros(1, np.int64)  # a sample's members are first[row] to first[row + 1]
        self._kinds, self._offsets, self._sizes = (np.empty(0, np.int64) for _ in range(3))
        self._columns: pa.Table | None = None

    def __len__(self) -> int:
        return max(self.count, len(self._first) - 1)

    @property
    def found(self) -> int:
        """How many samples are there."""
        return len(self._first) - 1

    def key(self, row: int) -> str:
        """The key of a sample, "" where it is cut off."""
        return bytes(self._keys[row]).decode() if row < self.found else ""

    def read(self, row: int, files: storage.OpenFiles) -> dict[str, bytes]:
        """The members of a sample: suffix -> data.

        Raises:
            WorkError: they cannot be read.
        """
        if row >= self.found:
            raise WorkError(self.error or f"{self.found} of {self.count} samples are in the shard")
        start, end = self._first[row : row + 2].tolist()
        offsets, sizes = self._offsets[start:end].tolist(), self._sizes[start:end].tolist()
        path = self._files[0 if self._file_of is None else int(self._file_of[row])]
        suffixes = [self._suffixes[kind] for kind in self._kinds[start:end].tolist()]
        whole = offsets[-1] + sizes[-1] - offsets[0]
        members = {} if self._columns is None else _known(self._columns.slice(row, 1).to_pylist()[0])
        if 0 <= whole <= max(MANY, 2 * sum(sizes)):
            data = memoryview(bytearray(whole))
            files.read_into(path, offsets[0], data)
            spans = [
                (at - offsets[0], at - offsets[0] + size) for at, size in zip(offsets, sizes, strict=True)
            ]
            members |= {name: bytes(data[a:b]) for name, (a, b) in zip(suffixes, spans, strict=True)}
        else:
            for name, at, size in zip(suffixes, offsets, sizes, strict=True):
                piece = bytearray(size)
                files.read_into(path, at, memoryview(piece))
                members[name] = bytes(piece)
        return members

    def fill(self, samples: list[tuple[str, list[tuple[str, int, int]]]]) -> None:
        """Takes the samples over: key, and (suffix, offset, size) of each member."""
        kinds: dict[str, int] = {}
        flat = [
            (kinds.setdefault(suffix, len(kinds)), at, size) for _, own in samples for suffix, at, size in own
        ]
        table = np.array(flat, np.int64).reshape(-1, 3)
        self._kinds, self._offsets, self._sizes = table[:, 0].astype(np.int16), table[:, 1], table[:, 2]
        self._suffixes = list(kinds)
        self._first = np.cumsum([0, *(len(own) for _, own in samples)])
        self._keys = np.array([key.encode() for key, _ in samples] or [b""], np.bytes_)


def open_index(shard: ShardFile) -> ShardIndex:
    """The samples of a shard. A tar that is damaged or cut has those before, whole ones.

    Raises:
        WorkError: there is no such file.
    """
    if shard.root:
        return _index_imported(Path(shard.root), shard)
    path = fetch(shard.path) if is_url(shard.path) else Path(shard.path)
    members, error = _members(path)
    samples: list[tuple[str, list[tuple[str, int, int]]]] = []
    for member in members:
        key = member.key
        if not samples or samples[-1][0] != key:
            samples.append((key, []))
        samples[-1][1].append((member.suffix, member.offset, member.size))
    if error and samples:
        samples.pop()  # its other members may be missing
    index = ShardIndex(shard.samples, error)
    index.fill(samples)
    index._files = [str(path)]
    return index


def _members(path: Path) -> tuple[list[Member], str]:
    """The members of a tar, and what is wrong with what follows them."""
    members: list[Member] = []
    with storage.open_read(path) as file:
        if not storage.size(path):
            return [], "empty file"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            plain = _plain_members(data)
        if plain is not None:
            return plain, ""
        try:
            for member in tars.walk(file):
                members.append(member)
        except WorkError as error:
            return members, str(error)
    return members, ""


def _plain_members(data: mmap.mmap) -> list[Member] | None:
    """The members of a tar of plain files in USTAR, as ours are; None where it is another tar, or anything is
    wrong with it. (1 us a member, where a walk of any tar takes 8.)
    """
    members, starts, at, end = list[Member](), list[int](), 0, len(data)
    try:
        while True:
            head = data[at : at + BLOCK]
            if head[:1] == b"\0":
                break
            if head[156:157] not in b"0" or head[257:265] != PLAIN or head[345:346] != b"\0":
                return None
            size = int(head[124:135], 8)
            members.append(Member(head[: head.index(b"\0")].decode("ascii"), at + BLOCK, size))
            starts.append(at)
            at += BLOCK + size + -size % BLOCK
            if at + BLOCK > end:
                return None
    except (ValueError, IndexError):
        return None
    if data[at : at + BLOCK] != b"\0" * BLOCK:
        return None
    return members if _are_sound(data, starts) else None


def _are_sound(data: mmap.mmap, starts: list[int]) -> bool:
    """Whether the checksums of headers are right."""
    for first in range(0, len(starts), 1024):
        batch = starts[first : first + 1024]
        heads = np.frombuffer(b"".join(data[at : at + BLOCK] for at in batch), np.uint8).reshape(-1, BLOCK)
        sums = heads.sum(1, dtype=np.int64) - heads[:, 148:156].sum(1, dtype=np.int64) + 8 * ord(" ")
        try:
            told = [int(head[148:154].tobytes(), 8) for head in heads]
        except ValueError:
            return False
        if sums.tolist() != told:
            return False
    return True


def _index_imported(root: Path, shard: ShardFile) -> ShardIndex:
    """The samples of a shard of an imported pool, whose members lie in its sources. The pool's columns stand
    in for members that the source lacks.
    """
    table = shards.read_table(root / shards.POOL / f"{shard.path}.parquet")
    rows = table.filter(table["error"].is_null())
    where = zip(*(rows[name].to_pylist() for name in ("uid", "source", "file", "members")), strict=True)
    folders, files, file_of = source_paths(root), dict[str, int](), list[int]()
    samples = []
    for uid, source, file, members in where:
        file_of.append(files.setdefault(str(folders[source] / file), len(files)))
        samples.append((uid, [(one["suffix"], one["offset"], one["size"]) for one in members]))
    index = ShardIndex(shard.samples, "")
    index.fill(samples)
    index._files, index._file_of = list(files), np.array(file_of, np.int64)
    index._columns = rows.drop_columns("members")
    return index


def _known(row: dict[str, Any]) -> dict[str, bytes]:
    """What the columns of a row are as members."""
    told = {name: value for name, value in row.items() if value is not None}
    known = {"json": json.dumps(told, default=str).encode()}
    if "class_id" in told:
        known["cls"] = b"%d" % told["class_id"]
    if "text" in told:
        known["txt"] = str(told["text"]).encode()
    return known


class Indexes:
    """The indexes of many shards, each made when it is first wanted; picklable, files are opened anew."""

    def __init__(self, shard_files: list[ShardFile]) -> None:
        self.shards = shard_files
        self._indexes: dict[int, ShardIndex] = {}

    def __getitem__(self, number: int) -> ShardIndex:
        """Raises FolderError where the shard is not there."""
        if number not in self._indexes:
            try:
                self._indexes[number] = open_index(self.shards[number])
            except WorkError as error:
                raise FolderError(str(error)) from None
            found, told = self._indexes[number].found, self.shards[number].samples
            if 0 <= told < found:
                log.warning(
                    "%s: %d samples, though sizes.json or its record says %d; the others are not read",
                    self.shards[number].path, found, told,
                )  # fmt: skip
        return self._indexes[number]

    @cached_property
    def files(self) -> storage.OpenFiles:
        """The files that are open in this process."""
        return storage.OpenFiles()

    def read(self, number: int, row: int) -> dict[str, bytes]:
        """The members of a sample: suffix -> data.

        Raises:
            WorkError: they cannot be read.
        """
        return self[number].read(row, self.files)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "files"}
