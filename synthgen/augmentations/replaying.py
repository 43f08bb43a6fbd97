"""What the parameters of a recorded augmentation do to an image."""

import math
from collections.abc import Callable, Sequence

import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from synthgen.augmentations.recorded import REACH

MEAN = torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1)
"""What is erased becomes ImageNet's mean, which is 0 where it is normalised by that."""
Apply = Callable[[torch.Tensor, float], torch.Tensor]


def _affine(
    image: torch.Tensor, *, right: float = 0, down: float = 0, shear: Sequence[float] = (0, 0)
) -> torch.Tensor:
    """Translated by whole pixels, or sheared about the upper left corner, by degrees."""
    moved: torch.Tensor = functional.affine(
        image,
        angle=0.0,
        translate=[int(right), int(down)],
        scale=1.0,
        shear=list(shear),
        interpolation=InterpolationMode.BILINEAR,
        center=[0, 0],
    )
    return moved


def _degrees(part: float) -> float:
    return math.degrees(math.atan(part))


OPERATIONS: dict[str, Apply] = {
    "Identity": lambda image, much: image,
    "ShearX": lambda image, much: _affine(image, shear=(_degrees(much), 0)),
    "ShearY": lambda image, much: _affine(image, shear=(0, _degrees(much))),
    "TranslateX": lambda image, much: _affine(image, right=much),
    "TranslateY": lambda image, much: _affine(image, down=much),
    "Rotate": lambda image, much: functional.rotate(image, much, interpolation=InterpolationMode.BILINEAR),
    "Brightness": lambda image, much: functional.adjust_brightness(image, 1 + much),
    "Color": lambda image, much: functional.adjust_saturation(image, 1 + much),
    "Contrast": lambda image, much: functional.adjust_contrast(image, 1 + much),
    "Sharpness": lambda image, much: functional.adjust_sharpness(image, 1 + much),
    "Posterize": lambda image, much: functional.posterize(image, int(much)),
    "Solarize": lambda image, much: functional.solarize(image, 255 * much),
    "AutoContrast": lambda image, much: functional.autocontrast(image),
    "Equalize": lambda image, much: functional.equalize(image),
}
"""RandAugment's operations as torchvision has them, by the names of `REACH`."""


def replay(image: torch.Tensor, params: Sequence[float], side: int) -> torch.Tensor:
    """An image (3, height, width), uint8, by parameters that `Recorded.draw` gave: (3, side, side), uint8."""
    top, left, high, wide, flip = (int(value) for value in params[:5])
    # kernels of another layout round otherwise
    image = functional.resized_crop(
        image.contiguous(), top, left, high, wide, [side, side], InterpolationMode.BILINEAR, antialias=True
    )
    if flip:
        image = functional.horizontal_flip(image)
    names = list(REACH)
    for index, much in zip(params[5:-4:2], params[6:-4:2], strict=True):
        image = OPERATIONS[names[int(index)]](image, much)
    top, left, high, wide = (int(value) for value in params[-4:])
    if high > 0:
        image = functional.erase(image, top, left, high, wide, MEAN)
    return image.contiguous()
