"""How much memory a model needs, told from its files without loading it, and how much a device has.

Weights are counted; what images in work need is an estimate: a reason to warn, never to refuse.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from synthgen.errors import ModelError
from synthgen.generation.checkpoints import config, own_size, pipeline_class, weights
from synthgen.generation.families import family
from synthgen.generation.locating import Upscaler
from synthgen.generation.models import ENCODER

VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DECODER = 6
"""Values that an AutoencoderKL holds at once for each pixel and channel of its widest layer, 768 a pixel
for the 128 channels of SD, SDXL, SD3 and FLUX: the peak of what lives at once when the real configuration
runs on torch's meta device (512 and 1024 pixels, batch 1 and 2)."""
DENOISER = 260
"""Values that a denoiser holds at once for each pixel of an image, measured in the same way at 1024 pixels:
with guidance SDXL 158, SD3 190, SD1 260; FLUX without 234."""
CHANNELS = 128
"""Of a decoder whose configuration does not say."""


Change = tuple[str, Any]
"""A field of a setup, and another value."""


class Need(NamedTuple):
    """Values, not bytes: of each part's weights; of the largest tensor among them; of one image in the
    decoder and in the denoiser. `cacheable`: whether its embeddings can be cached.
    """

    parts: Mapping[str, int]
    largest_tensor: int
    decoder: int
    denoiser: int
    cacheable: bool


class Setup(NamedTuple):
    """What of a recipe and a command decides how much memory is used."""

    dtype: str
    batch_size: int
    embedding_cache: bool = False
    vae_slicing: bool = False
    offload: str = ""


class Use(NamedTuple):
    """Bytes of weights on the device, and an estimate of what images in work add."""

    weights: int
    images: int


def need(
    folder: Path,
    *,
    variant: str = "",
    safety_checker: bool = True,
    upscaler: Upscaler | None = None,
    width: int = 0,
    height: int = 0,
) -> Need:
    """What the pipeline in a folder needs, by the headers of its weight files.

    Args:
        width: of the images; 0 is the model's own size, as is a height of 0.

    Raises:
        ModelError: a part has no safetensors weights.
    """
    without = () if safety_checker else ("safety_checker",)
    tensors = _tensors(folder, variant, without)
    if upscaler:
        second = _tensors(upscaler.folder, upscaler.variant, (*ENCODER, *without))
        tensors |= {f"upscaler.{part}": sizes for part, sizes in second.items()}
    own_width, own_height = own_size(folder)
    pixels = (width or own_width) * (height or own_height)
    channels = config(folder, "vae").get("block_out_channels", [CHANNELS])[0]
    return Need(
        parts={part: sum(sizes) for part, sizes in tensors.items()},
        largest_tensor=max(itertools.chain(*tensors.values())),
        decoder=DECODER * channels * pixels if {"vae", "movq"} & tensors.keys() else 0,
        denoiser=DENOISER * pixels,
        cacheable=family(pipeline_class(folder)).negatives is not None,
    )


def use(need: Need, setup: Setup) -> Use:
    """The memory that a setup uses on its device."""
    weights, size = sum(need.parts.values()), VALUE_BYTES[setup.dtype]
    if setup.offload == "model":
        weights = max(need.parts.values())
    elif setup.offload:
        weights = need.largest_tensor
    elif setup.embedding_cache:  # encoders and the rest take turns
        encoders = sum(count for part, count in need.parts.items() if part.startswith("text_encoder"))
        weights = max(encoders, weights - encoders)
    decoded = need.decoder * (1 if setup.vae_slicing else setup.batch_size)
    return Use(weights * size, max(decoded, need.denoiser * setup.batch_size) * size)


def check(need: Need, setup: Setup, *, free: int, model: str, device: str) -> str:
    """What to say of a model that may not fit with its images; "" where it does.

    Args:
        free: bytes that the device has.
        model: its id in the recipe.

    Raises:
        ModelError: its weights alone do not fit; the message has the lines that would make it fit.
    """
    weights, images = use(need, setup)
    if weights + images <= free:
        return ""
    lines = fitting(need, setup, free=free, model=model, device=device)
    what = f"{gigabytes(weights)} of weights in {setup.dtype}"
    has = f"{device} has {gigabytes(free)} free"
    if weights > free:
        ways = f"add one of: {'; '.join(lines)}" if lines else "take a smaller model, or another device"
        raise ModelError(f"models.{model}: {what} do not fit, {has}; {ways}")
    ways = f"; if it runs out, add one of: {'; '.join(lines)}" if lines else ""
    return (
        f"models.{model}: {what} and about {gigabytes(images)} for {setup.batch_size} images at once may not "
        f"fit, {has}{ways}"
    )


def fitting(need: Need, setup: Setup, *, free: int, model: str, device: str) -> list[str]:
    """What to add to a command so that a model fits, of most worth first: single options, or where none is
    enough the fewest that together are; empty where nothing helps.
    """
    smaller = [n for n in range(setup.batch_size - 1, 0, -1) if setup.batch_size % n == 0]
    # a list a key: its values, the least change first; smaller batches divide, so that shards stay whole
    dtype: list[Change] = [("dtype", "bfloat16")] if setup.dtype == "float32" else []
    changes = [dtype, [("batch_size", n) for n in smaller]]
    if device != "cpu":  # where weights could only go to where they are
        changes.append([("embedding_cache", True)] if need.cacheable and not setup.embedding_cache else [])
    changes.append([("vae_slicing", True)] if need.decoder and not setup.vae_slicing else [])
    if device != "cpu" and not setup.offload:
        changes += [[("offload", "model")], [("offload", "sequential")]]
    if device == "cpu":  # many are slow in bfloat16
        changes = [*changes[1:], dtype]
    changes = [values for values in changes if values]
    for number in range(1, len(changes) + 1):
        found = []
        for keys in itertools.combinations(changes, number):
            for values in itertools.product(*keys):
                if sum(use(need, setup._replace(**dict(values)))) <= free:
                    found.append(" ".join(_option(model, key, value) for key, value in values))
                    break
        if found:
            return found
    return []


def _option(model: str, key: str, value: Any) -> str:
    if key == "offload":
        return f"--offload {value}"
    return f"--set models.{model}.{key}={str(value).lower() if value is True else value}"


def gigabytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def free_bytes(device: str) -> int | None:
    """What a device has free; None where it does not say."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return _kernel_says("/proc/meminfo", "MemAvailable") if device == "cpu" else None


def reset_peak(device: str) -> None:
    """Lets `peak_bytes` begin anew."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif device == "cpu" and os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int | None:
    """The most memory that tensors took on a GPU, or this process on a CPU, since `reset_peak`."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return _kernel_says("/proc/self/status", "VmHWM") if device == "cpu" else None


def _kernel_says(file: str, what: str) -> int | None:
    text = Path(file).read_text() if Path(file).exists() else ""
    found = re.search(rf"^{what}:\s+(\d+) kB$", text, re.M)
    return int(found[1]) * 1024 if found else None


def _tensors(folder: Path, variant: str, without: Collection[str]) -> dict[str, list[int]]:
    """How many values each tensor of each part that is loaded has."""
    found = {
        part: [count for file in files for count in _values(file)]
        for part, files in weights(folder, variant, without).items()
    }
    return {part: sizes for part, sizes in found.items() if sizes}


def _values(file: Path) -> list[int]:
    """How many values each tensor in a safetensors file has."""
    with open(file, "rb") as data:
        header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
    return [math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
