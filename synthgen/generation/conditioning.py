"""Images from real images: img2img, which starts from one, and IP-Adapter, which looks at one."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.data import Request
from synthgen.errors import ModelError
from synthgen.generation.families import family, taken

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

    from synthgen.generation.locating import Adapter

ReadImage = Callable[[Request], npt.NDArray[np.uint8] | None]
"""Gives the real image of a request, uint8 of shape (height, width, 3); None where it is damaged."""


def changing_class(pipeline: type) -> type["DiffusionPipeline"]:
    """The class that changes images with the weights of a text-to-image class, as
    AutoPipelineForImage2Image chooses it.

    Raises:
        ModelError: diffusers has none.
    """
    from diffusers.pipelines import auto_pipeline as auto

    mapping = auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    found: type[DiffusionPipeline] | None = auto._get_task_class(mapping, pipeline.__name__, False)
    if found and "strength" in taken(found):
        return found
    known = {
        re.sub("(Combined)?Pipeline", "", kind.__name__)
        for key, kind in auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
        if "strength" in taken(mapping.get(key, object)) and not re.search("Control|PAG", kind.__name__)
    }
    raise ModelError(
        f"strength: diffusers changes no image with the family of {pipeline.__name__}; it does with "
        + ", ".join(sorted(known))
    )


def check_strength(pipeline: type, strength: float, steps: int) -> None:
    """Raises ModelError where a text-to-image class changes no images, or not one step of it would be run."""
    kind = changing_class(pipeline)
    # the other kind of model runs all steps, whatever the strength
    if "original_inference_steps" not in taken(kind) and int(steps * strength) < 1:
        least = next(n for n in itertools.count(math.floor(1 / strength)) if int(n * strength) >= 1)
        raise ModelError(
            f"steps = {steps}: with strength = {strength:g} not one of them is run; {least} or more is wanted"
        )


def check_adapter(pipeline: type) -> None:
    """Raises ModelError where a text-to-image class takes no IP-Adapter of the usual form."""
    from diffusers.loaders import IPAdapterMixin

    if not issubclass(pipeline, IPAdapterMixin) or "ip_adapter_image" not in taken(pipeline):
        raise ModelError(
            f"adapter: {pipeline.__name__} takes none; StableDiffusion, StableDiffusionXL and "
            "LatentConsistencyModel do"
        )


def changing(pipeline: "DiffusionPipeline", own_size: tuple[int, int]) -> "DiffusionPipeline":
    """A pipeline that changes images, of the very weights of one that makes them from text.

    Args:
        own_size: width and height of the images of requests that say none.
    """
    from diffusers import AutoPipelineForImage2Image

    own = family(type(pipeline))
    # what it was loaded with is not in its configuration
    found: DiffusionPipeline = AutoPipelineForImage2Image.from_pipe(pipeline, **own.load)
    found.set_progress_bar_config(disable=True)
    found.alone = not own.tested  # its probe was from text
    found.own_size = own_size
    return found


def add_adapter(pipeline: "DiffusionPipeline", adapter: "Adapter") -> None:
    """Adds an IP-Adapter and its image encoder. One prompt a call from then on: diffusers gives each prompt
    all the images of a call.

    Raises:
        ModelError: it does not fit.
    """
    from transformers import CLIPVisionModelWithProjection

    check_adapter(type(pipeline))
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(
            adapter.encoder, dtype=pipeline.dtype, local_files_only=True, use_safetensors=True
        )
        pipeline.register_modules(image_encoder=encoder)
        pipeline.load_ip_adapter(
            str(adapter.file.parent),
            subfolder="",
            weight_name=adapter.file.name,
            image_encoder_folder=None,
            local_files_only=True,
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(
            f"adapter: {adapter.file}: does not fit {type(pipeline).__name__} ({reason})"
        ) from error
    pipeline.set_ip_adapter_scale(adapter.scale)
    pipeline.alone = True


def image_arguments(
    pipeline: "DiffusionPipeline",
    requests: Sequence[Request],
    images: Sequence[npt.NDArray[np.uint8] | None],
) -> dict[str, Any]:
    """What the call is given of real images, one for each request; white stands for one that is damaged."""
    from PIL import Image

    first = requests[0]
    opened = [
        Image.new("RGB", (64, 64), "white") if image is None else Image.fromarray(image) for image in images
    ]
    if not first.strength:
        (reference,) = opened
        return {"ip_adapter_image": reference}
    size = (first.width, first.height) if first.width else pipeline.own_size
    return {"image": [cover(image, size) for image in opened], "strength": first.strength}


def cover(image: "Image", size: tuple[int, int]) -> "Image":
    """An image of (width, height): as large as covers that, the middle of it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
