"""Imports, curates and reshards an img2dataset folder and a plain webdataset in place: bytes of index, speed.

python scripts/bench/importing.py                       # 100,000 samples each, about 5 minutes
python scripts/bench/importing.py --samples 2000        # a look

Everything is made in a temporary folder; `--keep DIR` makes it there.
"""

import argparse
import hashlib
import io
import json
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import synthgen
from synthgen import shards
from synthgen.intake import bring

RECIPE = """
name = "bench"

[[select]]
use = "top"
column = "clip_l14_similarity_score"
fraction = 0.3
of = "pool"

[[select]]
use = "range"
column = "original_width"
minimum = 350
"""
SIDE, EACH = 64, 10_000


def jpegs(count: int) -> list[bytes]:
    """Different small images: smooth, so that their files have the size of photos of that many pixels."""
    random, found = np.random.default_rng(0), []
    for pixels in random.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8):
        sink = io.BytesIO()
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        found.append(sink.getvalue())
    return found


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def make_img2dataset(folder: Path, images: list[bytes]) -> None:
    random = np.random.default_rng(1)
    for number, start in enumerate(range(0, len(images), EACH)):
        members, rows = list[tuple[str, bytes]](), []
        for k, image in enumerate(images[start : start + EACH]):
            key = f"{number * 10_000 + k:012d}"
            told = {
                "uid": hashlib.md5(key.encode()).hexdigest(),
                "caption": f"a photo of thing {start + k} somewhere",
                "url": f"https://example.org/{start + k}.jpg", "key": key, "status": "success",
                "error_message": None, "width": SIDE, "height": SIDE,
                "original_width": int(random.integers(200, 1000)), "original_height": 400, "exif": "{}",
                "sha256": hashlib.sha256(image).hexdigest(),
            }  # fmt: skip
            members += [(f"{key}.jpg", image), (f"{key}.json", json.dumps(told, indent=4).encode())]
            members.append((f"{key}.txt", str(told["caption"]).encode()))
            rows.append(told)
        path = folder / f"{number:08d}.tar"
        tar(path, members)
        scores = pa.array(random.normal(0.2, 0.05, len(rows)), pa.float32())
        table = pa.Table.from_pylist(rows).append_column("clip_l14_similarity_score", scores)
        pq.write_table(table, path.with_suffix(".parquet"))


def make_webdataset(folder: Path, images: list[bytes]) -> None:
    random = np.random.default_rng(2)
    for number, start in enumerate(range(0, len(images), EACH)):
        members = list[tuple[str, bytes]]()
        for k, image in enumerate(images[start : start + EACH]):
            key = f"{number:03d}_{k:05d}"
            told = {
                "clip_l14_similarity_score": float(random.normal(0.2, 0.05)),
                "original_width": int(SIDE * 7),
            }
            members += [(f"{key}.jpg", image), (f"{key}.json", json.dumps(told).encode())]
            members.append((f"{key}.cls", str(k % 100).encode()))
        tar(folder / f"{number:06d}.tar", members)


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        found.update(f"{path.name} {path.stat().st_mtime_ns}".encode() + path.read_bytes())
    return found.hexdigest()


def timed(what: str, samples: int, act: Callable[[], object]) -> None:
    wall, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    act()
    wall, after = time.monotonic() - wall, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    print(
        f"  {what:9} {samples / wall:9,.0f} samples/s, {samples / cpu:9,.0f} a CPU second ({wall:.1f} s)",
        flush=True,
    )


def measure(folder: Path, name: str, samples: int) -> None:
    source, root, recipe = folder / name, folder / f"{name}-pool", folder / "recipe.toml"
    recipe.write_text(RECIPE)
    before, size = digest(source), sum(path.stat().st_size for path in source.glob("*.tar"))
    print(f"{name}: {samples:,} samples in {size / 1e6:,.0f} MB of tars")
    timed("import", samples, lambda: bring([source], root, workers=1))
    index = sum(path.stat().st_size for path in root.rglob("*.parquet"))
    print(f"  index     {index / samples:9.1f} bytes a sample, {100 * index / size:.2f} % of the tars")
    timed("again", samples, lambda: bring([source], root, workers=1))
    timed("select", samples, lambda: synthgen.run(recipe, root, stages=("select",), workers=1))
    kept = len(shards.read_npy(root / "subsets" / "main.npy"))
    timed("reshard", kept, lambda: synthgen.run(recipe, root, stages=("reshard",), workers=1))
    timed("verify", samples, lambda: print(*synthgen.verify(root), end=""))
    written = sum(path.stat().st_size for path in root.rglob("*.tar"))
    print(f"  kept {kept:,}; final/ holds {written / 1e6:,.0f} MB, the pool no tar: ", end="")
    print(f"{not list((root / 'pool').glob('*.tar'))}; the source is unchanged: {digest(source) == before}")
    shutil.rmtree(root)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    options.add_argument("--samples", type=int, default=100_000, metavar="N", help="of each source")
    options.add_argument("--keep", metavar="DIR", help="make everything there, and leave it")
    given = options.parse_args()
    folder = Path(given.keep or tempfile.mkdtemp(prefix="synthgen-bench-"))
    folder.mkdir(exist_ok=True)
    images = jpegs(given.samples)
    make_img2dataset(folder / "img2dataset", images)
    make_webdataset(folder / "webdataset", images)
    for name in ("img2dataset", "webdataset"):
        measure(folder, name, given.samples)
    if not given.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
