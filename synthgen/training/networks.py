"""The networks that are trained: a small CNN, or any of timm's by name."""

from itertools import chain, pairwise

from torch import nn

from synthgen.errors import ModelError, nearest

SMALL = "small"
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


def build(model: str, n_outputs: int, *, pretrained: bool = False) -> nn.Module:
    """A network from (n, 3, height, width) to logits (n, n_outputs): "small", or a model of timm.

    Raises:
        ModelError: timm has no such model, or its weights cannot be had.
    """
    if model == SMALL:
        return small_cnn(n_outputs)
    import timm

    if not timm.is_model(model.partition(".")[0]):
        raise ModelError(f'model: timm has no "{model}"{nearest(model, [SMALL, *timm.list_models()])}')
    try:
        network: nn.Module = timm.create_model(model, pretrained=pretrained, num_classes=n_outputs)
    except Exception as error:  # of the hub, of the checkpoint
        raise ModelError(f"model {model}: {str(error).splitlines()[0]}") from None
    return network
