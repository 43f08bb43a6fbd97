"""The contract on disk: names, uids, seeds, columns and records of a run's folder (documented in
shards/README.md).

A unit is one shard of one stage. It is done if its record `<stem>_stats.json` exists; the record is linked
last.
"""

import functools
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.claims import Claim, attempts
from synthgen.data import Request
from synthgen.errors import FolderError, WorkError
from synthgen.uids import MILLION, UID

RECIPES, TEXTS, PLAN, SOURCES, POOL, ANNOTATIONS, SUBSETS, FINAL, REPORT = (
    "recipes", "texts", "plan", "sources", "pool", "annotations", "subsets", "final", "report",
)  # fmt: skip
DEFAULT_ROOT = "shards"
SCANS = "import"
"""Where, in a folder's own work, an import keeps what it has read; it is there from its beginning on."""
RECORD_SUFFIX = "_stats.json"
FITTED = "centroids"
"""The stem of what an annotation has fitted to the whole pool."""

REQUEST_COLUMNS = {
    "uid": pa.string(),
    "class_id": pa.int32(),
    "class_name": pa.string(),
    "text": pa.string(),
    "negative": pa.string(),
    "group": pa.string(),
    "prompt_id": pa.string(),
    "template": pa.string(),
    "model": pa.string(),
    "fingerprint": pa.string(),
    "seed": pa.int64(),
    "replicate": pa.int32(),
    "steps": pa.int32(),
    "guidance": pa.float64(),
    "scheduler": pa.string(),
    "dtype": pa.string(),
    "call": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "turn": pa.int32(),
    "strength": pa.float64(),
    "source_uid": pa.string(),
    "source_sha256": pa.string(),
    "license": pa.string(),
}
"""Columns of the plan; `axis_*` columns (string) stand after `prompt_id`."""

POOL_COLUMNS = {
    "error": pa.string(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "image_offset": pa.int64(),
    "image_bytes": pa.int64(),
    "sha256": pa.string(),
}
"""What the pool adds to its requests; all but `error` are null in a failed row, `error` is null in a written
one.
"""


PLAN_ONLY = ("width", "height", "source_sha256")
"""Columns of the plan that the pool has not: what was asked for, and what a real image must be."""


def shard_name(number: int) -> str:
    return f"{number:08d}"


def canonical(value: object) -> bytes:
    """One spelling of a JSON value, to be hashed."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def digest(value: object) -> str:
    """sha256 of a JSON value, hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def make_uid(request: dict[str, object]) -> str:
    """32 hex digits: 128 bits of a hash of the whole request."""
    return digest(request)[:32]


def make_seed(*parts: str | int) -> int:
    """63 bits of a hash of the parts."""
    return int(digest(list(parts))[:16], 16) >> 1


def requests_table(requests: Sequence[Request], axes: Sequence[str]) -> pa.Table:
    """Requests as the plan's columns; `axes` names the axis columns, "" where a prompt has no such axis."""
    columns: dict[str, pa.Array] = {}
    for name, kind in REQUEST_COLUMNS.items():
        columns[name] = pa.array([getattr(request, name) for request in requests], kind)
        if name == "prompt_id":
            for axis in axes:
                columns[f"axis_{axis}"] = pa.array(
                    [request.axes.get(axis, "") for request in requests], pa.string()
                )
    return pa.table(columns)


def requests_of(table: pa.Table) -> list[Request]:
    """The requests in a plan's table."""
    rows = []
    for row in table.to_pylist():
        axes = {name.removeprefix("axis_"): row.pop(name) for name in list(row) if name.startswith("axis_")}
        rows.append(Request(axes=axes, **row))
    return rows


def to_parquet(tables: Iterable[pa.Table]) -> bytes:
    """A parquet file with one row group a table."""
    sink = io.BytesIO()
    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=max(1, len(table)))
    if writer:
        writer.close()
    return sink.getvalue()


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file of the run, or some of its columns.

    Raises:
        WorkError: it is missing or damaged.
    """
    try:
        # a shard is small: opening it as a data set of files, or threads, take longer than reading it
        with storage.open_read(path) as file:
            return pq.ParquetFile(file).read(columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WorkError(f"{path}: damaged ({reason}); `synthgen verify` lists what else is") from None


def rows(path: Path) -> int:
    """How many rows a parquet file of the run has."""
    with storage.open_read(path) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def schema_of(path: Path) -> pa.Schema:
    """The columns of a parquet file of the run, and their types."""
    with storage.open_read(path) as file:
        return pq.ParquetFile(file).schema_arrow


def names(path: Path) -> list[str]:
    """The columns of a parquet file of the run."""
    found: list[str] = schema_of(path).names
    return found


def either_type(one: pa.DataType | None, other: pa.DataType) -> pa.DataType:
    """What holds the values of both types; text where no other does."""
    if one is None or one == other:
        return other
    fields = [pa.schema([pa.field("", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def to_npz(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    return sink.getvalue()


def read_npz(path: Path) -> dict[str, npt.NDArray[np.float16]]:
    """The features of a shard; nothing where it has none, as all of its images failed."""
    if not storage.exists(path):
        return {}
    with np.load(io.BytesIO(storage.read(path)), allow_pickle=False) as arrays:
        return dict(arrays)


def to_npy(array: npt.NDArray[np.void]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def read_npy(path: Path) -> npt.NDArray[np.void]:
    array: npt.NDArray[np.void] = np.load(io.BytesIO(storage.read(path)), allow_pickle=False)
    if array.dtype != UID or array.ndim != 1:
        raise FolderError(f"{path}: a one-dimensional array of dtype u8,u8 was expected, got {array.dtype}")
    return array


def verdict_tables(
    uids: pa.ChunkedArray,
    verdict: npt.NDArray[np.int32],
    names: Mapping[int, str],
    errors: pa.ChunkedArray,
    *,
    kept: str = "kept",
) -> Iterator[pa.Table]:
    """Every uid of the pool with what became of it, a million a table; `error` is null in a written row.

    Args:
        verdict: codes, shape (rows,).
        names: each code in words; that of `kept` is in the subset.
    """
    least = min(names)
    words = pa.array([names.get(code, "") for code in range(least, max(names) + 1)], pa.string())
    for start in range(0, max(1, len(verdict)), MILLION):
        said = words.take(pa.array(verdict[start : start + MILLION] - least))
        columns = uids.slice(start, MILLION), pc.equal(said, kept), said, errors.slice(start, MILLION)
        yield pa.table(dict(zip(("uid", "kept", "verdict", "error"), columns, strict=True)))


def is_run(root: Path) -> bool:
    """Whether synthgen has made something in a folder."""
    made = any(re.fullmatch(r"[0-9a-f]{32}\.json", name) for name in storage.names(root / RECIPES))
    return made or bool(records(root / SOURCES)) or storage.exists(root / storage.WORK / SCANS)


def record_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}{RECORD_SUFFIX}"


def is_done(folder: Path, stem: str) -> bool:
    """Whether a unit is done: whether its record is there."""
    return storage.exists(record_path(folder, stem))


def records(folder: Path) -> list[str]:
    """Stems of the units of a folder that are done, sorted."""
    return [
        name.removesuffix(RECORD_SUFFIX) for name in storage.names(folder) if name.endswith(RECORD_SUFFIX)
    ]


def annotated(folder: Path) -> list[str]:
    """Stems of the pool's shards that an annotation is finished of, sorted."""
    return [stem for stem in records(folder) if stem != FITTED]


