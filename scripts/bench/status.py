"""How long `synthgen status` takes in a folder of 100,000 pool shards: the first time, when it reads every
record, and afterwards, side by side with reading them all again.

    python scripts/bench/status.py --shards 100000        # 90 s, most of it making the folder
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import synthgen
from synthgen import shards


def make_large(root: Path, n_shards: int) -> None:
    """A run with one shard, its records repeated under other numbers: no images, all that status looks at."""
    synthgen.run("emoji", root, limit=4, settings=["models.0.steps=1", "models.0.batch_size=4"], workers=1)
    plan = root / "plan" / "000-000_stats.json"
    made = json.loads(plan.read_text())
    made |= {"shards": [["tiny", n_shards]], "requests": 4 * n_shards}
    plan.write_text(json.dumps(made))
    for folder in [root / "pool", *sorted((root / "annotations").iterdir())]:
        record = (folder / "00000000_stats.json").read_bytes()
        for k in range(1, n_shards):
            (folder / f"{shards.shard_name(k)}.parquet").touch()
            (folder / f"{shards.shard_name(k)}_stats.json").write_bytes(record)


def seconds(root: Path) -> float:
    start = time.monotonic()
    found = synthgen.status(root)
    assert found["written"] == found["requests"]
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=100_000)
    n_shards = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        make_large(root, n_shards)
        first, second = seconds(root), min(seconds(root) for _ in range(3))
        shutil.rmtree(root / ".work" / "columns")
        again = seconds(root)
    print(f"{n_shards} shards: {first:.2f} s at first, {again:.2f} s reading all again, {second:.2f} s after")


if __name__ == "__main__":
    main()
