"""One score of an image: of a head on stored CLIP features, or of a classifier, such as how it looks or
whether it is safe for work.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from synthgen.annotators import networks
from synthgen.annotators.weights import fingerprint, read_tensors, weights_file
from synthgen.data import Sample
from synthgen.errors import ModelError, RecipeError, nearest

if TYPE_CHECKING:
    import torch

HEAD_COLUMNS = {"score": "float32"}
NONE: list[str] = []
Activation = Literal["", "relu"]
Annotate = Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]
LAYER = re.compile(r"(?:.*\.)?(\d+)\.weight")


def aesthetic(
    *,
    device: str,
    folder: Path,
    features: str = "",
    weights: str = "",
    activation: Activation = "",
    model: str = "",
    positive: list[str] = NONE,
) -> Annotate:
    """`score` of a head such as LAION's aesthetic predictors (about 1 to 10), or the probability of labels.

    A head is a linear layer (tensors `weight` and `bias`) or a torch.nn.Sequential (`layers.0.weight`, ...);
    it sees features of unit length and gives one number, which is not changed. Between two of its layers
    stands `activation` where their numbers leave a place for one: LAION's improved predictor has none.

    Args:
        device: a torch device.
        folder: what local paths are relative to.
        features: of an annotation, such as "clip_img"; they must be those that the head was trained on.
        weights: the head's file, safetensors or a state dict that `weights_only` reads.
        activation: "" or "relu".
        model: in place of features and weights, a classifier: a folder or hub id of timm or transformers.
        positive: of the classifier's labels those that count; their probabilities are added.

    Raises:
        RecipeError: the classifier has no such label.
        ModelError: head or classifier cannot be loaded, or the layout of a head is not known.
    """
    if model:
        return _of_classifier(model, positive, folder, device)
    return _of_features(features, weights_file(weights, folder), activation, device)


def nsfw(
    *,
    device: str,
    folder: Path,
    features: str = "",
    weights: str = "",
    activation: Activation = "relu",
    model: str = "",
    positive: list[str] = NONE,
) -> Annotate:
    """`score`, higher is less safe for work, of a head such as LAION's h14_nsfw (about 0 to 1), or the
    probability of labels. As `aesthetic`, but a rectifier stands between layers.
    """
    return aesthetic(
        device=device,
        folder=folder,
        features=features,
        weights=weights,
        activation=activation,
        model=model,
        positive=positive,
    )


def _of_features(features: str, path: Path, activation: Activation, device: str) -> Annotate:
    import torch

    tensors = read_tensors(path)
    head = _head(path, tensors, activation).to(device).eval()
    width = next(module.in_features for module in head if isinstance(module, torch.nn.Linear))

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        rows = np.stack([sample.read[features] for sample in samples]).astype(np.float32)
        if rows.shape[1] != width:
            raise ModelError(f"{path}: is for features of width {width}; {features} has {rows.shape[1]}")
        with torch.inference_mode():
            unit = torch.nn.functional.normalize(torch.from_numpy(rows).to(device), dim=1)
            return {"score": head(unit)[:, 0].cpu().numpy()}

    annotate.needs_pixels = False  # type: ignore[attr-defined]
    annotate.fingerprint = fingerprint(tensors)  # type: ignore[attr-defined]
    return annotate


def _head(path: Path, tensors: "dict[str, torch.Tensor]", activation: Activation) -> "torch.nn.Sequential":
    """The layers of a head, in order of their numbers.

    Raises:
        ModelError: the tensors are not those of linear layers that follow each other and end in one number.
    """
    import torch

    found = {name: LAYER.fullmatch(name) for name in tensors if name.endswith("weight")}
    numbers = {name: int(match[1]) if match else 0 for name, match in found.items()}
    order = sorted(found, key=numbers.__getitem__)
    known = {name for weight in order for name in (weight, weight.removesuffix("weight") + "bias")}
    fits = (
        all(tensors[name].ndim == 2 for name in order)
        and all(len(tensors[a]) == tensors[b].shape[1] for a, b in pairwise(order))
        and (all(found.values()) or order == ["weight"])
        and known >= tensors.keys()
        and bool(order)
        and len(tensors[order[-1]]) == 1
    )
    if not fits:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:4])
        raise ModelError(
            f"{path}: no head that is known ({shapes}, ...); wanted are weight and bias of a linear layer, "
            "or layers.0.weight, layers.0.bias, ... of those in a Sequential, the last with one output"
        )
    layers: list[torch.nn.Module] = []
    for name, following in zip(order, [*order[1:], None], strict=True):
        bias = tensors.get(name.removesuffix("weight") + "bias")
        outputs, inputs = tensors[name].shape
        layer = torch.nn.Linear(inputs, outputs, bias=bias is not None)
        layer.load_state_dict({"weight": tensors[name]} | ({"bias": bias} if bias is not None else {}))
        layers.append(layer)
        if activation and following and numbers[following] - numbers[name] > 1:
            layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers)


def _of_classifier(model: str, positive: Sequence[str], folder: Path, device: str) -> Annotate:
    import torch

    network = networks.load_classifier(model, folder=folder, device=device)
    places = _places(positive, networks.classifier_labels(model, folder=folder) or [])

    def prepare(sample: Sample) -> torch.Tensor:
        return network.preprocess(sample.image)

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        with torch.inference_mode():
            pixels = torch.stack([one.prepared_by(prepare) for one in samples]).to(device)
            likely = network.logits(pixels).float().softmax(1)
            return {"score": likely[:, places].sum(1).cpu().numpy()}

    annotate.prepare = prepare  # type: ignore[attr-defined]
    annotate.fingerprint = network.fingerprint  # type: ignore[attr-defined]
    return annotate


def _places(positive: Sequence[str], labels: Sequence[tuple[str, ...]]) -> list[int]:
    """The places of labels, each by any of its words.

    Raises:
        RecipeError: there is no such label.
    """
    places = []
    for word in positive:
        found = [place for place, label in enumerate(labels) if word in label]
        if not found:
            known = [label[0] for label in labels if label]
            raise RecipeError(f'positive: the model has no label "{word}"{nearest(word, known)}')
        places += found
    return sorted(set(places))


def check_head(
    *,
    folder: Path,
    features: str,
    weights: str,
    activation: Activation,
    model: str,
    positive: list[str],
    fetch: bool = True,
) -> None:
    """Finds what is wrong with the keys before there are images.

    Raises:
        RecipeError: a key is wrong or missing.
        ModelError: head or classifier cannot be had, or is not safe.
    """
    given = {"features": features, "weights": weights, "model": model, "positive": positive}
    ways = [{"features", "weights"}, {"model", "positive"}]
    there = [key for key, value in given.items() if value]
    if set(there) not in ways:
        raise RecipeError(
            f"{' and '.join(there) or 'no key'} given; wanted are features and weights, a head on stored "
            "features, or model and positive, a classifier and its labels that count"
        )
    if features:
        path = weights_file(weights, folder)
        _head(path, read_tensors(path), activation)
    else:
        labels = networks.classifier_labels(model, folder=folder, fetch=fetch)
        if labels is not None:
            _places(positive, labels)


def head_origin(*, weights: str, model: str, **keys: object) -> str:
    """Whose model it is: a folder or file, or a hub id."""
    return model or weights
