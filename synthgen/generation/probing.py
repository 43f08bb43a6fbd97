"""A family that nobody has tried here: does it make several prompts a call, each as if alone among others?"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from synthgen.data import Request
from synthgen.generation.families import taken
from synthgen.generation.sampling import call

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SIDE, STEPS, GUIDANCE = 256, 2, 4.0
"""Of the pictures that are tried: small and quick, with guidance, which is where batches fail. A model that
does not make the size is tried at its own."""


def probe(pipeline: "DiffusionPipeline") -> bool:
    """Whether the pipeline must have one prompt a call; says in one line that its family is untested.

    It must where a call with two prompts fails, or where a prompt's image changes with the other prompt. To
    the bit: whatever the device, where that does not hold micro-batches are no unit.
    """
    name, reason = type(pipeline).__name__, ""
    for side in (SIDE, 0) if {"width", "height"} <= set(taken(type(pipeline))) else (0,):
        one = replace(PICTURE, width=side, height=side)
        others = (replace(one, seed=1, text=text) for text in ("a cup", "a red cup on a wooden table"))
        try:
            first, second = (call(pipeline, [one, other])[0].image for other in others)
        except Exception as error:
            reason = f"two prompts a call fail: {' '.join(str(error).split())[:120]}"
        else:
            same = np.array_equal(first, second, equal_nan=True)
            reason = "" if same else "a prompt's image changes with its neighbours"
            break
    logging.getLogger(__name__).warning(
        "untested family %s%s", name, f": one prompt a call ({reason})" if reason else ""
    )
    return bool(reason)


PICTURE = Request(
    uid="",
    class_id=0,
    class_name="",
    text="a cat",
    negative="",
    group="",
    prompt_id="",
    axes={},
    model="",
    fingerprint="",
    seed=0,
    replicate=0,
    steps=STEPS,
    guidance=GUIDANCE,
    scheduler="",
    dtype="",
    call="",
    width=0,
    height=0,
    turn=0,
)
