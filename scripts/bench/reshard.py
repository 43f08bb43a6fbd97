"""How fast final shards are written from a pool of small samples, one process, beside the reference's way.

    python scripts/bench/reshard.py                        # 20,000 samples of about 4 kB, 30 s
    python scripts/bench/reshard.py --rows 1000000         # only the cut of so many rows: seconds, memory

The plain way is what DataComp's resharder does: webdataset reads every member of every sample of the pool,
the json says the uid, a binary search in the subset how often it is wanted, and webdataset's TarWriter
writes it. Ours has fsync and sha256 of what it writes in its time. Both keep the same half of the pool, and
all of it.
"""

import argparse
import bisect
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from synthgen import claims, resharding, shards, storage, tars
from synthgen.resharding import Part, Settings
from synthgen.uids import sort_uids, uid_array

PER_SHARD = 1_000
MEMBER_BYTES = 2_600, 3_800
"""Of an image; with headers, prompt and json a sample takes about 6 kB of an archive."""


def make_pool(root: Path, samples: int) -> list[str]:
    """A pool of so many samples of random bytes, as the pool's columns and archives have them."""
    stems, dice = [], np.random.default_rng(0)
    for first in range(0, samples, PER_SHARD):
        stem = shards.shard_name(first // PER_SHARD)
        count = min(PER_SHARD, samples - first)
        uids = [hashlib.md5(str(first + k).encode()).hexdigest() for k in range(count)]
        offsets = []
        path = root / shards.POOL / f"{stem}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as tar:
            for k, uid in enumerate(uids):
                members = {
                    "jpg": dice.bytes(int(dice.integers(*MEMBER_BYTES))),
                    "txt": f"a photo of thing number {first + k}, on grass".encode(),
                    "json": json.dumps({"uid": uid, "text": "a photo " * 30, "seed": k}).encode(),
                }
                offsets.append(tars.add_sample(tar, uid, members)["jpg"].offset)
            tars.finish(tar)
        write_rows(root, stem, uids, offsets)
        storage.write(shards.record_path(root / shards.POOL, stem), storage.to_json({"successes": count}))
        stems.append(stem)
    return stems


def write_rows(root: Path, stem: str, uids: list[str], offsets: list[int]) -> None:
    number = [int(uid[:6], 16) for uid in uids]
    table = pa.table(
        {
            "uid": uids,
            "error": pa.nulls(len(uids), pa.string()),
            "image_offset": pa.array(offsets, pa.int64()),
            "class_id": pa.array([k % 1000 for k in number], pa.int32()),
            "class_name": [f"class {k % 1000}" for k in number],
            "group": [uid[:16] for uid in uids],
            "text": [f"a photo of thing number {k}, on grass" for k in number],
        }
    )
    storage.write(root / shards.POOL / f"{stem}.parquet", shards.to_parquet([table]))


def ours(root: Path, stems: list[str], subset: npt.NDArray[np.void], out: Path, order: str) -> int:
    settings = Settings({"train": 1.0}, order=order, shard_size=10_000)  # type: ignore[arg-type]
    part = Part("bench", root, stems, [], subset)
    output = resharding.cut_parts([part], {}, settings)
    for shard in output.shards:
        with claims.claim(out, f"final/{shard.stem}") as claim:
            assert claim
            resharding.write_shard(
                out, out / "final", shard, output.chosen, output.added, record={}, claim=claim
            )
    keys = resharding.check_written(
        output, lambda shard: shards.read_record(out / "final" / shard.split, shard.stem)
    )
    return len(keys)


def plain(root: Path, stems: list[str], subset: npt.NDArray[np.void], out: Path) -> int:
    """What the reference does, with webdataset's reader and writer."""
    import webdataset

    wanted = [(int(high), int(low)) for high, low in subset.tolist()]
    urls = [str(root / shards.POOL / f"{stem}.tar") for stem in stems]
    out.mkdir(parents=True)
    count, sink = 0, None
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        uid = json.loads(sample["json"])["uid"]
        pair = int(uid[:16], 16), int(uid[16:], 16)
        first, last = bisect.bisect_left(wanted, pair), bisect.bisect_right(wanted, pair)
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        for copy in range(last - first):
            if count % 10_000 == 0:
                if sink:
                    sink.close()
                sink = webdataset.TarWriter(str(out / f"{count // 10_000:08d}.tar"), encoder=False)
            sink.write({"__key__": f"{uid}-{copy}", **members})  # type: ignore[union-attr]
            count += 1
    if sink:
        sink.close()
    return count


WAYS: dict[str, Callable[..., int]] = {
    "shuffle": partial(ours, order="shuffle"),
    "blocks": partial(ours, order="blocks"),
    "plain (webdataset)": plain,
}


def measure(name: str, function: Callable[[], int]) -> None:
    """Prints samples a second of wall and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:34}{count:8,} samples {wall:6.2f} s {cpu:6.2f} CPU-s {count / wall:10,.0f}/s "
        f"{count / cpu:10,.0f}/CPU-s, at most {memory:,.0f} MB",
        flush=True,
    )


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.tar")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def compare(samples: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pool"
        stems = make_pool(root, samples)
        uids = [
            uid
            for stem in stems
            for uid in shards.read_table(root / "pool" / f"{stem}.parquet")["uid"].to_pylist()
        ]
        subset = sort_uids(uid_array(uids))
        size = sum((root / "pool" / f"{stem}.tar").stat().st_size for stem in stems)
        print(f"{samples:,} samples, {size / samples:,.0f} bytes each with headers, {len(stems)} pool shards")
        half = subset[: samples // 2]
        for part, chosen in (("all", subset), ("half", half)):
            for turn in range(rounds):
                for kind, make in WAYS.items():
                    out = Path(folder) / f"{kind} {part} {turn}"
                    measure(f"{part}: {kind}", partial(make, root, stems, chosen, out))
            for order in ("shuffle", "blocks"):
                found = {digest(Path(folder) / f"{order} {part} {turn}") for turn in range(rounds)}
                print(f"{part}: {order}: {len(found)} distinct output in {rounds} rounds")
        data = os.urandom(size)
        start = time.perf_counter()
        hashlib.sha256(data).hexdigest()
        hashed = time.perf_counter() - start
        with open(Path(folder) / "bare", "wb") as file:
            start = time.perf_counter()
            file.write(data)
            written = time.perf_counter() - start
            os.fsync(file.fileno())
            synced = time.perf_counter() - start - written
        print(
            f"{size / 1e6:,.0f} MB: sha256 {hashed:.2f} s, write {written:.2f} s, fsync {synced:.2f} s alone"
        )


def cut_only(rows: int) -> None:
    """The cut of many rows, which every worker computes: no archive is read."""
    with tempfile.TemporaryDirectory() as folder:
        root, stems, subset = Path(folder), [], []
        for first in range(0, rows, PER_SHARD):
            stem, dice = shards.shard_name(first // PER_SHARD), np.random.default_rng(first)
            raw = dice.bytes(16 * min(PER_SHARD, rows - first)).hex()
            uids = [raw[k : k + 32] for k in range(0, len(raw), 32)]
            write_rows(root, stem, uids, [512 + 6144 * k for k in range(len(uids))])
            (root / "pool" / f"{stem}.tar").touch()
            stems.append(stem)
            subset += uids
        storage.write(root / "subset.npy", shards.to_npy(sort_uids(uid_array(subset))))
        del subset
        for kind in ("no split", "by hash", "stratified"):
            subprocess.run([sys.executable, __file__, "--cut", folder, kind], check=True)


def cut_once(root: Path, kind: str) -> None:
    stems = [path.stem for path in sorted((root / "pool").glob("*.parquet"))]
    settings = {
        "no split": Settings({"train": 1.0}),
        "by hash": Settings({"train": 0.9, "val": 0.1}),
        "stratified": Settings({"train": 0.8, "val": 0.1, "test": 0.1}, stratify=["class_name"]),
    }[kind]
    subset = shards.read_npy(root / "subset.npy")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    part = Part("bench", root, stems, [], subset)
    wall, cpu = time.perf_counter(), time.process_time()
    output = resharding.cut_parts([part], {}, settings)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"cut of {len(subset):,} rows, {kind:10}: {wall:5.2f} s, {cpu:5.2f} CPU-s, "
        f"{len(output.shards)} shards, at most {after:,.0f} MB ({before:,.0f} before)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, help="measure the cut of so many rows instead")
    parser.add_argument("--cut", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cut:
        cut_once(Path(options.cut[0]), options.cut[1])
    elif options.rows:
        cut_only(options.rows)
    else:
        compare(options.samples, options.rounds)


if __name__ == "__main__":
    main()
