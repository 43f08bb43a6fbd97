"""One pool shard: its planned requests -> tar, rows, record."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import pyarrow as pa

from synthgen import marks, shards, tars
from synthgen.claims import Claim
from synthgen.data import Request
from synthgen.generation.conditioning import ReadImage
from synthgen.generation.encoding import encode
from synthgen.generation.sampling import Sampled, picture, sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ENCODERS = 4
"""Threads that encode beside the model; PNG at 1024x1024 needs that many for a fast model."""


def make_shard(
    root: Path,
    stem: str,
    plan: pa.Table,
    *,
    pipeline: Callable[[], "DiffusionPipeline"],
    batch_size: int,
    image_format: str,
    dataset: str,
    record: dict[str, object],
    claim: Claim,
    real: ReadImage | None = None,
    halve: bool = True,
) -> None:
    """Makes, encodes and publishes the images of one shard of the plan.

    While the model makes a micro-batch, a few threads encode the one before; the model waits for them, so
    that two micro-batches at most are in memory. Rows and members are in the order of the plan.

    Args:
        plan: the requests, one row each; the pool's parquet keeps them all, in this order.
        dataset: the name that the mark in each image says; "" leaves the images without one.
        pipeline: called once, when the first image is to be made.
        record: what the record says besides counts and files.
        real: reads the real images that requests are made from.
        halve: whether a micro-batch may be made in halves where memory runs out; the record says so.
    """
    requests = shards.requests_of(plan)
    added: dict[str, list[object]] = {name: [] for name in shards.POOL_COLUMNS}
    room = batch_size
    with (
        shards.new_unit(root, root / shards.POOL, stem, record, claim) as create,
        ThreadPoolExecutor(ENCODERS) as encoders,
    ):
        tar, model = create(".tar"), pipeline()
        if hasattr(model, "embeddings"):
            model.embeddings.expect(requests)
        claim.progress(0)
        encoding: list[Future[Encoded]] = []

        def write() -> None:
            for request, encoded in zip(requests[len(added["error"]) :], encoding, strict=False):
                for name, value in _add(tar, request, encoded.result(), image_format).items():
                    added[name].append(value)

        for start in range(0, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            sampled = sample(model, batch, batch_size=batch_size, real=real, room=room, halve=halve)
            room = min(room, sampled[-1].batch_size)
            write()
            encoding = [
                encoders.submit(_encode, each, image_format, _mark(request, dataset))
                for each, request in zip(sampled, batch, strict=True)
            ]
            claim.progress(start + len(batch))
        write()
        tars.finish(tar)
        columns = {name: pa.array(added[name], kind) for name, kind in shards.POOL_COLUMNS.items()}
        table = pa.table({"uid": plan["uid"], "error": columns.pop("error")} | _columns(plan) | columns)
        create(".parquet").write(shards.to_parquet([table]))
        record |= _counts(requests, added["error"]) | {"smallest_batch": room}


class Encoded(NamedTuple):
    """A picture as a file, or why there is none."""

    data: bytes
    width: int
    height: int
    sha256: str
    error: str


def _mark(request: Request, dataset: str) -> bytes:
    return marks.packet(request.uid, dataset, from_image=request.strength > 0) if dataset else b""


def _encode(sampled: Sampled, image_format: str, mark: bytes) -> Encoded:
    image, error = picture(sampled)
    if image is None:
        return Encoded(b"", 0, 0, "", error)
    data = encode(image, image_format, mark)
    return Encoded(data, image.shape[1], image.shape[0], hashlib.sha256(data).hexdigest(), "")


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


def _add(tar: BinaryIO, request: Request, encoded: Encoded, image_format: str) -> dict[str, object]:
    """Appends one sample and returns its pool columns."""
    data, width, height, sha256, error = encoded
    if error:
        return dict.fromkeys(shards.POOL_COLUMNS) | {"error": error}
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
