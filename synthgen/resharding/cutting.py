"""The chosen samples -> output shards: the split of each, repeats, the order, and where a shard ends."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen import shards, tars
from synthgen.resharding.choosing import Chosen, Codes, Numbers
from synthgen.resharding.splitting import by_hash, hash_keys, missed, published, stratified
from synthgen.uids import uid_strings

READERS = 32
"""Eight workers of a loader on each of four GPUs: each reads shards of its own."""
LEAST_SAMPLES, MOST_SAMPLES = 100, 10_000
"""Of a shard, where the recipe does not say."""


class Division(NamedTuple):
    """The names of the splits, the number of each sample's, and what has to be said of it, "" for nothing."""

    names: list[str]
    splits: npt.NDArray[np.intp]
    warning: str = ""


class OutputShard(NamedTuple):
    """One shard of a split: the rows of the chosen samples in its order; `copies` numbers repeats of a uid
    from 0.
    """

    split: str
    stem: str
    rows: Numbers
    copies: Numbers


def cut(
    chosen: Chosen,
    sizes: Numbers,
    division: Division,
    *,
    repeat: Mapping[str, int],
    order: str,
    seed: int,
    shard_size: int | None,
    shard_bytes: int | None,
) -> list[OutputShard]:
    """The output shards of all splits, in order: a function of the samples alone.

    Args:
        sizes: bytes of each sample in an archive, at most.
        division: which split each sample is in.
        repeat: column -> count: in the first split, samples are repeated until each value has so many.
        order: "shuffle" by a hash of seed and uid, "blocks" as they lie in the pool.
        shard_size: samples a shard; None is `default_sizes`, or as `shard_bytes` has it.
        shard_bytes: bytes that a shard may have; one sample may have more.
    """
    found = []
    for number, name in enumerate(division.names):
        mine = np.flatnonzero(division.splits == number)
        rows = np.repeat(mine, chosen.counts[mine])
        for column, count in repeat.items() if number == 0 else ():
            again = repeats(rows, chosen.uids, chosen.columns[column], count, seed)
            rows = np.sort(np.concatenate([rows, again]))
        copies = running(rows)
        if order == "shuffle":
            by_uid = np.lexsort((copies, chosen.uids["f1"][rows], chosen.uids["f0"][rows]))
            rows, copies = rows[by_uid], copies[by_uid]
            shuffled = np.argsort(mixed(chosen.uids[rows], copies, seed), kind="stable")
            rows, copies = rows[shuffled], copies[shuffled]
        ends = shard_ends(sizes[rows], shard_size, shard_bytes)
        for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            found.append(OutputShard(name, shards.shard_name(k), rows[start:end], copies[start:end]))
    return found


def divide(chosen: Chosen, split: str | Mapping[str, float], stratify: Sequence[str] | None) -> Division:
    """Which split each sample is in. With parts, samples of one group are in one; without a group, a sample
    is its own.

    Args:
        split: name -> part of 1, or count of each cell (an int), for which `stratify` is there; or a column
            that has the names.
        stratify: columns whose values together are a cell that is split by itself; none is one cell, None
            splits by hash.

    Raises:
        RecipeError: a sample has no name of a split in that column.
    """
    if isinstance(split, str):
        return Division(*published(split, *chosen.columns[split]))
    names = list(split)
    if len(split) == 1:
        return Division(names, np.zeros(len(chosen.uids), np.intp))
    own = chosen.columns["group"]
    groups, lonely = own.numbers.copy(), np.isin(own.numbers, [k for k, v in enumerate(own.values) if not v])
    groups[lonely] = len(own.values) + np.arange(int(lonely.sum()))
    used, groups = np.unique(groups, return_inverse=True)
    keys = [str(own.values[k]) for k in used[used < len(own.values)].tolist()]
    hashes = hash_keys([*keys, *uid_strings(chosen.uids[lonely])])
    cells = cells_of(chosen, stratify or ())
    of_group = by_hash(hashes, split) if stratify is None else stratified(cells, groups, hashes, split)
    miss = missed(cells, groups, of_group[groups], split)
    if miss is None:
        return Division(names, of_group[groups])
    size = int((groups == miss.group).sum())
    nearer = "set reshard.stratify = [] to come as near as whole groups can, or " if stratify is None else ""
    warning = (
        f"reshard.split: {miss.split} has {miss.got} of {len(groups)} samples, {miss.wanted} were wanted: "
        f'groups stay whole, and "{keys[miss.group]}" has {size}; {nearer}make groups '
        "smaller: import without --group or with another column, ask for more prompts"
    )
    return Division(names, of_group[groups], warning)


def cells_of(chosen: Chosen, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """The number of each sample's cell, in the order of the values of its columns."""
    cells = np.zeros(len(chosen.uids), np.intp)
    for name in names:
        codes = chosen.columns[name]
        cells = np.unique(cells * max(len(codes.values), 1) + codes.numbers, return_inverse=True)[1]
    return cells


def repeats(rows: Numbers, uids: npt.NDArray[np.void], column: Codes, count: int, seed: int) -> Numbers:
    """The rows to be added so that each value of a column that is there has `count` samples at least: its
    samples in turn, by their hashes.
    """
    order = np.lexsort((mixed(uids[rows], running(rows), seed), column.numbers[rows]))
    ordered = rows[order]
    _, starts, sizes = np.unique(column.numbers[ordered], return_index=True, return_counts=True)
    added = [np.empty(0, np.int64)]
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        added.append(np.resize(ordered[start : start + size], max(0, count - size)))
    return np.concatenate(added)


def running(rows: Numbers) -> Numbers:
    """How often each row stood there before, of sorted rows."""
    is_new = np.ones(len(rows), bool)
    is_new[1:] = rows[1:] != rows[:-1]
    starts = np.flatnonzero(is_new)
    return np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))


def mixed(uids: npt.NDArray[np.void], copies: Numbers, seed: int) -> npt.NDArray[np.uint64]:
    """64 bits of a hash of seed, uid and copy: splitmix64's finalizer (Steele et al. 2014), three times."""

    def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))

    start = np.array([seed], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(uids["f0"] + mix(uids["f1"] + mix(start + copies.astype(np.uint64))))


def shard_ends(sizes: Numbers, shard_size: int | None, shard_bytes: int | None) -> list[int]:
    """Where each shard of a split ends, of samples of so many bytes."""
    total = len(sizes)
    if not total:
        return []
    if shard_size is None and shard_bytes is None:
        number = default_shards(total)
        return [total * (k + 1) // number for k in range(number)]
    sums = np.concatenate([[0], np.cumsum(sizes)])
    ends, at = list[int](), 0
    while at < total:
        end = min(total, at + shard_size) if shard_size else total
        if shard_bytes:
            room = sums[at] + shard_bytes // tars.RECORD * tars.RECORD - 2 * tars.BLOCK
            end = min(end, max(at + 1, int(np.searchsorted(sums, room, side="right")) - 1))
        ends.append(at := end)
    return ends


def default_shards(samples: int) -> int:
    """How many shards a split gets: as many for each of `READERS`, equal but for one sample, from
    `READERS * LEAST_SAMPLES` samples up; of a smaller split shards of `LEAST_SAMPLES`.
    """
    if samples < READERS * LEAST_SAMPLES:
        return -(-samples // LEAST_SAMPLES)
    return -(-samples // (MOST_SAMPLES * READERS)) * READERS
