"""One unit of annotation: the stored images of a pool shard -> parquet and npz, row-aligned with the pool."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from synthgen import shards, storage
from synthgen.data import Sample
from synthgen.errors import WorkError

Annotate = Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]


def read_samples(root: Path, stem: str) -> list[Sample | None]:
    """The samples of a pool shard in the order of its rows; None where a row failed."""
    rows = shards.read_table(root / shards.POOL / f"{stem}.parquet")
    stored = shards.read_images(root, stem, rows)
    columns = [rows[name].to_pylist() for name in ("uid", "class_id", "class_name", "text")]
    return [
        None if data is None else Sample(uid, class_id, class_name, text, _decode(data, uid), data)
        for uid, class_id, class_name, text, data in zip(*columns, stored, strict=True)
    ]


def _decode(data: bytes, uid: str) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError:
        raise WorkError(
            f"{uid}: the stored image does not decode; `synthgen verify` lists what is damaged"
        ) from None


def annotate_shard(
    root: Path,
    name: str,
    stem: str,
    *,
    annotate: Annotate,
    kinds: Mapping[str, str],
    samples: Sequence[Sample | None],
    batch_size: int,
    record: dict[str, object],
    claim: storage.Claim,
) -> None:
    """Publishes `annotations/<name>/<stem>`: columns `<name>_*`, null in failed rows, and features, NaN
    there.

    A shard without any image has its columns all the same, and no features.

    Args:
        annotate: called with exactly `batch_size` samples at a time; the last call is padded.
        kinds: the annotator's columns and their types in parquet.
        samples: what `read_samples` gave.

    Raises:
        WorkError: the annotator returned another number of rows than it was given.
    """
    rows = [row for row, sample in enumerate(samples) if sample]
    written = [sample for sample in samples if sample]
    parts: list[dict[str, npt.NDArray[np.generic]]] = []
    for start in range(0, len(written), batch_size):
        batch = written[start : start + batch_size]
        outputs = annotate([*batch, *[batch[-1]] * (batch_size - len(batch))])
        for key, values in outputs.items():
            if len(values) != batch_size:
                raise WorkError(f'annotator "{name}": {key} has {len(values)} rows for {batch_size} samples')
        parts.append({key: values[: len(batch)] for key, values in outputs.items()})
        claim.progress(start + len(batch))
    columns: dict[str, object] = {
        "uid": shards.read_table(root / shards.POOL / f"{stem}.parquet", ["uid"])["uid"]
    }
    features: dict[str, npt.NDArray[np.float16]] = {}
    for key, kind in kinds.items() if not parts else ():
        columns[f"{name}_{key}"] = pa.nulls(len(samples), pa.type_for_alias(kind))
    for key in parts[0] if parts else ():
        values = np.concatenate([part[key] for part in parts])
        if values.ndim == 1:
            columns[f"{name}_{key}"] = _spread(values, pa.type_for_alias(kinds[key]), rows, len(samples))
        else:
            features[f"{name}_{key}"] = np.full((len(samples), values.shape[1]), np.nan, np.float16)
            features[f"{name}_{key}"][rows] = values
    with shards.new_unit(root, root / shards.ANNOTATIONS / name, stem, record, claim) as create:
        create(".parquet").write(shards.to_parquet([pa.table(columns)]))
        if features:
            create(".npz").write(shards.to_npz(features))
        record |= {"requested": len(samples), "written": len(written), "failed": len(samples) - len(written)}


def _spread(values: npt.NDArray[np.generic], kind: pa.DataType, rows: Sequence[int], count: int) -> pa.Array:
    """Values at their rows, null elsewhere."""
    full: list[object] = [None] * count
    for row, value in zip(rows, values.tolist(), strict=True):
        full[row] = value
    return pa.array(full, kind)
