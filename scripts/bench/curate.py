"""What curation costs: CPU seconds and greatest memory of each part, beside a plain row-by-row program that
does what DataComp's baselines.py does, in one run.

    python scripts/bench/curate.py                       # all parts: 10 min, 3 GB of disk
    python scripts/bench/curate.py --parts top --rows 1000000
    python scripts/bench/curate.py --small               # each part for a moment

Data is made first, in shards of 100,000 rows (DataComp's have 490,000); then each part runs in a process of
its own, which reads it. The plain program reads the same files; of `top` it gets a tenth of the rows, and its
time is multiplied. The start of Python and its libraries counts for none.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from synthgen import shards, wordnet
from synthgen.pools import PoolColumns
from synthgen.selection import Rule, columns_read, select
from synthgen.selection.datacomp import imagenet_offsets
from synthgen.selection.duplicates import duplicates
from synthgen.selection.funnel import KEPT
from synthgen.selection.histograms import Part, is_within, top_bound
from synthgen.uids import sort_uids, uid_strings

SHARD = 100_000
COMMON = "a the of with and in on for new old red under over my your this that it by from at how what best"
THINGS = "small photo image picture dog cat car house mountain river woman man chair table shirt print art"
RARER = "vintage beautiful amazing happy running painted framed made 2019 sale free quickly design set pack"
WORDS = f"{COMMON} {THINGS} {RARER}".split()
REFERENCE = {"top": 6.7, "basic": 9.3, "text": 24.0}
"""CPU seconds of DataComp's own program, measured once: 1M rows, 1M rows, 50,000 rows."""


