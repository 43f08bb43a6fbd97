"""The options of scripts/train.py."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from synthgen.errors import SynthgenError
from synthgen.training.augmenting import AUGMENTATIONS, MIXES

KEYS = (
    "steps", "batch_size", "lr", "seed", "model", "pretrained", "side", "augment", "mix", "workers", "output",
    "save_every", "log_every", "subset", "reinforcement",
)  # fmt: skip


def _named(text: str) -> tuple[str, str]:
    """NAME=PATH, or a path, which is its own name."""
    name, sign, path = text.partition("=")
    return (name, path) if sign and "/" not in name else (text, text)


def parser(document: str | None) -> argparse.ArgumentParser:
    """What the command line may say."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("train", nargs="+", type=_named, help="what to train on, as NAME=PATH or PATH")
    add("--evaluate", nargs="+", type=_named, default=[], help="splits to evaluate on, as NAME=PATH or PATH")
    add("--groups", nargs="+", default=[], help="keys of the samples' json that make groups of a class")
    add("--table", action="store_true", help="print the evaluations as one table, in Markdown")
    add("--weights", nargs="+", default=[], help="parts of the sources, as real=3 synth=1")
    add("--repeat", nargs="+", default=[], help="how often an epoch has a source, as real=10")
    add("--subset", help="a .npy of uids, or a subset of the run, to train on")
    add("--reinforcement", help="a folder that `synthgen reinforce` made: views, and soft labels")
    add("--model", default="small", help="a small CNN, or a model of timm (%(default)s)")
    add("--pretrained", action="store_true", help="start from timm's weights")
    add("--side", type=int, default=48, help="pixels (%(default)s)")
    add("--augment", choices=AUGMENTATIONS, default="standard", help="(%(default)s)")
    add("--mix", choices=["", *MIXES], default="", help="of the images of a batch")
    add("--steps", type=int, default=250, help="(%(default)s)")
    add("--batch-size", type=int, default=64, help="of each process (%(default)s)")
    add("--lr", type=float, default=2e-3, help="the greatest learning rate (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--bf16", action="store_true", help="mixed precision")
    add("--workers", type=int, default=0, help="processes that read, of each process (%(default)s)")
    add("-o", "--output", help="a folder for log.jsonl and the checkpoint; run again to go on")
    add("--save-every", type=int, default=0, help="steps between checkpoints (0: at the end)")
    add("--log-every", type=int, default=50, help="steps between lines of the log (%(default)s)")
    return made


def named(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The paths of each name; one that is said twice has both."""
    found: dict[str, list[str]] = {}
    for name, path in pairs:
        found.setdefault(name, []).append(path)
    return found


def training_keys(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `train` that the options say.

    Raises:
        SynthgenError: weights, or how often a source comes, are no numbers by name.
    """
    keys = {name: getattr(options, name) for name in KEYS}
    if options.weights:
        keys["weights"] = _numbers("--weights", options.weights)
    if options.repeat:
        times = _numbers("--repeat", options.repeat)
        broken = next((f"{name}={value:g}" for name, value in times.items() if value % 1), None)
        if broken:
            raise SynthgenError(f"--repeat {broken}: a whole number is wanted; --weights takes others")
        keys["repeat"] = {name: int(value) for name, value in times.items()}
    return keys


def _numbers(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Numbers above 0 by name."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name or not 0 < found[name] < math.inf:
            raise SynthgenError(f"{option} {text}: NAME=NUMBER above 0 is wanted, such as real=3")
    return found
