"""One planned micro-batch: requests -> uint8 images or reasons why not.

The unit of determinism is the micro-batch of the planned size: kernels choose their arithmetic by shape.
Each image has its own CPU generator, made anew for each call; the last micro-batch of a shard is padded,
never shrunk.
"""

import inspect
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.data import Request
from synthgen.errors import ModelError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


def make_generator(seed: int) -> "torch.Generator":
    """The CPU generator of an image: the Mersenne Twister of Python's `random.Random(seed)`.

    `torch.Generator.manual_seed` looks at the lower 32 bits only, so that among a million images about a
    hundred pairs would start from the same noise; here all 63 bits count.
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    state = generator.get_state().numpy()
    # the state begins with 24 bytes (the seed, what is left of the block), then 624 words in 8 bytes each
    state[24 : 24 + 624 * 8].view(np.uint64)[:] = random.Random(seed).getstate()[1][:624]
    return generator.set_state(torch.from_numpy(state))


class Picture(NamedTuple):
    """`image` is uint8 of shape (height, width, 3), or None where `error` says why there is none."""

    image: npt.NDArray[np.uint8] | None
    error: str


def sample(pipeline: "DiffusionPipeline", requests: Sequence[Request], *, batch_size: int) -> list[Picture]:
    """The pictures of at most `batch_size` requests of one model, in their order.

    Raises:
        ModelError: the pipeline does not take an argument that the requests need, or returns another number
            of images.
    """
    import torch

    filled = [*requests, *[requests[-1]] * (batch_size - len(requests))]
    first = requests[0]
    call: dict[str, object] = {
        "prompt": [request.text for request in filled],  # a new list: some pipelines write into it
        "generator": [make_generator(request.seed) for request in filled],
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance,
        "output_type": "np",
    }
    if first.width:
        call["width"] = first.width
    if first.height:
        call["height"] = first.height
    taken = inspect.signature(pipeline.__call__).parameters
    if "negative_prompt" in taken:
        call["negative_prompt"] = [request.negative for request in filled]
    elif any(request.negative for request in filled):
        raise ModelError(f"{type(pipeline).__name__}: takes no negative prompt; remove `negative`")
    unknown = [key for key in call if key not in taken]
    if unknown:
        raise ModelError(
            f"{type(pipeline).__name__}: does not take {', '.join(unknown)}; this model is not supported"
        )
    with torch.inference_mode():
        try:
            output = pipeline(**call)
        except (ValueError, TypeError) as error:  # what pipelines raise for arguments that they do not take
            reason = " ".join(str(error).split())
            raise ModelError(f"{type(pipeline).__name__} refuses the call: {reason}") from error
    images = output.images
    if len(images) != len(filled):
        raise ModelError(
            f"{type(pipeline).__name__}: returned {len(images)} images for {len(filled)} prompts"
        )
    flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(filled)
    return [_picture(images[k], bool(flagged[k])) for k in range(len(requests))]


def _picture(image: npt.NDArray[np.float32], flagged: bool) -> Picture:
    """A float image in [0, 1] as uint8, or the reason why not; NaN would silently become black."""
    if flagged:
        return Picture(None, "safety checker")
    if not np.isfinite(image).all():
        return Picture(None, "not finite")
    levels = (image * 255).round().clip(0, 255).astype(np.uint8)
    if levels.max() == 0:
        return Picture(None, "black")
    return Picture(levels, "")
