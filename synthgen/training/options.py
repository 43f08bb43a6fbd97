"""The options of scripts/train.py."""

import argparse
from typing import Any

from synthgen.training.augmenting import AUGMENTATIONS, MIXES

KEYS = (
    "steps", "batch_size", "lr", "seed", "model", "pretrained", "side", "augment", "mix", "workers", "output",
    "save_every", "subset", "reinforcement",
)  # fmt: skip


def _named(text: str) -> tuple[str, str]:
    """NAME=PATH, or a path, which is its own name."""
    name, sign, path = text.partition("=")
    return (name, path) if sign and "/" not in name else (text, text)


def _number(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text}: NAME=NUMBER is wanted")
    return name, float(value)


def parser(document: str | None) -> argparse.ArgumentParser:
    """What the command line may say."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("train", nargs="+", type=_named, help="what to train on, as NAME=PATH or PATH")
    add("--evaluate", nargs="+", type=_named, default=[], help="splits to evaluate on, as NAME=PATH or PATH")
    add("--groups", nargs="+", default=[], help="keys of the samples' json that make groups of a class")
    add("--weights", nargs="+", type=_number, help="parts of the sources, as real=3 synth=1")
    add("--repeat", nargs="+", type=_number, help="how often an epoch has a source, as real=10")
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
    return made


def training_keys(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `train` that the options say."""
    keys = {name: getattr(options, name) for name in KEYS}
    if options.weights:
        keys["weights"] = dict(options.weights)
    if options.repeat:
        keys["repeat"] = {name: int(times) for name, times in options.repeat}
    return keys
