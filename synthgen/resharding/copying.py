"""The bytes of output shards: every member of a sample as its pool has it, copied in blocks, and the members
that the recipe adds.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthgen import pools, shards, storage, tars
from synthgen.claims import Claim
from synthgen.errors import FolderError, WorkError
from synthgen.importing import ENDINGS
from synthgen.resharding.choosing import Chosen, Numbers
from synthgen.resharding.cutting import OutputShard
from synthgen.resharding.telling import Told, check_image, read_told, told_bytes
from synthgen.uids import uid_hex, uid_strings

WINDOW = 2**22
"""Bytes of output that are in memory at a time, and as many are read ahead: few enough for a cache."""


class Feature(NamedTuple):
    """A feature as a member `<uid>.<name>.npy`: where each chosen sample's row lies in the npz files.

    `file` numbers `files`, `start` is in bytes, each row has `width` float16.
    """

    name: str
    files: list[str]
    file: Numbers
    start: Numbers
    width: int

    @property
    def npy_header(self) -> bytes:
        return npy_header(self.width)


class Added(NamedTuple):
    """The members that are added to each sample: features, and one `<uid>.scores.json` of columns, as values
    of each chosen sample; the keys and types that each json is to have, None for those that it has; the
    ending of each image's name, "" for the one that it has; and the members that are left out.
    """

    features: list[Feature]
    scores: dict[str, list[object]]
    json_keys: dict[str, type] | None = None
    image: str = ""
    leave_out: Sequence[str] = ()


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
    spans = chosen.spans
    before = np.concatenate([[0], np.cumsum(_padded(spans.size))])
    elsewhere: Numbers = before[spans.firsts[rows + 1]] - before[spans.firsts[rows]]
    return np.where(elsewhere > 0, elsewhere, chosen.size[rows])


def _padded(sizes: Numbers) -> Numbers:
    """`tars.padded` of many."""
    return tars.BLOCK + sizes + -sizes % tars.BLOCK


def read_sample(chosen: Chosen, row: int) -> dict[str, bytes]:
    """The members of a chosen sample: suffix -> data."""
    file, start = Path(chosen.files[int(chosen.file[row])]), int(chosen.start[row])
    spans = chosen.spans.take(np.array([row]))
    if not spans.in_place[0]:
        return next(tars.samples(storage.read(file, start, int(chosen.size[row]))))[1]
    own = zip(spans.suffix.tolist(), spans.start.tolist(), spans.size.tolist(), strict=True)
    found = {spans.names[suffix]: storage.read(file, at, size) for suffix, at, size in own}
    (told,) = read_told(chosen, np.array([row]))
    return found | (told.members if told else {})


def keys_of(chosen: Chosen, shard: OutputShard) -> list[str]:
    """The keys of an output shard's samples: the uid, then `uid-1`, `uid-2` for repeats of it."""
    uids = uid_strings(chosen.uids[shard.rows])
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
    images: list[tuple[int, int, int]]


def _windows(
    files: storage.OpenFiles, chosen: Chosen, added: Added, shard: OutputShard, keys: Sequence[str]
) -> Iterator[tuple[int, memoryview | bytearray]]:
    """The shard's samples as they lie in its archive, some at a time: how many, and their bytes."""
    every_file = [*chosen.files, *(file for one in added.features for file in one.files)]
    in_place, told = chosen.spans.in_place[shard.rows], read_told(chosen, shard.rows)
    elsewhere = set(chosen.file[shard.rows[in_place]].tolist())

    def with_hint(read: Callable[..., None], file: int, *where: object) -> None:
        try:
            read(every_file[file], *where)
        except WorkError as error:
            if file not in elsewhere:
                raise
            raise FolderError(f"{error}; {pools.MOVED.format('NAME')}") from None

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
                with_hint(files.will_read, file, at, size)
            yield _Window(start, end, to, own[part], int(ends[end - 1]) - before, *laid)
            start = end

    room = bytearray()
    for window in _one_ahead(plan()):
        part = slice(window.start, window.end)
        if window.size > len(room) or window.headers:  # between what is copied, zeros
            room = bytearray(max(window.size, len(room)))
        data = memoryview(room)[: window.size]
        for file, at, size, to in zip(*(column.tolist() for column in window.pieces), strict=True):
            with_hint(files.read_into, file, at, data[to : to + size])
        for to, header in window.headers:
            data[to : to + len(header)] = header
        _check(chosen, shard.rows[part], data, window.to)
        for k, at, size in window.images:
            check_image(
                chosen, int(shard.rows[window.start + k]), told[window.start + k], data[at : at + size]
            )
        is_other = (shard.copies[part] > 0) | bool(added.image)
        for k in np.flatnonzero(is_other & ~in_place[part]).tolist():
            _rename(data[int(window.to[k]) : int(window.to[k] + window.own[k])], keys[part][k], added.image)
        _check_features(data, added, window.to + window.own, keys[part])
        is_same = added.json_keys is None and not added.leave_out
        yield window.end - window.start, data if is_same else _rewritten(data, added)


