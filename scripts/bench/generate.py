"""Images a second of generating, side by side: the bare batched pipeline call; synthgen end to end (claims,
encoding, tar, records, fsync); the usual loop that saves one image at a time; two workers against one.

All have the model in memory, the same requests and, on a CPU, one thread a process. Ratios are medians over
rounds; those of CPU time are shown beside, as other work on the machine hurts them less.

    python scripts/bench/generate.py --images 32 --rounds 4   # 4 minutes on two cores
    python scripts/bench/generate.py --model stabilityai/sd-turbo --dtype bfloat16 --steps 1 --guidance 0
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

import synthgen
from synthgen import shards
from synthgen.data import Request
from synthgen.engine import Worker
from synthgen.job import ALONE, Job
from synthgen.opening import open_job
from synthgen.stages import pool_units
from synthgen.workers.place import Place, device_name

Rate = tuple[float, float]  # images a second, and images a second of CPU time of all threads
OPTIONS: dict[str, tuple[int | float | str, str]] = {
    "rounds": (5, "how often each is measured"),
    "images": (64, "of a round and worker: one shard; a multiple of batch-size"),
    "model": ("embedded", "an absolute folder or a hub id"),
    "dtype": ("float32", "of the model"),
    "steps": (12, "denoising steps"),
    "guidance": (3.0, "guidance_scale"),
    "size": (0, "width and height; 0 is the model's own"),
    "batch-size": (16, "images a call"),
}
BARS = {"synthgen / bare": 0.95, "synthgen / usual loop": 0.0, "two workers / one worker": 1.7}


def measure(images: int, work: Callable[[], object]) -> Rate:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return images / (time.perf_counter() - start), images / (time.process_time() - cpu)


def plan(root: Path, options: argparse.Namespace, n_shards: int) -> list[str]:
    """Plans the requests of so many shards in `root` and returns their recipe's settings."""
    given = {key: getattr(options, key) for key in ("dtype", "steps", "guidance", "batch_size")}
    given |= {"path": options.model, "width": options.size, "height": options.size}
    settings = [f"models.0.{key}={value}" for key, value in given.items()]
    settings += [f"{key}={options.images}" for key in ("images.shard_size", "quota.requests")]
    synthgen.run("emoji", root, stages=("plan",), settings=settings, limit=n_shards * options.images)
    return settings


def load(root: Path, settings: list[str], place: Place = ALONE) -> tuple[Job, list[Request]]:
    """The job with its model loaded and called once, and the requests of its first shard."""
    job = open_job("emoji", root, settings=settings, limit=shards.planned_requests(root))
    job.place = place  # decides the GPU; on a CPU `job.device` sets one thread
    asked = shards.requests_of(shards.read_plan_shard(shards.load_plan(root)[0]))
    call(job, asked[: job.recipe.models[0].batch_size], "np")
    return job, asked


@torch.inference_mode()  # 1 % faster on a CPU; as synthgen calls it
def call(job: Job, batch: list[Request], output_type: str) -> Any:
    """The pipeline's own call, as its documentation has it."""
    given = {"num_inference_steps": batch[0].steps, "guidance_scale": batch[0].guidance}
    given |= {"width": batch[0].width, "height": batch[0].height} if batch[0].width else {}
    return job.pipeline(batch[0].model)(
        [request.text for request in batch],
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
        output_type=output_type,
        **given,
    ).images


def make_own(job: Job) -> None:
    """This worker's part of the shards, made by the loop that every worker runs."""
    Worker(job.root).work(pool_units(job)[job.place.rank :: job.place.world_size])


def compare(root: Path, options: argparse.Namespace) -> tuple[str, dict[str, list[Rate]]]:
    """The device's name, and the rates of the three ways in one process."""
    job, asked = load(root, plan(root, options, 1))
    loop, size = root.with_name("loop"), options.batch_size
    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: sum(len(call(job, asked[k : k + size], "np")) for k in range(0, len(asked), size)),
        "synthgen": lambda: make_own(job),
        "usual loop": lambda: [call(job, [one], "pil")[0].save(loop / f"{one.uid}.png") for one in asked],
    }
    rates: dict[str, list[Rate]] = {name: [] for name in ways}
    loop.mkdir()
    for number in range(options.rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            rates[name].append(measure(len(asked), ways[name]))
        shutil.rmtree(root / shards.POOL)
    return device_name(job.device), rates


def serve(root: Path, settings: list[str], rank: int, pipe: Connection) -> None:
    """One of two workers: makes its shard whenever it is asked to, and says how fast that was."""
    job, asked = load(root, settings, Place(rank, 2, rank))
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send(measure(len(asked), lambda: make_own(job)))


def compare_workers(root: Path, options: argparse.Namespace) -> dict[str, list[Rate]]:
    """The first worker alone, and both at once: the sum of their rates."""
    settings, context, pipes = plan(root, options, 2), multiprocessing.get_context("spawn"), []
    for rank in range(2):
        pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(root, settings, rank, theirs), daemon=True).start()
        theirs.close()  # so that a worker that dies ends the waiting
        pipes.append(pipe)
    assert [pipe.recv() for pipe in pipes] == ["ready", "ready"]
    rates: dict[str, list[Rate]] = {"one worker": [], "two workers": []}
    for number in range(options.rounds):
        for name, used in list(zip(rates, (pipes[:1], pipes), strict=True))[:: 1 if number % 2 else -1]:
            for pipe in used:
                pipe.send("go")
            wall, cpu = zip(*[pipe.recv() for pipe in used], strict=True)
            rates[name].append((sum(wall), sum(cpu)))
            shutil.rmtree(root / shards.POOL)
    for pipe in pipes:
        pipe.send("end")
    return rates


def report(found: dict[str, Any]) -> str:
    about = "{device}, torch {torch}, {dtype}, {rounds} x {images} images".format(**found)
    lines = [about, "", f"{'images a second (median)':26}    wall    CPU"]
    for name, each in found["rates"].items():
        lines.append(f"{name:26}{median(r[0] for r in each):8.2f}{median(r[1] for r in each):7.2f}")
    lines += ["", f"{'ratio (median of rounds)':26}    wall    CPU"]
    for name, (wall, cpu) in found["ratios"].items():
        met = f"  bar {BARS[name]}: {'met' if wall >= BARS[name] else 'MISSED'}" if BARS[name] else ""
        lines.append(f"{name:26}{wall:8.3f}{cpu:7.3f}{met}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, (value, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{text} ({value})")
    parser.add_argument("--json", action="store_true", help="one JSON object; rates are [wall, CPU]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="synthgen-bench-") as folder:
        device, rates = compare(Path(folder) / "run", options)
        if torch.cuda.device_count() != 1:  # two workers are for two GPUs, or for two cores
            rates |= compare_workers(Path(folder) / "shared", options)
    ratios = {}
    for above, below in [name.split(" / ") for name in BARS if name.split(" / ")[0] in rates]:
        pairs = list(zip(rates[above], rates[below], strict=True))
        ratios[f"{above} / {below}"] = [median(a[k] / b[k] for a, b in pairs) for k in (0, 1)]
    found = {**vars(options), "device": device, "torch": torch.__version__, "ratios": ratios, "rates": rates}
    print(json.dumps(found) if options.json else report(found))


if __name__ == "__main__":
    main()
