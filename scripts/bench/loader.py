"""Reading shards for training: samples/s against plain webdataset with the same decoding, in turns.

    python scripts/bench/loader.py
    python scripts/bench/loader.py --samples 5000 --side 256 --format jpg --workers 2

Makes shards of random pictures in the layout of `final/` (and removes them), then reads whole epochs: images
as tensors and class ids, in batches. Both sides run in this process or with as many workers, in turns; each
figure is the median of the rounds. With a subset that keeps 30 %, plain webdataset reads past the rest.
"""

import argparse
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from synthgen import tars
from synthgen.loader import open_loader
from synthgen.uids import sort_uids, uid_array


def make(folder: Path, options: argparse.Namespace) -> list[str]:
    """Shards of pictures with labels, captions and a json as ours; their uids."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    uids, sizes = [], {}
    for shard in range(options.shards):
        name, count = f"{shard:08d}.tar", options.samples // options.shards
        with open(folder / name, "wb") as file:
            for _ in range(count):
                uids.append(rng.bytes(16).hex())
                small = rng.integers(0, 256, (8, 8, 3), np.uint8)
                picture = Image.fromarray(small).resize(
                    (options.side, options.side), Image.Resampling.BICUBIC
                )
                sink = io.BytesIO()
                if options.format == "jpg":
                    picture.save(sink, "JPEG", quality=95, subsampling=0)
                else:
                    picture.save(sink, "WEBP", lossless=True, method=0)
                told = {"uid": uids[-1], "text": "a photo of a thing", "seed": 1, "note": "n" * 500}
                members = {options.format: sink.getvalue(), "txt": b"a photo of a thing", "cls": b"7"}
                tars.add_sample(file, uids[-1], members | {"json": json.dumps(told).encode()})
            tars.finish(file)
        sizes[name] = count
    (folder / "sizes.json").write_text(json.dumps(sizes))
    return uids


def decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the loader does with a sample, by itself."""
    data = sample.get("jpg") or sample["webp"]
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels.float() / 255, torch.tensor(int(sample["cls"]))


class KeptOnly:
    """Whether a sample of plain webdataset is in the subset."""

    def __init__(self, uids: Iterable[str]) -> None:
        self.uids = set(uids)

    def __call__(self, sample: dict[str, object]) -> bool:
        return sample["__key__"] in self.uids


def plain(folder: Path, options: argparse.Namespace, keep: KeptOnly | None = None) -> Iterable[object]:
    """Plain webdataset: the same batches, without an index, a subset, or a place to go on from."""
    dataset = webdataset.WebDataset(
        [str(path) for path in sorted(folder.glob("*.tar"))],
        shardshuffle=False,
        workersplitter=webdataset.split_by_worker,
        empty_check=False,
    )
    if keep is not None:
        dataset = dataset.select(keep)
    if options.shuffle:
        dataset = dataset.shuffle(10_000, seed=0)
    return torch.utils.data.DataLoader(
        dataset.map(decode), batch_size=options.batch_size, num_workers=options.workers
    )


def seconds(batches: Iterable[object], expected: int) -> float:
    start, count = time.perf_counter(), 0
    for images, _ in batches:  # type: ignore[misc]
        count += len(images)
    assert count == expected, f"{count} of {expected} samples came"
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--format", choices=["jpg", "webp"], default="jpg")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("webdataset").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "train"
        uids = make(folder, options)
        kept = sorted(np.random.default_rng(1).permutation(uids)[: len(uids) * 3 // 10].tolist())
        np.save(Path(scratch) / "kept.npy", sort_uids(uid_array(kept)))
        keys = {"batch_size": options.batch_size, "workers": options.workers, "shuffle": options.shuffle}
        sides: dict[str, tuple[Callable[[], Iterable[object]], int]] = {
            "webdataset": (lambda: plain(folder, options), len(uids)),
            "open_loader": (lambda: open_loader(folder, **keys), len(uids)),
            "webdataset, 30 % kept": (lambda: plain(folder, options, KeptOnly(kept)), len(kept)),
            "open_loader, 30 % kept": (
                lambda: open_loader(folder, **keys, subset=Path(scratch) / "kept.npy"), len(kept),
            ),
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, (opened, expected) in sides.items():
                times[name].append(seconds(opened(), expected))
    print(f"{options.samples} samples, {options.side} pixels, {options.format}, {options.workers} workers")
    for name, own in times.items():
        print(f"{name}: {sides[name][1] / statistics.median(own):.0f} samples/s")
    for suffix in ("", ", 30 % kept"):
        ratio = statistics.median(times[f"webdataset{suffix}"]) / statistics.median(
            times[f"open_loader{suffix}"]
        )
        print(f"open_loader / webdataset{suffix}: {ratio:.2f}")


if __name__ == "__main__":
    main()
