"""Hashes that find the same image again: sha256 of the stored file, 64-bit DCT perceptual hash of the
pixels.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen.data import Sample

HASHES_COLUMNS = {"sha256": "string", "phash": "uint64"}
SIDE, KEPT = 32, 8
DCT = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))
"""The first rows of the DCT-II of 32 values, not normalised."""


def hashes(*, device: str) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """`sha256` (hex) of the image file as stored, and `phash`.

    `phash` compares the 8 x 8 lowest frequencies of the 32 x 32 luma with their median, row by row from the
    most significant bit: the value of `imagehash.phash`.
    """

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        return {
            "sha256": np.array([hashlib.sha256(sample.stored).hexdigest() for sample in samples]),
            "phash": np.array([phash(sample.image) for sample in samples], dtype=np.uint64),
        }

    return annotate


def phash(pixels: npt.NDArray[np.uint8]) -> int:
    """The 64-bit perceptual hash of an image of shape (height, width, 3)."""
    grey = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = DCT @ np.asarray(grey, dtype=np.float64) @ DCT.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
