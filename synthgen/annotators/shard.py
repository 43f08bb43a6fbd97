"""One unit of annotation: the stored images of a pool shard -> parquet and npz of every annotation,
row-aligned with the pool. Each image is read and decoded once for all of them, and only if one looks at it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from synthgen import pools, shards
from synthgen.claims import Claim
from synthgen.data import Sample
from synthgen.errors import WorkError
from synthgen.sources import open_picture

Columns = dict[str, npt.NDArray[np.generic]]
Annotate = Callable[[list[Sample]], Columns]
Keep = Callable[[Mapping[str, npt.NDArray[np.generic]]], npt.NDArray[np.bool_]]
CHUNK = 64
"""Samples that are in memory, decoded, at a time, or a batch if that is more; as many are decoded
meanwhile.
"""
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class Item(NamedTuple):
    """A sample on its way through a shard's annotations.

    `prepared` is what the annotations' own `prepare` made of it, by their names; one that `is_damaged` has an
    image that does not decode, and is for those that need none.
    """

    row: int
    sample: Sample
    prepared: Mapping[str, object]
    is_damaged: bool = False


@dataclass
class Annotation:
    """An annotator at work on a shard.

    Attributes:
        annotate: called with exactly `batch_size` samples at a time; the last call is padded.
        kinds: its columns and their types in parquet.
        record: what its record says besides counts and files.
        reads: columns and features that each sample brings along; a sample that lacks one is not annotated.
        keep: says which samples are annotated, by their columns `judged_by`; None is all.
        upstream: other annotations at work on this shard that make some of these.
        seen: all samples of the rows before this one have been added.
        reached: all samples of the rows before this one have been through.
    """

    name: str
    annotate: Annotate
    kinds: Mapping[str, str]
    batch_size: int
    record: dict[str, object]
    reads: Sequence[str] = ()
    keep: Keep | None = None
    judged_by: Sequence[str] = ()
    upstream: Sequence["Annotation"] = ()
    waiting: list[Item] = field(default_factory=list)
    batch: list[Item] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    features: Columns = field(default_factory=dict)
    seen: int = 0
    reached: int = 0
    seconds: float = 0.0

    @property
    def needs_pixels(self) -> bool:
        return bool(getattr(self.annotate, "needs_pixels", True))

    @property
    def prepare(self) -> Callable[[Sample], object] | None:
        prepare: Callable[[Sample], object] | None = getattr(self.annotate, "prepare", None)
        return prepare

    def wants(self, values: Columns, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Which rows it annotates, by values that are known there. Of what a source of an imported pool does
        not have, or nothing was annotated with, there are none: no rule keeps what is missing.
        """
        chosen = np.ones(len(rows), np.bool_)
        if not {*self.reads, *self.judged_by} <= values.keys():
            return ~chosen
        for name in self.reads:
            chosen &= ~pools.is_missing(values[name][rows])
        if self.keep:
            chosen &= self.keep({name: pools.filled(values[name][rows]) for name in self.judged_by})
        return chosen

    def add(self, items: Sequence[Item], values: Columns, *, last: bool) -> None:
        """Annotates as many batches as are whole, or with `last` all there is, and puts what comes out into
        `values`.

        Raises:
            WorkError: the annotator returned another number of rows than it was given.
        """
        started = time.monotonic()
        self.waiting += [item for item in items if not (item.is_damaged and self.needs_pixels)]
        self.seen = items[-1].row + 1 if items else self.seen
        bound = min((other.reached for other in self.upstream), default=self.seen)
        ready = [item for item in self.waiting if item.row < bound]
        self.waiting = self.waiting[len(ready) :]
        chosen = self.wants(values, np.array([item.row for item in ready], np.intp))
        self.batch += [item for item, is_chosen in zip(ready, chosen.tolist(), strict=True) if is_chosen]
        while len(self.batch) >= self.batch_size or (last and self.batch):
            batch, self.batch = self.batch[: self.batch_size], self.batch[self.batch_size :]
            self._call(batch, values)
        left = self.batch or self.waiting
        self.reached = left[0].row if left else self.seen
        self.seconds += time.monotonic() - started

    def _call(self, batch: list[Item], values: Columns) -> None:
        samples = [
            replace(
                item.sample,
                read={name: values[name][item.row] for name in self.reads},
                prepared=item.prepared.get(self.name),
            )
            for item in batch
        ]
        rows, size = [item.row for item in batch], len(values["uid"])
        outputs = self.annotate([*samples, *[samples[-1]] * (self.batch_size - len(batch))])
        for key, made in outputs.items():
            if len(made) != self.batch_size:
                raise WorkError(
                    f'annotator "{self.name}": {key} has {len(made)} rows for {self.batch_size} samples'
                )
            name = f"{self.name}_{key}"
            if made.ndim > 1 and name not in values:
                kind = np.dtype(np.float16) if made.ndim == 2 else made.dtype
                nothing = np.nan if kind.kind == "f" else -1
                values[name] = self.features[name] = np.full((size, *made.shape[1:]), nothing, kind)
            values[name][rows] = made[: len(batch)]
        self.rows += rows


