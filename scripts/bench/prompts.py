"""How long it takes to plan many prompts, in what memory, and how different and balanced they are.

    python scripts/bench/prompts.py
    python scripts/bench/prompts.py --requests 10000 100000

Names of ImageNet-21k, three templates and five lists that ship. Each size is planned in a process of its own
(`synthgen plan`, to the parquet on the disk). Beside it texts alone are drawn at random from the same lists,
which is what is usually done.
"""

import argparse
import hashlib
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from synthgen import shards
from synthgen.prompts import lists
from synthgen.wording import fill, slots, wordings

AXES = ("medium", "place", "weather", "light", "viewpoint")
TEMPLATES = [
    "a {medium} of a {class} {place}, {weather}, {light}, {viewpoint}",
    "a {medium} of the {class} {place}, {viewpoint}, {light}, {weather}",
    "{light}, {weather}: a {medium} of a {class} {place}, {viewpoint}",
]
RECIPE = """
name = "bench"
[[prompts]]
use = "templates"
classes = "imagenet-21k"
templates = {templates}
axes = {{ {axes} }}
[quota]
requests = {requests}
[images]
shard_size = 8192
[[models]]
id = "tiny"
path = "embedded"
steps = 4
guidance = 3.0
"""


def plan(requests: int, folder: Path) -> None:
    """Plans, and prints a row of the table."""
    recipe = folder / "recipe"
    recipe.mkdir()
    axes = ", ".join(f'{axis} = "{axis}"' for axis in AXES)
    (recipe / "recipe.toml").write_text(
        RECIPE.format(templates=TEMPLATES, axes=axes, requests=requests), encoding="utf-8"
    )
    begun = time.monotonic()
    command = [sys.executable, "-m", "synthgen", "plan", str(recipe), "-o", str(folder / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"prompts.py: `synthgen plan` ended with status {os.waitstatus_to_exitcode(status)}")
    seconds = time.monotonic() - begun
    found = shards.read_table(folder / "run" / "plan" / "000-000.parquet", ["prompt_id", "class_name"])
    different = len(set(found["prompt_id"].to_pylist()))
    rows = (seconds, usage.ru_maxrss / 1e6, different)
    print(f"| {requests:,} | designed | {rows[0]:.1f} | {rows[1]:.2f} | {rows[2]:,} |", flush=True)


def draw(requests: int) -> None:
    """Draws at random, and prints a row of the table."""
    begun = time.monotonic()
    rng = random.Random(0)
    classes = lists.read_list("imagenet-21k")
    words = {axis: [word.text for word in lists.read_words(axis, Path())] for axis in AXES}
    texts = [text for template in TEMPLATES for text in wordings(template)]
    seen = Counter[bytes]()
    for number in range(requests):
        text, category = rng.choice(texts), classes[number % len(classes)]
        chosen = {axis: rng.choice(words[axis]) for axis in slots(text) if axis in words}
        prompt = fill(text, {"class": category.prompt, **chosen})
        seen[hashlib.sha256(f"{category.name}\0{prompt}".encode()).digest()[:16]] += 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {requests:,} | texts drawn | {time.monotonic() - begun:.1f} | {memory:.2f} | {len(seen):,} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    print("| prompts | how | seconds | GB at most | different |\n|---|---|---|---|---|")
    for requests in options.requests:
        with tempfile.TemporaryDirectory() as folder:
            plan(requests, Path(folder))
        draw(requests)


if __name__ == "__main__":
    main()
