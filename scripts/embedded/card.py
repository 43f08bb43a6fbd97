"""Writes what measure.py found: the page of results, and the cards of the models that ship."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from judge import WEIGHTS
from safetensors import safe_open
from world import BACKGROUNDS, SOURCES, STYLES, THINGS, TRAINING_STYLES

from synthgen.embedded import clip_folder, pipeline_folder
from synthgen.generation.models import fingerprint

ROWS = {
    "generated, seen pairs": "generated, pairs seen in training",
    "generated, held-out pairs": "generated, pairs held out",
    "real, seen pairs": "real composites, pairs seen",
    "real, held-out pairs": "real composites, pairs held out",
    "real, held-out style": "real composites, held-out style (OpenMoji)",
}
HEAD = """\
| pictures | n | judge: object | background | style | CLIP: object | background |
|---|---|---|---|---|---|---|
"""
LICENCES = {
    "fluent": "Fluent Emoji, Copyright (c) Microsoft Corporation, MIT",
    "noto": "Noto Emoji, Copyright Google Inc., Apache 2.0",
    "twemoji": "Twemoji, Copyright 2019 Twitter, Inc and other contributors, CC BY 4.0",
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # no parameters
Figures = Mapping[str, Any]


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def accuracies(figures: Figures) -> str:
    """The table of accuracies, in %."""
    lines = []
    for key, name in ROWS.items():
        row = figures[key]
        style = "" if row["style"] is None else percent(row["style"])
        cells = [percent(row[k]) for k in ("object", "background")] + [style]
        cells += [percent(row[k]) for k in ("clip_object", "clip_background")]
        lines.append(f"| {name} | {row['images']} | {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


def setting(figures: Figures) -> str:
    return (
        f"{figures['steps']} steps of DPM-Solver++, guidance {figures['guidance']}, {figures['dtype']}, "
        f"torch {figures['torch']}; full captions, each class equally often, nothing chosen by hand."
    )


def write_results(figures: Figures, folder: Path) -> None:
    """results.md: every row, every class, every miss."""
    made, made_held, real, real_held, strange = (figures[key] for key in ROWS)
    lines = [
        "# What the embedded models reach\n",
        "Written by `python scripts/embedded/measure.py`; as data: [results.json](results.json).",
        f"Accuracies in %. Generated with {setting(figures)}\n",
        accuracies(figures),
        f"The autoencoder gives real composites back at {figures['psnr']:.2f} dB (PSNR).\n",
    ]
    if beside := figures.get("seconds_an_image"):
        lines.append(
            f"Time an image (10 steps, guidance, batch 16, {figures['threads']} threads), in turns "
            f"with the other pipeline: {1000 * beside['this']:.1f} ms against "
            f"{1000 * beside['other']:.1f} ms, {beside['ratio']:.2f} times.\n"
        )
    lines.append("## The judge and CLIP by class, and diversity\n")
    lines += [
        "Vendi: the effective number of different pictures among the "
        f"{made['images'] // len(THINGS)} of a class, by the judge's features; generated and real show the "
        "same backgrounds and styles.\n",
        "| class | judge: generated, seen | held out | CLIP: real, seen | held out | OpenMoji "
        "| generated, seen | held out | Vendi: generated, seen | real, seen |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for thing in THINGS:
        name = thing.name
        cells = [percent(row["object_by_class"][name]) for row in (made, made_held)]
        rows = (real, real_held, strange, made, made_held)
        cells += [percent(row["clip_object_by_class"][name]) for row in rows]
        cells += [f"{row['vendi_by_class'][name]:.1f}" for row in (made, real)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    scores = [sum(row["vendi_by_class"].values()) / len(THINGS) for row in (made, real)]
    lines.append(f"| mean | | | | | | | | {scores[0]:.1f} | {scores[1]:.1f} |\n")
    lines.append("## Styles, by the judge\n")
    for key in list(ROWS)[:4]:
        styles = ", ".join(f"{a} {percent(b)}" for a, b in figures[key]["style_by_style"].items())
        lines.append(f"- {ROWS[key]}: {styles}.")
    lines.append("\n## What the judge took for something else\n")
    for key in ROWS:
        misses = ", ".join(f"{a} for {b} ({n})" for a, b, n in figures[key]["taken_for"])
        lines.append(f"- {ROWS[key]}: {misses or 'nothing'}.")
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_cards(figures: Figures) -> None:
    """The cards beside the weights: what they are, their numbers, fingerprints, sources and licences."""
    pipeline, clip = pipeline_folder(), clip_folder()
    drawings = "".join(
        f"- {LICENCES[style.name]}; npm {SOURCES[style.name].package} {SOURCES[style.name].version}\n"
        for style in (STYLES[s] for s in TRAINING_STYLES)
    )
    things, backgrounds, styles = (len(words) for words in (THINGS, BACKGROUNDS, TRAINING_STYLES))
    models = f"""\
