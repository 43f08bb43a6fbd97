"""The bytes of output shards: every member of a sample as its pool has it, copied in blocks, and the members
that the recipe adds.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthgen import shards, storage, tars
from synthgen.claims import Claim
from synthgen.errors import FolderError, WorkError
from synthgen.resharding.choosing import Chosen, Numbers
from synthgen.resharding.cutting import OutputShard
from synthgen.resharding.telling import Told, check_images, read_told, told_bytes

WINDOW = 2**22
"""Bytes of output that are in memory at a time, and as many are read ahead: few enough for a cache."""


class Feature(NamedTuple):
    """A feature as a member `<uid>.<name>.npy`: where each chosen sample's row lies in the npz files.

    `file` numbers `files`, `start` is in bytes, each row has `width` float16.
    """

    name: str
    files: list[Path]
    file: Numbers
    start: Numbers
    width: int

    @property
    def npy_header(self) -> bytes:
        return npy_header(self.width)


class Added(NamedTuple):
    """The members that are added to each sample: features, and one `<uid>.scores.json` of columns, as values
    of each chosen sample; and the keys and types that each json is to have, None for those that it has.
    """

    features: list[Feature]
    scores: dict[str, list[object]]
    json_keys: dict[str, type] | None


NOTHING = Added([], {}, None)


def npy_header(width: int) -> bytes:
    """What stands before the numbers in a .npy file of `width` float16."""
    shape = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({width},), }}".encode()
    padded = shape.ljust(-(len(shape) + 11) % 64 + len(shape)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def added_bytes(added: Added, samples: int) -> Numbers:
    """Bytes that the added members of each chosen sample take in an archive."""
    scores = [scores_json(added, row) for row in range(samples)] if added.scores else []
    return np.zeros(samples, np.int64) + _added_bytes(added, scores)


def _added_bytes(added: Added, scores: Sequence[bytes]) -> Numbers:
    """The same of samples with these scores, or of any one without."""
    fixed = sum(tars.padded(len(one.npy_header) + 2 * one.width) for one in added.features)
    return fixed + np.array([tars.padded(len(text)) for text in scores] or [0], np.int64)


def scores_json(added: Added, row: int) -> bytes:
    """The scores.json of a chosen sample."""
    values = {name: column[row] for name, column in added.scores.items()}
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode()


def sample_bytes(chosen: Chosen, rows: Numbers) -> Numbers:
    """Bytes that chosen samples take in an archive, at most."""
    sizes = chosen.size[rows]
    if chosen.members is not None:
        for k, row in enumerate(rows.tolist()):
            if chosen.members[row]:
                sizes[k] = sum(tars.padded(size) for _, _, size in chosen.members[row])
    return sizes


def read_sample(chosen: Chosen, row: int) -> dict[str, bytes]:
    """The members of a chosen sample: suffix -> data."""
    file, start = chosen.files[int(chosen.file[row])], int(chosen.start[row])
    if chosen.members and chosen.members[row]:
        own = {suffix: storage.read(file, at, size) for suffix, at, size in chosen.members[row]}
        (told,) = read_told(chosen, np.array([row]))
        return own | (told.members if told else {})
    return next(tars.samples(storage.read(file, start, int(chosen.size[row]))))[1]


def keys_of(chosen: Chosen, shard: OutputShard) -> list[str]:
    """The keys of an output shard's samples: the uid, then `uid-1`, `uid-2` for repeats of it."""
    uids = shards.uid_strings(chosen.uids[shard.rows])
    return [f"{uid}-{copy}" if copy else uid for uid, copy in zip(uids, shard.copies.tolist(), strict=True)]


