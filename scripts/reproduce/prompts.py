"""Does the design of prompts help? The same classifier, trained on as many images of each kind of prompt.

    python scripts/reproduce/prompts.py
    python scripts/reproduce/prompts.py --seeds 0 1 2 3 4 --requests 40 -o shards/prompts

Three datasets a seed, none filtered: one template; CLIP's 80 templates; the axes of the recipe, as designed.
About 25 minutes on two cores. Prints a table in Markdown: mean and standard deviation over the seeds.
"""

import argparse
import statistics
from pathlib import Path

from accelerate import Accelerator

import synthgen
from synthgen.training import evaluate, train

ROOT = Path(__file__).parents[2]
PLAIN = ['prompts.0.templates=["a photo of a {class}"]', "prompts.0.axes={}"]
KINDS = {
    "one template": PLAIN,
    "CLIP's 80 templates": [PLAIN[1], 'prompts.0.templates="clip-80"'],
    "designed axes": [],
}
SPLITS = ("validation", "heldout-pairs", "heldout-style")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default=str(ROOT / "prompts" / "emoji"))
    parser.add_argument("--real", default=str(ROOT / "shards" / "emoji-real"), help="splits to evaluate on")
    parser.add_argument("-o", "--output", default="shards/prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--requests", type=int, default=20, help="images a class")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    options = parser.parse_args()
    accuracies: dict[tuple[str, str], list[float]] = {}
    for seed in options.seeds:
        for number, (kind, settings) in enumerate(KINDS.items()):
            common = [f"seed={seed}", f"quota.requests={options.requests}", "select=[]"]
            folder = synthgen.run(
                options.recipe,
                Path(options.output) / f"{number}-{seed}",
                settings=[*settings, *common, "annotate=[]", "reshard.split={ train = 1.0 }"],
            )
            accelerator = Accelerator()
            model = train(
                [folder / "final" / "main" / "train"],
                accelerator=accelerator,
                steps=options.steps,
                batch_size=64,
                lr=2e-3,
                seed=seed,
            )
            for split in SPLITS:
                found = evaluate(model, Path(options.real) / split, accelerator=accelerator)
                accuracies.setdefault((kind, split), []).append(100 * float(str(found["accuracy"])))
            print(f"seed {seed}, {kind}: {[accuracies[kind, split][-1] for split in SPLITS]}", flush=True)
    print(f"| prompts | {' | '.join(SPLITS)} |\n|---|{'---|' * len(SPLITS)}")
    for kind in KINDS:
        cells = [accuracies[kind, split] for split in SPLITS]
        spread = [statistics.stdev(own) if len(own) > 1 else 0 for own in cells]
        words = [f"{statistics.mean(own):.1f} ± {s:.1f}" for own, s in zip(cells, spread, strict=True)]
        print(f"| {kind} | {' | '.join(words)} |")


if __name__ == "__main__":
    main()
