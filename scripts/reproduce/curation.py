"""What do the rules catch, and does what they choose train better? Measured on a pool whose faults are known.

    python scripts/reproduce/curation.py
    python scripts/reproduce/curation.py --requests 60 --seeds 0 1 2 -o shards/curation

Images of the emoji recipe, and planted among them: wrong labels, blank images, exact and near duplicates,
copies of real images, images of no class. The pool is imported like anyone's, and annotated once. The first
table has, for each rule by itself, the part of each kind of fault that it rejects, and the part of all other
images. The second trains the same classifier on selections of equal size: accuracy on real images, mean and
standard deviation over the seeds. About 20 minutes on two cores.
"""

import argparse
import io
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from accelerate import Accelerator
from PIL import Image, ImageDraw

import synthgen
from synthgen import tars
from synthgen.training import evaluate, train

ROOT = Path(__file__).parents[2]
REAL = ROOT / "shards" / "emoji-real"
SPLITS = ("validation", "heldout-pairs", "heldout-style")
SIDE, STRIDE = 64, 16
Pixels = npt.NDArray[np.uint8]
Sample = dict[str, bytes]

RECIPE = """
name = "curation"
classes = "{real}/classes.txt"

[sources.real]
path = "{real}/train"

[[annotate]]
name = "clip"
use = "clip"

[[annotate]]
name = "image"
use = "image"

[[annotate]]
name = "hashes"
use = "hashes"

[[annotate]]
name = "real"
use = "references"
source = "sources.real"
features = "clip_img"

[reshard]
split = {{ train = 1.0 }}
"""

KINDS = ("wrong label", "blank", "exact copy", "near copy", "real copy", "off class")
COPIES = ("exact copy", "near copy")
RULES = {
    "zero-shot agrees: `range` of `clip_margin`": '{ use = "range", column = "clip_margin", minimum = 0.0 }',
    "CLIP score, best 80% of a class: `top`": '{ use = "top", column = "clip_similarity", fraction = 0.8 }',
    "CLIP bar of a class: `adaptive_bar`": (
        '{ use = "adaptive_bar", column = "clip_label_similarity", bar = 0.5, tolerance = 0.2 }'
    ),
    "one colour: `range` of `image_luma_std`": '{ use = "range", column = "image_luma_std", minimum = 0.02 }',
    "the same pixels: `duplicates`": '{ use = "duplicates", column = "hashes_pixels", per = [] }',
    "pHash within 8 bits: `duplicates`": (
        '{ use = "duplicates", column = "hashes_phash", distance = 8, per = [] }'
    ),
    "SemDeDup: `duplicates` of `clip_img`": (
        '{ use = "duplicates", features = "clip_img", epsilon = 0.02, per = [] }'
    ),
    "copies of real images: `decontaminate`": (
        '{ use = "decontaminate", annotation = "real", similarity = 0.96, distance = 4 }'
    ),
    "near real images (DiverGen): `range` of `real_mean`": (
        '{ use = "range", column = "real_mean", minimum = 0.45 }'
    ),
}
FAULTS = [rule for words, rule in RULES.items() if "best 80%" not in words and "DiverGen" not in words]
ANY = '{ use = "sample", count = COUNT, seed = SEED }'
SELECTIONS = {
    "chance": ANY,
    "CLIP score, the best": '{ use = "top", column = "clip_similarity", count = COUNT }',
    "margin, the best": '{ use = "top", column = "clip_margin", count = COUNT }',
    "zero-shot agrees, then chance": f"{next(iter(RULES.values()))}, {ANY}",
    "near real images, the best": '{ use = "top", column = "real_mean", count = COUNT }',
    "all that find a kind of fault, then chance": ", ".join([*FAULTS, ANY]),
}


def read_split(split: Path) -> Iterator[Sample]:
    """The samples of a split: suffix -> data."""
    for tar in sorted(split.glob("*.tar")):
        for _, sample in tars.samples(tar.read_bytes()):
            yield sample


