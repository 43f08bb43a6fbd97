"""Measures the models as they ship, on new prompts and pictures; writes the results and the model cards.

    python scripts/embedded/measure.py
    python scripts/embedded/measure.py --beside FOLDER    # and the time an image, beside another pipeline

The results are scripts/embedded/results/: results.json, results.md (all classes and misses), generated.jpg.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import judge
import numpy as np
import open_clip
import torch
from card import write_cards, write_results
from diffusers import StableDiffusionPipeline
from loop import count, fast_half
from PIL import Image
from torch import Tensor
from torch.nn import functional
from vae import psnr
from world import (
    BACKGROUNDS,
    CACHE,
    HELD_OUT_STYLE,
    STYLES,
    THINGS,
    TRAINING_STYLES,
    WIDE,
    Bytes,
    caption,
    compose,
    fetch,
    held_out_pairs,
    seen_pairs,
    sheet,
    start,
    to_tensor,
    with_article,
)

from synthgen import make_generator
from synthgen.diversity import vendi
from synthgen.embedded import clip_folder, pipeline_folder
from synthgen.generation.models import fingerprint, load

RESULTS = Path(__file__).parent / "results"
STEPS, GUIDANCE, BATCH = 15, 3.0, 16
PLAIN = ("a photo of {}", "an image of {}", "{}")  # captions of an object alone


class Plan(NamedTuple):
    """What pictures shall show: things, backgrounds and styles, int64 (n, 3), and full captions."""

    labels: np.ndarray
    captions: list[str]


def plan(pairs: Sequence[tuple[int, int]], per_class: int, styles: Sequence[int], seed: int) -> Plan:
    """So many pictures of each thing, its backgrounds and the styles as even as can be."""
    rng, labels = np.random.default_rng(seed), []
    for thing in range(len(THINGS)):
        places = [b for t, b in pairs if t == thing]
        order = np.resize(rng.permutation(places), per_class)
        first = int(rng.integers(len(styles)))
        for i, background in enumerate(order):
            labels.append((thing, int(background), styles[(first + i) % len(styles)]))
    return Plan(np.array(labels), [caption(*row, rng, full=True).text for row in labels])


def compose_all(labels: np.ndarray, seed: int, folder: Path) -> Bytes:
    """Real composites in all poses, on backgrounds newly drawn."""
    rng = np.random.default_rng(seed)
    return np.stack([compose(*(int(v) for v in row), rng, WIDE, folder=folder).image for row in labels])


def generate(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], seed: int, steps: int = STEPS
) -> Bytes:
    """A picture for each caption, each from noise of its own."""
    images = []
    for done in range(0, len(captions), BATCH):
        texts = list(captions[done : done + BATCH])
        generators = [make_generator((seed << 32) + done + i) for i in range(len(texts))]
        made = pipeline(
            texts, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generators, output_type="np"
        )
        images.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(images)


class ZeroShot:
    """The tiny open_clip, asked which object and which background a picture shows."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self.model, _ = open_clip.create_model_from_pretrained(name)
        self.model.eval()
        self._tokenize = open_clip.get_tokenizer(name)
        nouns = [with_article(thing.name) for thing in THINGS]
        self._things = self._ensemble([[p.format(noun) for p in PLAIN] for noun in nouns])
        self._backgrounds = self._ensemble(
            [[f"a photo of {noun} {phrase}" for noun in nouns for phrase in b.phrases] for b in BACKGROUNDS]
        )

    @torch.inference_mode()
    def _ensemble(self, texts: list[list[str]]) -> Tensor:
        means = [self.model.encode_text(self._tokenize(group), normalize=True).mean(0) for group in texts]
        return functional.normalize(torch.stack(means), dim=1)

    @torch.inference_mode()
    def look(self, images: Bytes) -> np.ndarray:
        """Thing and background, int64 (n, 2)."""
        parts = to_tensor(images).split(256)  # 64x64 already: the model's own preprocessing is just this
        features = torch.cat([self.model.encode_image(part, normalize=True) for part in parts])
        return torch.stack([(features @ w.T).argmax(1) for w in (self._things, self._backgrounds)], 1).numpy()


def vendi_score(features: Tensor) -> float:
    """How many different pictures there are in effect, 1 to n."""
    return vendi(functional.normalize(features.double(), dim=1).numpy())


