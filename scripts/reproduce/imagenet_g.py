"""What do generated images add to real ones, and does it carry over to another style (ImageNet-G)?

    python scripts/reproduce/imagenet_g.py
    python scripts/reproduce/imagenet_g.py --recipe prompts/imagenet --set sources.real.path=DIR ...

The same classifier is trained, for as many steps, on real images, on generated ones, and on both. Effective
robustness (Taori et al., arXiv 2007.00644) is the accuracy in the other style above what classifiers of real
images alone have there at the same accuracy in the first style: a line through these, trained on parts of the
real set, both accuracies as logits. Mean and 95 % interval over the seeds, which leaves out the line's own
error; its points include the classifiers of all real images, so that these have about none.
Source: Bansal and Grover, Leaving Reality to Imagination (ImageNet-G, arXiv 2302.02503).
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from experiment import cell, generated, leave_cores, parser, real_sources, row, start

from synthgen.loader import open_loader
from synthgen.training import evaluate, train
from synthgen.uids import sort_uids, uid_array

PARTS = (0.25, 0.5)
"""Of the real set, for the line."""


def logit(accuracy: float) -> float:
    clipped = min(max(accuracy, 0.002), 0.998)
    return math.log(clipped / (1 - clipped))


def parts_of(real: str, folder: Path, seed: int) -> dict[float, Path]:
    """Subsets of the real set, each within the next."""
    uids = [uid for (own,) in open_loader(real, batch_size=1024, fields=("uid",)) for uid in own]
    order = np.random.default_rng(seed).permutation(uids).tolist()
    try:
        uid_array(order[:1])
    except ValueError:
        raise SystemExit(
            f"{real}: its samples have no uids of 32 hex digits, by which parts are listed; "
            "`synthgen import` it, and name the pool"
        ) from None
    found = {}
    for part in PARTS:
        found[part] = folder / f"real-{seed}-{part}.npy"
        np.save(found[part], sort_uids(uid_array(order[: round(part * len(order))])))
    return found


def main() -> None:
    made = parser(__doc__, steps=250)
    made.add_argument("--lr", type=float, default=2e-3)
    options = made.parse_args()
    sources, accelerator = real_sources(options), Accelerator()
    synth = str(generated(options))
    leave_cores(options)

    def accuracies(seed: int, on: Any, **more: Any) -> tuple[float, float]:
        """On both real sets, of a classifier that is trained on these."""
        model = train(
            on, accelerator=accelerator, steps=options.steps, batch_size=options.batch_size, lr=options.lr,
            seed=seed, workers=options.workers, **more,
        )  # fmt: skip
        first, second = (
            float(evaluate(model, sources[name], accelerator=accelerator)["accuracy"])
            for name in ("validation", "style")
        )
        return first, second

    kinds: dict[str, Any] = {
        "real": {"real": sources["real"]},
        "generated": {"generated": synth},
        "both": {"real": sources["real"], "generated": synth},
    }
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    line: list[tuple[float, float]] = []
    parts = {seed: parts_of(sources["real"], options.output, seed) for seed in options.seeds}
    for seed in options.seeds:
        for kind, on in kinds.items():
            found[kind].append(accuracies(seed, on))
        for path in parts[seed].values():
            line.append(accuracies(seed, kinds["real"], subset=path))
    line += found["real"]
    slope, start = np.polyfit([logit(a) for a, _ in line], [logit(b) for _, b in line], 1)
    print_table(options, found, lambda first: 1 / (1 + math.exp(-(slope * logit(first) + start))))


def print_table(
    options: argparse.Namespace, found: dict[str, list[tuple[float, float]]], expected: Any
) -> None:
    print(f"{options.steps} steps of {options.batch_size}, seeds {options.seeds}\n")
    row("trained on", "same style", "other style", "effective robustness")
    row("---", "---", "---", "---")
    for kind, pairs in found.items():
        gains = [second - expected(first) for first, second in pairs]
        row(kind, cell([first for first, _ in pairs]), cell([second for _, second in pairs]), cell(gains))


if __name__ == "__main__":
    start(main)
