"""A small classifier, to see whether shards train anything: a CNN through Accelerate, on one process or many.

Labels are joined by class name: a class id that means two names is an error, and a class that was never
trained on counts as wrong wherever it is evaluated.
"""

from collections.abc import Sequence
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torchvision.transforms import v2

from synthgen.errors import FolderError
from synthgen.loader import class_names, join_classes, open_loader

if TYPE_CHECKING:
    from accelerate import Accelerator

SIDE = 48


class Classifier(NamedTuple):
    """A network whose outputs are the class ids, and the names that it was trained on by id."""

    network: nn.Module
    class_names: dict[int, str]


def _network(n_classes: int) -> nn.Module:
    """Four stages of two convolutions, halving the side; 0.5 M parameters; works on any side from 16."""

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for width, stride in ((inputs, 2), (outputs, 1)):
            layers += [
                nn.Conv2d(width, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        return layers

    widths = (3, 24, 48, 96, 160)
    stages = chain.from_iterable(stage(a, b) for a, b in pairwise(widths))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], n_classes))


def train(
    splits: Sequence[str | Path],
    *,
    accelerator: "Accelerator",
    steps: int,
    batch_size: int,
    lr: float,
    seed: int = 0,
) -> Classifier:
    """Trains on all splits together, in turn.

    Args:
        steps: optimizer steps (AdamW, one cycle, label smoothing 0.1).
        batch_size: samples a step on each process.
        lr: the peak learning rate.
        seed: of weights, order and augmentation.

    Raises:
        FolderError: a split has no shards or no classes, or the splits' class ids disagree.
    """
    names = join_classes(splits)
    torch.manual_seed(seed)
    pose = v2.Compose(
        [
            v2.Resize((SIDE, SIDE), antialias=True),
            v2.Pad(SIDE // 4, padding_mode="reflect"),
            v2.RandomAffine(
                15, translate=(0.12, 0.12), scale=(0.6, 1.1), interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.CenterCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    colour = v2.Compose(
        [v2.ColorJitter(0.2, 0.2, 0.2), v2.RandomAdjustSharpness(3.0, p=0.5)]
    )  # one draw a batch
    loaders = [
        accelerator.prepare(
            open_loader(split, batch_size=batch_size, transform=pose, shuffle=True, seed=seed + number)
        )
        for number, split in enumerate(splits)
    ]
    network = _network(max(names) + 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    network, optimizer = accelerator.prepare(network, optimizer)
    network.train()
    epochs = [chain.from_iterable(repeat(loader)) for loader in loaders]
    for step in range(steps):
        images, labels = next(epochs[step % len(epochs)])
        loss = nn.functional.cross_entropy(network(colour(images)), labels, label_smoothing=0.1)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return Classifier(network.eval(), names)


def evaluate(classifier: Classifier, split: str | Path, *, accelerator: "Accelerator") -> dict[str, object]:
    """Top-1 accuracy in [0, 1] over all samples of a split, and over those of classes that were trained on.

    Raises:
        FolderError: as `train`.
    """
    join = class_names(split)
    for k in set(join) & set(classifier.class_names):
        if join[k] != classifier.class_names[k]:
            raise FolderError(
                f'{split}: class id {k} is "{join[k]}", in training it was "{classifier.class_names[k]}"'
            )
    transform = v2.Compose([v2.Resize((SIDE, SIDE), antialias=True), v2.ToDtype(torch.float32, scale=True)])
    loader = accelerator.prepare(open_loader(split, batch_size=256, transform=transform))
    right, known = [], []
    with torch.inference_mode():
        for images, labels in loader:
            guesses, truth = accelerator.gather_for_metrics((classifier.network(images).argmax(1), labels))
            right.append(guesses == truth)
            known.append(torch.tensor([int(k) in classifier.class_names for k in truth]))
    hits, trained = torch.cat(right).cpu(), torch.cat(known)
    return {
        "split": str(split),
        "samples": len(hits),
        "classes": len(join),
        "accuracy": round(float(hits.float().mean()), 4),
        "classes_trained_on": len(set(join.values()) & set(classifier.class_names.values())),
        "accuracy_on_those": round(float(hits[trained].float().mean()), 4),
    }
