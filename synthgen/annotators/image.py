"""What can be read off the pixels alone: size, luma, entropy, sharpness, near-constant images."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen.data import Sample

IMAGE_COLUMNS = {
    "width": "int32",
    "height": "int32",
    "luma": "float32",
    "luma_std": "float32",
    "entropy": "float32",
    "sharpness": "float32",
    "near_constant": "bool",
}
SHARPNESS_SIDE = 256


def image(
    *, device: str, near_constant: float = 0.01
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Statistics of the luma (ITU-R 601, in [0, 1]) of each image.

    `luma` and `luma_std` are its mean and standard deviation, `entropy` is in bits (0 to 8) over 256 levels,
    `sharpness` the variance of the Laplacian of levels 0 to 255 with the longer side at most 256 pixels.

    Args:
        device: not used; all is done on the CPU.
        near_constant: an image whose `luma_std` is below this is near-constant (black, white, one grey).
    """

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        rows = [_statistics(sample.image) for sample in samples]
        columns: dict[str, npt.NDArray[np.generic]] = {
            name: np.array([row[name] for row in rows], dtype=kind)
            for name, kind in IMAGE_COLUMNS.items()
            if name != "near_constant"
        }
        return {**columns, "near_constant": np.less(columns["luma_std"], np.float32(near_constant))}

    return annotate


def _statistics(pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    grey = Image.fromarray(pixels).convert("L")
    levels = np.asarray(grey)
    share = np.bincount(levels.ravel(), minlength=256) / levels.size
    share = share[share > 0]
    grey.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BOX)
    small = np.pad(np.asarray(grey, dtype=np.float32), 1, mode="edge")
    laplacian = (
        small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:] - 4 * small[1:-1, 1:-1]
    )
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "luma": float(levels.mean() / 255),
        "luma_std": float(levels.std() / 255),
        "entropy": float(abs((share * np.log2(share)).sum())),
        "sharpness": float(laplacian.var()),
    }