def annotate_shard(
    root: Path,
    stem: str,
    annotations: Sequence[Annotation],
    made_by: Mapping[str, str],
    *,
    claim: Claim,
    sources: pools.Sources = {},  # noqa: B006
    decoders: int = 0,
) -> None:
    """Publishes `annotations/<name>/<stem>` of each annotation: columns `<name>_*`, null in rows that are not
    annotated, and features, NaN there.

    A shard of which no row is annotated has its columns all the same, and no features.

    Args:
        annotations: those that are missing, each behind what it reads.
        made_by: the annotation that makes a column or features; what is not there is the pool's.
        sources: where sources of an imported pool are now; see `pools.source_paths`.
        decoders: threads that decode and prepare while the annotators work; 0 does one after the other, which
            is less work in all where each core has a worker of its own.

    Raises:
        WorkError: an annotator returned another number of rows than it was given.
    """
    table = shards.read_table(root / shards.POOL / f"{stem}.parquet")
    written = np.flatnonzero(pools.is_missing(pools.to_masked(table["error"])))
    values: Columns = {"uid": pools.to_masked(table["uid"])}
    at_work = {annotation.name: annotation for annotation in annotations}
    for annotation in annotations:
        for key, kind in annotation.kinds.items():
            dtype = np.dtype(object if kind == "string" else kind)
            values[f"{annotation.name}_{key}"] = np.ma.array(np.zeros(len(table), dtype), mask=True)
        read = [*annotation.reads, *annotation.judged_by]
        makers = dict.fromkeys(made_by.get(name, "") for name in read)
        annotation.upstream = [at_work[name] for name in makers if name in at_work]
        for name in read:
            if name not in values and made_by.get(name, "") not in at_work:
                values |= _stored(root, stem, name, made_by.get(name))
    looked_at: dict[str, npt.NDArray[np.bool_]] = {}
    for annotation in annotations:
        if annotation.needs_pixels:
            looked_at[annotation.name] = np.zeros(len(table), np.bool_)
            looked_at[annotation.name][written] = bool(annotation.upstream) or annotation.wants(
                values, written
            )
    for annotation in annotations:
        getattr(annotation.annotate, "start", lambda: None)()
    claim.progress(0)
    for done, items in _read(root, stem, table, written, annotations, looked_at, sources, decoders):
        for annotation in annotations:
            annotation.add(items, values, last=False)
        claim.progress(done)
    for annotation in annotations:
        annotation.add([], values, last=True)
    for annotation in annotations:
        _publish(root, stem, annotation, values, len(written), made_by, claim)


def _stored(root: Path, stem: str, name: str, annotation: str | None) -> Columns:
    """A column of the pool, or a column or features of an annotation that is finished there."""
    folder = root / shards.ANNOTATIONS / annotation if annotation else root / shards.POOL
    features = shards.read_npz(folder / f"{stem}.npz") if annotation else {}
    if name in features:
        return {name: features[name]}
    path = folder / f"{stem}.parquet"
    return (
        {name: pools.to_masked(shards.read_table(path, [name])[name])} if name in shards.names(path) else {}
    )


