"""One pool shard: its planned requests -> tar, rows, record."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from synthgen import shards, storage, tars
from synthgen.data import Request
from synthgen.generation.encoding import encode
from synthgen.generation.sampling import Picture, sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def make_shard(
    root: Path,
    stem: str,
    plan: pa.Table,
    *,
    pipeline: Callable[[], "DiffusionPipeline"],
    batch_size: int,
    image_format: str,
    record: dict[str, object],
    claim: storage.Claim,
) -> None:
    """Makes, encodes and publishes the images of one shard of the plan.

    Args:
        plan: the requests, one row each; the pool's parquet keeps them all, in this order.
        pipeline: called once, when the first image is to be made.
        record: what the record says besides counts and files.
    """
    requests = shards.requests_of(plan)
    added: dict[str, list[object]] = {name: [] for name in shards.POOL_COLUMNS}
    with shards.new_unit(root, root / shards.POOL, stem, record, claim) as create:
        tar = create(".tar")
        for start in range(0, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            for request, picture in zip(batch, sample(pipeline(), batch, batch_size=batch_size), strict=True):
                for name, value in _add(tar, request, picture, image_format).items():
                    added[name].append(value)
            claim.progress(min(start + batch_size, len(requests)))
        tars.finish(tar)
        columns = {name: pa.array(added[name], kind) for name, kind in shards.POOL_COLUMNS.items()}
        table = pa.table({"uid": plan["uid"], "error": columns.pop("error")} | _columns(plan) | columns)
        create(".parquet").write(shards.to_parquet([table]))
        record |= _counts(requests, added["error"])


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names if name not in ("uid", *shards.PLAN_ONLY)}


def _counts(requests: Sequence[Request], errors: Sequence[object]) -> dict[str, object]:
    failed = Counter(str(error) for error in errors if error is not None)
    written = len(requests) - failed.total()
    return {
        "requested": len(requests),
        "written": written,
        "failed": failed.total(),
        "failed_by_reason": dict(sorted(failed.items())),
        "successes": written,  # the name that DataComp's resharder and img2dataset's readers know
    }


def _add(tar: BinaryIO, request: Request, picture: Picture, image_format: str) -> dict[str, object]:
    """Appends one sample and returns its pool columns."""
    if picture.image is None:
        return dict.fromkeys(shards.POOL_COLUMNS) | {"error": picture.error}
    data = encode(picture.image, image_format)
    height, width = picture.image.shape[:2]
    sha256 = hashlib.sha256(data).hexdigest()
    members = {
        image_format: data,
        "txt": request.text.encode(),
        "cls": str(request.class_id).encode(),
        "json": provenance(request, width, height, sha256),
    }
    image = tars.add_sample(tar, request.uid, members)[image_format]
    return {
        "error": None,
        "original_width": width,
        "original_height": height,
        "image_offset": image.offset,
        "image_bytes": image.size,
        "sha256": sha256,
    }


def provenance(request: Request, width: int, height: int, sha256: str) -> bytes:
    """The json member: flat, the same keys and types in every sample of a dataset."""
    values: dict[str, object] = {}
    for name in shards.REQUEST_COLUMNS:
        if name not in shards.PLAN_ONLY:
            values[name] = getattr(request, name)
        if name == "prompt_id":
            values |= {f"axis_{axis}": word for axis, word in request.axes.items()}
    values |= {"original_width": width, "original_height": height, "sha256": sha256}
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