def rounded(value: Any) -> Any:
    """The same with all numbers of four decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(float(value), 4) if isinstance(value, float) else value


def judged(umpire: judge.Judge, zero_shot: ZeroShot, images: Bytes, labels: np.ndarray) -> dict[str, Any]:
    """Accuracies of the judge and of CLIP, for all and by class; what the judge took for something else."""
    verdicts = judge.look(umpire, images)
    right = verdicts.labels.numpy() == labels
    clip_right = zero_shot.look(images) == labels[:, :2]
    things = labels[:, 0]
    misses = Counter(
        (THINGS[t].name, THINGS[int(g)].name)
        for t, g in zip(things, verdicts.labels[:, 0], strict=True)
        if t != g
    )
    styles = sorted({*labels[:, 2].tolist()} & {*TRAINING_STYLES})  # the judge knows no others
    return {
        "images": len(images),
        "object": right[:, 0].mean(),
        "background": right[:, 1].mean(),
        "style": right[:, 2].mean() if styles else None,
        "clip_object": clip_right[:, 0].mean(),
        "clip_background": clip_right[:, 1].mean(),
        "object_by_class": {t.name: right[things == i, 0].mean() for i, t in enumerate(THINGS)},
        "style_by_style": {STYLES[s].name: right[labels[:, 2] == s, 2].mean() for s in styles},
        "clip_object_by_class": {t.name: clip_right[things == i, 0].mean() for i, t in enumerate(THINGS)},
        "vendi_by_class": {t.name: vendi_score(verdicts.features[things == i]) for i, t in enumerate(THINGS)},
        "taken_for": [[a, b, n] for (a, b), n in misses.most_common()],
    }


def seconds_an_image(folders: Sequence[Path], dtype: str, rounds: int = 7) -> list[float]:
    """The median over rounds, in turns: 10 steps with guidance, a batch of 16."""
    pipelines = [load(folder, device="cpu", dtype=dtype) for folder in folders]
    texts = plan(seen_pairs(), 1, TRAINING_STYLES, 5).captions[:BATCH]
    times: list[list[float]] = [[] for _ in folders]
    for number in range(rounds + 1):
        for pipeline, taken in zip(pipelines, times, strict=True):
            begun = time.perf_counter()
            generate(pipeline, texts, number, steps=10)
            taken.append((time.perf_counter() - begun) / BATCH)
    return [float(np.median(taken[1:])) for taken in times]  # the first round warms up


def measure(
    drawings: Path, per_class: int, models: Path | None, beside: Path | None
) -> tuple[dict[str, Any], Image.Image]:
    """All figures, and a contact sheet of the first six pictures of each class."""
    fetch(drawings)
    pipeline_path = models / "pipeline" if models else pipeline_folder()
    clip_path = models / "clip" if models else clip_folder()
    umpire = judge.load(models / "judge" / judge.WEIGHTS.name if models else judge.WEIGHTS)
    zero_shot = ZeroShot(clip_path)
    dtype = "bfloat16" if fast_half("cpu") else "float32"
    pipeline = load(pipeline_path, device="cpu", dtype=dtype)
    figures: dict[str, Any] = {
        "pipeline": fingerprint(pipeline_path),
        "torch": torch.__version__,
        "dtype": dtype,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "threads": torch.get_num_threads(),
    }

    seen = plan(seen_pairs(), per_class, TRAINING_STYLES, 1)
    held_out = plan(sorted(held_out_pairs()), per_class, TRAINING_STYLES, 2)
    unseen_style = plan(seen_pairs(), per_class, (HELD_OUT_STYLE,), 3)
    pictures = generate(pipeline, seen.captions, 1)
    figures["generated, seen pairs"] = judged(umpire, zero_shot, pictures, seen.labels)
    figures["generated, held-out pairs"] = judged(
        umpire, zero_shot, generate(pipeline, held_out.captions, 2), held_out.labels
    )
    real = compose_all(seen.labels, 3, drawings)
    figures["real, seen pairs"] = judged(umpire, zero_shot, real, seen.labels)
    figures["real, held-out pairs"] = judged(
        umpire, zero_shot, compose_all(held_out.labels, 4, drawings), held_out.labels
    )
    strange = compose_all(unseen_style.labels, 5, drawings)
    figures["real, held-out style"] = judged(umpire, zero_shot, strange, unseen_style.labels)

    autoencoder = load(pipeline_path, device="cpu", dtype="float32").vae
    with torch.inference_mode():
        target = to_tensor(real[:: max(1, len(real) // 512)])
        back = torch.cat(
            [autoencoder.decode(autoencoder.encode(x).latent_dist.mean).sample for x in target.split(64)]
        )
    figures["psnr"] = float(psnr(back.clamp(-1, 1), target))
    if beside:
        mine, other = seconds_an_image([pipeline_path, beside], dtype)
        figures["seconds_an_image"] = {"this": mine, "other": other, "ratio": mine / other}
    kinds = [k for t in range(len(THINGS)) for k in np.flatnonzero(seen.labels[:, 0] == t)[:6]]
    return rounded(figures), sheet([pictures[k] for k in kinds], columns=18)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drawings", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--per-class", type=count, default=20, help="pictures a row and class (default: 20)")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="what export.py -o wrote (default: the shipped)"
    )
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another pipeline, for the time an image")
    parser.add_argument(
        "-o", "--output", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s"
    )
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    if options.models and options.output == RESULTS:
        parser.error("--models: the results of other models than those that ship need -o DIR")
    figures, page = measure(options.drawings, options.per_class, options.models, options.beside)
    options.output.mkdir(parents=True, exist_ok=True)
    page.save(options.output / "generated.jpg", quality=92, subsampling=0)
    path = options.output / "results.json"
    if path.exists() and (known := json.loads(path.read_text()))["pipeline"] == figures["pipeline"]:
        figures = {"seconds_an_image": known.get("seconds_an_image")} | figures  # unless measured anew
    text = json.dumps(figures, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    write_results(figures, options.output)
    if not options.models:
        write_cards(figures)
    print(text)


if __name__ == "__main__":
    start(main)
