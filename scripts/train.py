"""Trains a classifier on shards, through Accelerate, and evaluates it on others.

python scripts/train.py shards/emoji/final/main/train --evaluate shards/emoji-real/validation
python scripts/train.py real=DIR synth=DIR --weights real=3 synth=1 --evaluate real=DIR style=DIR
accelerate launch scripts/train.py TRAIN [TRAIN ...] --evaluate SPLIT [SPLIT ...] -o OUTPUT --save-every 100

Prints a line of JSON for each split, or one table. With -o, OUTPUT/log.jsonl has the course of the training,
and the same command goes on where it was stopped.
"""

import json
import logging
import sys

import torch
from accelerate import Accelerator

import synthgen
from synthgen.loader import open_loader
from synthgen.training import markdown, table, train
from synthgen.training.options import named, parser, training_keys


def main() -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("synthgen").setLevel(logging.INFO)
    options = parser(__doc__).parse_args()
    precision = "bf16" if options.bf16 else None
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=precision)
    try:
        for paths in named(options.evaluate).values():  # before an hour of training
            open_loader(paths, batch_size=1)
        model = train(named(options.train), accelerator=accelerator, **training_keys(options))
        found = table(
            model,
            named(options.evaluate),
            accelerator=accelerator,
            groups=options.groups,
            output=options.output,
        )
        for line in [markdown(found)] if options.table else map(json.dumps, found):
            accelerator.print(line)
    except synthgen.SynthgenError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
