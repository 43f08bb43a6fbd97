"""What is told of samples that lie in sources which were imported: members that these do not have, and what
their images have to be.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from synthgen import pools, shards, tars
from synthgen.resharding.choosing import Chosen, Numbers


class Told(NamedTuple):
    """Of a sample: the members that are added to those of its source, and its row in the pool."""

    members: dict[str, bytes]
    row: dict[str, Any]


def read_told(chosen: Chosen, rows: Numbers) -> list[Told | None]:
    """What the pool tells of chosen samples; None of those that lie in tars of our own. Each pool shard is
    read once.
    """
    found: list[Told | None] = [None] * len(rows)
    if chosen.members is None:
        return found
    in_place = np.array([bool(chosen.members[row]) for row in rows.tolist()], bool)
    for number in np.unique(chosen.shard[rows[in_place]]).tolist():
        root, stem = chosen.shards[number]
        own = np.flatnonzero(in_place & (chosen.shard[rows] == number))
        table = shards.read_table(root / shards.POOL / f"{stem}.parquet")
        part = table.take(pa.array(chosen.rows[rows[own]]))
        names = ["source", "file", "key", "sha256", "image_offset", "image_bytes"]
        told = zip(pools.added_members(part), part.select(names).to_pylist(), strict=True)
        for place, (members, row) in zip(own.tolist(), told, strict=True):
            found[place] = Told(members, row)
    return found


def told_bytes(told: Sequence[Told | None]) -> Numbers:
    """Bytes that the added members of each sample take in an archive."""
    sizes = [sum(tars.padded(len(data)) for data in one.members.values()) if one else 0 for one in told]
    return np.array(sizes, np.int64)


def check_images(
    chosen: Chosen, rows: Numbers, told: Sequence[Told | None], data: memoryview, to: Numbers
) -> None:
    """Raises FolderError where the image of a sample, which begins at `to` in an archive, is another than the
    pool says.
    """
    for row, one, place in zip(rows.tolist(), told, to.tolist(), strict=True):
        for _, start, size in (chosen.members or {})[row] if one else ():
            if one and [start, size] == [one.row["image_offset"], one.row["image_bytes"]]:
                image = data[place + tars.BLOCK : place + tars.BLOCK + size]
                folder = chosen.files[int(chosen.file[row])]
                pools.require_same(image, one.row, folder)
            place += tars.padded(size)
