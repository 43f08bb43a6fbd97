"""An augmentation that is written down: parameters are drawn once, and replayed with the same bits whenever
they are wanted. Imports no torch; `replaying` does the work.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.errors import FolderError, RecipeError

if TYPE_CHECKING:
    import torch

FORM = 1
"""Another number where `draw` or `apply` mean something else by the same settings or parameters."""
BINS = 31
"""Magnitudes of RandAugment are 0 to 30."""
REACH: dict[str, tuple[Callable[[float, int], float], bool]] = {
    "Identity": (lambda level, side: 0.0, False),
    "ShearX": (lambda level, side: 0.3 * level, True),
    "ShearY": (lambda level, side: 0.3 * level, True),
    "TranslateX": (lambda level, side: 150 / 331 * side * level, True),
    "TranslateY": (lambda level, side: 150 / 331 * side * level, True),
    "Rotate": (lambda level, side: 30 * level, True),
    "Brightness": (lambda level, side: 0.9 * level, True),
    "Color": (lambda level, side: 0.9 * level, True),
    "Contrast": (lambda level, side: 0.9 * level, True),
    "Sharpness": (lambda level, side: 0.9 * level, True),
    "Posterize": (lambda level, side: 8 - round(4 * level), False),
    "Solarize": (lambda level, side: 1 - level, False),
    "AutoContrast": (lambda level, side: 0.0, False),
    "Equalize": (lambda level, side: 0.0, False),
}
"""What an operation of RandAugment is called with at a level in [0, 1], for an image of this side, and
whether its sign is drawn. Their order is their index in parameters.
"""
ERASED = (0.02, 1 / 3), (0.3, 10 / 3)
"""Least and greatest part of the image that is erased, and ratio of its sides (arXiv 1708.04896)."""


@dataclass(frozen=True)
class Recorded:
    """Settings of a crop that is resized to a square, a flip, RandAugment and random erasing, in this order:
    those of the supervised teachers of dataset reinforcement (Faghri et al., arXiv 2303.08983), without
    mixing.

    Attributes:
        side: pixels of the square that comes out.
        scale: least and greatest part of the image that is cropped.
        ratio: least and greatest width by height of the crop.
        flip: probability of a horizontal flip.
        operations: how many of RandAugment's (arXiv 1909.13719) follow each other.
        magnitude: theirs, 0 to 30.
        erasing: probability that a rectangle is erased.

    Raises:
        RecipeError: a value is not in its range.
    """

    side: int = 224
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    operations: int = 2
    magnitude: int = 9
    erasing: float = 0.25

    def __post_init__(self) -> None:
        for key in ("scale", "ratio"):
            pair = tuple(float(value) for value in getattr(self, key))
            most = 1.0 if key == "scale" else math.inf
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                allowed = "in (0, 1]" if key == "scale" else "above 0"
                raise RecipeError(f"{key}: {list(pair)}; the least and the greatest, {allowed}, are wanted")
            object.__setattr__(self, key, pair)  # of a list, as recipes and records have it
        for key, least, greatest in (
            ("side", 8, 8192), ("flip", 0, 1), ("operations", 0, 16), ("magnitude", 0, BINS - 1),
            ("erasing", 0, 1),
        ):  # fmt: skip
            if not least <= getattr(self, key) <= greatest:
                raise RecipeError(f"{key}: {getattr(self, key)}; {least} to {greatest} is wanted")

    @property
    def names(self) -> list[str]:
        """What each number of the parameters is."""
        pairs = [(f"operation_{k}", f"magnitude_{k}") for k in range(self.operations)]
        return [
            "crop_top", "crop_left", "crop_height", "crop_width", "flip",
            *(name for pair in pairs for name in pair),
            "erase_top", "erase_left", "erase_height", "erase_width",
        ]  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values, with the form of the parameters."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"form": FORM, **plain}

    @property
    def digest(self) -> str:
        """Hash of the settings, 32 hex digits."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:32]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Recorded":
        """The augmentation with these settings, as `settings` gave them.

        Raises:
            FolderError: they are of another form.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if settings.get("form") != FORM or settings.keys() - {"form"} != known:
            raise FolderError(
                f"recorded augmentations of form {settings.get('form')} ({', '.join(settings)}); this "
                f"version replays form {FORM}; make them anew under another name"
            )
        return cls(**{key: value for key, value in settings.items() if key != "form"})

    def draw(self, height: int, width: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
        """Parameters for an image of this size, as `names` calls them, shape (9 + 2 * operations,).

        A crop is in pixels of the image; magnitudes are what the operations are called with, signed; what is
        erased is in pixels of the square that comes out, all -1 where nothing is.
        """
        crop = _crop(height, width, self.scale, self.ratio, generator)
        flip = generator.random() < self.flip
        operations = list[float]()
        for index in generator.integers(len(REACH), size=self.operations).tolist():
            reach, is_signed = list(REACH.values())[index]
            sign = -1 if is_signed and generator.random() < 0.5 else 1
            operations += [index, sign * reach(self.magnitude / (BINS - 1), self.side)]
        erased = (-1, -1, -1, -1)
        if generator.random() < self.erasing:
            erased = _crop(self.side, self.side, *ERASED, generator)
        return np.array([*crop, flip, *operations, *erased], np.float32)

    def apply(self, image: "torch.Tensor", params: npt.NDArray[np.float32]) -> "torch.Tensor":
        """The image (3, height, width), uint8, by these parameters: (3, side, side), uint8; the same bits for
        the same parameters, image and version of torch, whatever the state of any generator.
        """
        from synthgen.augmentations.replaying import replay

        return replay(image, params.tolist(), self.side)


def _crop(
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part of an image, by area and logarithm of width by height; where ten
    draws do not fit, the largest part in the middle whose ratio is allowed (Szegedy et al., arXiv 1409.4842,
    as torchvision has it).
    """
    for _ in range(10):
        area = height * width * generator.uniform(scale[0], scale[1])
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        high, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < high <= height and 0 < wide <= width:
            top, left = generator.integers(height - high + 1), generator.integers(width - wide + 1)
            return int(top), int(left), high, wide
    aspect = min(max(width / height, ratio[0]), ratio[1])
    high, wide = min(height, round(width / aspect)), min(width, round(height * aspect))
    high, wide = max(1, high), max(1, wide)
    return (height - high) // 2, (width - wide) // 2, high, wide
