"""One planned micro-batch: requests -> images as the pipeline gives them, and uint8 pictures of these.

The unit of determinism is the micro-batch of the planned size: kernels choose their arithmetic by shape.
Each image has its own CPU generator, made anew for each call; the last micro-batch of a shard is padded,
never shrunk. Only where the device has too little memory is a micro-batch made in halves.
"""

import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.data import Request
from synthgen.errors import ModelError, OutOfMemoryError
from synthgen.generation.conditioning import ReadImage, image_arguments
from synthgen.generation.families import arguments, family
from synthgen.generation.upscaling import call_both

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

FLAGS = ("nsfw_content_detected", "nsfw_detected")
"""Where outputs say which images the safety checker made black."""
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, Triton
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "can't allocate memory",  # torch on a CPU
    "out of resource",  # Triton
)
"""What the messages of those errors hold; their classes differ."""


REFUSALS = (ValueError, TypeError, AttributeError, LookupError)
"""What pipelines raise for arguments, or versions of their parts, that they do not take."""


class Sampled(NamedTuple):
    """What the pipeline gave for a request, and in a batch of how many. `image` is float of shape (height,
    width, 3), in [0, 1] where all is well. `error` says why it is none of the request's.
    """

    image: npt.NDArray[np.float32]
    flagged: bool
    batch_size: int
    error: str = ""


class Picture(NamedTuple):
    """`image` is uint8 of shape (height, width, 3), or None where `error` says why there is none."""

    image: npt.NDArray[np.uint8] | None
    error: str


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


def sample(
    pipeline: "DiffusionPipeline",
    requests: Sequence[Request],
    *,
    batch_size: int,
    real: ReadImage | None = None,
    room: int | None = None,
    halve: bool = True,
) -> list[Sampled]:
    """What the pipeline makes of at most `batch_size` requests of one model, in their order.

    Args:
        real: reads the real images that requests are made from; None where there are none.
        room: how many images the memory is known to have room for; a larger micro-batch is made in halves at
            once. None is unknown.
        halve: where memory runs out, make the micro-batch in halves (and so on, down to single images)
            instead of failing; their bits may differ from those of the whole.

    Raises:
        ModelError: the pipeline does not take an argument that the requests need, or returns another number
            of images.
        OutOfMemoryError: a single image, or without `halve` the micro-batch, needs more memory than there
            is.
    """
    if batch_size > 1 and is_alone(pipeline):
        if not halve:
            raise ModelError(
                f"batch_size = {batch_size}: {type(pipeline).__name__} is given one prompt a call; with "
                "--strict say batch_size = 1"
            )
        return [made for request in requests for made in sample(pipeline, [request], batch_size=1, real=real)]
    filled = [*requests, *[requests[-1]] * (batch_size - len(requests))]
    reason = ""
    if room is None or batch_size <= room:
        try:
            return call(pipeline, filled, real)[: len(requests)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
        # out of the except block: the error holds the frames, and they hold the tensors
        free_memory()
        if hasattr(pipeline, "embeddings") and pipeline.embeddings.free():
            return sample(pipeline, requests, batch_size=batch_size, real=real, room=room, halve=halve)
    if batch_size == 1 or not halve:
        raise OutOfMemoryError(
            f"a micro-batch of {batch_size} needs more memory than there is ({reason}); "
            + ("use another device or dtype" if batch_size == 1 else "lower batch_size, or drop --strict")
        )
    half, made = -(-batch_size // 2), list[Sampled]()
    for start in range(0, len(requests), half):
        made += sample(
            pipeline, requests[start : start + half], batch_size=half, real=real, room=room, halve=halve
        )
        room = made[-1].batch_size
    return made


def is_alone(pipeline: "DiffusionPipeline") -> bool:
    """Whether the pipeline is given one prompt a call."""
    return family(type(pipeline)).alone or getattr(pipeline, "alone", False)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or its cause, says that memory ran out."""
    while error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def free_memory() -> None:
    """Gives back what nothing refers to any more, cycles included."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def call(
    pipeline: "DiffusionPipeline", filled: Sequence[Request], real: ReadImage | None = None
) -> list[Sampled]:
    """What one call of the pipeline makes of requests that differ in text, negative prompt, seed and real
    image alone.

    Prompts are repeated where several images of one are wanted: `num_images_per_prompt` mixes them up in some
    pipelines. Images come as "np", the only form that means the same for all.
    """
    import torch

    first, name = filled[0], type(pipeline).__name__
    for part, module in pipeline.components.items():
        if getattr(module, "is_cache_enabled", False):
            raise ModelError(f"{name}: its {part} caches between steps, so that neighbours change an image")
    own = json.loads(first.call or "{}")
    upscaler, second = getattr(pipeline, "upscaler", None), own.pop("upscaler", {})
    text = own.pop("prompt", None)
    given = arguments(
        type(pipeline),
        guidance=first.guidance,
        steps=first.steps,
        width=first.width,
        height=first.height,
        negative=[request.negative for request in filled],
        call=own,
    )
    # new lists: some pipelines write into the prompts, and some do not count the generators
    none = family(type(pipeline)).no_negative
    given["prompt"] = [request.text if text is None else text or none for request in filled]
    images = [real(request) for request in filled] if real and first.source_uid else []
    if images:
        given |= image_arguments(pipeline, filled, images)
    seeds = [request.seed for request in filled]
    if family(type(pipeline)).doubles and "negative_prompt" in given:
        seeds += seeds
    given["generator"] = [make_generator(seed) for seed in seeds]
    before = _global_generators()
    with torch.inference_mode():
        try:
            output = call_both(pipeline, upscaler, given, second) if upscaler else pipeline(**given)
        except REFUSALS as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{name} refuses the call: {type(error).__name__}: {reason}") from error
    if any(not state.equal(old) for state, old in zip(_global_generators(), before, strict=True)):
        raise ModelError(
            f"{name} draws noise from a global generator, not by seeds; choose another scheduler"
        )
    made = output.images if "images" in output else output.image
    if len(made) != len(filled):
        raise ModelError(f"{name}: returned {len(made)} images for {len(filled)} prompts")
    flagged = next((output[key] for key in FLAGS if output.get(key)), [False] * len(filled))
    errors = ["real image" if image is None else "" for image in images] or [""] * len(filled)
    return [Sampled(made[k], bool(flagged[k]), len(filled), errors[k]) for k in range(len(filled))]


def _global_generators() -> "list[torch.Tensor]":
    """The states of torch's own generators, which no seed of ours governs."""
    import torch

    # a worker's GPU is the current one
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_gpu else [])]


def picture(sampled: Sampled) -> Picture:
    """A float image in [0, 1] as uint8, or the reason why not; NaN would silently become black."""
    if sampled.error:
        return Picture(None, sampled.error)
    if sampled.flagged:
        return Picture(None, "safety checker")
    if not np.isfinite(sampled.image).all():
        return Picture(None, "not finite")
    levels = (sampled.image * 255).round().clip(0, 255).astype(np.uint8)
    if levels.max() == 0:
        return Picture(None, "black")
    return Picture(levels, "")