def uids(n: int, random: np.random.Generator) -> pa.Array:
    text = random.bytes(16 * n).hex().encode()
    offsets = np.arange(0, 32 * n + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


def make_pool(root: Path, rows: int) -> None:
    """Shards of a pool with captions, and of an annotation `clip` with a score."""
    for folder in (root / "pool", root / "annotations" / "clip"):
        folder.mkdir(parents=True)
    random, vocabulary = np.random.default_rng(0), np.array(WORDS, dtype=object)
    classes = pa.array([f"class {k}" for k in range(1000)])
    for number, start in enumerate(range(0, rows, SHARD)):
        n = min(SHARD, rows - start)
        lengths = random.integers(1, 16, n)
        words = pa.array(vocabulary[random.integers(0, len(WORDS), int(lengths.sum()))])
        lists = pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), words)
        ids = random.integers(0, 1000, n).astype(np.int32)
        pool = {
            "uid": uids(n, random),
            "error": pa.nulls(n, pa.string()),
            "class_id": ids,
            "class_name": classes.take(pa.array(ids)),
            "text": pa.compute.binary_join(lists, " "),
            "language_code": pa.array(np.array(["en", "fr"], dtype=object)[random.integers(0, 8, n) // 7]),
            "original_width": random.integers(100, 1000, n).astype(np.int32),
            "original_height": random.integers(100, 1000, n).astype(np.int32),
            "hashes_phash": random.integers(0, 2**63, n, dtype=np.uint64),
        }
        stem = shards.shard_name(number)
        pq.write_table(pa.table(pool), root / "pool" / f"{stem}.parquet", compression="zstd")
        score = {"clip_l14_similarity_score": random.normal(0.2, 0.05, n).astype(np.float32)}
        pq.write_table(pa.table(score), root / "annotations" / "clip" / f"{stem}.parquet", compression="zstd")


def stems(root: Path, rows: int) -> list[str]:
    return [shards.shard_name(k) for k in range(-(-rows // SHARD))]


def curate(root: Path, rows: int, *rules: Rule) -> dict[str, Any]:
    """What `synthgen select` does from files to the array of a subset."""
    columns = PoolColumns(root, stems(root, rows), ["clip"])
    columns.read(["uid", "error"])
    columns.read(name for rule in rules for name in columns_read(rule, columns).values())
    chosen = select(columns, rules)
    pairs = columns.uids[chosen.verdict == KEPT]
    return {"kept": len(sort_uids(pairs))}


def plain_rows(root: Path, rows: int, *names: str) -> Iterator[tuple[Any, ...]]:
    for stem in stems(root, rows):
        tables = {
            name: root / ("annotations/clip" if name == SCORE else "pool") / f"{stem}.parquet"
            for name in names
        }
        columns = [pq.read_table(path, columns=[name])[name].to_pylist() for name, path in tables.items()]
        yield from zip(*columns, strict=True)


SCORE = "clip_l14_similarity_score"


def plain_subset(uids: list[str], keep: list[bool]) -> dict[str, Any]:
    """As there: the uids of all rows become numbers, those become pairs, then some are chosen."""
    whole = [int(uid, base=16) for uid in uids]
    upper = np.array([number // 2**64 for number in whole], np.uint64)
    lower = np.array([number % 2**64 for number in whole], np.uint64)
    pairs = np.array(list(zip(upper, lower, strict=True)), np.dtype("u8,u8"))[keep]
    pairs.sort()
    return {"kept": len(pairs)}


def top(root: Path, rows: int) -> dict[str, Any]:
    return curate(root, rows, Rule("datacomp_clip_score", {"column": SCORE, "fraction": 0.3}))


def plain_top(root: Path, rows: int) -> dict[str, Any]:
    scores = [score for (score,) in plain_rows(root, rows, SCORE)]
    threshold = sorted(scores, reverse=True)[int(len(scores) * 0.3)]
    every = list(plain_rows(root, rows, "uid", SCORE))
    return plain_subset([uid for uid, _ in every], [score >= threshold for _, score in every])


def top_per_class(root: Path, rows: int) -> dict[str, Any]:
    return curate(root, rows, Rule("top", {"column": SCORE, "fraction": 0.3, "per": "class"}))


BASIC = {
    "text": "text",
    "language": "language_code",
    "width": "original_width",
    "height": "original_height",
}


def basic(root: Path, rows: int) -> dict[str, Any]:
    return curate(root, rows, Rule("datacomp_basic", dict(BASIC)))


def plain_basic(root: Path, rows: int) -> dict[str, Any]:
    def passes(text: str, language: str, width: int, height: int) -> bool:
        words, characters = len(text.split()), len(text)
        least, most = min(width, height), max(width, height)
        return language == "en" and words > 2 and characters > 5 and least >= 200 and most / least <= 3.0

    every = list(plain_rows(root, rows, "uid", *BASIC.values()))
    return plain_subset([uid for uid, *_ in every], [passes(*values) for _, *values in every])


def text(root: Path, rows: int) -> dict[str, Any]:
    return curate(root, rows, Rule("datacomp_text_based", {"text": "text", "language": "language_code"}))


def plain_text(root: Path, rows: int) -> dict[str, Any]:
    ids = sorted(imagenet_offsets())  # a list, as there

    def is_class(word: str) -> bool:
        offset = wordnet.first_offset.__wrapped__(word)
        return offset is not None and offset in ids

    every = list(plain_rows(root, rows, "uid", "text", "language_code"))
    keep = [language == "en" and any(map(is_class, text.split())) for _, text, language in every]
    return plain_subset([uid for uid, *_ in every], keep)


def four_rules(root: Path, rows: int) -> dict[str, Any]:
    return curate(
        root,
        rows,
        Rule("range", {"column": SCORE, "minimum": 0.15}),
        Rule("duplicates", {"column": "text", "best": SCORE, "per": "class"}),
        Rule("top", {"column": SCORE, "fraction": 0.7, "per": "class"}),
        Rule("top", {"column": SCORE, "count": rows // 4, "per": []}),
    )


def near(root: Path, rows: int) -> dict[str, Any]:
    return curate(
        root, rows, Rule("duplicates", {"column": "hashes_phash", "distance": 4, "per": "class", "best": ""})
    )


def sampled(root: Path, rows: int) -> dict[str, Any]:
    return curate(root, rows, Rule("balance", {"target": 500, "per": "class"}))


def semantic(root: Path, rows: int) -> dict[str, Any]:
    """Features in 2,000 clumps; a tenth of the rows are others with a little noise, at a cosine of 0.98."""
    random = np.random.default_rng(0)
    features = np.empty((rows, 512), np.float16)
    centres = random.standard_normal((2000, 512), np.float32)
    planted = rows // 10
    for start in range(0, rows, SHARD):
        own = random.integers(0, 2000, min(SHARD, rows - start))
        features[start : start + SHARD] = centres[own] + random.standard_normal((len(own), 512), np.float32)
    of = np.arange(planted)
    for start in range(0, planted, SHARD):
        rows_ = of[start : start + SHARD]
        noise = random.standard_normal((len(rows_), 512), np.float32) * 0.28
        features[rows - planted + rows_] = features[rows_].astype(np.float32) + noise
    pairs = np.zeros(rows, "u8,u8")
    pairs["f1"] = np.arange(rows)
    columns = {
        "uid": np.array(uid_strings(pairs), dtype=object),
        "class_name": np.full(rows, "a", dtype=object),
        "img": features,
    }
    started = time.process_time()
    keep = duplicates(columns, features="img", epsilon=0.05)
    found = int((~keep[rows - planted :]).sum())
    return {
        "kept": int(keep.sum()),
        "cpu": time.process_time() - started,
        "note": f"{found} of {planted} planted found, {int((~keep[: rows - planted]).sum())} others dropped",
    }


def histogram(root: Path, rows: int) -> dict[str, Any]:
    """Rows made on the fly, a million at a time, ten cells."""
    size = min(rows, 1_000_000)

    def parts() -> Iterator[Part]:
        for number in range(rows // size):
            random = np.random.default_rng(number)
            uid = random.integers(0, 2**63, (size, 2), dtype=np.uint64).view("u8,u8").ravel()
            yield Part(random.standard_normal(size, np.float32), uid, random.integers(0, 10, size))

    bound = top_bound(parts, n_cells=10, fraction=0.3)
    taken, sizes = np.zeros(10, np.int64), np.zeros(10, np.int64)
    for part in parts():
        taken += np.bincount(part.cell[is_within(part, bound)], minlength=10)
        sizes += np.bincount(part.cell, minlength=10)
    assert (taken == np.floor(sizes * 0.3 + 0.5)).all()
    return {"kept": int(taken.sum()), "note": f"{bound.digits.shape[1]} passes, each cell's count exact"}


Run = Callable[[Path, int], dict[str, Any]]
PARTS: dict[str, tuple[Run, Run | None, int, float]] = {
    "top": (top, plain_top, 10_000_000, 10),
    "top_per_class": (top_per_class, None, 10_000_000, 0),
    "basic": (basic, plain_basic, 1_000_000, 5),
    "text": (text, plain_text, 100_000, 9),
    "four_rules": (four_rules, None, 1_000_000, 0),
    "four_rules_10m": (four_rules, None, 10_000_000, 0),
    "near": (near, None, 1_000_000, 0),
    "balance": (sampled, None, 1_000_000, 0),
    "semantic": (semantic, None, 1_000_000, 0),
    "histogram": (histogram, None, 100_000_000, 0),
}
"""What is measured, the plain program, rows, and how many times less CPU is wanted."""


def measure(part: str, kind: str, root: Path, rows: int) -> dict[str, Any]:
    """One part in a process of its own."""
    command = [sys.executable, __file__, "--one", part, kind, str(root), str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run_one(part: str, kind: str, root: Path, rows: int) -> None:
    ours, plain, *_ = PARTS[part]
    run = ours if kind == "ours" else plain
    assert run
    imported = time.process_time()
    pa.array(np.arange(2)).to_numpy()  # Arrow looks for pandas then
    if part == "text":  # both read WordNet once, whatever the rows
        wordnet.first_offset("dog")
    started, wall = time.process_time(), time.monotonic()
    found = run(root, rows)
    found = {"cpu": time.process_time() - started, "wall": time.monotonic() - wall, **found}
    found |= {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "start": imported}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", type=int, help="of every part, in place of its own")
    parser.add_argument("--small", action="store_true", help="a hundredth of the rows")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        part, kind, root, rows = arguments.one
        run_one(part, kind, Path(root), int(rows))
        return
    sizes = {
        part: arguments.rows or (max(SHARD, PARTS[part][2] // 100) if arguments.small else PARTS[part][2])
        for part in arguments.parts
    }
    on_disk = max((sizes[part] for part in sizes if part not in ("semantic", "histogram")), default=0)
    folder = Path(tempfile.mkdtemp())
    print("| part | rows | CPU s | wall s | peak MB | plain: CPU s | reference | times | kept |")
    print("|---|---|---|---|---|---|---|---|---|")
    try:
        make_pool(folder, on_disk)
        for part, rows in sizes.items():
            _, plain, _, wanted = PARTS[part]
            ours = measure(part, "ours", folder, rows)
            told = ["", "", ""]
            if plain:
                few = max(SHARD, rows // 10) if part == "top" else rows
                other = measure(part, "plain", folder, few)
                other_cpu = other["cpu"] * rows / few
                scale = rows / (50_000 if part == "text" else 1_000_000)
                told = [
                    f"{other_cpu:.1f}",
                    f"{REFERENCE[part] * scale:.1f}",
                    f"{other_cpu / ours['cpu']:.0f} (wanted {wanted:g})",
                ]
            print(
                f"| {part} | {rows:,} | {ours['cpu']:.2f} | {ours['wall']:.2f} | {ours['peak'] / 1e6:,.0f} | "
                f"{told[0]} | {told[1]} | {told[2]} | {ours['kept']:,} {ours.get('note', '')} |",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
