"""The chosen samples of one pool or several as arrays: which they are, how often each is wanted, where its
bytes lie, and the columns that decide where it goes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from synthgen import pools, shards, storage, tars
from synthgen.errors import FolderError, RecipeError, WorkError, nearest

Numbers = npt.NDArray[np.int64]


class Codes(NamedTuple):
    """A column by its distinct values: the number of each sample's value, shape (n,), and the values."""

    numbers: npt.NDArray[np.intp]
    values: list[object]


class Chosen(NamedTuple):
    """Distinct samples in order of the pool, and of pools in the order in which they were joined; shape (n,).

    Attributes:
        uids: dtype "u8,u8".
        counts: how often each is wanted.
        runs: the number of its pool.
        shards: root and stem of each pool shard; `shard` is the number of each sample's, `rows` its row.
        files: what holds the bytes; `file`, `start` and `size` say where a sample's are.
        is_last: whether `size` reaches to the end of a tar of our own, and so may be too large.
        members: (suffix, offset, size) of each member in an archive of others, () in a tar of our own.
        columns: by name, with what was asked for.
    """

    uids: npt.NDArray[np.void]
    counts: Numbers
    runs: Numbers
    shards: list[tuple[Path, str]]
    shard: Numbers
    rows: Numbers
    files: list[Path]
    file: Numbers
    start: Numbers
    size: Numbers
    is_last: npt.NDArray[np.bool_]
    members: list[tuple[tuple[str, int, int], ...]] | None
    columns: dict[str, Codes]


def choose(
    root: Path,
    stems: Sequence[str],
    subset: npt.NDArray[np.void],
    columns: Sequence[str],
    annotations: Sequence[str],
    *,
    if_there: Sequence[str] = (),
    sources: pools.Sources = {},  # noqa: B006
) -> Chosen:
    """The samples of a pool that a subset lists.

    Args:
        subset: sorted; a uid may stand there several times.
        columns: of the pool or its annotations.
        if_there: more of them, missing everywhere in a pool that does not have them.
        sources: where what the pool was imported from is now; see `pools.source_paths`.

    Raises:
        WorkError: a uid is not in the pool, or failed.
        RecipeError: there is no such column.
    """
    found = [_read_shard(root, stem, sources) for stem in stems]
    uids = np.concatenate([part.uids for part in found]) if found else np.empty(0, shards.UID)
    lengths = np.array([len(part.uids) for part in found], np.int64)
    counts, stray = _count(uids, subset)
    if len(stray):
        uid = shards.uid_strings(stray[:1])[0]
        raise WorkError(f"{root}: subset: {uid} is no written sample of the pool; select again")
    take = np.flatnonzero(counts)
    shard = np.repeat(np.arange(len(found)), lengths)[take]
    files = [file for part in found for file in part.files]
    firsts = np.cumsum([0, *(len(part.files) for part in found)])[:-1]

    def whole(name: str) -> Numbers:
        parts = [getattr(part, name) for part in found]
        return np.concatenate(parts)[take] if parts else np.empty(0, np.int64)

    members = None
    if any(part.members for part in found):
        every = [own for part in found for own in part.members or [()] * len(part.uids)]
        members = [every[k] for k in take.tolist()]
    chosen = Chosen(
        uids[take],
        counts[take],
        np.zeros(len(take), np.int64),
        [(root, stem) for stem in stems],
        shard,
        whole("rows"),
        files,
        whole("file") + firsts[shard] if found else whole("file"),
        whole("start"),
        whole("size"),
        whole("is_last").astype(bool),
        members,
        {},
    )
    has = list(pools.PoolColumns(root, stems, annotations)) if stems else []
    read = [*dict.fromkeys([*columns, *(name for name in if_there if name in has)])]
    found_columns = {name: encode(column) for name, column in read_arrow(chosen, read, annotations).items()}
    missing = Codes(np.zeros(len(take), np.intp), [None])
    return chosen._replace(columns={**dict.fromkeys(if_there, missing), **found_columns})


