"""The second stage of DeepFloyd IF: the first stage's small image -> one four times as large."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from diffusers.utils import BaseOutput


def call_both(
    first: "DiffusionPipeline",
    second: "DiffusionPipeline",
    given: Mapping[str, Any],
    second_given: Mapping[str, Any],
) -> "BaseOutput":
    """What the second stage makes of the first stage's images.

    The prompts are read once, by the first stage. Each image's generator goes on from stage to stage. The
    safety checker of the second stage looks at the images; "pt", what the second stage wants, passes by that
    of the first.

    Args:
        given: what the first stage would be called with; width and height are of the second's images.
        second_given: the second stage's own arguments.
    """
    own: dict[str, Any] = dict(given)
    embeds, negative_embeds = first.encode_prompt(
        own.pop("prompt"), negative_prompt=own.pop("negative_prompt"), clean_caption=own["clean_caption"]
    )
    read: dict[str, Any] = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    times = factor(first.unet.config.sample_size, second.unet.config.sample_size)
    size: dict[str, int] = {side: own.pop(side) for side in ("width", "height") if side in own}
    small: dict[str, int] = {side: pixels // times for side, pixels in size.items()}
    images = first(**(own | small | read | {"output_type": "pt"})).images
    made: BaseOutput = second(
        image=images, generator=own["generator"], output_type="np", **size, **read, **second_given
    )
    return made


def factor(first_side: int, second_side: int) -> int:
    """How many times as large the second stage's images are."""
    return second_side // first_side
