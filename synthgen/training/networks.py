"""The networks that are trained: a small CNN, or any of timm's by name."""

from itertools import chain, pairwise

import torch
from torch import nn
from torchvision.transforms.v2 import functional

from synthgen.errors import ModelError, nearest

SMALL = "small"
LEAST_SIDE = 16
WIDTHS = (3, 24, 48, 96, 160)


def small_cnn(n_outputs: int) -> nn.Module:
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

    stages = chain.from_iterable(stage(a, b) for a, b in pairwise(WIDTHS))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], n_outputs))


def build(model: str, n_outputs: int, *, side: int, pretrained: bool = False) -> nn.Module:
    """A network from images in [0, 1] of shape (n, 3, side, side) to logits (n, n_outputs): "small", or a
    model of timm, which sees them normalised as its weights are used to.

    Raises:
        ModelError: timm has no such model, it takes no such side, or its weights cannot be had.
    """
    if side < LEAST_SIDE:
        raise ModelError(f"side: got {side}; {LEAST_SIDE} pixels or more are wanted")
    if model == SMALL:
        if pretrained:
            raise ModelError(f'pretrained: "{SMALL}" has no weights; name a model of timm')
        return small_cnn(n_outputs)
    import timm

    if not timm.is_model(model.partition(".")[0]):
        raise ModelError(f'model: timm has no "{model}"{nearest(model, [SMALL, *timm.list_models()])}')
    try:
        told = timm.get_pretrained_cfg(model)
        sized = {"img_size": side} if told.fixed_input_size else {}
        network: nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=n_outputs, **sized)
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, side, side))
    except Exception as error:  # of the hub, of the checkpoint, of the side
        raise ModelError(f"model {model} at {side} pixels: {str(error).splitlines()[0]}") from None
    mean, std = list(told.mean), list(told.std)
    # a hook, so that the weights keep timm's names
    network.register_forward_pre_hook(lambda _, inputs: (functional.normalize(inputs[0], mean, std),))
    return network.train()