def _rewritten(data: memoryview, added: Added) -> bytearray:
    """Samples as they lie in an archive, with other keys in each json, and without members that are left out.

    Raises:
        FolderError: a number is missing.
    """
    found, archive, keys = bytearray(), bytes(data), added.json_keys
    for member in tars.index(archive):
        if member.suffix in added.leave_out:
            continue
        body = archive[member.offset : member.offset + member.size]
        if member.suffix != "json" or keys is None:
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
        key, head = uid_strings(chosen.uids[row : row + 1])[0], bytearray(tars.BLOCK)
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
) -> tuple[_Pieces, list[tuple[int, bytes]], list[tuple[int, int, int]]]:
    """What is copied to where, in order of the files; what is written between; and of each image in a source
    that was imported whose it is, where it comes to lie, and its size.
    """
    spans, headers = chosen.spans.take(rows), list[tuple[int, bytes]]()
    ours = np.flatnonzero(~spans.in_place)
    columns = [np.stack([chosen.file[rows], chosen.start[rows], own, to], axis=1)[ours]]
    members, owners = spans.of(np.arange(len(rows)))
    sizes = _padded(spans.size)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    into = to[owners] + ends[members] - ends[spans.firsts[owners]]
    columns.append(np.stack([chosen.file[rows[owners]], spans.start, spans.size, into + tars.BLOCK], axis=1))
    names = [added.image if added.image and name in ENDINGS else name for name in spans.names]
    every = zip(owners.tolist(), spans.suffix.tolist(), spans.size.tolist(), into.tolist(), strict=True)
    for owner, suffix, size, place in every:
        headers.append((place, tars.header(f"{keys[owner]}.{names[suffix]}", size)))
    for k, one in enumerate(told):
        place = int(to[k] + ends[spans.firsts[k + 1]] - ends[spans.firsts[k]])
        for suffix, data in one.members.items() if one else ():
            headers.append((place, tars.blocks(f"{keys[k]}.{suffix}", data)))
            place += tars.padded(len(data))
    after, base = to + own, len(chosen.files)
    for feature in added.features:
        head, length = feature.npy_header, 2 * feature.width
        for key, place in zip(keys, after.tolist(), strict=True):
            headers += [(place, tars.header(f"{key}.{feature.name}.npy", len(head) + length))]
            headers += [(place + tars.BLOCK, head)]
        lengths = np.full(len(rows), length, np.int64)
        places = after + tars.BLOCK + len(head)
        columns.append(np.stack([feature.file[rows] + base, feature.start[rows], lengths, places], axis=1))
        after, base = after + tars.padded(len(head) + length), base + len(feature.files)
    for key, place, text in zip(keys, after.tolist(), scores, strict=False):
        headers.append((place, tars.blocks(f"{key}.scores.json", text)))
    images = np.stack([owners, into + tars.BLOCK, spans.size], axis=1)[spans.is_image].tolist()
    return _merge(np.concatenate(columns)), headers, [(row, at, size) for row, at, size in images]


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
    wanted = np.frombuffer(uid_hex(chosen.uids[rows]).encode(), np.uint8)
    wrong = np.flatnonzero((found != wanted.reshape(-1, 32)).any(axis=1))
    if len(wrong):
        row = int(rows[wrong[0]])
        uid = uid_strings(chosen.uids[row : row + 1])[0]
        raise WorkError(
            f"{chosen.files[int(chosen.file[row])]}: {uid} is not at byte {int(chosen.start[row])}"
        )


def _rename(sample: memoryview, key: str, image: str) -> None:
    """Gives the members of a sample another key, and its image another ending, where that is not ""."""
    for member in list(tars.index(bytes(sample))):
        place = member.offset - tars.BLOCK
        suffix = image if image and member.suffix in ENDINGS else member.suffix
        sample[place : place + tars.BLOCK] = tars.header(f"{key}.{suffix}", member.size)


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