class _Shard(NamedTuple):
    """The written samples of one pool shard."""

    uids: npt.NDArray[np.void]
    rows: Numbers
    files: list[Path]
    file: Numbers
    start: Numbers
    size: Numbers
    is_last: npt.NDArray[np.bool_]
    members: list[tuple[tuple[str, int, int], ...]]


def _read_shard(root: Path, stem: str, sources: pools.Sources) -> _Shard:
    tar = root / shards.POOL / f"{stem}.tar"
    table = shards.read_table(tar.with_suffix(".parquet"), ["uid", "error", "image_offset"])
    rows = np.flatnonzero(table["error"].is_null().to_numpy())
    uids = shards.uid_array(table["uid"].take(pa.array(rows)).to_pylist())
    if not storage.exists(tar):  # other people's data: it lies where they keep it
        places = pools.places(root, stem, sources)
        numbers = {path: k for k, path in enumerate(dict.fromkeys(place.file for place in places))}
        spans = np.array([(numbers[p.file], p.start, p.size) for p in places], np.int64).reshape(-1, 3)
        return _Shard(
            uids,
            rows,
            list(numbers),
            spans[:, 0],
            spans[:, 1],
            spans[:, 2],
            np.zeros(len(places), bool),
            [place.members for place in places],
        )
    start = table["image_offset"].to_numpy()[rows].astype(np.int64) - tars.BLOCK
    size = np.diff(start, append=storage.size(tar) if len(start) else start[:0])
    is_last = np.arange(len(start)) == len(start) - 1
    return _Shard(uids, rows, [tar], np.zeros(len(start), np.int64), start, size, is_last, [])


def _count(uids: npt.NDArray[np.void], subset: npt.NDArray[np.void]) -> tuple[Numbers, npt.NDArray[np.void]]:
    """How often a subset lists each uid, and what it lists that is not there.

    Both are sorted together: exact and as fast for uids that share their first half, as other people's may.
    """
    both = np.concatenate([uids, subset])
    order = np.lexsort((both["f1"], both["f0"]))  # stable: the pool's own before the subset's
    ordered = both[order]
    is_new = np.ones(len(both), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_new)
    lengths = np.diff(starts, append=len(both))
    counts, heads = np.zeros(len(uids), np.int64), order[starts]
    is_known = heads < len(uids)
    counts[heads[is_known]] = lengths[is_known] - 1
    return counts, both[heads[~is_known]]


