"""Images a second of generating: the bare batched pipeline call, synthgen end to end (claims, seeds, encoding,
tar, records, fsync), and the usual loop that saves one image at a time; then two workers against one.

All have the same model in memory, the same requests and, on a CPU, one thread a process. Rounds take turns in
alternating order, and ratios are medians over rounds, so that a noisy machine does them little harm.

    python scripts/bench/generate.py                      # TIME on two cores
    python scripts/bench/generate.py --model stabilityai/sd-turbo --dtype bfloat16 --steps 1 --guidance 0 \\
        --size 512 --batch-size 16 --images 256 --shard-size 256
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import synthgen
from synthgen import shards
from synthgen.engine import Worker
from synthgen.generation.sampling import sample
from synthgen.job import Job
from synthgen.pipeline import open_job
from synthgen.stages import pool_units
from synthgen.workers.place import Place

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from synthgen.data import Request

BARE_BAR, WORKERS_BAR = 0.95, 1.7


class Rate(NamedTuple):
    """Images a second, and images a second of CPU time (of all threads), which other processes do not slow."""

    wall: float
    cpu: float


def rate(images: int, work: Callable[[], None]) -> Rate:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return Rate(images / (time.perf_counter() - start), images / (time.process_time() - cpu))


def plan(root: Path, options: argparse.Namespace, images: int) -> list[str]:
    """Plans so many requests in `root`; returns the settings of their recipe."""
    given = {"path": options.model, "dtype": options.dtype, "steps": options.steps}
    given |= {"guidance": options.guidance, "batch_size": options.batch_size}
    given |= {"width": options.size, "height": options.size} if options.size else {}
    settings = [f"models.0.{key}={value}" for key, value in given.items()]
    settings += [f"images.format={options.format}", f"images.shard_size={options.shard_size}"]
    settings += [f"quota.requests={images}"]  # of each class, of which the limit takes a balanced part
    synthgen.run("emoji", root, stages=("plan",), settings=settings, limit=images)
    return settings


def load(root: Path, settings: list[str], images: int, place: Place = Place(0, 1)) -> Job:
    """The job, its model loaded and called once."""
    job = open_job("emoji", root, settings=settings, limit=images)
    job.place = place
    job.device  # noqa: B018 on a CPU this sets one thread
    batch_size = job.recipe.models[0].batch_size
    sample(job.pipeline(job.recipe.models[0].id), requests(job)[:batch_size], batch_size=batch_size)
    return job


def requests(job: Job) -> "list[Request]":
    return [
        row
        for shard in shards.load_plan(job.root)
        for row in shards.requests_of(shards.read_plan_shard(shard))
    ]


def call(pipe: "DiffusionPipeline", batch: "list[Request]", output_type: str) -> object:
    """The pipeline's own call, as its documentation has it."""
    import torch

    return pipe(
        [request.text for request in batch],
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
        num_inference_steps=batch[0].steps,
        guidance_scale=batch[0].guidance,
        width=batch[0].width or None,
        height=batch[0].height or None,
        output_type=output_type,
    ).images


def bare(job: Job, asked: "list[Request]", size: int) -> None:
    pipe = job.pipeline(asked[0].model)
    for start in range(0, len(asked), size):
        call(pipe, asked[start : start + size], "np")


def usual_loop(job: Job, asked: "list[Request]", folder: Path) -> None:
    pipe = job.pipeline(asked[0].model)
    folder.mkdir()
    for number, request in enumerate(asked):
        call(pipe, [request], "pil")[0].save(folder / f"{number}.png")


def make_own(job: Job) -> None:
    """This worker's part of the shards, in the loop that every worker runs."""
    Worker(job.root).work(pool_units(job)[job.place.rank :: job.place.world_size])


def side_by_side(root: Path, options: argparse.Namespace) -> tuple[Job, dict[str, list[Rate]]]:
    job = load(root, plan(root, options, options.images), options.images)
    asked, loop = requests(job), root.parent / "loop"
    ways: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(job, asked, options.batch_size),
        "synthgen": lambda: make_own(job),
        "usual loop": lambda: usual_loop(job, asked, loop),
    }
    rates: dict[str, list[Rate]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            rates[name].append(rate(len(asked), ways[name]))
        shutil.rmtree(root / shards.POOL)
        shutil.rmtree(loop)
    return job, rates


def serve(root: Path, settings: list[str], images: int, place: Place, pipe: Connection) -> None:
    """A worker process: for each word from the parent it makes its part and says how fast that was."""
    job = load(root, settings, images, place)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(rate(images // place.world_size, lambda: make_own(job)))


def workers(root: Path, options: argparse.Namespace) -> dict[str, list[Rate]]:
    """Both work at their own part, or the first alone at its part; a pair's rate is the sum of its two."""
    settings, pipes = plan(root, options, 2 * options.images), []
    context = multiprocessing.get_context("spawn")
    for rank in range(2):
        pipe, other = context.Pipe()
        arguments = (root, settings, 2 * options.images, Place(rank, 2, rank), other)
        context.Process(target=serve, args=arguments, daemon=True).start()
        pipes.append(pipe)
    assert [pipe.recv() for pipe in pipes] == ["ready", "ready"]
    rates: dict[str, list[Rate]] = {"one worker": [], "two workers": []}
    for number in range(options.rounds):
        for name, used in list(zip(rates, (pipes[:1], pipes), strict=True))[:: 1 if number % 2 else -1]:
            for pipe in used:
                pipe.send("go")
            found: list[Rate] = [pipe.recv() for pipe in used]
            rates[name].append(Rate(sum(r.wall for r in found), statistics.mean(r.cpu for r in found)))
            shutil.rmtree(root / shards.POOL)
    for pipe in pipes:
        pipe.send("")
    return rates


def ratio(rates: dict[str, list[Rate]], above: str, below: str, field: int = 0) -> float:
    return round(
        statistics.median(a[field] / b[field] for a, b in zip(rates[above], rates[below], strict=True)), 3
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="images a round and worker")
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--model", default="embedded", help="a folder or a hub id")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=0, help="width and height; 0 is the model's own")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--format", default="webp")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