---
license: [apache-2.0, mit, cc-by-4.0]
---
# The embedded models

A tiny Stable Diffusion (`pipeline/`, loads as `StableDiffusionPipeline`) and a tiny open_clip (`clip/`,
loads as `local-dir:`), fp16 safetensors, trained from nothing by `scripts/embedded/` of the synthgen
repository. They know a tiny world: {things} drawn objects on {backgrounds} backgrounds in {styles} drawing
styles, 64x64 pixels. They are there so that demo, tests and experiments run offline; for anything else they
are of no use. Generator and filter share no weights: each began at random.

| model | parameters | bytes |
|---|---|---|
| `pipeline/unet` | {_size(pipeline / "unet")} |
| `pipeline/text_encoder` | {_size(pipeline / "text_encoder")} |
| `pipeline/vae` | {_size(pipeline / "vae")} |
| `clip` | {_size(clip)} |

Fingerprint of the pipeline: `{fingerprint(pipeline)}`. SHA-256 of `clip/open_clip_model.safetensors`:
`{_sha256(clip / "open_clip_model.safetensors")}`.

## Figures

Accuracies in %, judged by an independent CNN and by the tiny open_clip. Generated with {setting(figures)}

{accuracies(figures)}
The autoencoder: {figures["psnr"]:.2f} dB. All classes, all misses and how it is measured:
`scripts/embedded/`.

## Limits

The generator knows its training drawings by heart and composes them anew; the pairs held out, a tenth of
all pairs of object and background, measure that. It knows no other objects, no numbers, no relations. The
training saw no drawing of OpenMoji, on which the last row is measured.

## Sources and licences

Trained on composites of these drawings, on backgrounds drawn by code; what is generated resembles them:

{drawings}
Attribution in full: NOTICE. The weights are under the project's licence, Apache 2.0, as far as they are ours.
"""
    (pipeline.parent / "README.md").write_text(models, encoding="utf-8")
    real = figures["real, seen pairs"]
    read = ", ".join(f"{key} {percent(real[key])} %" for key in ("object", "background", "style"))
    judge = f"""\
# The judge

A CNN that says which of {things} objects, {backgrounds} backgrounds and {styles} drawing styles a 64x64
picture shows; fp16 safetensors, trained from nothing by `scripts/embedded/judge.py`. It measures the
generator and shares only the world with it and with the tiny open_clip. An instrument, it has also learnt the
pairs of object and background that those never see.
On {real["images"]} new real composites: {read}.

| parameters | bytes | SHA-256 |
|---|---|---|
| {_size(WEIGHTS.parent)} | `{_sha256(WEIGHTS)}` |

```python
from judge import load, look  # in scripts/embedded/

verdicts = look(load(), images)  # uint8 (n, 64, 64, 3); labels (n, 3): object, background, style
```

Trained on composites of these drawings (attribution in full: NOTICE):

{drawings}"""
    (WEIGHTS.parent / "README.md").write_text(judge, encoding="utf-8")


def _size(folder: Path) -> str:
    """Parameters and bytes of a folder's weights, as two cells."""
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        names = [k for k in file.keys() if not k.endswith(STATISTICS)]  # noqa: SIM118
        count = sum(file.get_tensor(name).numel() for name in names)
    return f"{count:,} | {path.stat().st_size:,}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
