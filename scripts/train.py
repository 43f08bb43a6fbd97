"""Trains a small classifier on shards, through Accelerate, and evaluates it on others.

python scripts/train.py shards/emoji/final/main/train --evaluate shards/emoji-real/validation
accelerate launch scripts/train.py TRAIN [TRAIN ...] --evaluate SPLIT [SPLIT ...]
"""

import argparse
import json
import sys

from accelerate import Accelerator

import synthgen
from synthgen.training import evaluate, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", nargs="+", help="splits to train on")
    parser.add_argument("--evaluate", nargs="+", default=[], help="splits to evaluate on")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    accelerator = Accelerator()
    try:
        model = train(
            options.train,
            accelerator=accelerator,
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=options.seed,
        )
        for split in options.evaluate:
            accelerator.print(json.dumps(evaluate(model, split, accelerator=accelerator)))
    except synthgen.SynthgenError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
