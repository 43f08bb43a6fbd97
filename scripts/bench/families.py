"""What runs and how: one row a family of text-to-image pipelines, measured on its tiny twin of random weights
(tests/tiny_models.py), on a CPU, without network.

"neighbours" and "alone" are of the bare call, before synthgen gives one prompt a call to those that need it:
whether a row of two is the same to the bit whatever the other row is, and how many of 255 levels at most it
is from the prompt alone.

    python scripts/bench/families.py                 # 30 s on one core
    python scripts/bench/families.py sdxl flux if1   # these alone
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
import numpy.typing as npt
import tiny_models
import torch
from diffusers.pipelines import auto_pipeline

from synthgen.errors import ModelError
from synthgen.generation import locating, models
from synthgen.generation.families import family, taken
from synthgen.generation.probing import PICTURE
from synthgen.generation.sampling import call, picture, sample
from synthgen.generation.tokens import token_counter

BOTH = "if1 and if2"
SECOND = {"upscaler": {"num_inference_steps": 2, "guidance_scale": 4.0}}
BATCH, ROUNDS = 4, 3
TEXTS = ("a cat", "an owl", "a photo of a red dog on green grass at the sea, with an owl and snow", "a dog")


def levels(pipeline: Any, requests: Sequence[Any]) -> npt.NDArray[np.uint8]:
    """The first of the images of one bare call, as it is stored."""
    image = picture(call(pipeline, requests)[0]).image
    assert image is not None
    return image


def neighbours(pipeline: Any, one: Any, others: Sequence[Any]) -> tuple[str, str]:
    """Whether a row is the same beside a short and a long prompt, and its distance from the row alone."""
    try:
        beside = [call(pipeline, [one, other])[0].image for other in others]
    except Exception as error:
        return f"fails: {type(error.__cause__ or error).__name__}", ""
    apart = np.abs(beside[0] - beside[1]).max()
    same = "yes" if apart == 0 else f"no, {apart * 255:.2g} levels"
    alone, *rows = (levels(pipeline, batch).astype(int) for batch in ([one], *([one, o] for o in others)))
    return same, str(max(np.abs(row - alone).max() for row in rows))


def differ(pipeline: Any, one: Any, **changed: object) -> bool:
    return not np.array_equal(
        call(pipeline, [one])[0].image, call(pipeline, [replace(one, **changed)])[0].image
    )


def negative(pipeline: Any, one: Any) -> str:
    """Whether a negative prompt changes the image, and what it needs for that."""
    if "negative_prompt" not in taken(type(pipeline)):
        return "no"
    needed = family(type(pipeline)).negative_with
    if needed:
        one = replace(one, call=json.dumps({needed: 4.0}))
    changes = differ(pipeline, replace(one, negative="a red dog"), negative="a blue sea")
    return ("yes" if changes else "no effect") + (f", with `{needed}`" if needed else "")


def measure(name: str, folder: Path, second: Path | None) -> dict[str, object]:
    """A row of the table."""
    upscaler = locating.Upscaler(second) if second else None
    pipeline, low = (
        models.load(folder, device="cpu", dtype=dtype, upscaler=upscaler) for dtype in ("float32", "bfloat16")
    )
    kind, mapping = type(pipeline), auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    own = json.dumps(SECOND) if second else ""
    asked = replace(PICTURE, width=64, height=64, steps=2, guidance=4.0, call=own)
    one, short, long, last = (replace(asked, text=text, seed=k) for k, text in enumerate(TEXTS))
    same, alone = neighbours(pipeline, one, (short, long))
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sample(pipeline, [one, short, long, last], batch_size=BATCH)
        seconds.append(time.perf_counter() - start)
    guided = differ(pipeline, replace(one, guidance=1.0), guidance=7.0)
    halved = sample(low, [one, long], batch_size=2), sample(low, [one, short], batch_size=2)
    steady = np.array_equal(halved[0][0].image, halved[1][0].image)
    single = family(kind).alone or getattr(pipeline, "alone", False)
    return {
        "family": name,
        "pipeline": kind.__name__.removesuffix("Pipeline"),
        "known": "yes" if family(kind).tested else "tried",
        "loaded": "own" if second else "Auto" if kind in mapping.values() else "Diffusion",
        "guidance goes to": f"`{family(kind).guidance}`" + ("" if guided else ", no effect"),
        "negative": negative(pipeline, one),
        "tokens read": token_counter({"m": folder})("a cat")["m"][1],
        "neighbours": same,
        "alone": alone,
        "a call": "one prompt" if single else "a batch",
        "bf16": "yes" if steady and all(not picture(each).error for each in halved[0]) else "no",
        f"s for {BATCH}": f"{median(seconds):.2f}",
    }


def main() -> None:
    builders = tiny_models.FAMILIES | tiny_models.UNTESTED
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*builders, BOTH])}; all")
    parser.add_argument("--json", action="store_true", help="one JSON array in place of the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="synthgen-bench-") as parent:
        tiny_models.if2(Path(parent) / "if2")
        for name in options.names or [*builders, BOTH]:
            if name not in (*builders, BOTH):
                parser.error(f'"{name}": no such family; known: {", ".join([*builders, BOTH])}')
            both = name == BOTH
            folder = Path(parent) / name
            builders["if1" if both else name](folder)
            try:
                rows.append(measure(name, folder, Path(parent) / "if2" if both else None))
            except ModelError as error:
                rows.append({"family": name, "pipeline": f"refused: {error}"})
    if options.json:
        print(json.dumps(rows))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
