"""What the experiments here share: options, data, and a table's cells.

An experiment has a generated set, which a recipe makes, and real ones by name: `real` to train on,
`validation` of the same style, `style` of another. `--recipe` and `--set` name others: with
`--set sources.real.path=DIR`, DIR is what `synthgen.open_loader` reads; any other `--set` is the recipe's.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from scipy.stats import t as student

import synthgen

ROOT = Path(__file__).parents[2]
REAL = ROOT / "shards" / "emoji-real"
SOURCES = {"real": REAL / "train", "validation": REAL / "validation", "style": REAL / "heldout-style"}


def parser(document: str | None, steps: int) -> argparse.ArgumentParser:
    """The options that all of them take."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--recipe", type=Path, default=ROOT / "prompts" / "emoji", help="of the generated set")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                      help="sources.{real,validation,style}.path, or a key of the recipe")  # fmt: skip
    made.add_argument("-o", "--output", type=Path, default=ROOT / "shards" / "experiments",
                      help="whose generated set all of them share")  # fmt: skip
    made.add_argument("--steps", type=int, default=steps, help="of each training")
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--workers", type=int, default=1, help="processes that read")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return made


def real_sources(options: argparse.Namespace) -> dict[str, str]:
    """Where the real sets are."""
    found = {name: str(path) for name, path in SOURCES.items()}
    for setting in options.set:
        key, _, value = setting.partition("=")
        room, _, name = key.partition(".")
        if room == "sources":
            name = name.removesuffix(".path")
            if name not in found:
                raise SystemExit(f"--set {setting}: sources.{{{','.join(found)}}}.path is wanted")
            found[name] = value
    return found


def generated(options: argparse.Namespace) -> Path:
    """The generated set, made where it is not there yet: a split of a run's final shards."""
    own = [setting for setting in options.set if not setting.startswith("sources.")]
    settings = ["quota.requests=20", "images.shard_size=128", "reshard.split={ train = 1.0 }", *own]
    root = synthgen.run(options.recipe, options.output / "generated", settings=settings)
    return root / "final" / "main" / "train"


def start(main: Callable[[], None]) -> None:
    """Runs an experiment; what is wrong with its data or options is one line."""
    try:
        main()
    except synthgen.SynthgenError as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from None


def leave_cores(options: argparse.Namespace) -> None:
    """Torch's threads leave a core to each process that reads: more of them wait for one another."""
    torch.set_num_threads(max(1, torch.get_num_threads() - options.workers))


def cell(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval (Student's t), both in percent."""
    percent = [100 * value for value in values]
    if len(percent) < 2:
        return f"{percent[0]:.1f}"
    half = student.ppf(0.975, len(percent) - 1) * statistics.stdev(percent) / math.sqrt(len(percent))
    return f"{statistics.mean(percent):.1f} ± {half:.1f}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)
