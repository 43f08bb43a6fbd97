"""A piece of a source read once -> a table with a row a sample: where it lies, its hash and size, what came
with it, what is wrong with it. What other pieces hold is not known here.

Data columns are called `data.NAME`, in the types that the piece has them in.
"""

import functools
import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from synthgen import storage
from synthgen.errors import RecipeError
from synthgen.importing import UID, Found
from synthgen.importing.forms import Form, Piece, samples_of
from synthgen.uids import uid_array

MEMBERS = pa.list_(pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))
TOLD_ELSEWHERE = ("uid", "url", "text", "sha256")
"""Columns of DataComp's metadata that its shards have too."""
TAIL = 64
"""An image's end is looked for in so many last bytes."""
LONGEST = 60
"""Of what follows a uid in the name of a member, of which USTAR holds 100 bytes."""


def scan(form: Form, piece: Piece, *, decode: bool) -> pa.Table:
    """The rows of a piece.

    Args:
        decode: whether to decode every image. Without, its header is read, and it is decoded only where its
            end is not where it should be; what is damaged in the middle is not found.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        rows = [_row(found, decode) for found in samples_of(form, piece)]
    table = pa.table(
        {
            "key": [found.key for found, *_ in rows],
            "file": [found.file for found, *_ in rows],
            "error": pa.array([found.error for found, *_ in rows], pa.string()),
            "own_uid": pa.array([_own_uid(found) for found, *_ in rows], pa.string()),
            "image_offset": pa.array([image and image[1] for _, image, *_ in rows], pa.int64()),
            "image_bytes": pa.array([image and image[2] for _, image, *_ in rows], pa.int64()),
            "sha256": pa.array([sha256 for *_, sha256, _ in rows], pa.string()),
            "width": pa.array([size and size[0] for *_, size in rows], pa.int32()),
            "height": pa.array([size and size[1] for *_, size in rows], pa.int32()),
            "members": pa.array([found.members for found, *_ in rows], MEMBERS),
        }
    )
    told = [found.data for found, *_ in rows]
    for name in dict.fromkeys(name for data in told for name in data):
        table = table.append_column(f"data.{name}", column_of([data.get(name) for data in told]))
    if form.kind == "tars":
        table = _join_beside(table, form.folder / piece.first, piece.first)
        table = _join_metadata(table, form.folder)
    return table


Row = tuple[Found, tuple[str, int, int] | None, str | None, tuple[int, int] | None]


def _row(found: Found, decode: bool) -> Row:
    """A sample with its image's place, sha256 and size; None where there is no good one."""
    image, data, found = found.image, found.stored, found._replace(stored=None)
    if found.error:
        return found, None, None, None
    if not image or data is None:
        return found._replace(error="no image"), None, None, None
    odd = next((one for one, *_ in found.members if not one.isascii() or len(one) > LONGEST), None)
    if odd:
        return found._replace(error="a member's name is too long, or not ASCII"), None, None, None
    try:
        size = look(data, decode=decode)
    except ValueError:
        return found._replace(error="image does not decode"), None, None, None
    return found, image, hashlib.sha256(data).hexdigest(), size


