"""Images a second of annotating, side by side in one process.

`clip`: synthgen's unit (read, decode, preprocess, model, parquet, npz, record) and the bare loop of decoding,
preprocessing and model at the same batch size, or on a GPU the bare model whose images are there already.
Weights are random, of any size that open_clip knows; each image has a prompt of its own.

`pixels`: pHash and the statistics of `image` on decoded arrays, and `imagehash.phash` alone on the same.

    python scripts/bench/annotate.py --images 128 --batch-size 32 --rounds 3   # 3 minutes on two cores
    python scripts/bench/annotate.py --device cuda --model ViT-L-14 --images 4096 --decoders 15
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow as pa
import torch
from PIL import Image

from synthgen import claims, shards, tars
from synthgen.annotators import ANNOTATORS, COLUMNS
from synthgen.annotators.hashes import compare, shrink
from synthgen.annotators.shard import Annotation, annotate_shard
from synthgen.data import Category, Sample
from synthgen.embedded import clip_folder
from synthgen.workers.place import device_name

Rate = tuple[float, float]  # images a second, and images a second of CPU time of all threads
OPTIONS: dict[str, tuple[int | str, str]] = {
    "rounds": (3, "how often each is measured"),
    "images": (128, "in the shard"),
    "size": (512, "width and height"),
    "model": ("ViT-B-32", "a name of open_clip, with random weights; or embedded"),
    "batch-size": (64, "images a call"),
    "device": ("cpu", "or cuda"),
    "threads": (1, "CPU threads of torch"),
    "decoders": (0, "threads that decode beside; on a GPU as many as there are cores"),
}
BARS = {"clip / bare": 0.95, "pixels / imagehash": 10.0}
CLASSES = [Category(k, name, name) for k, name in enumerate(("cat", "dog", "owl"))]


def measure(images: int, work: Callable[[], object]) -> Rate:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return images / (time.perf_counter() - start), images / (time.process_time() - cpu)


def picture(random: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """Something between a photograph and noise."""
    coarse = Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + random.integers(-8, 9, (size, size, 3)), 0, 255).astype(np.uint8)


def make_pool(root: Path, options: argparse.Namespace) -> tuple[list[bytes], list[str]]:
    """A pool shard of JPEGs with a prompt each; returns these."""
    random, rows, images = np.random.default_rng(0), [], []
    (root / shards.POOL).mkdir(parents=True)
    with (root / shards.POOL / "00000000.tar").open("wb") as file:
        for k in range(options.images):
            sink, own = io.BytesIO(), CLASSES[k % len(CLASSES)]
            Image.fromarray(picture(random, options.size)).save(sink, "JPEG", quality=95, subsampling=0)
            images.append(sink.getvalue())
            row = {"uid": f"{k:032x}", "class_id": own.id, "class_name": own.name, "error": None}
            row["text"] = f"a photo of a {own.name} that is number {k} on its list"
            member = tars.add_sample(file, row["uid"], {"jpg": images[-1]})["jpg"]
            rows.append(row | {"image_offset": member.offset, "image_bytes": member.size})
        tars.finish(file)
    table = pa.Table.from_pylist(rows).set_column(3, "error", pa.nulls(len(rows), pa.string()))
    (root / shards.POOL / "00000000.parquet").write_bytes(shards.to_parquet([table]))
    return images, table["text"].to_pylist()


def make_model(folder: Path, name: str) -> str:
    """A folder with random weights of a model of open_clip."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = open_clip.create_model(name).state_dict()
    folder.mkdir()
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / "open_clip_model.safetensors"
    )
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def compare_clip(root: Path, options: argparse.Namespace) -> dict[str, list[Rate]]:
    images, texts = make_pool(root, options)
    is_embedded = options.model == "embedded"
    model = str(clip_folder()) if is_embedded else make_model(root / "model", options.model)
    own = ANNOTATORS["clip"](device=options.device, classes=CLASSES, model=model)
    name = f"local-dir:{model}"
    network, preprocess = open_clip.create_model_from_pretrained(name, device=options.device)
    network.eval()
    tokenize, size = open_clip.get_tokenizer(name), options.batch_size
    starts = range(0, len(images), size)
    ready = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in images[:size]]).to(
        options.device
    )

    def synthgen() -> None:
        with claims.claim(root, "annotations/00000000") as claim:
            assert claim
            annotation = Annotation("clip", own, COLUMNS["clip"], size, {})
            annotate_shard(root, "00000000", [annotation], {}, claim=claim, decoders=options.decoders)

    @torch.inference_mode()
    def bare() -> None:
        for start in starts:
            some = images[start : start + size]
            pixels = ready
            if options.device == "cpu":
                pixels = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in some])
            features = network.encode_image(pixels, normalize=True)
            tokens = tokenize(texts[start : start + size]).to(options.device)
            (features * network.encode_text(tokens, normalize=True)).sum(1).cpu()

    rates: dict[str, list[Rate]] = {"bare": [], "clip": []}
    ways = {"bare": bare, "clip": synthgen}
    for number in range(options.rounds + 1):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            rate = measure(len(images), ways[way])
            if number:  # the first round warms up
                rates[way].append(rate)
        shutil.rmtree(root / shards.ANNOTATIONS)
    return rates


