"""Trains all embedded models from nothing, one after the other; run again, it goes on where it was cut.

    python scripts/embedded/train.py
    python scripts/embedded/train.py --steps 16 --batch-size 4 --work /tmp/trial    # does everything run?

The weights that ship are untouched until export.py.
"""

from clip import CLIP
from generator import GENERATOR
from judge import JUDGE
from loop import parse, train
from tokenizer import folder
from vae import BOTH, DECODER
from world import start


def main() -> None:
    options = parse(__doc__)
    folder(options)
    for training in (BOTH, DECODER, CLIP, GENERATOR, JUDGE):
        train(training, options)


if __name__ == "__main__":
    start(main)
