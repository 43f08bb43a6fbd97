"""Hashes that find the same image again: sha256 and 64-bit DCT perceptual hash of the pixels."""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen.data import Sample

if TYPE_CHECKING:
    import torch

HASHES_COLUMNS = {"pixels": "string", "phash": "uint64"}
SIDE, KEPT = 32, 8
DCT = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))
"""The first rows of the DCT-II of 32 values, not normalised."""


def hashes(*, device: str) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """`pixels`, sha256 (hex) of the size and the pixels as they decode, and `phash`.

    That of the file finds nothing: each file has the mark of its own sample.

    `phash` compares the 8 x 8 lowest frequencies of the 32 x 32 luma with their median, row by row from the
    most significant bit: the value of `imagehash.phash`.
    """

    def prepare(sample: Sample) -> tuple[str, npt.NDArray[np.uint8]]:
        return _of_pixels(sample.image), shrink(sample.luma)

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        made = [sample.prepared_by(prepare) for sample in samples]
        pixels, small = zip(*made, strict=True)
        return {"pixels": np.array(pixels), "phash": compare(np.stack(small))}

    annotate.prepare = prepare  # type: ignore[attr-defined]
    return annotate


def _of_pixels(image: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def phash(pixels: npt.NDArray[np.uint8]) -> int:
    """The 64-bit perceptual hash of an image of shape (height, width, 3)."""
    return int(compare(shrink(np.asarray(Image.fromarray(pixels).convert("L")))[None])[0])


def compare(small: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The perceptual hashes of lumas of shape (n, 32, 32)."""
    low = (DCT @ small.astype(np.float64) @ DCT.T).reshape(len(small), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def shrink(luma: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A luma of shape (height, width) as 32 x 32: byte for byte what Pillow's Lanczos filter makes of it,
    which is nearly all that a perceptual hash costs; of images that are not tall in a third of the time.
    """
    import torch

    height, width = luma.shape
    across, down = _bands(width), _bands(height)
    # rows first, as Pillow does it; of tall images, from version 13 on, it sometimes begins with the columns
    if height > width or not across or not down:
        return np.asarray(Image.fromarray(luma).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    narrow = _filter(torch.from_numpy(luma.astype(np.float32)), across)
    return np.asarray(_filter(narrow.T, down).T)


LOW, PRECISION = 7, 22
"""Pillow's coefficients are whole numbers of 22 bits. A float32 product of matrices is exact while its sums
stay below 2**24, so they are cut in two: the lower 7 bits, and the others.
"""
BAND = 8
"""So many neighbouring outputs share one product of matrices, over the inputs that any of them reads."""


class Band(NamedTuple):
    """Coefficients of some outputs, shape (stop - start, 2 * BAND): the upper bits, then the lower."""

    start: int
    stop: int
    weights: "torch.Tensor"


def _filter(values: "torch.Tensor", bands: list[Band]) -> "torch.Tensor":
    """One pass of Pillow's resize: shape (n, side) -> (n, 32), uint8."""
    import torch

    numbers = values.float()
    parts = torch.stack([numbers[:, band.start : band.stop] @ band.weights for band in bands], 1)
    whole = parts.to(torch.int32)
    sums = (whole[:, :, :BAND] << LOW) + whole[:, :, BAND:] + (1 << (PRECISION - 1))
    return torch.clamp(sums >> PRECISION, 0, 255).to(torch.uint8).reshape(len(values), SIDE)


@functools.cache
def _bands(side: int) -> list[Band]:
    """The filter from `side` to 32 values; nothing where it is so long that float32 would not be exact."""
    import torch

    rows = np.zeros((side, SIDE), np.int64)
    for place in range(SIDE):
        first, weights = _lanczos(side, place)
        rows[first : first + len(weights), place] = weights
    lower = (rows + (1 << (LOW - 1))) % (1 << LOW) - (1 << (LOW - 1))
    upper = (rows - lower) >> LOW
    if max(abs(part).sum(axis=0).max() for part in (upper, lower)) * 255 >= 2**24:
        return []
    found = []
    for place in range(0, SIDE, BAND):
        own = slice(place, place + BAND)
        used = np.flatnonzero(rows[:, own].any(axis=1))
        start, stop = int(used[0]), int(used[-1]) + 1
        both = np.concatenate([upper[start:stop, own], lower[start:stop, own]], axis=1)
        found.append(Band(start, stop, torch.from_numpy(both.astype(np.float32))))
    return found


def _lanczos(side: int, place: int) -> tuple[int, list[int]]:
    """The first input and the coefficients of one output, in Pillow's arithmetic."""
    scale = side / SIDE
    support = 3.0 * max(scale, 1.0)
    centre = (place + 0.5) * scale
    first, stop = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), side)
    raw = [_kernel((x - centre + 0.5) / max(scale, 1.0)) for x in range(first, stop)]
    total = sum(raw)
    return first, [int(w / total * (1 << PRECISION) + math.copysign(0.5, w)) for w in raw]


def _kernel(x: float) -> float:
    def sinc(x: float) -> float:
        return math.sin(math.pi * x) / (math.pi * x) if x else 1.0

    return sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0