def compare_pixels(options: argparse.Namespace) -> dict[str, list[Rate]]:
    import imagehash

    random = np.random.default_rng(0)
    images = [picture(random, options.size) for _ in range(32)]
    statistics = ANNOTATORS["image"](device="cpu")

    def synthgen() -> None:
        samples = [Sample("", 0, "a", "a", image, b"") for image in images]
        statistics(samples)
        compare(np.stack([shrink(sample.luma) for sample in samples]))

    def phash() -> None:
        samples = [Sample("", 0, "a", "a", image, b"") for image in images]
        compare(np.stack([shrink(sample.luma) for sample in samples]))

    ways: dict[str, Callable[[], object]] = {
        "imagehash": lambda: [imagehash.phash(Image.fromarray(image)) for image in images],
        "pHash alone": phash,
        "pixels": synthgen,
    }
    rates: dict[str, list[Rate]] = {name: [] for name in ways}
    for _ in range(5 * options.rounds):
        for name, way in ways.items():
            rates[name].append(measure(len(images), way))
    return rates


def report(found: dict[str, Any]) -> str:
    about = "{device}, torch {torch}, {model}, batches of {batch_size}, {rounds} x {images} x {size} pixels"
    lines = [about.format(**found), "", f"{'images a second (median)':26}    wall     CPU"]
    for name, each in found["rates"].items():
        lines.append(f"{name:26}{median(r[0] for r in each):8.1f}{median(r[1] for r in each):8.1f}")
    lines += ["", f"{'ratio (median of rounds)':26}    wall     CPU"]
    for name, (wall, cpu) in found["ratios"].items():
        bar = BARS[name]
        reached = wall if found["device"].startswith("cuda") else cpu
        lines.append(f"{name:26}{wall:8.3f}{cpu:8.3f}  bar {bar}: {'met' if reached >= bar else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, (value, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{text} ({value})")
    parser.add_argument("--json", action="store_true", help="one JSON object; rates are [wall, CPU]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="synthgen-bench-") as folder:
        rates = compare_clip(Path(folder) / "run", options) | compare_pixels(options)
    ratios = {}
    for above, below in [name.split(" / ") for name in BARS]:
        pairs = list(zip(rates[above], rates[below], strict=True))
        ratios[f"{above} / {below}"] = [median(a[k] / b[k] for a, b in pairs) for k in (0, 1)]
    found = {**vars(options), "torch": torch.__version__, "ratios": ratios, "rates": rates}
    found["device"] = device_name(options.device)
    print(json.dumps(found) if options.json else report(found))


if __name__ == "__main__":
    main()