def look(data: bytes, *, decode: bool) -> tuple[int, int]:
    """Width and height of an image file as it is stored.

    Raises:
        ValueError: it is none, or is damaged; see `scan`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if decode or not _has_end(image.format, data):
                image.load()
            return image.size
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _has_end(kind: str | None, data: bytes) -> bool:
    if kind == "JPEG":
        return b"\xff\xd9" in data[-TAIL:]
    if kind == "PNG":
        return b"IEND" in data[-TAIL:]
    return kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _own_uid(found: Found) -> str | None:
    """The uid that a sample has already: its `uid`, or its key."""
    for own in (found.data.get("uid"), found.key.rpartition("/")[2].partition(".")[0]):
        if isinstance(own, str) and UID.fullmatch(own):
            return own
    return None


def column_of(values: Sequence[object]) -> pa.Array:
    """Values in the type that they have; JSON where they have several, or are tables."""
    if not any(isinstance(value, dict) for value in values):
        try:
            found = pa.array(values)
            if "struct" not in str(found.type):
                return found
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            pass
    return pa.array([None if value is None else as_text(value) for value in values], pa.string())


def as_text(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _join_beside(table: pa.Table, tar: Path, file: str) -> pa.Table:
    """With the columns of the parquet beside a tar, as img2dataset writes it; a row of it that has no sample
    in the tar is one with an error.
    """
    path = tar.with_suffix(".parquet")
    if not storage.exists(path):
        return table
    beside = _read_parquet(path)
    by = next((name for name in ("key", "uid") if name in beside.column_names), None)
    if by is None:
        return table
    keys = beside[by].cast(pa.string()).combine_chunks()
    own = table["key"] if by == "key" else table["own_uid"]
    place = pc.index_in(own, value_set=keys, skip_nulls=True)
    for name in beside.column_names:
        table = _put(table, f"data.{name}", beside[name].take(place))
    lacking = pc.invert(pc.is_in(keys, value_set=own))
    lost = beside.filter(lacking)
    if not len(lost):
        return table
    none = pa.nulls(len(lost), pa.string())
    messages = [
        (lost[name].cast(pa.string()) if name in lost.column_names else none).to_pylist()
        for name in ("error_message", "error", "status")
    ]
    messages[-1] = [None if status == "success" else status for status in messages[-1]]
    rows = pa.table(
        {
            "key": lost[by].cast(pa.string()),
            "file": pa.array([file] * len(lost)),
            "own_uid": lost["uid"].cast(pa.string()) if "uid" in lost.column_names else none,
            "error": [next(filter(None, told), "not in the tar") for told in zip(*messages, strict=True)],
            **{f"data.{name}": lost[name] for name in lost.column_names},
        }
    )
    return pa.concat_tables([table, rows], promote_options="permissive")


class Metadata(NamedTuple):
    """DataComp's metadata: rows in order of their uids, whose halves are `high` and `low`."""

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    rows: pa.Table


def metadata_files(folder: Path) -> list[Path]:
    """The parquet files of DataComp's metadata, beside or above the shards."""
    there = next((one for one in (folder, folder.parent) if storage.is_folder(one / "metadata")), folder)
    return [
        there / "metadata" / name for name in storage.names(there / "metadata") if name.endswith(".parquet")
    ]


@functools.lru_cache(maxsize=1)
def _metadata(folder: Path) -> Metadata | None:
    files = metadata_files(folder)
    tables = [table for table in map(_read_parquet, files) if "uid" in table.column_names]
    if not tables:
        return None
    whole = pa.concat_tables(tables, promote_options="permissive")
    whole = whole.filter(pc.match_substring_regex(whole["uid"].cast(pa.string()), f"^{UID.pattern}$"))
    if not len(whole):
        return None
    uids = uid_array(whole["uid"].to_pylist())
    order = np.lexsort((uids["f1"], uids["f0"]))
    rest = whole.drop_columns([name for name in TOLD_ELSEWHERE if name in whole.column_names])
    return Metadata(uids["f0"][order], uids["f1"][order], rest.take(pa.array(order)))


def _join_metadata(table: pa.Table, folder: Path) -> pa.Table:
    """With the columns of DataComp's metadata, by uid."""
    known = _metadata(folder)
    if known is None:
        return table
    own = table["own_uid"].to_pylist()
    uids = uid_array([uid if uid and UID.fullmatch(uid) else "0" * 32 for uid in own])
    here = np.minimum(np.searchsorted(known.high, uids["f0"]), len(known.high) - 1)
    while True:  # several uids may share their upper half
        step = (
            (known.high[here] == uids["f0"]) & (known.low[here] < uids["f1"]) & (here + 1 < len(known.high))
        )
        if not step.any():
            break
        here = here + step
    is_there = (known.high[here] == uids["f0"]) & (known.low[here] == uids["f1"])
    place = pa.array(here, mask=~(is_there & np.array([uid is not None for uid in own])))
    for name in known.rows.column_names:
        table = _put(table, f"data.{name}", known.rows[name].take(place))
    return table


def _put(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(storage.read(path)))
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
