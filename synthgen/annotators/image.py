"""What can be read off the pixels alone: size, luma, entropy, sharpness, and the rules of cleanvision."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from synthgen.data import Sample

IMAGE_COLUMNS = {
    "width": "int32",
    "height": "int32",
    "size": "float32",
    "aspect": "float32",
    "luma": "float32",
    "luma_std": "float32",
    "entropy": "float32",
    "sharpness": "float32",
    "near_constant": "bool",
    "brightness_p5": "float32",
    "brightness_p99": "float32",
    "rgb_entropy": "float32",
    "blur_score": "float32",
    "dark": "bool",
    "light": "bool",
    "odd_aspect": "bool",
    "low_information": "bool",
    "blurry": "bool",
    "grayscale": "bool",
}
SHARPNESS_SIDE, BLUR_SIDE, SAMPLE_SIDE = 256, 64, 128
PERCEIVED = np.array([0.241, 0.691, 0.068])
"""How much red, green and blue count in the brightness that is seen."""


class Measured(NamedTuple):
    """What one image is boiled down to: counts of its levels, and a few numbers.

    `luma` counts all pixels, `rgb` (three colours, one after the other) a grid of them; `blur` counts the
    luma at most 64 pixels wide.
    """

    width: int
    height: int
    luma: npt.NDArray[np.intp]
    rgb: npt.NDArray[np.intp]
    blur: npt.NDArray[np.intp]
    edges: npt.NDArray[np.intp]
    percentiles: npt.NDArray[np.float64]
    sharpness: float
    is_grey: bool


def image(
    *, device: str, near_constant: float = 0.01
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Statistics of each image, and the rules of cleanvision 0.3 as columns.

    `size` is the root of the area, `aspect` the shorter side by the longer. Of the luma (ITU-R 601, in
    [0, 1]): `luma` and `luma_std` are its mean and standard deviation, `entropy` is in bits (0 to 8) over 256
    levels, `sharpness` the variance of the Laplacian of levels 0 to 255, of the image reduced by the least
    whole number that leaves its longer side at most 256 pixels.

    `brightness_p5` and `brightness_p99` are percentiles of sqrt(.241 R^2 + .691 G^2 + .068 B^2) in [0, 1],
    `rgb_entropy` is in bits (0 to 9.6) over the 768 levels of three colours. Both look at every k-th row and
    column, such that at most 128 of each are left, where cleanvision looks at all: ten times the work.
    `blur_score` is 1 - exp(-s/100) of the standard deviation s of the edges with the longer side at most 64
    pixels, plus the same of that of its histogram's 256 counts where this is above 0.18, at most 1. The image
    is reduced to 64 pixels in two steps and as luma; cleanvision takes one, in colour.

    `dark`: `brightness_p99` < 0.32. `light`: `brightness_p5` > 0.95. `odd_aspect`: `aspect` < 0.35.
    `low_information`: `rgb_entropy` < 3. `blurry`: `blur_score` < 0.29. `grayscale`: red, green and blue are
    equal.

    Args:
        device: not used; all is done on the CPU.
        near_constant: an image whose `luma_std` is below this is near-constant (black, white, one grey).
    """

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        rows = [sample.prepared_by(_measure) for sample in samples]
        width, height, luma, rgb, blur, edges, percentiles, sharpness, is_grey = (
            np.array(column) for column in zip(*rows, strict=True)
        )
        found: dict[str, npt.NDArray[np.generic]] = {
            "width": width,
            "height": height,
            "size": np.sqrt(width * height),
            "aspect": np.minimum(width / height, height / width),
            "luma": _mean(luma) / 255,
            "luma_std": _std(luma) / 255,
            "entropy": _entropy(luma),
            "sharpness": sharpness,
            "brightness_p5": percentiles[:, 0],
            "brightness_p99": percentiles[:, 1],
            "rgb_entropy": _entropy(rgb),
            "blur_score": _blur_score(_std(edges), blur.std(axis=1)),
        }
        found = {name: values.astype(IMAGE_COLUMNS[name]) for name, values in found.items()}
        found |= {
            "near_constant": np.less(found["luma_std"], np.float32(near_constant)),
            "dark": np.less(found["brightness_p99"], np.float32(0.32)),
            "light": np.greater(found["brightness_p5"], np.float32(0.95)),
            "odd_aspect": np.less(found["aspect"], np.float32(0.35)),
            "low_information": np.less(found["rgb_entropy"], np.float32(3)),
            "blurry": np.less(found["blur_score"], np.float32(0.29)),
            "grayscale": is_grey,
        }
        return {name: found[name] for name in IMAGE_COLUMNS}

    annotate.prepare = _measure  # type: ignore[attr-defined]
    return annotate


def _measure(sample: Sample) -> Measured:
    pixels, grey = sample.image, Image.fromarray(sample.luma)
    step = -(-max(grey.size) // SAMPLE_SIDE)
    some = np.ascontiguousarray(pixels[::step, ::step])
    brightness = np.sqrt((some.astype(np.float32) ** 2 @ PERCEIVED.astype(np.float32)).ravel()) / 255
    tiny, longer = grey, max(grey.size)
    small = grey.reduce(-(-longer // SHARPNESS_SIDE))
    if longer > BLUR_SIDE:
        width, height = (max(side * BLUR_SIDE // longer, 1) for side in grey.size)
        tiny = grey.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return Measured(
        width=grey.width,
        height=grey.height,
        luma=np.array(grey.histogram()),
        rgb=np.array(Image.fromarray(some).histogram()),
        blur=np.array(tiny.histogram()),
        edges=np.array(tiny.filter(ImageFilter.FIND_EDGES).histogram()),
        percentiles=_percentiles(brightness, 5, 99),
        sharpness=_laplacian_variance(np.asarray(small)),
        is_grey=bool((some == some[..., :1]).all() and (pixels == pixels[..., :1]).all()),
    )


def _percentiles(values: npt.NDArray[np.floating], *percents: float) -> npt.NDArray[np.float64]:
    """As `np.percentile` has them, which for so few takes four times as long as a sort."""
    ordered, places = np.sort(values), np.array(percents) / 100 * (len(values) - 1)
    return np.interp(places, np.arange(len(values)), ordered)


def _laplacian_variance(levels: npt.NDArray[np.uint8]) -> float:
    """Of levels whose outermost rows and columns go on outside."""
    padded = np.pad(levels.astype(np.int16), 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    laplacian -= 4 * padded[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


def _mean(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Of levels 0 to 255, by their counts, shape (n, 256)."""
    mean: npt.NDArray[np.float64] = counts @ np.arange(256.0) / counts.sum(axis=1)
    return mean


def _std(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    squares = (np.arange(256.0) - _mean(counts)[:, None]) ** 2
    variance: npt.NDArray[np.float64] = (counts * squares).sum(axis=1) / counts.sum(axis=1)
    return np.sqrt(variance)


def _entropy(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    share = counts / counts.sum(axis=1, keepdims=True)
    bits = share * np.log2(share, out=np.zeros_like(share), where=share > 0)
    entropy: npt.NDArray[np.float64] = np.abs(bits.sum(axis=1))
    return entropy


def _blur_score(
    edges: npt.NDArray[np.float64], histogram: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    of_edges, of_histogram = (1 - np.exp(-std / 100) for std in (edges, histogram))
    score: npt.NDArray[np.float64] = np.minimum(of_edges + np.where(of_histogram > 0.18, of_histogram, 0), 1)
    return score
