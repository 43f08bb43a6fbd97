"""What an image classifier says of an image and its class."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen import shards, sources
from synthgen.annotators import networks
from synthgen.annotators.real import batches, warn_of_classes
from synthgen.data import Category, Sample
from synthgen.errors import RecipeError

if TYPE_CHECKING:
    import torch

CLASSIFIER_COLUMNS = {
    "confidence": "float32",
    "top1": "int32",
    "top1_confidence": "float32",
    "correct": "bool",
    "bar": "float32",
    "above_bar": "float32",
    "top1_above_bar": "float32",
}
OWN: list[str] = []
SHOWN = 5


def classifier(
    *,
    device: str,
    folder: Path,
    classes: Sequence[Category],
    real: sources.Source | None,
    model: str,
    weights: str = "",
    labels: list[str] = OWN,
    source: str = "",
    quantile: float | None = None,
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Probabilities (the softmax over all that the model knows) and what they are worth.

    `confidence` is that of the sample's class, null where the model does not know it; `top1` the class id of
    the likeliest label, null where that is none of the classes, and `top1_confidence` its probability;
    `correct` says whether it is the sample's class, null where the model does not know that. `bar` is how
    confident the model is of the real images of the sample's class; `above_bar` is `confidence` less that,
    and `top1_above_bar` is `top1_confidence` less the bar of the class `top1`. ALIA (arXiv 2305.16289,
    section 3.3) keeps what is below the latter: an edit that a classifier of the real images is as sure of
    as of them is either too like them (`correct`) or has become another class.

    Args:
        device: a torch device.
        folder: what local paths are relative to.
        classes: the classes of the dataset.
        real: the real images of `source`, None for none.
        model: a folder or hub id of timm or transformers; with `weights` "timm/NAME" or "torchvision/NAME",
            an architecture.
        weights: a file with the architecture's state dict.
        labels: what each output means, in order; none is what the model's configuration says.
        source: the real images that the bars are of, such as "sources.real"; "" leaves them null.
        quantile: of the real images' confidence is the bar; None is its mean, as in ALIA.

    Raises:
        RecipeError: the labels are not as many as the model's outputs, or none is one of the classes.
        ModelError: the model cannot be found or loaded.
    """
    import torch

    network, joined = load_joined(
        classes, model=model, weights=weights, labels=labels, folder=folder, device=device
    )

    def probabilities(pixels: "Sequence[torch.Tensor]") -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits = network.logits(torch.stack(list(pixels)).to(device))
            likely: npt.NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
        return likely

    def prepare(sample: Sample) -> "torch.Tensor":
        return network.preprocess(sample.image)

    # of two classes with one label, the first is told
    of_label = {joined[one.name]: one for one in reversed(classes) if one.name in joined}
    ids = np.array([of_label[k].id if k in of_label else -1 for k in range(network.outputs)], np.int32)
    bars = dict.fromkeys(joined, np.nan)
    if real:
        sure: dict[str, list[float]] = {name: [] for name in joined}
        class_of = {uid: name for name in joined for uid in real.by_class.get(name, ())}
        for uids, images in batches(real, sorted(class_of)):
            likely = probabilities([network.preprocess(image) for image in images])
            for uid, row in zip(uids, likely, strict=False):
                sure[class_of[uid]].append(float(row[joined[class_of[uid]]]))
        for name, values in sure.items():
            if values:
                bars[name] = float(np.mean(values) if quantile is None else np.quantile(values, quantile))
    bars_of_labels = np.array(
        [bars[of_label[k].name] if k in of_label else np.nan for k in range(network.outputs)]
    )

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        likely = probabilities([one.prepared_by(prepare) for one in samples])
        rows = np.arange(len(samples))
        own = np.array([joined.get(sample.class_name or "", -1) for sample in samples])
        top, known = likely.argmax(1), own >= 0
        confidence = np.where(known, likely[rows, own], np.float32(np.nan))
        bar = np.array([bars.get(sample.class_name or "", np.nan) for sample in samples], np.float32)
        return {
            "confidence": confidence,
            "top1": np.ma.array(ids[top], mask=ids[top] < 0),
            "top1_confidence": likely[rows, top],
            "correct": np.ma.array(top == own, mask=~known),
            "bar": bar,
            "above_bar": confidence - bar,
            "top1_above_bar": likely[rows, top] - bars_of_labels[top].astype(np.float32),
        }

    annotate.prepare = prepare  # type: ignore[attr-defined]
    annotate.fingerprint = shards.digest([network.fingerprint, joined])[:32]  # type: ignore[attr-defined]
    return annotate