def read_record(folder: Path, stem: str) -> dict[str, Any]:
    return storage.read_json(record_path(folder, stem))


@contextmanager
def new_unit(
    root: Path, folder: Path, stem: str, record: dict[str, object], claim: Claim
) -> Iterator[Callable[[str], BinaryIO]]:
    """Publishes the files of a unit when the block ends well: data first, then, if the claim still holds,
    the record.

    Yields `create(suffix)`, which opens the file `<stem><suffix>` for writing; suffixes are linked in the
    order they were created. `record` is completed by the block and gets `files`: bytes and sha256 of each.
    Data without a record, from a worker that died, is removed, unless it is what is published.

    Raises:
        LostClaimError: another worker took the unit over; what is linked by then is its to remove.
    """
    started = time.monotonic()
    claim.check()  # staging removes what it finds of this unit
    with storage.staging(root, claim.path.name) as stage:
        files: dict[str, BinaryIO] = {}

        def create(suffix: str) -> BinaryIO:
            files[suffix] = storage.create(stage / f"{stem}{suffix}")
            return files[suffix]

        try:
            yield create
        except OSError:
            claim.check()  # who lost the claim has also lost its unfinished files
            raise
        finally:
            for file in files.values():
                file.close()
        sums = {f"{stem}{suffix}": storage.checksum(stage / f"{stem}{suffix}") for suffix in files}
        record["files"] = sums
        record |= {
            "seconds": round(time.monotonic() - started, 3),
            "host": storage.host(),
            "pid": os.getpid(),
            "attempts": 1 + len(attempts(root, claim.unit)),
        }
        claim.check()
        for name in storage.names(folder):
            if name not in (*sums, f"{stem}{RECORD_SUFFIX}") and re.fullmatch(
                rf"{re.escape(stem)}\.[a-z]+", name
            ):
                storage.remove(folder / name)
        for name, sum_ in sums.items():
            while not storage.publish(stage / name, folder / name):
                if storage.checksum(folder / name) == sum_:
                    break
                claim.check()
                storage.remove(folder / name)
        claim.check()
        with storage.create(stage / "record") as file:
            file.write(storage.to_json(record))
        is_ours = storage.publish(stage / "record", record_path(folder, stem))
        # a worker that had lost the claim was as fast as that; the data is ours, so the record has to be
        if not is_ours and read_record(folder, stem)["files"] != sums:
            storage.replace(root, record_path(folder, stem), storage.to_json(record))


