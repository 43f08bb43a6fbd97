"""Stage 6: a subset and the pool -> final shards by split, whose members are the pool's bytes.

A sample's split is a function of its group (or, without one, of its uid): it never changes when the dataset
grows, and counterfactuals of one group stay together. Samples are in order of uid, which is a hash, so
classes are mixed.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen import pools, shards, storage, tars
from synthgen.claims import Claim
from synthgen.errors import WorkError
from synthgen.pools import Place

READ_AT_ONCE = 1000
"""So many samples are in memory at a time."""


class OutputShard(NamedTuple):
    """One shard of a split, to be made of these samples in this order; `copy` numbers repeats of a uid from
    0.
    """

    split: str
    stem: str
    samples: list[tuple[Place, int]]


def split_of(key: str, split: Mapping[str, float]) -> str:
    """The split of a group or uid: 64 bits of its hash against the parts, in the order given."""
    at = int.from_bytes(hashlib.sha256(f"split {key}".encode()).digest()[:8], "big") / 2**64
    total = 0.0
    for name, part in split.items():
        total += part
        if at < total:
            return name
    return name


def cut(
    uids: Sequence[str],
    groups: Mapping[str, str],
    where: Mapping[str, Place],
    *,
    split: Mapping[str, float],
    shard_size: int,
) -> list[OutputShard]:
    """The output shards of a subset, in order.

    Args:
        uids: sorted; a uid may stand there several times.
        groups: the group of each uid that has one.
        where: the place of each uid.
        split: name -> part of 1.

    Raises:
        WorkError: a uid is not in the pool.
    """
    by_split: dict[str, list[tuple[Place, int]]] = {name: [] for name in split}
    copy, previous = 0, ""
    for uid in uids:
        copy, previous = (copy + 1 if uid == previous else 0), uid
        if uid not in where:
            raise WorkError(f"subset: {uid} is not in the pool; select again")
        by_split[split_of(groups.get(uid) or uid, split)].append((where[uid], copy))
    return [
        OutputShard(name, shards.shard_name(number), chosen[start : start + shard_size])
        for name, chosen in by_split.items()
        for number, start in enumerate(range(0, len(chosen), shard_size))
    ]


def write_shard(
    root: Path,
    folder: Path,
    shard: OutputShard,
    *,
    record: dict[str, object],
    claim: Claim,
    sources: Mapping[str, Path] = {},
) -> None:
    """Publishes one output shard below `folder`, member by member the pool's bytes, or those of the sources
    of an imported pool.

    Raises:
        WorkError: the pool's tar does not hold the sample where its row says.
        FolderError: a source is not where it was, or has changed.
    """
    with shards.new_unit(root, folder / shard.split, shard.stem, record, claim) as create:
        tar = create(".tar")
        for start in range(0, len(shard.samples), READ_AT_ONCE):
            chosen = shard.samples[start : start + READ_AT_ONCE]
            for (place, copy), members in zip(chosen, _read(root, chosen, sources), strict=True):
                tars.add_sample(tar, f"{place.uid}-{copy}" if copy else place.uid, members)
        tars.finish(tar)
        count = len(shard.samples)
        record |= {"requested": count, "written": count, "failed": 0, "successes": count}


def _read(
    root: Path, samples: Sequence[tuple[Place, int]], sources: Mapping[str, Path]
) -> Iterator[dict[str, bytes]]:
    """The members of samples, in order."""
    imported = iter(pools.read_samples(root, [place for place, _ in samples if place.members], sources))
    for place, _ in samples:
        if place.members:
            yield next(imported)
            continue
        key, members = next(tars.samples(storage.read(place.file, place.start, place.size)), ("", {}))
        if key != place.uid:
            raise WorkError(f"{place.file}: {place.uid} is not at byte {place.start}")
        yield members


def info(name: str, output: Sequence[OutputShard]) -> dict[str, object]:
    """The `_info.json` that timm's webdataset reader looks for."""
    splits: dict[str, dict[str, object]] = {}
    for split in dict.fromkeys(shard.split for shard in output):
        own = [shard for shard in output if shard.split == split]
        splits[split] = {
            "name": split,
            "num_samples": sum(len(shard.samples) for shard in own),
            "filenames": [f"{split}/{shard.stem}.tar" for shard in own],
            "shard_lengths": [len(shard.samples) for shard in own],
        }
    return {"name": name, "splits": splits}


def sizes(output: Sequence[OutputShard], split: str) -> dict[str, int]:
    """The `sizes.json` of a split, as DataComp and open_clip read it."""
    return {f"{shard.stem}.tar": len(shard.samples) for shard in output if shard.split == split}


def subset_array(uids: Sequence[str]) -> npt.NDArray[np.void]:
    """Uids as DataComp's subset files hold them: dtype "u8,u8", sorted."""
    return np.sort(shards.uid_array(uids), order=["f0", "f1"])