def load_joined(
    classes: Sequence[Category],
    *,
    model: str,
    weights: str,
    labels: Sequence[str],
    folder: Path,
    device: str,
    whole: bool = False,
) -> tuple[networks.Network, dict[str, int]]:
    """A classifier, whose keys are those of `classifier`, and which of its outputs is which class, by name.

    Raises:
        As `classifier`; `whole` is as in `networks.load_classifier`.
    """
    said = _labels(model, weights, labels, folder)
    network = networks.load_classifier(
        model, weights=weights, outputs=len(said), folder=folder, device=device, whole=whole
    )
    return network, join(classes, said)


def _labels(
    model: str, weights: str, labels: Sequence[str], folder: Path, *, fetch: bool = True
) -> list[tuple[str, ...]]:
    """What each output means: what the recipe says, else the model's configuration; nothing where that is not
    here.

    Raises:
        RecipeError: nothing says it, or the recipe says it of more or fewer.
    """
    own: list[tuple[str, ...]] | None = []
    if labels or not weights:
        own = networks.classifier_labels(
            model, weights=weights, outputs=len(labels), folder=folder, fetch=fetch
        )
    if own is None:
        return []
    if labels and len(labels) != len(own):
        raise RecipeError(
            f"labels: {len(labels)} for the {len(own)} outputs of the model; name all, in order"
        )
    said: list[tuple[str, ...]] = [(label,) for label in labels] or own
    if not any(said):
        raise RecipeError(
            "labels: nothing says what the model's outputs mean; give a list, or a file with one a line, in "
            "order"
        )
    return said


def join(classes: Sequence[Category], labels: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """The place of each class among labels, by synset, else by name, else by another word for it; without
    those that are not there, or are there several times.
    """
    words = [[_plain(word) for word in label] for label in labels]
    joined = {}
    for category in classes:
        ways = (
            [place for place, label in enumerate(words) if category.synset and category.synset in label],
            [place for place, label in enumerate(words) if label[:1] == [_plain(category.name)]],
            _having(words, [category.name, category.prompt]),
            _having(words, category.synonyms),
        )
        found = next((places for places in ways if places), [])
        if len(found) == 1:
            joined[category.name] = found[0]
    return joined


def _having(labels: Sequence[list[str]], words: Iterable[str]) -> list[int]:
    wanted = {_plain(word) for word in words}
    return [place for place, label in enumerate(labels) if wanted.intersection(label)]


def _plain(word: str) -> str:
    return " ".join(word.casefold().replace("_", " ").replace("-", " ").split())


def check_classifier(
    *,
    folder: Path,
    classes: Sequence[Category],
    real: sources.Source | None,
    model: str,
    weights: str,
    labels: list[str],
    source: str,
    quantile: float | None,
    fetch: bool = True,
) -> None:
    """Finds what is wrong with the keys before there are images; says which classes the model does not know.

    Raises:
        RecipeError: a key is wrong, or none of the classes is among the labels.
        ModelError: the model cannot be had, or its weights are not safe.
    """
    if quantile is not None and (not source or not 0 <= quantile <= 1):
        raise RecipeError(
            f"quantile: {quantile:g}; 0 to 1 is wanted"
            if source
            else 'quantile: is of the real images\' confidence; name these with source = "sources.NAME"'
        )
    if not classes:
        raise RecipeError("classes: the pool has none, and a classifier says something of classes alone")
    said = _labels(model, weights, labels, folder, fetch=fetch)
    if not said:
        return
    joined = join(classes, said)
    lost = [category.name for category in classes if category.name not in joined]
    if not joined:
        raise RecipeError(
            f"labels: none of the classes ({_some(lost)}) is one of the model's {len(said)} "
            f"({_some([label[-1] for label in said if label])}); name each output with words of the recipe"
        )
    if lost:
        logging.getLogger(__name__).warning(
            "%s: does not know, or knows several of, %d of %d classes (%s); their confidence is null",
            model, len(lost), len(classes), _some(lost),
        )  # fmt: skip
    warn_of_classes(real, source, classes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def classifier_origin(*, model: str, **keys: object) -> str:
    """Whose model it is: a folder or a hub id."""
    return model
