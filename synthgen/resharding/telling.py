"""What is told of samples that lie in sources which were imported: members that these do not have, and what
their images have to be.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import pools, shards, tars
from synthgen.resharding.choosing import Chosen, Numbers

LIES = ["source", "file", "key", "sha256"]
"""Columns that say where an image lies and what it is."""
CACHED = 32
"""So many pool shards are remembered; output shards are made of the same ones."""


class Told(NamedTuple):
    """Of a sample: the members that are added to those of its source, and its row in the pool."""

    members: dict[str, bytes]
    row: dict[str, Any]


def read_told(chosen: Chosen, rows: Numbers) -> list[Told | None]:
    """What the pool tells of chosen samples; None of those that lie in tars of our own. Each pool shard is
    read once, and only what is needed of it.
    """
    found: list[Told | None] = [None] * len(rows)
    in_place = chosen.spans.in_place[rows]
    for number in np.unique(chosen.shard[rows[in_place]]).tolist():
        root, stem = chosen.shards[number]
        own = np.flatnonzero(in_place & (chosen.shard[rows] == number))
        table, partial = _rows(root, stem)
        part = table.take(pa.array(chosen.rows[rows[own]]))
        told = zip(pools.added_members(part, partial), part.select(LIES).to_pylist(), strict=True)
        for place, (members, row) in zip(own.tolist(), told, strict=True):
            found[place] = Told(members, row)
    return found


@functools.lru_cache(maxsize=CACHED)
def _rows(root: Path, stem: str) -> tuple[pa.Table, list[str]]:
    """The rows of an imported pool shard, with the columns that are told of its samples, and those of them
    that its source has for some alone.
    """
    path = root / shards.POOL / f"{stem}.parquet"
    partial = next(one.partial for one in shards.imported(root) if stem in one.stems)
    table = shards.read_table(path, [*LIES, "members", "text", "class_id"])
    is_written = pc.is_valid(table["members"]).to_numpy()
    # most sources have json of their own; then the other columns are not asked for
    is_asked = (pools.lacks_member(table, "json") & is_written).any()
    return shards.read_table(path) if is_asked else table, partial


def told_bytes(told: Sequence[Told | None]) -> Numbers:
    """Bytes that the added members of each sample take in an archive."""
    sizes = [sum(tars.padded(len(data)) for data in one.members.values()) if one else 0 for one in told]
    return np.array(sizes, np.int64)


def check_image(chosen: Chosen, row: int, told: Told | None, image: memoryview) -> None:
    """Raises FolderError where the image of a sample is another than the pool says."""
    if told:
        pools.require_same(image, told.row, chosen.files[int(chosen.file[row])])
