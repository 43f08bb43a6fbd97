"""A pool read: the columns of all of it, its images, and where the bytes of each sample lie."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import shards, storage, tars


class Place(NamedTuple):
    """Where a sample of a pool lies: in which file, and which bytes of it.

    In a tar of our own `members` is empty: from `start` on, `size` bytes are the sample's blocks with their
    headers (the last one of a tar may reach into the archive's end). In another archive, or in files of
    their own, `members` has the suffix, offset and size of each member's data, and `start` and `size` span
    them.
    """

    uid: str
    file: Path
    start: int
    size: int
    members: tuple[tuple[str, int, int], ...] = ()


def places(root: Path, stem: str) -> list[Place]:
    """The written samples of a pool shard. A sample runs from its image's header to the next sample's."""
    tar = root / shards.POOL / f"{stem}.tar"
    rows = shards.read_table(tar.with_suffix(".parquet"), ["uid", "image_offset"]).to_pydict()
    found = [
        (uid, at - tars.BLOCK)
        for uid, at in zip(rows["uid"], rows["image_offset"], strict=True)
        if at is not None
    ]
    bounds = [*(start for _, start in found), storage.size(tar)]
    return [Place(uid, tar, start, end - start) for (uid, start), end in zip(found, bounds[1:], strict=True)]


def read_images(root: Path, stem: str, rows: pa.Table) -> list[bytes]:
    """The stored image of each row, in order, of a pool shard's written rows; read as the one run that they
    span.
    """
    spans = list(zip(rows["image_offset"].to_pylist(), rows["image_bytes"].to_pylist(), strict=True))
    if not spans:
        return []
    start, end = spans[0][0], sum(spans[-1])
    data = storage.read(root / shards.POOL / f"{stem}.tar", start, end - start)
    return [data[at - start : at - start + size] for at, size in spans]


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
        self._annotations = {name: root / shards.ANNOTATIONS / name for name in annotations}
        for folder in [root / shards.POOL, *self._annotations.values()]:
            schema = pq.read_schema(pa.BufferReader(storage.read(folder / f"{stems[0]}.parquet")))
            self._folders = {**dict.fromkeys(schema.names, folder), **self._folders}

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        if name not in self._read:
            self._read[name] = self._column(name) if name in self._folders else self._features(name)
        return self._read[name]

    def stored(self, name: str) -> pa.ChunkedArray:
        """A column as parquet has it, null where there is nothing."""
        self.read([name])
        return self._stored[name]

    def read(self, names: Iterable[str]) -> None:
        """Reads those of the columns that are there and not read yet, each file once."""
        wanted = dict[Path, list[str]]()
        for name in dict.fromkeys(names):
            if name in self._folders and name not in self._stored:
                wanted.setdefault(self._folders[name], []).append(name)
        for folder, own in wanted.items():
            parts = [shards.read_table(folder / f"{stem}.parquet", own) for stem in self._stems]
            table = pa.concat_tables(parts, promote_options="default")
            self._stored |= {name: table[name] for name in own}

    def folder(self, name: str) -> Path | None:
        """Where a column's or a feature's files are; None where nothing is called so."""
        owns = [key for key in self._annotations if name.startswith(f"{key}_")]
        own = self._annotations[max(owns, key=len)] if owns else None
        return self._folders.get(name, own)

    def _column(self, name: str) -> npt.NDArray[np.generic]:
        stored = self.stored(name)
        if pa.types.is_string(stored.type):
            return _texts(stored)
        column = to_masked(stored)
        if column.dtype.kind in "Of":
            return filled(column)
        is_whole = not (np.ma.getmaskarray(column) & (self["error"] == "")).any()
        return np.ma.getdata(column) if is_whole else filled(column)

    def _features(self, name: str) -> npt.NDArray[np.float16]:
        """Raises KeyError where no annotation has features of that name."""
        folder = self.folder(name)
        if folder is None:
            raise KeyError(name)
        found = [shards.read_npz(folder / f"{stem}.npz").get(name) for stem in self._stems]
        width = next((part.shape[1] for part in found if part is not None), 0)
        if not width and len(self["uid"]):
            raise KeyError(name)
        ends = np.cumsum([shards.rows(folder / f"{stem}.parquet") for stem in self._stems])
        whole = np.full((int(ends[-1]), width), np.nan, np.float16)
        for part, end in zip(found, ends.tolist(), strict=True):
            if part is not None:  # a shard in which all images failed has none
                whole[end - len(part) : end] = part
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """Texts as an array of objects, one object for each value that is there several times; missing is ""."""
    encoded = column.dictionary_encode().combine_chunks()
    values = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)
    found: npt.NDArray[np.generic] = values[encoded.indices.fill_null(len(values) - 1).to_numpy()]
    return found