def digest_of(keys: Sequence[str]) -> str:
    """What a record holds of its keys, in order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def write_shard(
    root: Path,
    folder: Path,
    shard: OutputShard,
    chosen: Chosen,
    added: Added,
    *,
    record: dict[str, object],
    claim: Claim,
) -> None:
    """Publishes one output shard below `folder`.

    Raises:
        WorkError: the pool's tar does not hold a sample where its row says.
        FolderError: a sample has no feature that is to be added, or lies in a source that has changed.
    """
    keys, done = keys_of(chosen, shard), 0
    with (
        shards.new_unit(root, folder / shard.split, shard.stem, record, claim) as create,
        storage.OpenFiles() as files,
    ):
        tar = create(".tar")
        claim.progress(0)
        for samples, data in _windows(files, chosen, added, shard, keys):
            tar.write(data)
            done += samples
            claim.progress(done)
        tars.finish(tar)
        record |= {"requested": done, "written": done, "failed": 0, "successes": done}
        record["keys"] = digest_of(keys)


class _Pieces(NamedTuple):
    """What a window of output is made of: for each piece, from where and how much, and where it goes."""

    file: Numbers
    start: Numbers
    size: Numbers
    to: Numbers


class _Window(NamedTuple):
    """Some samples of a shard, those from `start` to `end`: where each begins, and how many bytes of its pool
    it takes, in `size` bytes of an archive.
    """

    start: int
    end: int
    to: Numbers
    own: Numbers
    size: int
    pieces: _Pieces
    headers: list[tuple[int, bytes]]


def _windows(
    files: storage.OpenFiles, chosen: Chosen, added: Added, shard: OutputShard, keys: Sequence[str]
) -> Iterator[tuple[int, memoryview | bytearray]]:
    """The shard's samples as they lie in its archive, some at a time: how many, and their bytes."""
    every_file = [*chosen.files, *(file for one in added.features for file in one.files)]
    told = read_told(chosen, shard.rows)

    def plan() -> Iterator[_Window]:
        own = _exact_bytes(files, chosen, shard.rows) + told_bytes(told)
        scores = [scores_json(added, row) for row in shard.rows.tolist()] if added.scores else []
        ends, start = np.cumsum(own + _added_bytes(added, scores)), 0
        while start < len(keys):
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + WINDOW, side="right")))
            part, to = slice(start, end), np.concatenate([[0], ends[start : end - 1] - before])
            laid = _layout(
                chosen, added, shard.rows[part], keys[part], to, own[part], scores[part], told[part]
            )
            for file, at, size in zip(*(column.tolist() for column in laid[0][:3]), strict=True):
                files.will_read(every_file[file], at, size)
            yield _Window(start, end, to, own[part], int(ends[end - 1]) - before, *laid)
            start = end

    room = bytearray()
    for window in _one_ahead(plan()):
        part = slice(window.start, window.end)
        if window.size > len(room) or window.headers:  # between what is copied, zeros
            room = bytearray(max(window.size, len(room)))
        data = memoryview(room)[: window.size]
        for file, at, size, to in zip(*(column.tolist() for column in window.pieces), strict=True):
            files.read_into(every_file[file], at, data[to : to + size])
        for to, header in window.headers:
            data[to : to + len(header)] = header
        _check(chosen, shard.rows[part], data, window.to)
        check_images(chosen, shard.rows[part], told[part], data, window.to)
        _rename(data, window.to, window.own, keys[part], shard.copies[part])
        _check_features(data, added, window.to + window.own, keys[part])
        if added.json_keys is not None:
            yield window.end - window.start, _with_keys(data, added.json_keys)
        else:
            yield window.end - window.start, data


def _with_keys(data: memoryview, keys: Mapping[str, type]) -> bytearray:
    """Samples as they lie in an archive, with these keys in each json.

    Raises:
        FolderError: a number is missing.
    """
    found, archive = bytearray(), bytes(data)
    for member in tars.index(archive):
        body = archive[member.offset : member.offset + member.size]
        if member.suffix != "json":
            start = member.offset - tars.BLOCK
            found += archive[start : start + tars.padded(member.size)]
            continue
        values = json.loads(body)
        known = {key: "" if kind is str else None for key, kind in keys.items()}
        known |= {key: value for key, value in values.items() if key in keys and type(value) is keys[key]}
        lacking = next((key for key, value in known.items() if value is None), None)
        if lacking:
            raise FolderError(
                f"{member.name}: {lacking} is {json.dumps(values.get(lacking))}, others of its pool have a "
                f"{keys[lacking].__name__}; readers want one type: take the sample out of the subset"
            )
        found += tars.blocks(member.name, json.dumps(known, ensure_ascii=False, allow_nan=False).encode())
    return found


def _one_ahead(windows: Iterator[_Window]) -> Iterator[_Window]:
    """Gives each when the one after it has been asked for."""
    for before, _ in itertools.pairwise(itertools.chain(windows, (None,))):
        if before:
            yield before


def _exact_bytes(files: storage.OpenFiles, chosen: Chosen, rows: Numbers) -> Numbers:
    """Bytes that each sample takes in an archive: the last one of a tar ends where its members do."""
    sizes = sample_bytes(chosen, rows)
    for place in np.flatnonzero(chosen.is_last[rows]).tolist():
        row = int(rows[place])
        file, start, at = chosen.files[int(chosen.file[row])], int(chosen.start[row]), 0
        key, head = shards.uid_strings(chosen.uids[row : row + 1])[0], bytearray(tars.BLOCK)
        while at < int(chosen.size[row]):
            files.read_into(file, start + at, memoryview(head))
            if head[: len(key) + 1] != f"{key}.".encode():
                break
            member = tars.read_header(bytes(head), start + at)
            assert member
            at += tars.padded(member.size)
        if not at:
            raise WorkError(f"{file}: {key} is not at byte {start}")
        sizes[place] = at
    return sizes


