"""How like the real images of its class, or all real images, an image is."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen import sources
from synthgen.annotators.clip import check_clip, clip_origin, image_encoder
from synthgen.annotators.hashes import phash
from synthgen.annotators.real import batches, warn_of_classes
from synthgen.data import Category, Sample
from synthgen.errors import RecipeError

if TYPE_CHECKING:
    import torch

REFERENCES_COLUMNS = {
    "mean": "float32",
    "max": "float32",
    "norm2": "float32",
    "nearest": "string",
    "phash_distance": "int32",
}
Pixels = npt.NDArray[np.uint8]
Encode = Callable[[list[Pixels]], npt.NDArray[np.float32]]


class Group(NamedTuple):
    """Real images that samples are compared with: uids, unit features (n, width), perceptual hashes (n,)."""

    uids: list[str]
    features: "torch.Tensor"
    hashes: npt.NDArray[np.uint64]


def references(
    *,
    device: str,
    real: sources.Source,
    encode: Encode | None,
    source: str,
    per: Literal["class", ""] = "class",
    features: str = "",
    model: str = "embedded",
    pretrained: str = "",
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Cosines, in [-1, 1], of an image's features and those of the real images of its class; all null where
    its class has none.

    `mean` is DiverGen's inter-similarity (arXiv 2405.10185; it keeps 0.6 and more), `max` NormSim-infinity
    and `norm2` NormSim-2, the root of the sum of squares (arXiv 2405.19547), `nearest` the uid of the real
    image that is most similar, and `phash_distance` the least Hamming distance, 0 to 64, of perceptual hashes
    (see `hashes`): what is 0 to 4, or has a `max` near 1, is likely a copy.

    Args:
        device: a torch device.
        real: the real images of `source`, by class, or with `per = ""` all of them by the class "".
        encode: gives the features of images that `features` holds of the pool's; None is `model`.
        source: the real images, such as "sources.real".
        per: "class", or "" for all real images whatever their class, even those without one.
        features: features of the pool's images that another annotation makes, such as "clip_img"; "" is to
            make them with `model`.
        model, pretrained: as for `clip`.

    Raises:
        ModelError: the model cannot be found or loaded.
        RecipeError: a real image has gone since they were listed.
    """
    import torch

    look = encode or image_encoder(device=device, model=model, pretrained=pretrained)

    def unit(rows: npt.NDArray[np.generic]) -> torch.Tensor:
        """float16, as features are stored, so that a copy has the cosine 1."""
        return torch.nn.functional.normalize(torch.tensor(rows.astype(np.float16)).float(), dim=1).to(device)

    uids, vectors, hashes = list[str](), list[torch.Tensor](), dict[str, int]()
    for found, images in batches(real, sorted(uid for own in real.by_class.values() for uid in own)):
        uids += found
        vectors.append(unit(look(images))[: len(found)])
        hashes |= zip(found, map(phash, images), strict=False)
    row_of = {uid: row for row, uid in enumerate(uids)}
    every = torch.cat(vectors) if vectors else None
    groups = {}
    for name, listed in real.by_class.items():
        own = sorted(row_of.keys() & set(listed))
        if own and every is not None:
            rows = every[[row_of[uid] for uid in own]]
            groups[name] = Group(own, rows, np.array([hashes[uid] for uid in own], np.uint64))

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        own_hashes, images = zip(*[one.prepared_by(prepare) for one in samples], strict=True)
        own = unit(np.stack([sample.read[features] for sample in samples]) if features else look([*images]))
        columns: dict[str, npt.NDArray[np.generic]] = {
            name: np.ma.array(np.zeros(len(samples), object if kind == "string" else kind), mask=True)
            for name, kind in REFERENCES_COLUMNS.items()
        }
        for row, sample in enumerate(samples):
            group = groups.get((sample.class_name or "") if per else "")
            if group is None:
                continue
            # one by one: a product of matrices may round otherwise in another batch
            cosines = (group.features @ own[row].clone()).cpu().numpy().clip(-1, 1)
            distances = np.bitwise_count(group.hashes ^ np.uint64(own_hashes[row]))
            values = {
                "mean": cosines.mean(dtype=np.float64),
                "max": cosines.max(),
                "norm2": np.sqrt(np.square(cosines, dtype=np.float64).sum()),
                "nearest": group.uids[int(cosines.argmax())],
                "phash_distance": distances.min(),
            }
            for name, value in values.items():
                columns[name][row] = value
        return columns

    def prepare(sample: Sample) -> tuple[int, Pixels | None]:
        """The hash, and the pixels if they are looked at: `annotate` may find none in the sample."""
        return phash(sample.image), None if features else sample.image

    annotate.prepare = prepare  # type: ignore[attr-defined]
    annotate.fingerprint = look.fingerprint  # type: ignore[attr-defined]
    return annotate


def check_references(
    *,
    real: sources.Source | None,
    classes: Sequence[Category],
    source: str,
    per: str,
    features: str,
    model: str,
    pretrained: str,
    fetch: bool = True,
) -> None:
    """Finds what is wrong with the keys before there are images; says which classes have no real image.

    Raises:
        RecipeError: a key is wrong.
        ModelError: the weights cannot be had.
    """
    if not source:
        raise RecipeError('source: is empty; name the real images, such as source = "sources.real"')
    if per and not classes:
        raise RecipeError('per: the pool has no classes; compare with all real images by per = ""')
    if features and (model != "embedded" or pretrained):
        raise RecipeError(
            f'features: "{features}" says already whose features are compared; take out model and pretrained'
        )
    if features and not features.endswith("_img"):
        raise RecipeError(f'features: "{features}": not of images; some that end with _img are wanted')
    if not features:
        check_clip(model=model, pretrained=pretrained, templates=[], fetch=fetch)
    if per:
        warn_of_classes(real, source, classes)


def references_origin(*, features: str, model: str, pretrained: str, **keys: object) -> str | None:
    """Whose model it looks with; None where that is another annotation's."""
    return None if features else clip_origin(model=model, pretrained=pretrained, templates=[])
