"""Batches in which two images share a picture, and their labels the class."""

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from synthgen.errors import SynthgenError


class ResizeMix(v2.Transform):  # type: ignore[misc]
    """Pastes a whole other image of the batch, made smaller, into each image; called as `v2.MixUp` is.

    One size and one place are drawn a batch: each side of what is pasted is tau ~ U(alpha) of the image's,
    and it lies anywhere in it, but within. The other image is one of a random order, not the next one:
    neighbours in a batch may be of one prompt.

    Args:
        num_classes: how many there are; class ids are below that.
        alpha: the least and the greatest tau, in (0, 1].

    Raises:
        SynthgenError: alpha, or a label, is not in its range.

    Source: ResizeMix (Qin et al., arXiv 2012.11101), whose alpha is (0.1, 0.8).
    """

    def __init__(self, num_classes: int, alpha: tuple[float, float] = (0.1, 0.8)) -> None:
        super().__init__()
        if not 0 < alpha[0] <= alpha[1] <= 1:
            raise SynthgenError(f"ResizeMix: alpha {alpha}: least and greatest side, in (0, 1], are wanted")
        self.num_classes, self.alpha = num_classes, alpha

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The pasted rectangle (top, left, height, width) in pixels, and whose image it is for each."""
        number, _, height, width = flat_inputs[0].shape
        tau = float(torch.empty(()).uniform_(*self.alpha))
        high, wide = max(1, round(tau * height)), max(1, round(tau * width))
        top, left = (int(torch.randint(room + 1, ())) for room in (height - high, width - wide))
        return {"box": (top, left, high, wide), "other": torch.randperm(number)}

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """(images, labels, ...) -> the same with images of shape (n, 3, height, width) mixed and labels
        (n, num_classes), float32, that sum to 1; labels are class ids (n,), or such rows already.
        """
        images, labels, *rest = inputs if len(inputs) > 1 else inputs[0]
        params = self.make_params([images])
        return self.transform(images, params), self._mix(self._soft(labels), images, params), *rest

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Images with the others pasted."""
        top, left, high, wide = params["box"]
        mixed = inpt.clone()
        small = functional.resize(inpt, [high, wide], antialias=True)
        mixed[..., top : top + high, left : left + wide] = small[params["other"].to(inpt.device)]
        return mixed

    def _mix(self, soft: torch.Tensor, images: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """The other's label weighs what its image covers."""
        _, _, high, wide = params["box"]
        weight: float = high * wide / (images.shape[-2] * images.shape[-1])
        other: torch.Tensor = params["other"].to(soft.device)
        return soft * (1 - weight) + soft[other] * weight

    def _soft(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim == 2:
            return labels.float()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise SynthgenError(
                f"ResizeMix: labels from {int(labels.min())} to {int(labels.max())}; class ids from 0 to "
                f"num_classes - 1 = {self.num_classes - 1} are wanted"
            )
        return torch.nn.functional.one_hot(labels.long(), self.num_classes).float()
