"""One unit of annotation: the stored images of a pool shard -> parquet and npz of every annotation,
row-aligned with the pool. Each image is read and decoded once for all of them.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from synthgen import pools, shards
from synthgen.claims import Claim
from synthgen.data import Sample
from synthgen.errors import WorkError

Columns = dict[str, npt.NDArray[np.generic]]
Annotate = Callable[[list[Sample]], Columns]
DECODERS = 4
CHUNK = 64
"""Samples that are in memory, decoded, at a time; as many are decoded meanwhile."""


@dataclass
class Annotation:
    """An annotator at work on a shard.

    Attributes:
        annotate: called with exactly `batch_size` samples at a time; the last call is padded.
        kinds: its columns and their types in parquet.
        record: what its record says besides counts and files.
    """

    name: str
    annotate: Annotate
    kinds: Mapping[str, str]
    batch_size: int
    record: dict[str, object]
    waiting: list[Sample] = field(default_factory=list)
    parts: list[Columns] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, samples: Sequence[Sample], *, last: bool) -> None:
        """Annotates as many batches as are whole, or with `last` all there is.

        Raises:
            WorkError: the annotator returned another number of rows than it was given.
        """
        started = time.monotonic()
        self.waiting += samples
        while len(self.waiting) >= self.batch_size or (last and self.waiting):
            batch, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
            outputs = self.annotate([*batch, *[batch[-1]] * (self.batch_size - len(batch))])
            for key, values in outputs.items():
                if len(values) != self.batch_size:
                    raise WorkError(
                        f'annotator "{self.name}": {key} has {len(values)} rows for {self.batch_size} samples'
                    )
            self.parts.append({key: values[: len(batch)] for key, values in outputs.items()})
        self.seconds += time.monotonic() - started


def annotate_shard(
    root: Path,
    stem: str,
    annotations: Sequence[Annotation],
    *,
    claim: Claim,
    sources: Mapping[str, Path] = {},
) -> None:
    """Publishes `annotations/<name>/<stem>` of each annotation: columns `<name>_*`, null in failed rows, and
    features, NaN there.

    A shard without any image has its columns all the same, and no features.

    Raises:
        WorkError: an annotator returned another number of rows than it was given.
    """
    table = shards.read_table(root / shards.POOL / f"{stem}.parquet")
    rows = [row for row, at in enumerate(table["image_offset"].to_pylist()) if at is not None]
    claim.progress(0)
    done = 0
    for samples in _read_samples(root, stem, table.take(pa.array(rows, pa.int64())), sources):
        for annotation in annotations:
            annotation.add(samples, last=False)
        done += len(samples)
        claim.progress(done)
    for annotation in annotations:
        annotation.add([], last=True)
    for annotation in annotations:
        _publish(root, stem, annotation, table["uid"], rows, claim)


def _publish(
    root: Path, stem: str, annotation: Annotation, uids: pa.ChunkedArray, rows: Sequence[int], claim: Claim
) -> None:
    name, kinds, parts, record = annotation.name, annotation.kinds, annotation.parts, annotation.record
    columns: dict[str, object] = {"uid": uids}
    features: dict[str, npt.NDArray[np.float16]] = {}
    for key, kind in kinds.items() if not parts else ():
        columns[f"{name}_{key}"] = pa.nulls(len(uids), pa.type_for_alias(kind))
    for key in parts[0] if parts else ():
        values = np.concatenate([part[key] for part in parts])
        if values.ndim == 1:
            columns[f"{name}_{key}"] = _spread(values, pa.type_for_alias(kinds[key]), rows, len(uids))
        else:
            features[f"{name}_{key}"] = np.full((len(uids), values.shape[1]), np.nan, np.float16)
            features[f"{name}_{key}"][rows] = values
    with shards.new_unit(root, root / shards.ANNOTATIONS / name, stem, record, claim) as create:
        create(".parquet").write(shards.to_parquet([pa.table(columns)]))
        if features:
            create(".npz").write(shards.to_npz(features))
        record |= {
            "requested": len(uids),
            "written": len(rows),
            "failed": len(uids) - len(rows),
            "annotate_seconds": round(annotation.seconds, 3),
        }


def _spread(values: npt.NDArray[np.generic], kind: pa.DataType, rows: Sequence[int], count: int) -> pa.Array:
    """Values at their rows, null elsewhere."""
    full: list[object] = [None] * count
    for row, value in zip(rows, values.tolist(), strict=True):
        full[row] = value
    return pa.array(full, kind)


def _read_samples(
    root: Path, stem: str, written: pa.Table, sources: Mapping[str, Path]
) -> Iterator[list[Sample]]:
    """The written samples of a pool shard in chunks, each decoded while the one before is in use."""
    with ThreadPoolExecutor(DECODERS) as decoders:

        def begin(start: int) -> Iterator[Sample]:
            rows = written.slice(start, CHUNK)
            columns = [rows[name].to_pylist() for name in ("uid", "class_id", "class_name", "text")]
            return decoders.map(_sample, *columns, pools.read_images(root, stem, rows, sources))

        chunk = begin(0)
        for start in range(CHUNK, len(written) + CHUNK, CHUNK):
            samples = list(chunk)
            chunk = begin(start)
            yield samples


def _sample(uid: str, class_id: int, class_name: str, text: str, data: bytes) -> Sample:
    try:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError:
        raise WorkError(
            f"{uid}: the stored image does not decode; `synthgen verify` lists what is damaged"
        ) from None
    return Sample(uid, class_id, class_name, text, image, data)
