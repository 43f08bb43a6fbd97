"""Ways to augment in training, by name: what is done to each image, and what to a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torchvision.transforms import v2

from synthgen.augmentations import RandomFieldAffine, RandomFieldColor, ResizeMix, adainf_augmentation
from synthgen.errors import FolderError

Transform = Callable[[Any], Any]


class Augmentation(NamedTuple):
    """`image` takes uint8 (3, height, width) and gives float32 (3, side, side); `batch`, where there is one,
    takes a batch of these: one draw for all of them.
    """

    image: Transform
    batch: Transform | None = None


def plain(side: int) -> Transform:
    """Resized only."""
    steps = [v2.Resize((side, side), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    composed: Transform = v2.Compose(steps)
    return composed


def _after_resize(*steps: Transform) -> Callable[[int], Augmentation]:
    def augmentation(side: int) -> Augmentation:
        resized = v2.Resize((side, side), antialias=True)
        return Augmentation(v2.Compose([resized, *steps, v2.ToDtype(torch.float32, scale=True)]))

    return augmentation


def _standard(side: int) -> Augmentation:
    pose = v2.Compose(
        [
            v2.Resize((side, side), antialias=True),
            v2.Pad(side // 4, padding_mode="reflect"),
            v2.RandomAffine(
                15, translate=(0.12, 0.12), scale=(0.6, 1.1), interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.CenterCrop(side),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    colour = v2.Compose([v2.ColorJitter(0.2, 0.2, 0.2), v2.RandomAdjustSharpness(3.0, p=0.5)])
    return Augmentation(pose, colour)


def _adainf(inflated: bool) -> Callable[[int], Augmentation]:
    scaled = v2.ToDtype(torch.float32, scale=True)
    return lambda side: Augmentation(v2.Compose([adainf_augmentation(side, inflated), scaled]))


AUGMENTATIONS: dict[str, Callable[[int], Augmentation]] = {
    "none": lambda side: Augmentation(plain(side)),
    "flip": _after_resize(v2.RandomHorizontalFlip()),
    "standard": _standard,
    "randaugment": _after_resize(v2.RandAugment(), v2.RandomHorizontalFlip()),
    "fields": _after_resize(RandomFieldAffine(), RandomFieldColor(), v2.RandomHorizontalFlip()),
    "adainf-strong": _adainf(inflated=False),
    "adainf-weak": _adainf(inflated=True),
}
"""By side in pixels."""
MIXES: dict[str, Callable[[int], Transform]] = {
    "mixup": lambda n_classes: v2.MixUp(num_classes=n_classes, alpha=0.2),
    "cutmix": lambda n_classes: v2.CutMix(num_classes=n_classes),
    "resizemix": lambda n_classes: ResizeMix(num_classes=n_classes),
}
"""By number of classes; each takes and returns images and labels, which become soft."""


def require_classes(labels: torch.Tensor, n_classes: int) -> None:
    """Raises FolderError where a class id, of shape (n,), is none of the classes; soft labels have none."""
    wrong = labels[(labels < 0) | (labels >= n_classes)] if labels.ndim == 1 else labels[:0]
    if len(wrong):
        raise FolderError(f"class id {int(wrong[0])} of a sample: classes.txt has 0 to {n_classes - 1}")


class OnBatch:
    """The loader's `batch_transform` of an augmentation and a mix. (A class, as it is sent to workers.)"""

    def __init__(self, change: Transform | None, mix: Callable[..., Any] | None, n_classes: int) -> None:
        self.change, self.mix, self.n_classes = change, mix, n_classes

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.change is not None:
            images = self.change(images)
        if self.mix is not None:
            require_classes(labels, self.n_classes)
            images, labels = self.mix(images, labels)
        return images, labels
