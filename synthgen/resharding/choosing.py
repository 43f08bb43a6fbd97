"""The chosen samples of one pool or several as arrays: which they are, how often each is wanted, where its
bytes lie, and the columns that decide where it goes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import pools, shards, storage, tars
from synthgen.errors import FolderError, RecipeError, WorkError, nearest
from synthgen.uids import UID, rows_of, uid_pairs, uid_strings

Numbers = npt.NDArray[np.int64]


class Codes(NamedTuple):
    """A column by its distinct values: the number of each sample's value, shape (n,), and the values."""

    numbers: npt.NDArray[np.intp]
    values: list[object]


class Spans(NamedTuple):
    """The members of samples that lie in files of others, which were imported: those of sample k are
    `firsts[k]` to `firsts[k + 1]` of the other arrays, none where it lies in a tar of our own.

    Attributes:
        suffix: numbers `names`.
        start, size: of its data, in bytes.
        is_image: whether it is the sample's image.
    """

    firsts: Numbers
    suffix: Numbers
    start: Numbers
    size: Numbers
    is_image: npt.NDArray[np.bool_]
    names: list[str]

    @property
    def in_place(self) -> npt.NDArray[np.bool_]:
        """Which samples have any."""
        found: npt.NDArray[np.bool_] = np.diff(self.firsts) > 0
        return found

    def of(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """The members of some samples, one sample after the other, and whose each is: numbers of `rows`."""
        counts = self.firsts[rows + 1] - self.firsts[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        return np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners] + self.firsts[rows][
            owners
        ], owners

    def take(self, rows: Numbers) -> "Spans":
        """Those of some samples."""
        members, _ = self.of(rows)
        firsts = np.concatenate([[0], np.cumsum(self.firsts[rows + 1] - self.firsts[rows])])
        return Spans(
            firsts,
            self.suffix[members],
            self.start[members],
            self.size[members],
            self.is_image[members],
            self.names,
        )


class Kind(NamedTuple):
    """What samples of one source have: the names of their members, () for those of our own tars, which all
    have the same.
    """

    source: str
    members: tuple[str, ...]


OURS = Kind("", ())


class Chosen(NamedTuple):
    """Distinct samples in order of the pool, and of pools in the order in which they were joined; shape (n,).

    Attributes:
        uids: dtype "u8,u8".
        counts: how often each is wanted.
        runs: the number of its pool.
        shards: root and stem of each pool shard; `shard` is the number of each sample's, `rows` its row there
            and `places` its row in the pool.
        files: what holds the bytes; `file`, `start` and `size` say where a sample's are in a tar of our own.
        is_last: whether `size` reaches to the end of a tar of our own, and so may be too large.
        spans: where they are elsewhere.
        kind: numbers `kinds`.
        columns: by name, with what was asked for.
    """

    uids: npt.NDArray[np.void]
    counts: Numbers
    runs: Numbers
    shards: list[tuple[Path, str]]
    shard: Numbers
    rows: Numbers
    places: Numbers
    files: list[str]
    file: Numbers
    start: Numbers
    size: Numbers
    is_last: npt.NDArray[np.bool_]
    spans: Spans
    kind: Numbers
    kinds: list[Kind]
    columns: dict[str, Codes]


ARRAYS = ("uids", "counts", "runs", "shard", "rows", "places", "file", "start", "size", "is_last", "kind")


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
    folders = pools.source_paths(root, sources)
    found = [_read_shard(root, stem, folders) for stem in stems]
    chosen = _concatenate([part for part, _ in found])
    firsts = np.cumsum([0, *(total for _, total in found)])
    chosen = chosen._replace(places=chosen.rows + firsts[chosen.shard])
    listed = rows_of(subset, chosen.uids)
    stray = subset[listed < 0]
    if len(stray):
        uid = uid_strings(stray[:1])[0]
        raise WorkError(f"{root}: subset: {uid} is no written sample of the pool; select again")
    counts = np.bincount(listed, minlength=len(chosen.uids))
    chosen = take(chosen._replace(counts=counts), np.flatnonzero(counts))
    has = pools.PoolColumns(root, stems, annotations) if stems else ()
    read = [*dict.fromkeys([*columns, *(name for name in if_there if name in has)])]
    stored = read_columns(chosen, read, annotations)
    nested = next((name for name, column in stored.items() if pa.types.is_nested(column.type)), None)
    if nested:
        raise RecipeError(
            f'{root}: column "{nested}" holds lists, which are no cells; name one of texts or numbers'
        )
    there = {name: encode(column) for name, column in stored.items()}
    missing = Codes(np.zeros(len(chosen.uids), np.intp), [None])
    return chosen._replace(columns={**dict.fromkeys(if_there, missing), **there})


def _read_shard(root: Path, stem: str, folders: Mapping[str, Path]) -> tuple[Chosen, int]:
    """The written samples of a pool shard, and how many rows it has."""
    tar = root / shards.POOL / f"{stem}.tar"
    if storage.exists(tar):
        table = shards.read_table(tar.with_suffix(".parquet"), ["uid", "image_offset"])
        rows = np.flatnonzero(table["image_offset"].is_valid().to_numpy())
        start = table["image_offset"].drop_null().to_numpy().astype(np.int64) - tars.BLOCK
        size = np.diff(start, append=storage.size(tar) if len(start) else start[:0])
        is_last, none = np.arange(len(rows)) == len(rows) - 1, np.empty(0, np.int64)
        spans = Spans(np.zeros(len(rows) + 1, np.int64), none, none, none, none.astype(bool), [])
        files, file, kind, kinds = [str(tar)], np.zeros_like(rows), np.zeros_like(rows), [OURS]
    else:  # other people's data: it lies where they keep it
        columns = ["uid", "source", "file", "members", "image_offset", "image_bytes", "class_id", "text"]
        table = shards.read_table(tar.with_suffix(".parquet"), columns)
        rows = np.flatnonzero(table["members"].is_valid().to_numpy())
        written = table.take(pa.array(rows))
        spans, start = _spans(written), np.zeros(len(rows), np.int64)
        files, file = _files(written, folders)
        size, is_last = start, start.astype(bool)
        kind, kinds = _kinds(written, spans)
    uids = uid_pairs(table["uid"].take(pa.array(rows)))
    found = Chosen(
        uids=uids,
        counts=np.zeros_like(rows),
        runs=np.zeros_like(rows),
        shards=[(root, stem)],
        shard=np.zeros_like(rows),
        rows=rows,
        places=rows,
        files=files,
        file=file,
        start=start,
        size=size,
        is_last=is_last,
        spans=spans,
        kind=kind,
        kinds=kinds,
        columns={},
    )
    return found, len(table)


def _spans(written: pa.Table) -> Spans:
    lists = written["members"].combine_chunks()
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(lists)
    suffix = pc.struct_field(flat, "suffix").dictionary_encode()
    start, size = (pc.struct_field(flat, name).to_numpy().astype(np.int64) for name in ("offset", "size"))
    own = [np.repeat(written[name].to_numpy(), counts) for name in ("image_offset", "image_bytes")]
    is_image = (start == own[0]) & (size == own[1])
    firsts = np.concatenate([[0], np.cumsum(counts)])
    numbers = suffix.indices.to_numpy().astype(np.int64)
    return Spans(firsts, numbers, start, size, is_image, suffix.dictionary.to_pylist())


def _files(written: pa.Table, folders: Mapping[str, Path]) -> tuple[list[str], Numbers]:
    joined = pc.binary_join_element_wise(written["source"], written["file"], "\0")
    encoded = joined.combine_chunks().dictionary_encode()
    pairs = [value.split("\0", 1) for value in encoded.dictionary.to_pylist()]
    for source, file in dict(reversed(pairs)).items():  # one of each: a source that was moved is known now
        if not storage.exists(folders[source] / file):
            raise FolderError(pools.not_there(source, folders[source], file))
    return [f"{folders[source]}/{file}" for source, file in pairs], encoded.indices.to_numpy().astype(
        np.int64
    )


def _kinds(written: pa.Table, spans: Spans) -> tuple[Numbers, list[Kind]]:
    """The members of each sample, those that the pool adds included (see `pools.added_members`)."""
    suffixes = pa.array(spans.names, pa.string()).take(pa.array(spans.suffix))
    lists = pa.ListArray.from_arrays(pa.array(spans.firsts, pa.int32()), suffixes)
    own = pc.binary_join(lists, "\0").dictionary_encode()
    sets = [frozenset(joined.split("\0")) for joined in own.dictionary.to_pylist()]
    source = written["source"].combine_chunks().dictionary_encode()
    is_labelled = written["class_id"].is_valid().to_numpy()
    is_told = pc.not_equal(written["text"], "").fill_null(False).to_numpy()
    codes = [source.indices.to_numpy(), own.indices.to_numpy(), is_labelled, is_told]
    table = np.stack(codes, axis=1).astype(np.int64)
    different, numbers = np.unique(table, axis=0, return_inverse=True)
    found = []
    for number, members, labelled, told in different.tolist():
        names = sets[members] | {"json"} | ({"cls"} if labelled else set()) | ({"txt"} if told else set())
        found.append(Kind(source.dictionary[number].as_py(), tuple(sorted(names))))
    kinds = list(dict.fromkeys(found))
    of = np.array([kinds.index(kind) for kind in found], np.int64)
    return of[numbers.reshape(-1)], kinds


def _concatenate(parts: Sequence[Chosen]) -> Chosen:
    """Shards of a pool, or pools, one after the other."""

    def shifted(name: str, sizes: Sequence[int]) -> Numbers:
        before = np.cumsum([0, *sizes])
        whole = [getattr(part, name) + k for part, k in zip(parts, before.tolist(), strict=False)]
        return np.concatenate(whole) if whole else np.empty(0, np.int64)

    def plain(name: str) -> Any:
        empty = np.empty(0, UID if name == "uids" else bool if name == "is_last" else np.int64)
        return np.concatenate([empty, *(getattr(part, name) for part in parts)]) if parts else empty

    names = list(dict.fromkeys(name for part in parts for name in part.spans.names))
    kinds = list(dict.fromkeys(kind for part in parts for kind in part.kinds))
    suffix = [np.array([names.index(name) for name in part.spans.names], np.int64) for part in parts]
    kind = [np.array([kinds.index(one) for one in part.kinds], np.int64) for part in parts]
    ends = np.cumsum([0, *(len(part.spans.suffix) for part in parts)]).tolist()
    none = np.empty(0, np.int64)
    spans = Spans(
        np.concatenate([[0], *(part.spans.firsts[1:] + end for part, end in zip(parts, ends, strict=False))]),
        np.concatenate([none, *(of[part.spans.suffix] for of, part in zip(suffix, parts, strict=True))]),
        np.concatenate([none, *(part.spans.start for part in parts)]),
        np.concatenate([none, *(part.spans.size for part in parts)]),
        np.concatenate([none.astype(bool), *(part.spans.is_image for part in parts)]),
        names,
    )
    return Chosen(
        **{name: plain(name) for name in ARRAYS if name not in ("shard", "file", "kind")},
        shards=[shard for part in parts for shard in part.shards],
        shard=shifted("shard", [len(part.shards) for part in parts]),
        files=[file for part in parts for file in part.files],
        file=shifted("file", [len(part.files) for part in parts]),
        spans=spans,
        kind=np.concatenate([none, *(of[part.kind] for of, part in zip(kind, parts, strict=True))]),
        kinds=kinds,
        columns={},
    )


def read_columns(
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
    columns.read(names)
    return {name: columns.stored(name).take(pa.array(chosen.places)) for name in names}


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

    joined = _concatenate(parts)._replace(
        runs=np.repeat(np.arange(len(parts)), [len(part.uids) for part in parts]),
        columns={name: _join_codes([part.columns[name] for part in parts]) for name in parts[0].columns},
    )
    return take(joined, _first_of_each(joined, names))


def _join_codes(parts: Sequence[Codes]) -> Codes:
    """One column of several pools; where one has texts and another numbers, all are texts."""
    every = {value for part in parts for value in part.values}
    if len({isinstance(value, str) for value in every - {None}}) > 1:
        return _join_codes([_as_texts(part) for part in parts])
    values = sorted(every, key=lambda value: (value is not None, value))
    number = {value: k for k, value in enumerate(values)}
    maps = [np.array([number[value] for value in part.values], np.intp) for part in parts]
    numbers = [of[part.numbers] if len(of) else part.numbers for of, part in zip(maps, parts, strict=True)]
    return Codes(np.concatenate(numbers), values)


def _as_texts(codes: Codes) -> Codes:
    return Codes(codes.numbers, [None if value is None else str(value) for value in codes.values])


def _first_of_each(joined: Chosen, names: Sequence[str]) -> Numbers:
    """Where the uids are there for the first time."""
    order = np.lexsort((joined.uids["f1"], joined.uids["f0"]))
    again = np.zeros(len(order), bool)
    again[1:] = joined.uids[order][1:] == joined.uids[order][:-1]
    places = np.flatnonzero(again)
    one, other = order[places - 1], order[places]
    same = pc.equal(_sha256(joined, one), _sha256(joined, other)).fill_null(False)
    for place in np.flatnonzero(~same.to_numpy(zero_copy_only=False))[:1].tolist():
        first, second = (names[int(joined.runs[rows[place]])] for rows in (one, other))
        raise FolderError(
            f"{first} and {second} hold different images under the uid "
            f"{uid_strings(joined.uids[one[place : place + 1]])[0]}; select without it in one of them"
        )
    return np.sort(order[~again])


def _sha256(chosen: Chosen, rows: Numbers) -> pa.Array:
    """Of the images of some samples; each pool shard is read once."""
    found, numbers = [pa.array([], pa.string())], chosen.shard[rows]
    order = np.argsort(numbers, kind="stable")
    for number in np.unique(numbers).tolist():
        root, stem = chosen.shards[number]
        table = shards.read_table(root / shards.POOL / f"{stem}.parquet", ["sha256"])
        own = rows[order][numbers[order] == number]
        found.append(table["sha256"].take(pa.array(chosen.rows[own])).combine_chunks())
    return pa.concat_arrays(found).take(pa.array(np.argsort(order)))


def take(chosen: Chosen, rows: Numbers) -> Chosen:
    """Some of the samples, in the order given."""
    return chosen._replace(
        **{name: getattr(chosen, name)[rows] for name in ARRAYS},
        spans=chosen.spans.take(rows),
        columns={name: Codes(codes.numbers[rows], codes.values) for name, codes in chosen.columns.items()},
    )
