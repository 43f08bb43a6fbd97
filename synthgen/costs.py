"""What a dataset costs: arithmetic over plain values, with what finished shards took where there are some. It
knows neither recipes nor models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synthgen import shards

if TYPE_CHECKING:
    from synthgen.generation.tokens import Lost

PEAKS = {
    "T4": (65.0, 8.1),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "4090": (165.2, 82.6),
    "A100": (312.0, 19.5),
    "H100": (989.0, 67.0),
}
"""TFLOP/s of GPUs by NVIDIA's data sheets, dense: in 16 bits with 32-bit sums, in 32 bits without TF32."""
UTILISATION = 0.4
"""The part of a peak that is taken to be reached. Published runs of SDXL and FLUX reach 0.2 to 0.5 of it, one
image at a time less than batches.
"""
BYTES_PER_MEGAPIXEL = {"jpg": 440_000, "webp": 1_210_000, "png": 1_380_000}
"""Means of 8 photographs at 512x512 (scripts/bench/image_bytes.py); single ones took 0.6 to 1.4 times that.
No model's images: those of your own are measured as soon as a shard is finished.
"""
SAMPLE_BYTES = 5_300
"""What a sample of the emoji recipe takes besides its image: mark, headers, prompt, label, origin, row."""
MOST_RECORDS = 64
"""So many records of finished shards are read, spread over all."""


class Made(NamedTuple):
    """What the finished shards of a model took: bytes and seconds a request, of a worker on these devices."""

    shards: int
    bytes: float
    seconds: float
    devices: str


def measure(root: Path) -> dict[str, Made]:
    """What finished pool shards took, by model; empty where there are none."""
    folder, found = root / shards.POOL, dict[str, Made]()
    done = set(shards.records(folder))
    stems: dict[str, list[str]] = {}
    for shard in shards.load_plan(root):
        if shard.stem in done:
            stems.setdefault(shard.model, []).append(shard.stem)
    for model, own in stems.items():
        records = [shards.read_record(folder, stem) for stem in own[:: -(-len(own) // MOST_RECORDS)]]
        requests = sum(record["requested"] for record in records)
        found[model] = Made(
            len(own),
            sum(file["bytes"] for record in records for file in record["files"].values()) / requests,
            sum(record["seconds"] for record in records) / requests,
            ", ".join(sorted({record["stack"]["device"] for record in records})),
        )
    return found


class Planned(NamedTuple):
    """Requests of a model in the plan, and how many of them no finished shard holds."""

    requests: int
    left: int


def count_planned(root: Path) -> dict[str, Planned]:
    """What is planned, and what of it is left to make, by model."""
    done, found = set(shards.records(root / shards.POOL)), dict[str, Planned]()
    for shard in shards.load_plan(root):
        rows, before = shards.planned_rows(shard), found.get(shard.model, Planned(0, 0))
        left = 0 if shard.stem in done else rows
        found[shard.model] = Planned(before.requests + rows, before.left + left)
    return found


def sample_bytes(image_format: str, width: int, height: int, made: Made | None = None) -> float:
    """Bytes that a sample of the pool takes: as the model's finished shards say, else by the constants."""
    return made.bytes if made else BYTES_PER_MEGAPIXEL[image_format] * width * height / 1e6 + SAMPLE_BYTES


def gpu_hours(flops: float, dtype: str) -> dict[str, float]:
    """Hours that FLOPs take on one GPU of each kind, at `UTILISATION` of its peak for the dtype."""
    column = int(dtype == "float32")
    return {gpu: flops / (peak[column] * 1e12 * UTILISATION) / 3600 for gpu, peak in PEAKS.items()}


def spell_bytes(number: float) -> str:
    """A number of bytes for people: "3.1 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if number < 1000 else f"{number:,.0f} {unit}"


class Cells(NamedTuple):
    """How many cells there are, and the least and the most requests in one."""

    cells: int
    least: int
    most: int


def count_cells(cells: Mapping[str, Mapping[str, int]], model: str) -> Cells:
    """Of one model, from cell -> model -> requests."""
    own = [by_model.get(model, 0) for by_model in cells.values()]
    return Cells(len(own), min(own, default=0), max(own, default=0))


def plain(value: object) -> Any:
    """Named tuples as dicts, all the way down: what JSON takes."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(held) for name, held in value._asdict().items()}
    return [plain(held) for held in value] if isinstance(value, list) else value


class ModelCost(NamedTuple):
    """What a model's part of a dataset costs.

    FLOPs are None where `unknown` says why; hours are those of what is left to make. `is_guessed`: whether
    width and height are, because neither the recipe nor a count of FLOPs says them.
    """

    model: str
    path: str
    dtype: str
    requests: int
    left: int
    prompts: int
    cells: Cells
    width: int
    height: int
    is_guessed: bool
    flops_per_image: int | None
    flops_per_prompt: int | None
    unknown: str
    gpu_hours: dict[str, float] | None
    bytes_per_image: float
    made: Made | None
    lost: "list[Lost]"


class Cost(NamedTuple):
    """What a dataset costs: `left` and `pool_bytes` are what is left to make, `final_bytes` is all of it, if
    `final_part` of the requests is kept.

    With a quota of accepted images all this is of the requests that are known yet, and `budget` is how many
    there may be in the end; else it is 0.
    """

    recipe: str
    folder: str
    image_format: str
    per: list[str]
    requests: int
    left: int
    budget: int
    pool_bytes: float
    final_bytes: float
    final_part: float
    free_bytes: int | None
    utilisation: float
    models: list[ModelCost]
    cells: dict[str, dict[str, int]]