def read_arrow(
    chosen: Chosen, names: Sequence[str], annotations: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """Columns of one pool as parquet has them, at the chosen samples; each file is read once for all.

    Raises:
        RecipeError: there is no such column.
    """
    if not names or not chosen.shards:
        return {name: pa.chunked_array([pa.nulls(0)]) for name in names}
    root = chosen.shards[0][0]
    columns = pools.PoolColumns(root, [stem for _, stem in chosen.shards], annotations)
    for name in names:
        if name not in list(columns):
            raise RecipeError(f'{root}: no column "{name}"{nearest(name, list(columns))}')
    bounds = np.searchsorted(chosen.shard, np.arange(len(chosen.shards) + 1)).tolist()
    parts: dict[str, list[pa.Table]] = {}
    folders = {name: columns.folder(name) or root for name in names}
    for k, (_, stem) in enumerate(chosen.shards):
        rows = pa.array(chosen.rows[bounds[k] : bounds[k + 1]])
        for folder in dict.fromkeys(folders.values()) if len(rows) else ():
            own = [name for name in names if folders[name] == folder]
            table = shards.read_table(folder / f"{stem}.parquet", own).take(rows)
            for name in own:
                parts.setdefault(name, []).append(table[name])
    return {
        name: pa.chunked_array(
            [chunk for part in parts.get(name, []) for chunk in part.chunks] or [pa.nulls(0)]
        )
        for name in names
    }


def encode(column: pa.ChunkedArray) -> Codes:
    """A column by its distinct values, in sorted order; a missing value is None, the first."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda k: (values[k] is not None, values[k]))
    place = np.empty(len(values), np.intp)
    place[order] = np.arange(len(values))
    return Codes(place[encoded.indices.to_numpy()], [values[k] for k in order])


def join(parts: Sequence[Chosen], names: Sequence[str]) -> Chosen:
    """The samples of several pools. A sample that several have, with the same bytes, is taken from the first.

    Args:
        names: of the pools, for messages.

    Raises:
        FolderError: two pools hold other bytes under one uid.
    """
    if len(parts) == 1:
        return parts[0]

    def shifted(name: str, by: str) -> Numbers:
        before = np.cumsum([0, *(len(getattr(part, by)) for part in parts)])
        return np.concatenate([getattr(part, name) + k for part, k in zip(parts, before, strict=False)])

    def whole(name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    joined = Chosen(
        np.concatenate([part.uids for part in parts]),
        whole("counts"),  # type: ignore[arg-type]
        np.repeat(np.arange(len(parts)), [len(part.uids) for part in parts]),
        [shard for part in parts for shard in part.shards],
        shifted("shard", "shards"),
        whole("rows"),  # type: ignore[arg-type]
        [file for part in parts for file in part.files],
        shifted("file", "files"),
        whole("start"),  # type: ignore[arg-type]
        whole("size"),  # type: ignore[arg-type]
        whole("is_last"),  # type: ignore[arg-type]
        [own for part in parts for own in part.members or [()] * len(part.uids)]
        if any(part.members for part in parts)
        else None,
        {name: _join_codes([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
    return take(joined, _first_of_each(joined, names))


def _join_codes(parts: Sequence[Codes]) -> Codes:
    every = {value for part in parts for value in part.values}
    values = sorted(every, key=lambda value: (value is not None, value))
    number = {value: k for k, value in enumerate(values)}
    maps = [np.array([number[value] for value in part.values], np.intp) for part in parts]
    numbers = [of[part.numbers] if len(of) else part.numbers for of, part in zip(maps, parts, strict=True)]
    return Codes(np.concatenate(numbers), values)


def _first_of_each(joined: Chosen, names: Sequence[str]) -> Numbers:
    """Where the uids are there for the first time."""
    order = np.lexsort((joined.uids["f1"], joined.uids["f0"]))
    again = np.zeros(len(order), bool)
    again[1:] = joined.uids[order][1:] == joined.uids[order][:-1]
    for place in np.flatnonzero(again).tolist():
        pair = order[place - 1 : place + 1].tolist()
        sums = [_sha256(joined, row) for row in pair]
        if sums[0] != sums[1] or sums[0] is None:
            one, other = (names[int(joined.runs[row])] for row in pair)
            raise FolderError(
                f"{one} and {other} hold different images under the uid "
                f"{shards.uid_strings(joined.uids[pair[:1]])[0]}; select without it in one of them"
            )
    return np.sort(order[~again])


def _sha256(chosen: Chosen, row: int) -> object:
    root, stem = chosen.shards[int(chosen.shard[row])]
    table = shards.read_table(root / shards.POOL / f"{stem}.parquet", ["sha256"])
    return table["sha256"][int(chosen.rows[row])].as_py()


def take(chosen: Chosen, rows: Numbers) -> Chosen:
    """Some of the samples, in the order given."""
    arrays = ("uids", "counts", "runs", "shard", "rows", "file", "start", "size", "is_last")
    return chosen._replace(
        **{name: getattr(chosen, name)[rows] for name in arrays},
        members=chosen.members and [chosen.members[k] for k in rows.tolist()],
        columns={name: Codes(codes.numbers[rows], codes.values) for name, codes in chosen.columns.items()},
    )
