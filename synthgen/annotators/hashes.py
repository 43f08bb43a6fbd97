"""Hashes that find the same image again: sha256 and 64-bit DCT perceptual hash of the pixels."""

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen.data import Sample

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

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        return {
            "pixels": np.array([_of_pixels(sample.image) for sample in samples]),
            "phash": np.array([phash(sample.image) for sample in samples], dtype=np.uint64),
        }

    return annotate


def _of_pixels(image: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def phash(pixels: npt.NDArray[np.uint8]) -> int:
    """The 64-bit perceptual hash of an image of shape (height, width, 3)."""
    grey = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = DCT @ np.asarray(grey, dtype=np.float64) @ DCT.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
