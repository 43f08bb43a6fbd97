"""The judge: a small CNN that says which object, background and style a picture shows.

    python scripts/embedded/judge.py

It measures the generator and shares only the world with it and with CLIP: no weights, no text, no latents.
An instrument, it has also learnt the pairs of object and background that the other models never see.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from loop import Lesson, Options, Step, Training, mixed_precision, parse, train
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from world import BACKGROUNDS, THINGS, TRAINING_STYLES, WIDER, Bytes, compose_batch, start, to_tensor

WEIGHTS = Path(__file__).parent / "judge" / "judge.safetensors"
WIDTHS = (32, 64, 128, 256)
ALL_PAIRS = [(t, b) for t in range(len(THINGS)) for b in range(len(BACKGROUNDS))]


class Judge(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] to features (n, 256); three linear heads read those."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, *WIDTHS)):
            for width, stride in ((inputs, 2), (outputs, 1)):
                layers += [
                    nn.Conv2d(width, outputs, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.heads = nn.ModuleList(
            nn.Linear(WIDTHS[-1], n) for n in (len(THINGS), len(BACKGROUNDS), len(TRAINING_STYLES))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.features(images)
        return [head(features) for head in self.heads]


class Verdicts(NamedTuple):
    """`labels` int64 (n, 3): thing, background, style; `features` float32 (n, 256)."""

    labels: Tensor
    features: Tensor


def load(path: Path = WEIGHTS) -> Judge:
    """The trained judge, float32, ready to look."""
    judge = Judge()
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return judge.eval()


@torch.inference_mode()
def look(judge: Judge, images: Bytes, batch_size: int = 256) -> Verdicts:
    """What the judge sees in uint8 (n, 64, 64, 3)."""
    features = torch.cat([judge.features(batch) for batch in to_tensor(images).split(batch_size)])
    return Verdicts(torch.stack([head(features).argmax(1) for head in judge.heads], 1), features)


def _wear(images: Tensor, generator: torch.Generator) -> Tensor:
    """Other brightness and colour, blur and noise, so that a soft picture is read for what it shows."""
    n = len(images)
    uniform: Callable[..., Tensor] = partial(torch.rand, generator=generator, device=images.device)
    normal: Callable[..., Tensor] = partial(torch.randn, generator=generator, device=images.device)
    images = images * (1 + 0.1 * normal(n, 3, 1, 1)) + 0.05 * normal(n, 3, 1, 1)
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = uniform(n, 1, 1, 1) * (uniform(n, 1, 1, 1) < 0.5)  # half of them blurred, more or less
    return images * (1 - share) + soft * share + normal(*images.shape) * 0.1 * uniform(n, 1, 1, 1)


def learn(options: Options, rank: int) -> Lesson:
    """Three classifications at once."""
    judge = Judge().to(options.device, memory_format=torch.channels_last)

    def loss(step: Step) -> dict[str, Tensor]:
        images, numbers = compose_batch(
            step.rng, step.batch_size, ALL_PAIRS, TRAINING_STYLES, WIDER, options.drawings
        )
        labels = torch.from_numpy(numbers).to(options.device)
        worn = _wear(to_tensor(images).to(options.device), step.generator)
        with mixed_precision(options.device):
            logits = judge(worn.contiguous(memory_format=torch.channels_last))
        parts = [
            functional.cross_entropy(out.float(), labels[:, k], label_smoothing=0.02)
            for k, out in enumerate(logits)
        ]
        right = (logits[0].argmax(1) == labels[:, 0]).float().mean()
        return {"loss": parts[0] + 0.5 * parts[1] + 0.5 * parts[2], "accuracy": right}

    return Lesson(judge, loss)


JUDGE = Training("judge", learn, steps=2000, batch_size=64, lr=2e-3, weight_decay=0.02)


def main() -> None:
    train(JUDGE, parse(__doc__))


if __name__ == "__main__":
    start(main)
