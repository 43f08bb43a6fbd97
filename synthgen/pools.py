"""A pool read: the columns of all of it, and its images."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import shards, storage
from synthgen.errors import FolderError
from synthgen.uids import UID, uid_column, uid_pairs

MOVED = (
    "--set sources.{}.path=FOLDER says where it is now; or import it again from there, which reads nothing"
)


Sources = Mapping[str, Path]
"""The folders of an imported pool's sources by name, where they are not where they were at the import."""
NOT_TOLD = ("error", "members", "image_offset", "image_bytes")
"""Columns that say nothing of a sample itself."""


def is_in_place(root: Path, stem: str) -> bool:
    """Whether the samples of a pool shard lie in a source that was imported, not in a tar of the pool."""
    path = root / shards.POOL / f"{stem}.parquet"
    return not storage.exists(path.with_suffix(".tar")) and "members" in shards.names(path)


def source_paths(root: Path, sources: Sources = {}) -> dict[str, Path]:  # noqa: B006
    """The folder of each source of an imported pool.

    Args:
        sources: where some of them are now; the others are taken to be where they were at the import.
    """
    return {one.name: sources.get(one.name, one.path) for one in shards.imported(root)}


def read_images(root: Path, stem: str, rows: pa.Table, sources: Sources = {}) -> list[bytes]:  # noqa: B006
    """The stored image of each row, in order, of a pool shard's written rows; of our own tars read as the one
    run that they span.

    Raises:
        FolderError: a source of an imported pool is not there, or the image in it has changed.
    """
    if not len(rows):
        return []
    spans = list(zip(rows["image_offset"].to_pylist(), rows["image_bytes"].to_pylist(), strict=True))
    tar = root / shards.POOL / f"{stem}.tar"
    if is_in_place(root, stem):
        return _read_from_sources(root, rows, spans, sources)
    start, end = spans[0][0], sum(spans[-1])
    data = storage.read(tar, start, end - start)
    return [data[at - start : at - start + size] for at, size in spans]


def _read_from_sources(
    root: Path, rows: pa.Table, spans: Sequence[tuple[int, int]], sources: Sources
) -> list[bytes]:
    folders, found = source_paths(root, sources), list[bytes]()
    named = zip(rows["source"].to_pylist(), rows["file"].to_pylist(), spans, strict=True)
    for (name, file), group in itertools.groupby(named, key=lambda each: each[:2]):
        found += _read_source(name, folders[name], file, [span for *_, span in group])
    for data, row in zip(found, rows.select(["sha256", "source", "file", "key"]).to_pylist(), strict=True):
        require_same(data, row, folders[row["source"]] / row["file"])
    return found


