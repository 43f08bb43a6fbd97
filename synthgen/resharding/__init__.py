"""Stage 6: subsets and their pools -> final shards by split, whose members are the pools' bytes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import WorkError
from synthgen.resharding.choosing import Chosen, choose, join
from synthgen.resharding.copying import Added, added_bytes, sample_bytes
from synthgen.resharding.copying import digest_of as digest_of
from synthgen.resharding.copying import keys_of as keys_of
from synthgen.resharding.copying import write_shard as write_shard
from synthgen.resharding.cutting import OutputShard, cut, divide, running
from synthgen.resharding.joining import check_members, classes_of
from synthgen.resharding.scoring import read_added
from synthgen.resharding.splitting import split_of as split_of
from synthgen.resharding.telling import read_told, told_bytes
from synthgen.uids import uid_strings


class Part(NamedTuple):
    """A pool that samples come from, and the subset of it that is wanted: sorted uids, repeats allowed;
    `sources` says where what it was imported from is now (see `pools.source_paths`).
    """

    name: str
    root: Path
    stems: Sequence[str]
    annotations: Sequence[str]
    subset: npt.NDArray[np.void]
    sources: Mapping[str, Path] = {}


class Settings(NamedTuple):
    """How final shards are cut: see `cutting.divide` and `cutting.cut`. `members` are columns and features
    that go into them.
    """

    split: str | Mapping[str, float]
    stratify: Sequence[str] | None = None
    repeat: Mapping[str, int] = {}
    order: Literal["shuffle", "blocks"] = "shuffle"
    seed: int = 0
    shard_size: int | None = None
    shard_bytes: int | None = None
    members: Sequence[str] = ()
    json_keys: Literal["equal", "common"] = "equal"
    image: str = ""
    leave_out: Sequence[str] = ()


class Output(NamedTuple):
    """The output shards of all splits, what they hold, the classes (name -> id), and of each part its name,
    how many samples it gives (before any `repeat`) and their licences and models; what has to be said of the
    splits, "" for nothing.
    """

    shards: list[OutputShard]
    chosen: Chosen
    added: Added
    classes: dict[str, int]
    parts: list[dict[str, object]]
    warning: str


BLOCK = 10_000
"""So many samples are told of at a time."""
JOINED = ("class_id", "class_name", "license", "model", "fingerprint")
"""Columns that tell whether pools go together, and where samples are from."""


def cut_parts(parts: Sequence[Part], classes: Mapping[str, int], settings: Settings) -> Output:
    """What is to be written of the subsets of one pool or several.

    Raises:
        WorkError: a subset lists what its pool does not hold.
        FolderError: the pools do not go together.
        RecipeError: a column is not there.
    """
    names = [part.name for part in parts]
    published = [settings.split] if isinstance(settings.split, str) else []
    needed = [*dict.fromkeys([*published, *(settings.stratify or ()), *settings.repeat])]
    is_divided = not published and len(settings.split) > 1
    wanted = [*(("group",) if is_divided else ()), *(JOINED if len(parts) > 1 else ())]
    every = [
        choose(
            part.root,
            part.stems,
            part.subset,
            needed,
            part.annotations,
            if_there=wanted,
            sources=part.sources,
        )
        for part in parts
    ]
    chosen = join(every, names)
    if len(parts) > 1:
        classes = classes_of(chosen, names, classes)
    is_common = settings.json_keys == "common"
    json_keys = check_members(
        chosen, names, image=settings.image, leave_out=settings.leave_out, is_common=is_common
    )
    added = read_added(chosen, parts, settings.members)._replace(
        json_keys=json_keys, image=settings.image, leave_out=settings.leave_out
    )
    rows = np.arange(len(chosen.uids))
    sizes = sample_bytes(chosen, rows)
    if settings.shard_bytes:
        told = [told_bytes(read_told(chosen, some)) for some in np.array_split(rows, len(rows) // BLOCK + 1)]
        sizes = sizes + added_bytes(added, len(rows)) + np.concatenate(told)
        longer = sum(len(key) + 8 for key in json_keys or ())  # "key": "", written where it was not
        sizes += -(-longer // 512) * 512
    division = divide(chosen, settings.split, settings.stratify)
    output = cut(
        chosen,
        sizes,
        division,
        repeat=settings.repeat,
        order=settings.order,
        seed=settings.seed,
        shard_size=settings.shard_size,
        shard_bytes=settings.shard_bytes,
    )
    return Output(output, chosen, added, dict(classes), _sources(chosen, parts), division.warning)


def _sources(chosen: Chosen, parts: Sequence[Part]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for run, part in enumerate(parts):
        mine = np.flatnonzero(chosen.runs == run)
        told: dict[str, object] = {"name": part.name, "samples": int(chosen.counts[mine].sum())}
        for name in ("license", "model", "fingerprint") if len(parts) > 1 else ():
            values, numbers = chosen.columns[name].values, np.unique(chosen.columns[name].numbers[mine])
            told[name] = [values[k] for k in numbers.tolist()]
        found.append(told)
    return found


def check_written(output: Output, record_of: Callable[[OutputShard], Mapping[str, Any]]) -> list[str]:
    """The keys of all samples that the output shards hold, when all is as it should be.

    Args:
        record_of: gives the record of an output shard.

    Raises:
        WorkError: a shard holds others than it should, or a sample is there too often or not often enough.
    """
    chosen, every = output.chosen, list[str]()
    for shard in output.shards:
        record, keys = record_of(shard), keys_of(chosen, shard)
        if (record["written"], record.get("keys")) != (len(keys), digest_of(keys)):
            raise WorkError(
                f"{shard.split}/{shard.stem}: holds {record['written']} samples that are not the {len(keys)} "
                "of the subset as it is now; select again, or add --replace to make final/ anew"
            )
        every += keys
    rows = np.concatenate([shard.rows for shard in output.shards] or [np.empty(0, np.int64)])
    copies = np.concatenate([shard.copies for shard in output.shards] or [np.empty(0, np.int64)])
    order = np.lexsort((copies, rows))
    times = np.bincount(rows, minlength=len(chosen.uids))
    wrong = np.flatnonzero(times < chosen.counts)
    if len(wrong) or (copies[order] != running(rows[order])).any():
        uid = uid_strings(chosen.uids[wrong[:1]])[0] if len(wrong) else "a sample"
        raise WorkError(f"reshard: {uid} is not there as often as the subset wants it")
    return every


def info(name: str, output: Output) -> dict[str, Any]:
    """The `_info.json` that timm's webdataset reader looks for, and what was joined."""
    splits: dict[str, dict[str, object]] = {}
    for split in dict.fromkeys(shard.split for shard in output.shards):
        own = [shard for shard in output.shards if shard.split == split]
        splits[split] = {
            "name": split,
            "num_samples": sum(len(shard.rows) for shard in own),
            "filenames": [f"{split}/{shard.stem}.tar" for shard in own],
            "shard_lengths": [len(shard.rows) for shard in own],
        }
    return {"name": name, "splits": splits, "sources": output.parts}


def sizes(output: Output, split: str) -> dict[str, int]:
    """The `sizes.json` of a split, as DataComp and open_clip read it."""
    return {f"{shard.stem}.tar": len(shard.rows) for shard in output.shards if shard.split == split}