def _layout(
    chosen: Chosen,
    added: Added,
    rows: Numbers,
    keys: Sequence[str],
    to: Numbers,
    own: Numbers,
    scores: Sequence[bytes],
    told: Sequence[Told | None],
) -> tuple[_Pieces, list[tuple[int, bytes]]]:
    """What is copied to where, in order of the files, and what is written between."""
    columns = [np.empty((0, 4), np.int64)]
    headers: list[tuple[int, bytes]] = []
    if chosen.members is None:
        columns.append(np.stack([chosen.file[rows], chosen.start[rows], own, to], axis=1))
    else:
        copied = []
        every = zip(rows.tolist(), to.tolist(), keys, own.tolist(), told, strict=True)
        for row, place, key, size, more in every:
            file = int(chosen.file[row])
            if not chosen.members[row]:
                copied.append((file, int(chosen.start[row]), size, place))
            for suffix, start, length in chosen.members[row]:
                headers.append((place, tars.header(f"{key}.{suffix}", length)))
                copied.append((file, start, length, place + tars.BLOCK))
                place += tars.padded(length)
            for suffix, data in more.members.items() if more else ():
                headers.append((place, tars.blocks(f"{key}.{suffix}", data)))
                place += tars.padded(len(data))
        columns.append(np.array(copied, np.int64).reshape(-1, 4))
    after, base = to + own, len(chosen.files)
    for one in added.features:
        head, length = one.npy_header, 2 * one.width
        for key, place in zip(keys, after.tolist(), strict=True):
            headers += [(place, tars.header(f"{key}.{one.name}.npy", len(head) + length))]
            headers += [(place + tars.BLOCK, head)]
        start, into = one.start[rows], after + tars.BLOCK + len(head)
        sizes = np.full(len(rows), length, np.int64)
        columns.append(np.stack([one.file[rows] + base, start, sizes, into], axis=1))
        after, base = after + tars.padded(len(head) + length), base + len(one.files)
    for key, place, text in zip(keys, after.tolist(), scores, strict=False):
        headers.append((place, tars.blocks(f"{key}.scores.json", text)))
    return _merge(np.concatenate(columns)), headers


def _merge(pieces: Numbers) -> _Pieces:
    """Pieces in order of file and place; what lies side by side there and here is one."""
    pieces = pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))]
    file, start, size, to = pieces.T
    is_new = np.ones(len(pieces), bool)
    is_new[1:] = (
        (file[1:] != file[:-1]) | (start[1:] != start[:-1] + size[:-1]) | (to[1:] != to[:-1] + size[:-1])
    )
    firsts = np.flatnonzero(is_new)
    sizes = np.add.reduceat(size, firsts) if len(firsts) else size
    return _Pieces(file[firsts], start[firsts], sizes, to[firsts])


def _check(chosen: Chosen, rows: Numbers, data: memoryview, to: Numbers) -> None:
    """Raises WorkError where the first header of a sample does not have its uid."""
    found = np.frombuffer(data, np.uint8)[to[:, None] + np.arange(32)]
    wanted = np.frombuffer(shards.uid_hex(chosen.uids[rows]).encode(), np.uint8)
    wrong = np.flatnonzero((found != wanted.reshape(-1, 32)).any(axis=1))
    if len(wrong):
        row = int(rows[wrong[0]])
        uid = shards.uid_strings(chosen.uids[row : row + 1])[0]
        raise WorkError(
            f"{chosen.files[int(chosen.file[row])]}: {uid} is not at byte {int(chosen.start[row])}"
        )


def _rename(data: memoryview, to: Numbers, own: Numbers, keys: Sequence[str], copies: Numbers) -> None:
    """Gives the members of repeats their keys."""
    for k in np.flatnonzero(copies).tolist():
        start, end = int(to[k]), int(to[k] + own[k])
        for member in list(tars.index(bytes(data[start:end]))):
            place = start + member.offset - tars.BLOCK
            data[place : place + tars.BLOCK] = tars.header(f"{keys[k]}.{member.suffix}", member.size)


def _check_features(data: memoryview, added: Added, after: Numbers, keys: Sequence[str]) -> None:
    """Raises FolderError where a sample was not annotated: all of its feature is NaN then."""
    for one in added.features:
        first = after + tars.BLOCK + len(one.npy_header)
        values = np.frombuffer(data, np.uint8)[first[:, None] + np.arange(2)].view("<f2")[:, 0]
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            raise FolderError(
                f"reshard.members: {one.name}: {keys[int(missing[0])]} has none; all samples of a dataset "
                "have the same members: take it out, or select those that have it"
            )
        after = after + tars.padded(len(one.npy_header) + 2 * one.width)
