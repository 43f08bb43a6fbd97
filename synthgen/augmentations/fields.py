"""Transforms whose parameters differ from pixel to pixel: smooth Gaussian random fields.

Source: Mansfield et al., Random Field Augmentations for Self-Supervised Representation Learning (arXiv
2311.03629): parameters of affine and colour transforms as independent fields with a power-law spectrum. Mild
ones help, strong ones take an image apart. Our parametrisation and strengths are our own: chosen by eye.
"""

import math
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from synthgen.errors import SynthgenError

YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""Luma, and the plane of colours in which hue is an angle and saturation a radius."""
GRID = 64
"""Places along the longer side of an image at which fields are drawn."""


def random_fields(count: int, height: int, width: int, slope: float) -> torch.Tensor:
    """`count` independent Gaussian random fields of mean 0 and variance 1, shape (count, height, width),
    float32, from torch's global generator.

    The power at wave number k goes as k**-slope, the same in all directions. They are drawn on a torus of
    twice the height and width: so opposite edges are independent, and the mean over one field is random too,
    as a parameter of the whole image is. Of an image that is larger than `GRID` they are interpolated: at a
    slope of 4 and more, what is finer has less than 3 % of the standard deviation, and takes most of the
    time.
    """
    reduced = max(1.0, max(height, width) / GRID)
    high, wide = (max(1, round(side / reduced)) for side in (height, width))
    down, across = torch.fft.fftfreq(2 * high)[:, None], torch.fft.fftfreq(2 * wide)
    wave = torch.hypot(down, across).double()
    wave[0, 0] = torch.inf
    amplitude = wave ** (-slope / 2)
    amplitude /= amplitude.square().mean().sqrt()
    noise = torch.fft.rfft2(torch.randn(count, 2 * high, 2 * wide))
    fields: torch.Tensor = torch.fft.irfft2(noise * amplitude[:, : wide + 1].float(), s=(2 * high, 2 * wide))
    fields = fields[:, :high, :wide].contiguous()
    if reduced > 1:
        fields = torch.nn.functional.interpolate(fields[None], (height, width), mode="bilinear")[0]
    return fields


class RandomFieldColor(v2.Transform):  # type: ignore[misc]
    """Brightness, contrast, saturation and hue that wander over the image; masks and boxes stay as they are.

    A factor is exp(strength * field), so that it is as likely to be halved as to be doubled. As of all of
    torchvision's transforms, one call is one draw: of a batch, all images get the same fields.

    Args:
        brightness, contrast, saturation: standard deviations of the logarithms of the factors.
        hue: standard deviation of the angle, in turns.
        slope: of the fields' spectrum; a greater one is smoother.

    Images are tensors of shape (..., 3, height, width), uint8 or float in [0, 1].
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.3,
        hue: float = 0.03,
        slope: float = 4.0,
    ) -> None:
        super().__init__()
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.slope = slope

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Factors of brightness, contrast and saturation, and angles in radians, each (height, width)."""
        height, width = v2.query_size(flat_inputs)
        brightness, contrast, saturation, hue = random_fields(4, height, width, self.slope)
        return {
            "brightness": (self.brightness * brightness).exp(),
            "contrast": (self.contrast * contrast).exp(),
            "saturation": (self.saturation * saturation).exp(),
            "angle": 2 * math.pi * self.hue * hue,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The image with other colours; anything else as it is."""
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(
            inpt, tv_tensors.Image | tv_tensors.Video
        ):
            return inpt
        image = _require_tensor(inpt, "RandomFieldColor").as_subclass(torch.Tensor)
        to_yiq = torch.tensor(YIQ, device=image.device)
        brightness, contrast, saturation, angle = (field.to(image.device) for field in params.values())
        colours = functional.to_dtype(image, torch.float32, scale=True).movedim(-3, -1) @ to_yiq.T
        luma, first, second = colours.unbind(-1)
        mean = luma.mean((-2, -1), keepdim=True)
        scale = brightness * contrast
        luma = mean * brightness + (luma - mean) * scale
        first, second = (
            scale * saturation * (angle.cos() * first - angle.sin() * second),
            scale * saturation * (angle.sin() * first + angle.cos() * second),
        )
        found = (torch.stack([luma, first, second], -1) @ torch.linalg.inv(to_yiq).T).movedim(-1, -3)
        found = functional.to_dtype(found.clamp(0, 1).contiguous(), image.dtype, scale=True)
        return tv_tensors.wrap(found, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else found


class RandomFieldAffine(v2.Transform):  # type: ignore[misc]
    """Translation, rotation, scale and shear that wander over the image: each pixel is fetched from where an
    affine map of its own, about the centre, says.

    Masks move with the pixels (by the nearest one). A box becomes the smallest one around all pixels that
    came from inside it; one that has left the image has no area (`v2.SanitizeBoundingBoxes` takes it out).
    Key points move as in torchvision's `elastic`, by a map that is inverted roughly.

    Args:
        degrees: standard deviation of the rotation.
        translate: of the shifts, as a part of width and height.
        scale: of the logarithm of the scale.
        shear: in degrees.
        slope: of the fields' spectrum; below 4, neighbouring pixels are torn apart.
        fill: what is outside of the image.
    """

    def __init__(
        self,
        degrees: float = 8.0,
        translate: float = 0.04,
        scale: float = 0.08,
        shear: float = 4.0,
        slope: float = 5.0,
        fill: float = 0,
    ) -> None:
        super().__init__()
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.slope, self.fill = slope, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """How far from itself each pixel is fetched, in halves of width and height, (1, height, width, 2)."""
        height, width = v2.query_size(flat_inputs)
        fields = random_fields(5, height, width, self.slope)
        right, down, angle, scale, shear = fields
        angle, shear = math.radians(self.degrees) * angle, math.radians(self.shear) * shear
        scale = (self.scale * scale).exp()
        y = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
        x = (torch.arange(width) - (width - 1) / 2).expand(height, width)
        leaning = x + shear.tan() * y
        moved = torch.stack(
            [
                scale * (angle.cos() * leaning - angle.sin() * y) - x + self.translate * width * right,
                scale * (angle.sin() * leaning + angle.cos() * y) - y + self.translate * height * down,
            ],
            -1,
        )
        return {"displacement": (moved * 2 / torch.tensor([width, height]))[None]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Whatever has a place in the image, moved."""
        moved = params["displacement"]
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            return _move_boxes(inpt, moved[0])
        image = _require_tensor(inpt, "RandomFieldAffine")
        return functional.elastic(image, moved.to(image.device), fill=self.fill)


def _move_boxes(boxes: tv_tensors.BoundingBoxes, moved: torch.Tensor) -> tv_tensors.BoundingBoxes:
    """Boxes, of any format, around the pixels that are fetched from inside them."""
    height, width, _ = moved.shape
    wanted = tv_tensors.BoundingBoxFormat.XYXY
    corners = functional.convert_bounding_box_format(boxes, new_format=wanted)
    here = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1) + 0.5
    source = here + moved * torch.tensor([width, height]) / 2
    found = torch.zeros_like(corners.as_subclass(torch.Tensor))
    for row, corner in enumerate(corners.as_subclass(torch.Tensor).cpu()):
        inside = ((source >= corner[:2]) & (source <= corner[2:])).all(-1)
        y, x = inside.nonzero(as_tuple=True)
        if len(x):
            found[row] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).to(found)
    new = tv_tensors.wrap(found, like=corners)
    return functional.convert_bounding_box_format(new, new_format=boxes.format)


def _require_tensor(inpt: Any, name: str) -> torch.Tensor:
    if not isinstance(inpt, torch.Tensor):
        raise SynthgenError(f"{name}: got a {type(inpt).__name__}; put v2.ToImage() before it")
    return inpt
