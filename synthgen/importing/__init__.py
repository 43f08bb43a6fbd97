"""Other people's data, brought in where it lies: a source is found, scanned, settled, and becomes shards of a
pool that hold parquet only. Knows no recipe, and changes no file of a source.

`forms` opens a source and lists its pieces (a tar, or some images); `samples_of` gives what a piece holds as
`Found`. `scanning` makes a table of a piece; `settling` sees all tables of a source at once, and so decides
on what no piece can know: columns and their types, the ids of classes, which members a whole sample has, uids
that are there twice. Then each shard is written. A new form is one function in `forms` that gives entries.
"""

import hashlib
import json
import re
from typing import NamedTuple

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
"""Of images, in order of preference where a sample has several."""
UID = re.compile("[0-9a-f]{32}")


class Found(NamedTuple):
    """A sample as it lies in a source.

    Attributes:
        key: tells it from the others of its file, or of the source where the image is a file of its own.
        file: the path below the source's folder, with slashes.
        members: suffix, offset and size of each of its members in that file.
        stored: the image's bytes, None where they were not asked for or are not there.
        data: the columns that came with it, under their own names.
        error: what is wrong with it; "" is nothing.
    """

    key: str
    file: str
    members: list[tuple[str, int, int]]
    stored: bytes | None
    data: dict[str, object]
    error: str = ""

    @property
    def place(self) -> str:
        return place_of(self.file, self.key)

    @property
    def image(self) -> tuple[str, int, int] | None:
        """The member that is its image."""
        by_suffix = {member[0]: member for member in self.members}
        return next((by_suffix[ending] for ending in ENDINGS if ending in by_suffix), None)


def place_of(file: str, key: str) -> str:
    """The place of a sample in its source, as its uid is made from."""
    return key if key == file else f"{file}/{key}"


def uid_of(source: str, place: str) -> str:
    """128 bits of a hash of a source's name and a place in it: not of bytes, nor of where the source lies."""
    return hashlib.sha256(json.dumps([source, place]).encode()).hexdigest()[:32]
