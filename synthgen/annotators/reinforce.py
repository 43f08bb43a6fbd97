"""What a teacher says of augmented views of an image, written down with how each was made: training replays
the view and gets the teacher's probabilities without the teacher.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from synthgen import shards
from synthgen.annotators.classifier import OWN, check_classifier, classifier_origin, load_joined
from synthgen.annotators.clip import LABEL_TEMPLATES, check_clip, clip_classifier, clip_origin
from synthgen.augmentations.recorded import Recorded
from synthgen.data import Category, Sample
from synthgen.errors import RecipeError

REINFORCE_COLUMNS = {"confidence": "float32", "agreement": "float32", "mass": "float32"}
PLAIN = Recorded()
SCALE, RATIO = list(PLAIN.scale), list(PLAIN.ratio)
Teacher = Literal["clip", "classifier"]


def reinforce(
    *,
    device: str,
    folder: Path,
    classes: Sequence[Category],
    teacher: Teacher = "clip",
    model: str = "embedded",
    pretrained: str = "",
    templates: list[str] = LABEL_TEMPLATES,
    weights: str = "",
    labels: list[str] = OWN,
    samples: int = 8,
    k: int = 10,
    seed: int = 0,
    side: int = PLAIN.side,
    scale: list[float] = SCALE,
    ratio: list[float] = RATIO,
    flip: float = PLAIN.flip,
    operations: int = PLAIN.operations,
    magnitude: int = PLAIN.magnitude,
    erasing: float = PLAIN.erasing,
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Of each sample, `samples` views and the teacher's greatest probabilities of each.

    The tables `params` (n, samples, numbers) float32 hold the views' parameters, `probs` and `ids`
    (n, samples, k) float16 and int32 the probabilities and class ids, greatest first (k at most the classes
    that the teacher knows). Probabilities are over the classes of the dataset that the teacher knows.

    `confidence` is the mean probability of the sample's class, `agreement` the part of the views in which it
    is the likeliest; both null where the teacher does not know it. `mass` is what the k probabilities add up
    to, on average.

    Views are drawn by `seed` and the sample's uid alone: a larger `samples` adds to them, and another teacher
    sees the same.

    Args:
        device: a torch device.
        folder: what local paths of a classifier are relative to.
        classes: the classes of the dataset.
        teacher: "clip", an open_clip model that knows the classes by plain captions, or "classifier".
        model, pretrained, templates: as for `clip`.
        model, weights, labels: as for `classifier`; timm's and torchvision's see all of a view, and not its
            middle.
        samples: views of each image.
        k: probabilities kept of each view.
        seed: of the views.
        side, scale, ratio, flip, operations, magnitude, erasing: of the views; see `Recorded`.

    Raises:
        RecipeError: a key is wrong.
        ModelError: the teacher cannot be found or loaded.

    Source: Faghri et al., Reinforce Data, Multiply Impact (arXiv 2303.08983), which keeps 400, 100 or 50
    views, some of two images mixed, and 10 or 5 probabilities of four teachers' mean for ImageNet.
    """
    import torch

    recorded = Recorded(side, scale, ratio, flip, operations, magnitude, erasing)
    if teacher == "clip":
        network = clip_classifier(
            device=device, classes=classes, model=model, pretrained=pretrained, templates=templates
        )
        joined = {category.name: place for place, category in enumerate(classes)}
    else:
        network, joined = load_joined(
            classes, model=model, weights=weights, labels=labels, folder=folder, device=device, whole=True
        )
    known = [category for category in classes if category.name in joined]
    outputs, ids = [joined[one.name] for one in known], np.array([one.id for one in known], np.int32)
    place = {category.name: number for number, category in enumerate(known)}

    def prepare(sample: Sample) -> tuple[npt.NDArray[np.float32], list[torch.Tensor]]:
        """The parameters of the views, and what the teacher looks at."""
        generator = np.random.default_rng(shards.make_seed("reinforce", seed, sample.uid))
        image = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)
        params = [recorded.draw(image.shape[1], image.shape[2], generator) for _ in range(samples)]
        views = [recorded.apply(image, drawn).permute(1, 2, 0).numpy() for drawn in params]
        return np.stack(params), [network.preprocess(view) for view in views]

    def probabilities(views: Sequence[torch.Tensor]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits = network.logits(torch.stack(list(views)).to(device)).float()
            likely: npt.NDArray[np.float32] = logits[:, outputs].softmax(1).cpu().numpy()
        return likely

    def annotate(batch: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        params, views = zip(*[one.prepared_by(prepare) for one in batch], strict=True)
        # one view of each sample at a time: the memory of a batch without views
        likely = np.stack([probabilities(each) for each in zip(*views, strict=True)], axis=1)
        top = np.argsort(-likely, axis=2, kind="stable")[:, :, :k]
        probs = np.take_along_axis(likely, top, 2)
        own = np.array([place.get(sample.class_name or "", -1) for sample in batch])
        sure = likely[np.arange(len(batch)), :, own].mean(1, dtype=np.float64)
        agreed = (top[:, :, 0] == own[:, None]).mean(1)
        return {
            "confidence": np.where(own < 0, np.nan, sure).astype(np.float32),
            "agreement": np.where(own < 0, np.nan, agreed).astype(np.float32),
            "mass": probs.sum(2, dtype=np.float64).mean(1).astype(np.float32),
            "params": np.stack(params),
            "probs": probs.astype(np.float16),
            "ids": ids[top],
        }

    annotate.prepare = prepare  # type: ignore[attr-defined]
    seen = [network.fingerprint, joined, recorded.digest]
    annotate.fingerprint = shards.digest(seen)[:32]  # type: ignore[attr-defined]
    told = {"augmentation": recorded.settings(), "augmentation_digest": recorded.digest}
    annotate.tells = told  # type: ignore[attr-defined]
    return annotate


def check_reinforce(
    *,
    folder: Path,
    classes: Sequence[Category],
    teacher: Teacher,
    model: str,
    pretrained: str,
    templates: list[str],
    weights: str,
    labels: list[str],
    samples: int,
    k: int,
    seed: int,
    fetch: bool = True,
    **views: Any,
) -> None:
    """Finds what is wrong with the keys before there are images; says which classes the teacher does not
    know.

    Raises:
        RecipeError: a key is wrong, or is the other teacher's.
        ModelError: the teacher cannot be had, or its weights are not safe.
    """
    for key, value in (("samples", samples), ("k", k)):
        if value < 1:
            raise RecipeError(f"{key}: {value}; 1 or more is wanted")
    Recorded(**views)
    if not classes:
        raise RecipeError("classes: the pool has none, and a teacher says something of classes alone")
    others: dict[str, dict[str, bool]] = {
        "clip": {"weights": bool(weights), "labels": bool(labels)},
        "classifier": {"pretrained": bool(pretrained), "templates": templates != LABEL_TEMPLATES},
    }
    stray = next((key for key, is_given in others[teacher].items() if is_given), None)
    if stray:
        [rest] = others.keys() - {teacher}
        raise RecipeError(f'{stray}: is for teacher = "{rest}"; teacher = "{teacher}" has no such key')
    if teacher == "clip":
        check_clip(model=model, pretrained=pretrained, templates=templates, fetch=fetch)
    elif model == "embedded":
        raise RecipeError(
            "model: says no classifier; a folder or hub id of timm or transformers is wanted, such as "
            '"timm/resnet50.a1_in1k"'
        )
    else:
        check_classifier(
            folder=folder,
            classes=classes,
            real=None,
            model=model,
            weights=weights,
            labels=labels,
            source="",
            quantile=None,
            fetch=fetch,
        )


def reinforce_origin(
    *, teacher: Teacher, model: str, pretrained: str, templates: list[str], **keys: object
) -> str:
    """Whose model its teacher is: "embedded", a folder or a hub id; "" where open_clip names none."""
    if teacher == "classifier":
        return classifier_origin(model=model)
    return clip_origin(model=model, pretrained=pretrained, templates=templates)
