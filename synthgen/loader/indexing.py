"""Where the members of a shard's samples lie, so that any of them can be read by itself.

A tar's headers are walked once in each process, when the first of its samples is wanted; nothing is kept on
disk. What cannot be read is found here: a shard has as many rows as it is said to have, and those that are
cut off or damaged have an error.
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synthgen import shards, storage, tars
from synthgen.errors import FolderError, WorkError
from synthgen.loader.fetching import fetch, is_url
from synthgen.loader.locating import ShardFile
from synthgen.pools import source_paths

log = logging.getLogger(__name__)
MANY = 2**20
"""Bytes between the first and the last member of a sample that are read in one piece."""
SETTLED = ("uid", "class_id", "class_name", "text")
"""Columns of an imported pool that are right where its source says otherwise."""
Samples = Sequence[tuple[str, Sequence[tuple[str, int, int]]]]


class ShardIndex:
    """The samples of a shard by row. `key(row)` names one; `read(row, files)` gives its members.

    Args:
        samples: key, and (suffix, offset, size) of each member.
        files: what members lie in, and with `file_of` the number of each row's; else the only one.
        count: how many samples there should be, -1 is unknown; `error` says why some are missing.
        columns: what else is known of each row.
    """

    def __init__(
        self,
        samples: Samples,
        files: Sequence[str],
        *,
        count: int = -1,
        error: str = "",
        file_of: Sequence[int] | None = None,
        columns: pa.Table | None = None,
    ) -> None:
        self.count, self.error = count, error
        self._files, self._file_of, self._columns = files, file_of, columns
        kinds: dict[str, int] = {}
        flat = [
            (kinds.setdefault(suffix, len(kinds)), at, size) for _, own in samples for suffix, at, size in own
        ]
        table = np.array(flat, np.int64).reshape(-1, 3)
        self._kinds, self._offsets, self._sizes = table[:, 0].astype(np.int16), table[:, 1], table[:, 2]
        self._suffixes = list(kinds)
        # a sample's members are first[row] to first[row + 1]
        self._first = np.cumsum([0, *(len(own) for _, own in samples)])
        self._keys = np.array([key.encode() for key, _ in samples] or [b""], np.bytes_)

    def __len__(self) -> int:
        """Samples, with those that are missing; of a damaged tar that nobody has counted they are one."""
        return max(self.count, self.found + bool(self.error and self.count < 0))

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
        path = self._files[0 if self._file_of is None else self._file_of[row]]
        suffixes = [self._suffixes[kind] for kind in self._kinds[start:end].tolist()]
        whole = offsets[-1] + sizes[-1] - offsets[0]
        members: dict[str, bytes] = {}
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
        if self._columns is not None:
            members |= _settled(self._columns.slice(row, 1).to_pylist()[0], members.get("json", b""))
        return members


def open_index(shard: ShardFile) -> ShardIndex:
    """The samples of a shard. A tar that is damaged or cut has those before, whole ones.

    Raises:
        WorkError: there is no such file.
    """
    if shard.root:
        return _index_imported(Path(shard.root), shard)
    path = fetch(shard.path) if is_url(shard.path) else Path(shard.path)
    samples, error = list[tuple[str, list[tuple[str, int, int]]]](), ""
    with storage.open_read(path) as file:
        try:
            for key, members in tars.grouped(tars.walk(file)):
                samples.append((key, [(suffix, one.offset, one.size) for suffix, one in members.items()]))
        except WorkError as stopped:
            samples, error = samples[:-1], str(stopped)  # other members of the last may be missing
    return ShardIndex(samples, [str(path)], count=shard.samples, error=error)


def _index_imported(root: Path, shard: ShardFile) -> ShardIndex:
    """The samples of a shard of an imported pool, whose members lie in its sources. Label, caption and uid
    are those of the pool's columns, which importing has settled, whatever the members say.
    """
    table = shards.read_table(root / shards.POOL / f"{shard.path}.parquet")
    rows = table.filter(table["error"].is_null())
    where = zip(*(rows[name].to_pylist() for name in ("uid", "source", "file", "members")), strict=True)
    folders, files, file_of = source_paths(root), dict[str, int](), list[int]()
    samples = []
    for uid, source, file, members in where:
        file_of.append(files.setdefault(str(folders[source] / file), len(files)))
        samples.append((uid, [(one["suffix"], one["offset"], one["size"]) for one in members]))
    columns = rows.drop_columns("members")
    return ShardIndex(samples, list(files), count=shard.samples, file_of=file_of, columns=columns)


def _settled(row: dict[str, Any], own: bytes) -> dict[str, bytes]:
    """What the columns of a row are as members, with what its source's json says besides."""
    told = {name: value for name, value in row.items() if value is not None}
    settled = {"json": own}
    try:
        more = json.loads(own) if own else {}
    except ValueError:  # whoever asks for it is told
        more = None
    if isinstance(more, dict):
        told_last = {name: told[name] for name in SETTLED if name in told}
        settled["json"] = json.dumps({**told, **more, **told_last}, default=str).encode()
    if "class_id" in told:
        settled["cls"] = b"%d" % told["class_id"]
    if "text" in told:
        settled["txt"] = str(told["text"]).encode()
    return settled


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