def pixels_of(sample: Sample) -> Pixels:
    suffix = next(ending for ending in ("webp", "jpg", "png") if ending in sample)
    return np.asarray(Image.open(io.BytesIO(sample[suffix])).convert("RGB"))


def blank(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """One colour, with noise of a level or two."""
    colour = rng.integers(0, 256, 3)
    return np.clip(colour + rng.normal(0, 1, pixels.shape), 0, 255).astype(np.uint8)


def near(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A little brighter or darker, moved by a pixel, and through a JPEG."""
    moved = np.roll(pixels, tuple(rng.integers(-1, 2, 2)), (0, 1)) * rng.uniform(0.93, 1.07)
    sink = io.BytesIO()
    Image.fromarray(np.clip(moved, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=85)
    return np.asarray(Image.open(sink))


def off_class(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Squares of the image in another order, or shapes: the colours of a class and none of its things."""
    side = len(pixels)
    if rng.random() < 0.5:
        squares = pixels.reshape(side // STRIDE, STRIDE, side // STRIDE, STRIDE, 3).swapaxes(1, 2)
        flat = squares.reshape(-1, STRIDE, STRIDE, 3)[rng.permutation((side // STRIDE) ** 2)]
        return flat.reshape(squares.shape).swapaxes(1, 2).reshape(pixels.shape)
    image = Image.fromarray(np.full_like(pixels, rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        corners = np.sort(rng.integers(0, side, (2, 2)), 0)
        shape = (draw.rectangle, draw.ellipse)[int(rng.integers(2))]
        shape([*map(int, corners.ravel())], fill=tuple(map(int, rng.integers(0, 256, 3))))
    return np.asarray(image)


MADE = {"blank": blank, "near copy": near, "off class": off_class}


def plant(made: Path, target: Path, part: float) -> None:
    """Writes a webdataset of the samples of `made`, of which a part is now each kind of fault, in an order
    that mixes them; the key says the kind, and the sample it is made of. A copy stands beside its original,
    every other fault in its place. A fault keeps label and caption, but for the wrong label.
    """
    rng = np.random.default_rng(0)
    samples = [(sample["cls"], sample["txt"], pixels_of(sample)) for sample in read_split(made)]
    names = (REAL / "classes.txt").read_text().splitlines()
    real: dict[int, list[Pixels]] = {}
    for sample in read_split(REAL / "train"):
        real.setdefault(int(sample["cls"]), []).append(pixels_of(sample))
    found = {row: ("clean", row, *sample) for row, sample in enumerate(samples)}
    order, number = rng.permutation(len(samples)).tolist(), round(part * len(samples))
    for place, kind in enumerate(KINDS):
        for row in order[place * number : (place + 1) * number]:
            label, caption, pixels = samples[row]
            if kind == "wrong label":
                others = [k for k in range(len(names)) if k != int(label)]
                wrong = others[int(rng.integers(len(others)))]
                caption = caption.replace(names[int(label)].encode(), names[wrong].encode())
                label = b"%d" % wrong
            elif kind == "real copy":
                own = real[int(label)]
                pixels = near(own[int(rng.integers(len(own)))], rng)
            elif kind in MADE:
                pixels = MADE[kind](pixels, rng)
            found[len(found) if kind in COPIES else row] = (kind, row, label, caption, pixels)
    target.mkdir(parents=True)
    (target / "classes.txt").write_text("\n".join(names) + "\n")
    with open(target / "00000000.tar", "wb") as file:
        for number, row in enumerate(rng.permutation(len(found)).tolist()):
            kind, of, label, caption, pixels = found[row]
            sink = io.BytesIO()
            Image.fromarray(pixels).save(sink, "WEBP", lossless=True)
            key = f"{kind.replace(' ', '_')}-{of}-{number}"
            tars.add_sample(file, key, {"webp": sink.getvalue(), "txt": caption, "cls": label})
        tars.finish(file)


def choose(recipe: Path, pool: Path, name: str, rules: str) -> npt.NDArray[np.bool_]:
    """Which rows of the pool these rules keep, as the subset `name`."""
    synthgen.run(recipe, pool, stages=("select",), settings=[f"select={rules}"], subset=name)
    return pq.read_table(pool / "subsets" / f"{name}.parquet")["kept"].to_numpy()


def print_caught(recipe: Path, pool: Path) -> None:
    """The table of what each rule rejects. Of a copy and its original one is enough."""
    keys = [
        key
        for path in sorted((pool / "pool").glob("*.parquet"))
        for key in pq.read_table(path, columns=["key"])["key"].to_pylist()
    ]
    kinds, of = np.array([key.rpartition("/")[2].replace("_", " ").split("-")[:2] for key in keys]).T
    is_copied = np.isin(of, of[np.isin(kinds, COPIES)])
    print(f"{len(kinds)} images: {dict(Counter(kinds.tolist()))}\n")
    print(f"| rule, by itself | {' | '.join(KINDS)} | all others | precision |")
    print(f"|---|{'---|' * (len(KINDS) + 2)}")
    for number, (words, rule) in enumerate(RULES.items()):
        rejected = ~choose(recipe, pool, f"rule{number}", f"[{rule}]")
        pairs = np.isin(of, of[rejected & is_copied & np.isin(kinds, ["clean", *COPIES])])
        caught = {kind: (pairs if kind in COPIES else rejected)[kinds == kind].mean() for kind in KINDS}
        others = rejected[(kinds == "clean") & ~is_copied].mean()
        right = (rejected & ((kinds != "clean") | is_copied)).sum() / max(1, rejected.sum())
        cells = [f"{100 * share:.0f}" for share in [*caught.values(), others, right]]
        print(f"| {words} | {' | '.join(cells)} |", flush=True)


def print_trained(options: argparse.Namespace, recipe: Path, pool: Path) -> None:
    """The table of what classifiers learn from selections of equal size."""
    print(f"\n| {options.chosen} images a class, chosen by | {' | '.join(SPLITS)} |")
    print(f"|---|{'---|' * len(SPLITS)}")
    for number, (words, rules) in enumerate(SELECTIONS.items()):
        cells: list[list[float]] = [[] for _ in SPLITS]
        for seed in options.seeds:
            name = f"train{number}-{seed}"
            chosen = rules.replace("COUNT", str(options.chosen)).replace("SEED", str(seed))
            synthgen.run(
                recipe, pool, stages=("select", "reshard"), settings=[f"select=[{chosen}]"], subset=name
            )
            accelerator = Accelerator()
            model = train(
                [pool / "final" / name / "train"],
                accelerator=accelerator, steps=options.steps, batch_size=64, lr=2e-3, seed=seed,
            )  # fmt: skip
            for cell, split in zip(cells, SPLITS, strict=True):
                found = evaluate(model, REAL / split, accelerator=accelerator)
                cell.append(100 * float(str(found["accuracy"])))
        spread = [statistics.stdev(own) if len(own) > 1 else 0 for own in cells]
        line = [f"{statistics.mean(own):.1f} ± {s:.1f}" for own, s in zip(cells, spread, strict=True)]
        print(f"| {words} | {' | '.join(line)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("shards/curation"))
    parser.add_argument("--requests", type=int, default=60, help="images a class that are generated")
    parser.add_argument("--faults", type=float, default=0.05, help="the part that becomes each kind of fault")
    parser.add_argument("--chosen", type=int, default=20, help="images a class that are trained on")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    made = synthgen.run(
        ROOT / "prompts" / "emoji",
        options.output / "made",
        settings=[
            f"quota.requests={options.requests}", "images.shard_size=256", "annotate=[]", "select=[]",
            "reshard.split={ train = 1.0 }",
        ],
    )  # fmt: skip
    source = options.output / "planted"
    if not source.exists():
        plant(made / "final" / "main" / "train", source, options.faults)
    recipe = options.output / "recipe.toml"
    recipe.write_text(RECIPE.format(real=REAL))
    pool = options.output / "pool"
    synthgen.bring([source], pool)
    synthgen.run(recipe, pool, stages=("annotate",))
    print_caught(recipe, pool)
    print_trained(options, recipe, pool)


if __name__ == "__main__":
    main()
