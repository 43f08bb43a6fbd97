"""Trains a classifier on shards, through Accelerate, and evaluates it on others.

python scripts/train.py shards/emoji/final/main/train --evaluate shards/emoji-real/validation
python scripts/train.py real=DIR synth=DIR --weights real=3 synth=1 --evaluate real=DIR style=DIR
accelerate launch scripts/train.py TRAIN [TRAIN ...] --evaluate SPLIT [SPLIT ...] -o OUTPUT --save-every 100

Prints a line of JSON for each split. With -o, OUTPUT/log.jsonl has the course of the training, and the same
command goes on where it was stopped.
"""

import json
import sys

from accelerate import Accelerator

import synthgen
from synthgen.training import table, train
from synthgen.training.options import parser, training_keys


def main() -> None:
    options = parser(__doc__).parse_args()
    accelerator = Accelerator(mixed_precision="bf16" if options.bf16 else "no")
    try:
        model = train(dict(options.train), accelerator=accelerator, **training_keys(options))
        for found in table(model, dict(options.evaluate), accelerator=accelerator, groups=options.groups):
            accelerator.print(json.dumps(found))
    except synthgen.SynthgenError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