def require_inputs(folder: Path, stem: str, inputs: dict[str, object], next_step: str) -> None:
    """Raises FolderError, naming the key, where a unit that exists was made from other inputs."""
    made = read_record(folder, stem).get("inputs")
    require_equal(folder / stem, made if isinstance(made, dict) else {}, inputs, next_step)


def require_equal(
    unit: Path, made: Mapping[str, object], inputs: Mapping[str, object], next_step: str
) -> None:
    """Raises FolderError with the first key in which what a unit was made from differs from what is wanted
    now.
    """
    wanted = json.loads(canonical(inputs))
    for key in sorted({*made, *wanted}):
        if made.get(key) != wanted.get(key):
            old, new = _spell(made.get(key), wanted.get(key))
            raise FolderError(f"{unit} was made with {key} = {old}, now it would be {new}; {next_step}")


def _spell(old: object, new: object) -> tuple[str, str]:
    """Two values that differ, short enough for a message: of two lists only the first entries that differ."""
    if isinstance(old, list) and isinstance(new, list):
        place = next((k for k, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            return f"{len(old)} entries", f"{len(new)} entries"
        return f"[{place}] {_spell(old[place], None)[0]}", f"[{place}] {_spell(new[place], None)[0]}"
    texts = ["nothing" if value is None else json.dumps(value, ensure_ascii=False) for value in (old, new)]
    return tuple(text if len(text) <= 80 else text[:77] + "..." for text in texts)  # type: ignore[return-value]


class PlannedShard(NamedTuple):
    """A shard of the pool as the plan has it: a row group of one of its files, all of one model."""

    stem: str
    path: Path
    group: int
    model: str


def load_plan(root: Path) -> list[PlannedShard]:
    """The pool's shards in order. Shard k of the pool is entry k."""
    found: list[PlannedShard] = []
    for part in records(root / PLAN):
        models = [m for m, count in read_record(root / PLAN, part)["shards"] for _ in range(count)]
        path, first = root / PLAN / f"{part}.parquet", len(found)
        found += [PlannedShard(shard_name(first + k), path, k, model) for k, model in enumerate(models)]
    return found


class Imported(NamedTuple):
    """A source of an imported pool: where it lay at the import, the ids of its classes, and the pool's shards
    that hold it, of so many rows together; `partial` are columns of numbers that some samples do not have.
    """

    name: str
    path: Path
    classes: dict[str, int]
    stems: list[str]
    rows: int
    license: str
    partial: list[str]


def imported(root: Path) -> list[Imported]:
    """The sources of an imported pool, in the order in which they came."""
    found = []
    for name in records(root / SOURCES):
        record = read_record(root / SOURCES, name)
        stems = [shard_name(record["first"] + k) for k in range(len(record["shards"]))]
        classes = {name: number for number, name in record["classes"]}
        found.append(
            Imported(
                name,
                Path(record["path"]),
                classes,
                stems,
                record["requested"],
                record["license"],
                record["partial"],
            )
        )
    return sorted(found, key=lambda source: source.stems)


def pool_stems(root: Path) -> list[str]:
    """The stems of the pool's shards, planned, imported or done, in order."""
    return [shard.stem for shard in load_plan(root)] + [stem for one in imported(root) for stem in one.stems]


def planned_requests(root: Path) -> int:
    """How many rows the pool has, or will have: requests in the plan, and samples of imported sources."""
    planned = sum(read_record(root / PLAN, stem)["requests"] for stem in records(root / PLAN))
    return int(planned) + sum(source.rows for source in imported(root))


def read_plan_shard(shard: PlannedShard) -> pa.Table:
    """The requests of one pool shard."""
    return _plan_file(shard.path).read_row_group(shard.group)


def planned_rows(shard: PlannedShard) -> int:
    """How many requests one pool shard has."""
    return int(_plan_file(shard.path).metadata.row_group(shard.group).num_rows)


@functools.lru_cache(maxsize=1)
def _plan_file(path: Path) -> pq.ParquetFile:
    """A part of the plan, read once for all its row groups: published parts never change."""
    return pq.ParquetFile(pa.BufferReader(storage.read(path)))
