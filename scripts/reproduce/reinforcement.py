"""Does a dataset that a teacher has reinforced train better (Faghri et al.)?

    python scripts/reproduce/reinforcement.py
    python scripts/reproduce/reinforcement.py --recipe DIR --set annotate.2.model=ViT-L-14 ...

The generated set is annotated once by `use = "reinforce"`: of each image some augmented views and the
teacher's probabilities. The same student is trained for as many steps on the images as trainers augment them;
on the replayed views with the images' labels; and on the views with the teacher's probabilities, densified
both ways.
Accuracy on real images, mean and 95 % interval over the seeds.
Source: Faghri et al., Reinforce Data, Multiply Impact (arXiv 2303.08983).
"""

import shutil
from typing import Any

from accelerate import Accelerator
from experiment import cell, generated, leave_cores, parser, real_sources, row, start

from synthgen.training import evaluate, train

SIDE = 48
ANNOTATION = """
[[annotate]]
name = "teacher"
use = "reinforce"
side = {side}
samples = {samples}
scale = [{scale}, 1.0]
magnitude = {magnitude}
"""


def main() -> None:
    made = parser(__doc__, steps=250)
    made.add_argument("--lr", type=float, default=2e-3)
    made.add_argument("--samples", type=int, default=8, help="views of each image")
    made.add_argument(
        "--scale", type=float, default=0.35, help="the least part of an image that a view shows"
    )
    made.add_argument("--magnitude", type=int, default=5, help="of RandAugment")
    options = made.parse_args()
    sources, accelerator = real_sources(options), Accelerator()
    recipe = options.output / "recipe"
    shutil.copytree(options.recipe, recipe, dirs_exist_ok=True)
    with open(recipe / "recipe.toml", "a") as file:
        file.write(ANNOTATION.format(side=SIDE, **vars(options)))
    options.recipe = recipe
    split = generated(options)
    leave_cores(options)
    teacher = split.parents[2] / "annotations" / "teacher"
    ways: dict[str, dict[str, Any]] = {
        "images, standard augmentation": {},
        "views, labels": {"reinforcement": teacher, "augment": "none", "soft_labels": False},
        "views, teacher's probabilities (smooth)": {"reinforcement": teacher, "augment": "none"},
        "views, teacher's probabilities (zeros)": {
            "reinforcement": teacher,
            "augment": "none",
            "soft": "zeros",
        },
    }
    print(f"{options.steps} steps of {options.batch_size}, seeds {options.seeds}\n")
    row("trained on", "same style", "other style")
    row("---", "---", "---")
    for words, keys in ways.items():
        found: dict[str, list[float]] = {"validation": [], "style": []}
        for seed in options.seeds:
            model = train(
                {"generated": split}, accelerator=accelerator, steps=options.steps, side=SIDE, seed=seed,
                batch_size=options.batch_size, lr=options.lr, workers=options.workers, **keys,
            )  # fmt: skip
            for name, own in found.items():
                own.append(float(evaluate(model, sources[name], accelerator=accelerator)["accuracy"]))
        row(words, *map(cell, found.values()))


if __name__ == "__main__":
    start(main)
