"""What is told of samples that lie in sources which were imported: members that these do not have, and what
their images have to be.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from synthgen import pools, shards, tars
from synthgen.resharding.choosing import Chosen, Numbers

NEEDED = ["source", "file", "key", "sha256"]


class Told(NamedTuple):
    """Of a sample: the members that are added to those of its source, and its row in the pool."""

    members: dict[str, bytes]
    row: dict[str, Any]


def read_told(chosen: Chosen, rows: Numbers) -> list[Told | None]:
    """What the pool tells of chosen samples; None of those that lie in tars of our own. Each pool shard is
    read once, and only what is needed of it.
    """
    found: list[Told | None] = [None] * len(rows)
    spans = chosen.spans.take(rows)
    is_json = np.array([name == "json" for name in spans.names], bool)
    for number in np.unique(chosen.shard[rows[spans.in_place]]).tolist():
        root, stem = chosen.shards[number]
        own = np.flatnonzero(spans.in_place & (chosen.shard[rows] == number))
        members, owners = spans.of(own)
        there = [set[str]() for _ in own]
        for owner, suffix in zip(owners.tolist(), spans.suffix[members].tolist(), strict=True):
            there[owner].add(spans.names[suffix])
        has_json = np.count_nonzero(is_json[spans.suffix[members]]) == len(own)
        columns = [*NEEDED, "class_id", "text"] if has_json else None
        table = shards.read_table(root / shards.POOL / f"{stem}.parquet", columns)
        part = table.take(pa.array(chosen.rows[rows[own]]))
        added = pools.added_members(part, there)
        for place, new, row in zip(own.tolist(), added, part.select(NEEDED).to_pylist(), strict=True):
            found[place] = Told(new, row)
    return found


def told_bytes(told: Sequence[Told | None]) -> Numbers:
    """Bytes that the added members of each sample take in an archive."""
    sizes = [sum(tars.padded(len(data)) for data in one.members.values()) if one else 0 for one in told]
    return np.array(sizes, np.int64)


def check_image(chosen: Chosen, row: int, told: Told | None, image: memoryview) -> None:
    """Raises FolderError where the image of a sample is another than the pool says."""
    if told:
        pools.require_same(image, told.row, chosen.files[int(chosen.file[row])])