def _read_source(name: str, folder: Path, file: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    try:
        return storage.read_spans(folder / file, spans)
    except OSError:
        raise FolderError(not_there(name, folder, file)) from None


def not_there(name: str, folder: Path, file: str) -> str:
    """What is said of a file of a source that has gone."""
    return f'source "{name}": {file} is not in {folder}; {MOVED.format(name)}'


def require_same(data: bytes | memoryview, row: Mapping[str, Any], file: str | Path) -> None:
    """Raises FolderError where an image of a file of a source is not the one that the pool's row says."""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        what = f"{file}" if row["key"] == row["file"] else f"{file}: {row['key']}"
        raise FolderError(
            f'source "{row["source"]}": the image {what} has other bytes than at the import; put it back, or '
            "import what is there now into another folder"
        )


def added_members(rows: pa.Table, partial: Sequence[str]) -> list[dict[str, bytes]]:
    """What a sample of an imported pool has in final/ besides its source's members: `txt`, `cls` and `json`,
    where it has none of that name and the value is known.

    Args:
        rows: of an imported pool shard, all columns; `members`, `text` and `class_id` where all have a json.
        partial: columns that its source lacks for some samples: no json has them, as all have the same keys.
    """
    found: list[dict[str, bytes]] = [{} for _ in range(len(rows))]
    for suffix, column in (("txt", "text"), ("cls", "class_id")):
        lacking = np.flatnonzero(lacks_member(rows, suffix))
        for row, value in zip(
            lacking.tolist(), rows[column].take(pa.array(lacking)).to_pylist(), strict=True
        ):
            if value not in (None, ""):
                found[row][suffix] = str(value).encode()
    lacking = np.flatnonzero(lacks_member(rows, "json"))
    kinds = {field.name: field.type for field in rows.schema if not pa.types.is_nested(field.type)}
    told = rows.select([name for name in kinds if name not in (*NOT_TOLD, *partial)]).take(pa.array(lacking))
    for row, own in zip(lacking.tolist(), told.to_pylist(), strict=True):
        plain = {name: _as_json(value, kinds[name]) for name, value in own.items()}
        data = shards.canonical({name: value for name, value in plain.items() if value is not None})
        found[row]["json"] = data
    return found


def lacks_member(rows: pa.Table, suffix: str) -> npt.NDArray[np.bool_]:
    """Which rows of an imported pool shard have no member of this suffix in their source."""
    lists, lacks = rows["members"].combine_chunks(), np.ones(len(rows), np.bool_)
    is_it = pc.equal(lists.flatten().field("suffix"), suffix).to_numpy(zero_copy_only=False)
    lacks[pc.list_parent_indices(lists).to_numpy()[is_it]] = False
    return lacks


def _as_json(value: object, kind: pa.DataType) -> object:
    """A value as a json member holds it: "" for a text that is missing, None for a number that is."""
    if value is None:
        return "" if pa.types.is_string(kind) else None
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else str(value)


def to_masked(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """A column as a `numpy.ma` array, masked where it is null; texts are of dtype object."""
    kind = column.type
    fill = "" if pa.types.is_string(kind) else False if pa.types.is_boolean(kind) else 0
    mask = column.is_null().to_numpy()
    masked: npt.NDArray[np.generic] = np.ma.array(column.fill_null(fill).to_numpy(), mask=mask)
    return masked


def is_missing(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Which rows have no value: masked, or NaN, of features NaN anywhere."""
    missing: npt.NDArray[np.bool_] = np.ma.getmaskarray(values)
    if values.dtype.kind == "f":
        missing = np.logical_or(missing, np.isnan(np.ma.getdata(values)))
    return missing if values.ndim == 1 else np.logical_or.reduce(missing, axis=1)


def filled(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A column as rules see it: a missing text is "", a missing number or bool NaN; whole numbers of 64 bits,
    which no float holds, stay masked.
    """
    missing, plain = is_missing(values), np.ma.getdata(values)
    if values.ndim > 1 or not missing.any():
        return plain
    if plain.dtype.kind in "OU":
        return np.where(missing, "", plain)
    if plain.dtype.itemsize == 8 and plain.dtype.kind in "iu":
        return values
    numbers = plain.astype(np.result_type(plain, np.float32))
    numbers[missing] = np.nan
    return numbers


class PoolColumns(Mapping[str, npt.NDArray[np.generic]]):
    """The columns and features of the whole pool and of its annotations, each read from all shards when it is
    asked for; `read` reads several of them at once.

    Shape (rows,) in plan order, features (rows, width). A missing text is "", a missing number or feature
    NaN. Whole numbers and bools are kept as they are where only failed rows lack them, and are not meaningful
    there; of 64 bits, which no float holds, a missing one is masked (`numpy.ma`).
    """

    def __init__(self, root: Path, stems: Sequence[str], annotations: Sequence[str]) -> None:
        self._stems, self._read = stems, dict[str, npt.NDArray[np.generic]]()
        self._folders, self._stored = dict[str, Path](), dict[str, pa.ChunkedArray]()
        self._uids: npt.NDArray[np.void] | None = None
        self._annotations = {name: root / shards.ANNOTATIONS / name for name in annotations}
        imported = {one.stems[0] for one in shards.imported(root) if one.stems}
        self._firsts, self._kinds = sorted(imported & {*stems}) or stems[:1], dict[str, pa.DataType]()
        for folder in [root / shards.POOL, *self._annotations.values()]:
            for stem in self._firsts:  # each source has columns of its own
                for field in shards.schema_of(folder / f"{stem}.parquet"):
                    self._kinds[field.name] = shards.either_type(self._kinds.get(field.name), field.type)
                    self._folders.setdefault(field.name, folder)

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        if name not in self._read:
            self._read[name] = self._column(name) if name in self._folders else self._features(name)
        return self._read[name]

    def stored(self, name: str) -> pa.ChunkedArray:
        """A column as parquet has it, null where there is nothing."""
        self.read([name])
        return uid_column(self.uids) if name == "uid" else self._stored[name]

    @property
    def uids(self) -> npt.NDArray[np.void]:
        """The uids as DataComp has them: dtype "u8,u8"; half of what they take as texts."""
        self.read(["uid"])
        return np.empty(0, UID) if self._uids is None else self._uids

    def read(self, names: Iterable[str]) -> None:
        """Reads those of the columns that are there and not read yet, each file once."""
        wanted = dict[Path, list[str]]()
        for name in dict.fromkeys(names):
            is_read = self._uids is not None if name == "uid" else name in self._stored
            if name in self._folders and not is_read:
                wanted.setdefault(self._folders[name], []).append(name)
        for folder, own in wanted.items():
            parts, pairs = list[pa.Table](), list[npt.NDArray[np.void]]()
            for stem in self._stems:
                part = self._part(folder / f"{stem}.parquet", own)
                if "uid" in own:  # each as it comes: as texts, all of them take twice the memory
                    pairs.append(uid_pairs(part["uid"]))
                    part = part.drop_columns("uid")
                parts.append(part)
            if "uid" in own:
                self._uids = np.concatenate(pairs)
            table = pa.concat_tables(parts, promote_options="default")
            self._stored |= {name: table[name] for name in own if name != "uid"}

    def folder(self, name: str) -> Path | None:
        """Where a column's or a feature's files are; None where nothing is called so."""
        owns = [key for key in self._annotations if name.startswith(f"{key}_")]
        own = self._annotations[max(owns, key=len)] if owns else None
        return self._folders.get(name, own)

    def _column(self, name: str) -> npt.NDArray[np.generic]:
        stored = self.stored(name)
        if pa.types.is_string(stored.type):
            return _texts(stored)
        if not stored.null_count:
            plain: npt.NDArray[np.generic] = stored.to_numpy()
            return plain
        if pa.types.is_nested(stored.type):
            lists = np.empty(len(stored), object)
            lists[:] = stored.to_pylist()
            return lists
        column = to_masked(stored)
        if column.dtype.kind in "Of":
            return filled(column)
        is_whole = not (np.ma.getmaskarray(column) & (self["error"] == "")).any()
        return np.ma.getdata(column) if is_whole else filled(column)

    def _part(self, path: Path, names: Sequence[str]) -> pa.Table:
        """Columns of a file; null where its source has no such column."""
        if len(self._firsts) < 2:
            return shards.read_table(path, list(names))
        there = [name for name in names if name in shards.names(path)]
        table, missing = shards.read_table(path, there), pa.nulls(shards.rows(path))
        return pa.table(
            {name: _cast(table[name] if name in there else missing, self._kinds[name]) for name in names}
        )

    def _features(self, name: str) -> npt.NDArray[np.float16]:
        """Raises KeyError where no annotation has features of that name."""
        folder = self.folder(name)
        if folder is None:
            raise KeyError(name)
        counts = [shards.rows(folder / f"{stem}.parquet") for stem in self._stems]
        whole, end = np.empty((sum(counts), 0), np.float16), 0
        for stem, count in zip(self._stems, counts, strict=True):
            end += count
            part = shards.read_npz(folder / f"{stem}.npz").get(name)
            if part is None:  # a shard in which all images failed has none
                continue
            if part.ndim != 2:  # a table, which is no feature
                raise KeyError(name)
            if not whole.shape[1]:
                whole = np.full((len(whole), part.shape[1]), np.nan, np.float16)
            whole[end - len(part) : end] = part
        if not whole.size and len(whole):
            raise KeyError(name)
        return whole

    def __contains__(self, name: object) -> bool:
        """Reads nothing where it is a column."""
        return name in self._folders or super().__contains__(name)

    def is_text(self, name: str) -> bool:
        """Whether a column holds texts; nothing is read."""
        return name in self._kinds and bool(pa.types.is_string(self._kinds[name]))

    def is_float(self, name: str) -> bool:
        """Whether a column holds fractions; nothing is read."""
        return bool(pa.types.is_floating(self._kinds[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


def _cast(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """A column in the type that `shards.either_type` found; lists as text are JSON."""
    if pa.types.is_nested(column.type) and pa.types.is_string(kind):
        texts = [None if value is None else json.dumps(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, kind)])
    return column.cast(kind)


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """Texts as an array of objects, one object for each value that is there several times; missing is ""."""
    encoded = column.dictionary_encode().combine_chunks()
    values = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)
    found: npt.NDArray[np.generic] = values[encoded.indices.fill_null(len(values) - 1).to_numpy()]
    return found