def _publish(
    root: Path,
    stem: str,
    annotation: Annotation,
    values: Columns,
    written: int,
    made_by: Mapping[str, str],
    claim: Claim,
) -> None:
    name, kinds, record = annotation.name, annotation.kinds, annotation.record
    count, folder = len(values["uid"]), root / shards.ANNOTATIONS
    columns: dict[str, pa.Array] = {"uid": pa.array(values["uid"].data, pa.string())}
    for key, kind in kinds.items():
        column = values[f"{name}_{key}"]
        columns[f"{name}_{key}"] = pa.array(
            np.ma.getdata(column), pa.type_for_alias(kind), mask=pools.is_missing(column)
        )
    makers = dict.fromkeys(made_by.get(read, "") for read in (*annotation.reads, *annotation.judged_by))
    record["reads"] = {other: shards.read_record(folder / other, stem)["files"] for other in makers if other}
    with shards.new_unit(root, folder / name, stem, record, claim) as create:
        create(".parquet").write(shards.to_parquet([pa.table(columns)]))
        if annotation.features:
            create(".npz").write(shards.to_npz(annotation.features))
        failed = count - written
        record |= {
            "requested": len(annotation.rows) + failed,
            "written": len(annotation.rows),
            "failed": failed,
            "skipped": written - len(annotation.rows),
            "annotate_seconds": round(annotation.seconds, 3),
        }


def _read(
    root: Path,
    stem: str,
    table: pa.Table,
    written: npt.NDArray[np.intp],
    annotations: Sequence[Annotation],
    looked_at: Mapping[str, npt.NDArray[np.bool_]],
    sources: pools.Sources,
    decoders: int,
) -> Iterator[tuple[int, list[Item]]]:
    """The written samples of a pool shard in chunks, with threads each decoded and prepared while the one
    before is in use; with how many there were so far.
    """
    is_imported = "members" in table.column_names
    wanted = np.zeros(len(table), np.bool_)
    for mask in looked_at.values():
        wanted |= mask
    own = {annotation.name: annotation.prepare for annotation in annotations}
    preparing = [(name, prepare) for name, prepare in own.items() if prepare]
    is_kept = any(one.needs_pixels and not one.prepare for one in annotations)
    size = max(CHUNK, *(annotation.batch_size for annotation in annotations))

    def make(row: int, uid: str, class_id: int, class_name: str, text: str, data: bytes) -> Item:
        bare = Sample(uid, class_id, class_name, text, NO_PIXELS, data)
        sample = _decode(bare) if data else bare
        if sample is None and is_imported:
            return Item(row, replace(bare, stored=b""), {}, is_damaged=True)
        if sample is None:
            raise WorkError(
                f"{uid}: the stored image does not decode; `synthgen verify` lists what is damaged"
            )
        prepared = {
            name: prepare(sample)
            for name, prepare in preparing
            if name not in looked_at or looked_at[name][row]
        }
        # a chunk of images of 512 pixels is 50 MB, and new memory costs as much as a tenth of their decoding
        return Item(row, sample if is_kept else replace(sample, image=NO_PIXELS), prepared)

    with contextlib.ExitStack() as stack:
        apply = stack.enter_context(ThreadPoolExecutor(decoders)).map if decoders else map

        def begin(start: int) -> Iterator[Item]:
            own = written[start : start + size]
            rows, pixels = table.take(pa.array(own)), own[wanted[own]]
            read = pools.read_images(root, stem, table.take(pa.array(pixels)), sources) if len(pixels) else []
            images = dict(zip(pixels.tolist(), read, strict=True))
            columns = [rows[name].to_pylist() for name in ("uid", "class_id", "class_name", "text")]
            return apply(make, own.tolist(), *columns, [images.get(row, b"") for row in own.tolist()])

        chunk = begin(0)
        for start in range(size, len(written) + size, size):
            items = list(chunk)
            chunk = begin(start)
            yield min(start, len(written)), items


def _decode(sample: Sample) -> Sample | None:
    """The sample with its pixels, None where it is damaged."""
    picture = open_picture(sample.stored)
    if picture is None:
        return None
    sample = replace(sample, image=np.asarray(picture))
    vars(sample)["picture"] = picture  # the cached property would copy it back
    return sample
