"""Annotations that go into the final shards as members: features as .npy, columns as keys of one json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from synthgen import arrays, pools
from synthgen.errors import FolderError, RecipeError
from synthgen.resharding.choosing import Chosen, read_columns, take
from synthgen.resharding.copying import Added, Feature
from synthgen.uids import uid_strings

if TYPE_CHECKING:
    from synthgen.resharding import Part


def read_added(chosen: Chosen, parts: "Sequence[Part]", members: Sequence[str]) -> Added:
    """The columns and features that the recipe adds, of each chosen sample.

    Raises:
        RecipeError: a pool has no such column or feature, or one that json cannot hold.
        FolderError: a chosen sample has no value.
    """
    features, columns = list[str](), list[str]()
    there = [pools.PoolColumns(part.root, part.stems, part.annotations) for part in parts if members]
    for name in members:
        for part, pool in zip(parts, there, strict=True):
            if name not in list(pool) and not pool.folder(name):
                raise RecipeError(f'reshard.members: {part.name} has no column or feature "{name}"')
        (columns if name in list(there[-1]) else features).append(name)
    roots = {part.root: pool for part, pool in zip(parts, there, strict=False)}
    scores: dict[str, list[object]] = {name: [] for name in columns}
    first = 0
    for run, part in enumerate(parts) if columns else ():
        mine = _of_run(chosen, run, part, first)
        first += len(part.stems)
        for name, column in read_columns(mine, columns, part.annotations).items():
            own = _values(name, column, mine)
            if own and scores[name] and type(own[0]) is not type(scores[name][0]):
                raise FolderError(
                    f"reshard.members: {name} is {json.dumps(own[0])} in {part.name} and "
                    f"{json.dumps(scores[name][0])} elsewhere; readers want one type"
                )
            scores[name] += own
    folders = {name: {root: pool.folder(name) for root, pool in roots.items()} for name in features}
    return Added([_feature(name, chosen, own) for name, own in folders.items()], scores)


def _of_run(chosen: Chosen, run: int, part: "Part", first: int) -> Chosen:
    """The samples of one pool, whose first shard has this number."""
    mine = take(chosen, np.flatnonzero(chosen.runs == run))
    return mine._replace(shard=mine.shard - first, shards=chosen.shards[first : first + len(part.stems)])


def _values(name: str, column: pa.ChunkedArray, mine: Chosen) -> list[object]:
    kind = column.type
    if kind == pa.uint64() or not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_null(kind)
    ):
        raise RecipeError(f"reshard.members: {name} is {kind}, which readers of json members cannot hold")
    missing = column.is_null(nan_is_null=True).to_numpy()
    if missing.any():
        raise FolderError(
            f"reshard.members: {name}: {int(missing.sum())} chosen samples have none, first "
            f"{uid_strings(mine.uids[np.flatnonzero(missing)[:1]])[0]}; all samples of a dataset have "
            "the same members: take it out, or select those that have it"
        )
    values: list[object] = column.to_pylist()
    return values


def _feature(name: str, chosen: Chosen, folders: Mapping[Path, Path | None]) -> Feature:
    """Where the rows of a feature lie, which each pool has in a folder."""
    files, width = [""] * len(chosen.shards), 0
    starts = np.zeros(len(chosen.shards), np.int64)
    for number in np.unique(chosen.shard).tolist():
        root, stem = chosen.shards[number]
        path = Path(folders[root] or root) / f"{stem}.npz"
        starts[number], own = npz_place(path, name)
        if width not in (0, own):
            raise FolderError(
                f"{path}: {name} has {own} numbers, {files[0]} has {width}; one model is wanted"
            )
        width, files[number] = own, str(path)
    return Feature(name, files, chosen.shard, starts[chosen.shard] + 2 * width * chosen.rows, width)


def npz_place(path: Path, name: str) -> tuple[int, int]:
    """Where the numbers of a feature begin in a shard's npz, in bytes, and how many float16 a row has.

    Raises:
        RecipeError: there is no such feature.
        FolderError: it is a table, or another thing than a feature.
    """
    there = arrays.places(path)
    if name not in there:
        raise RecipeError(
            f'reshard.members: {path} has no feature "{name}"; known: {", ".join(sorted(there))}'
        )
    start, shape, kind = there[name]
    if kind != np.dtype("<f2") or len(shape) != 2:
        raise FolderError(f"{path}: {name} is {kind} of shape {shape}; plain rows of float16 are wanted")
    return start, shape[1]
