"""How much should generated images inflate real ones, and how strong may augmentation then be (AdaInf)?

    python scripts/reproduce/adainf.py
    python scripts/reproduce/adainf.py --shares 1 0.5 0 --set sources.real.path=DIR ...

SimCLR on mixtures of real and generated images, at AdaInf's two strengths of augmentation, and as many steps
each; then a linear probe of the features: logistic regression on the real training set, accuracy on the real
validation set. The paper's claim: inflating alone can hurt; with real images repeated, and weaker
augmentation, it helps. Mean and 95 % interval over the seeds.
Source: Wang et al., Do Generated Data Always Help Contrastive Learning? (AdaInf, arXiv 2403.12448).
"""

from typing import Any

import torch
from accelerate import Accelerator
from experiment import cell, generated, leave_cores, parser, real_sources, row, start
from torch import nn
from torchvision.transforms import v2

from synthgen.augmentations import adainf_augmentation
from synthgen.loader import open_loader
from synthgen.training.augmenting import plain
from synthgen.training.networks import small_cnn

SIDE, WIDTH, TEMPERATURE = 32, 128, 0.1


class TwoViews:
    """Two augmented views of an image, (2, 3, side, side)."""

    def __init__(self, augmentation: Any) -> None:
        self.one = v2.Compose([augmentation, v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.one(image), self.one(image)])


def contrast(features: torch.Tensor) -> torch.Tensor:
    """SimCLR's loss (NT-Xent, arXiv 2002.05709) of features (2n, d), the views of an image next to each
    other.
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    scores = unit @ unit.T / TEMPERATURE
    scores.fill_diagonal_(float("-inf"))
    return nn.functional.cross_entropy(scores, torch.arange(len(unit), device=unit.device) ^ 1)


def pretrain(options: Any, on: dict[str, str], weights: dict[str, float], weak: bool, seed: int) -> nn.Module:
    """The encoder, whose features are what comes before its last layer."""
    accelerator = Accelerator(mixed_precision="bf16" if options.bf16 else "no")
    loader = open_loader(
        on, batch_size=options.batch_size, fields=("image",), shuffle=True, seed=seed, weights=weights,
        samples_per_epoch=options.steps * options.batch_size,
        transform=TwoViews(adainf_augmentation(SIDE, inflated=weak)), last="drop", workers=options.workers,
    )  # fmt: skip
    torch.manual_seed(seed)
    encoder: Any = small_cnn(WIDTH)
    encoder[-1] = nn.Sequential(encoder[-1], nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    encoder = encoder.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=options.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    for (views,) in loader:
        pairs = views.flatten(0, 1).to(accelerator.device, memory_format=torch.channels_last)
        with accelerator.autocast():
            features = encoder(pairs)
        contrast(features).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    encoder[-1] = nn.Identity()
    return encoder.eval().cpu()


def features_of(encoder: nn.Module, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    parts = []
    with torch.inference_mode():
        for images, labels in open_loader(split, batch_size=256, transform=plain(SIDE)):
            parts.append((encoder(images), labels))
    features, labels = (torch.cat(own) for own in zip(*parts, strict=True))
    return features, labels


def settle(encoder: nn.Module, split: str) -> None:
    """Batch norm's statistics become those of these images, for the untrained network, too."""
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over the batches
    features_of(encoder.train(), split)
    encoder.eval()


def probe(encoder: nn.Module, train: str, validation: str) -> float:
    """The accuracy of a logistic regression of the features."""
    settle(encoder, train)
    (x, y), (seen, truth) = features_of(encoder, train), features_of(encoder, validation)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, seen = (x - mean) / scale, (seen - mean) / scale
    layer = nn.Linear(x.shape[1], int(max(y.max(), truth.max())) + 1)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(layer(x), y) + 1e-3 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return float((layer(seen).argmax(1) == truth).float().mean())


def main() -> None:
    made = parser(__doc__, steps=200)
    made.set_defaults(workers=2)  # two augmented views take longer than a step
    made.add_argument("--lr", type=float, default=1e-3)
    made.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.0],
                      help="parts of a batch that are real images")  # fmt: skip
    made.add_argument("--bf16", action="store_true", help="mixed precision")
    options = made.parse_args()
    wrong = next((share for share in options.shares if not 0 <= share <= 1), None)
    if wrong is not None:
        raise SystemExit(f"--shares {wrong:g}: parts from 0 to 1 are wanted")
    sources = real_sources(options)
    both = {"real": sources["real"], "generated": str(generated(options))}
    leave_cores(options)
    print(f"{options.steps} steps of {options.batch_size}, seeds {options.seeds}\n")
    row("real images in a batch", "strong augmentation", "weak augmentation")
    row("---", "---", "---")
    for share in options.shares:
        weights = {name: part for name, part in zip(both, (share, 1 - share), strict=True) if part > 0}
        on = {name: both[name] for name in weights}
        cells = [
            cell(
                [
                    probe(pretrain(options, on, weights, weak, seed), sources["real"], sources["validation"])
                    for seed in options.seeds
                ]
            )
            for weak in (False, True)
        ]
        row(f"{100 * share:.0f} %", *cells)
    untrained = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        network: Any = small_cnn(WIDTH)
        network[-1] = nn.Identity()
        untrained.append(probe(network, sources["real"], sources["validation"]))
    row("(the network untrained)", cell(untrained), cell(untrained))


if __name__ == "__main__":
    start(main)
