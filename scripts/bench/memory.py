"""Whether a worker's memory grows: its resident set after shard 20 and after shard 200 of one process that
generates and annotates small shards of the emoji recipe, one thread.

    python scripts/bench/memory.py                        # 90 s on two cores
    python scripts/bench/memory.py --shard-size 8         # 2 minutes
"""

import argparse
import json
import os
import tempfile
import threading
from pathlib import Path
from statistics import median

import synthgen
from synthgen import shards

FIRST, LAST, NEXT, BAR_MB = 20, 200, 8, 20.0


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(root: Path, samples: dict[int, float], stop: threading.Event) -> None:
    """Notes the resident set whenever another pool shard is there, until `stop`."""
    while not stop.wait(0.1):
        done = len(shards.records(root / shards.POOL))
        if done and done not in samples:
            samples[done] = resident_mb()


def at(samples: dict[int, float], shard: int) -> float:
    """The median of what was noted at that shard and the next few: single values swing by 10 MB."""
    return median(value for done, value in samples.items() if shard <= done < shard + NEXT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=LAST + NEXT)
    parser.add_argument("--shard-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    if options.shards < LAST + NEXT:
        parser.error(f"--shards {options.shards}: at least {LAST + NEXT} are wanted")
    images = options.shards * options.shard_size
    settings = [
        f"quota.requests={images}",  # of each class, of which the limit takes a balanced part
        f"images.shard_size={options.shard_size}",
        f"models.0.batch_size={min(options.shard_size, 16)}",
        f"models.0.steps={options.steps}",
        f"annotate.0.batch_size={min(options.shard_size, 64)}",  # the networks' batches are padded
    ]
    samples: dict[int, float] = {}
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="synthgen-bench-") as folder:
        root = Path(folder) / "run"
        watcher = threading.Thread(target=watch, args=(root, samples, stop))
        watcher.start()
        try:
            synthgen.run(
                "emoji",
                root,
                stages=("plan", "generate", "annotate"),
                settings=settings,
                limit=images,
                workers=1,
            )
        finally:
            stop.set()
            watcher.join()
        found = synthgen.status(root)
    assert found["written"] == images
    grown = at(samples, LAST) - at(samples, FIRST)
    if options.json:
        print(json.dumps({**vars(options), "resident_mb": samples, "grown_mb": grown, "bar_mb": BAR_MB}))
        return
    for shard in (1, 5, FIRST, 50, 100, 150, LAST):
        print(f"after shard {shard:3}: {at(samples, shard):7.1f} MB")
    met = "met" if grown <= BAR_MB else "MISSED"
    print(f"from shard {FIRST} to shard {LAST}: {grown:+.1f} MB (bar: at most {BAR_MB:.0f}, {met})")


if __name__ == "__main__":
    main()
