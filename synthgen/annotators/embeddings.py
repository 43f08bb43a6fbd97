"""Features of images by a vision model of transformers, such as DINOv2."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from synthgen.annotators import networks
from synthgen.annotators.weights import fingerprint
from synthgen.data import Sample
from synthgen.errors import ModelError

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]
Pooling = Literal["cls", "pooled", "mean"]


def embeddings(
    *, device: str, folder: Path, model: str, pooling: Pooling = "cls"
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Features `img` of unit length, shape (n, width).

    Args:
        device: a torch device.
        folder: what a local model's path is relative to.
        model: a folder that transformers saved, or a hub id "ORG/NAME".
        pooling: "cls" is the first token of the last layer (DINOv2's, arXiv 2304.07193), "mean" the mean of
            all its tokens or places, "pooled" the model's own pooled output.

    Raises:
        ModelError: the model cannot be found or loaded, or does not look at images alone.
    """
    import torch

    found = networks.locate(model, folder=folder, auto=networks.ENCODER)
    module, missing = networks.load_transformers(found, networks.ENCODER, device)
    lost = [name for name in missing if pooling == "pooled" or "pooler" not in name]
    if lost:
        raise ModelError(f'model = "{model}": has no weights for {lost[0]}; they are another model\'s')
    preprocess = networks.preprocessing(found)

    def embed(prepared: "list[torch.Tensor]") -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            features = _pool(module(pixel_values=torch.stack(prepared).to(device)), pooling)
            embedded: npt.NDArray[np.float32] = torch.nn.functional.normalize(features, dim=1).cpu().numpy()
        return embedded

    def encode(images: list[Pixels]) -> npt.NDArray[np.float32]:
        return embed([preprocess(image) for image in images])

    def prepare(sample: Sample) -> "torch.Tensor":
        return preprocess(sample.image)

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if not np.array_equal(encode([noise]), encode([noise])):
        raise ModelError(f'model = "{model}": gives other features each time; take one without random masks')

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        return {"img": embed([one.prepared_by(prepare) for one in samples]).astype(np.float16)}

    annotate.prepare = prepare  # type: ignore[attr-defined]

    encode.fingerprint = annotate.fingerprint = fingerprint(module.state_dict(), missing)  # type: ignore[attr-defined]
    annotate.encode = encode  # type: ignore[attr-defined]
    return annotate


def _pool(output: Any, pooling: Pooling) -> "torch.Tensor":
    """One vector of each image. A convolutional network's last layer has places (n, width, rows, columns),
    a transformer's has tokens (n, tokens, width).
    """
    last: torch.Tensor = output.last_hidden_state
    if pooling == "pooled":
        pooled: torch.Tensor | None = output.get("pooler_output")
        if pooled is None:
            raise ModelError('pooling: the model has no pooled output; say "cls" or "mean"')
        return pooled.flatten(1)
    if last.ndim == 4:
        if pooling == "cls":
            raise ModelError('pooling: "cls": the model has no tokens; say "mean" or "pooled"')
        return last.mean((2, 3))
    return last[:, 0] if pooling == "cls" else last.mean(1)


def check_embeddings(*, folder: Path, model: str, pooling: Pooling, fetch: bool = True) -> None:
    """Finds what is wrong with the keys before there are images.

    Raises:
        RecipeError: there is no such model.
        ModelError: it cannot be had, its weights are not safetensors, or it does not look at images alone.
    """
    if networks.is_here(model, folder=folder) or fetch:
        networks.check_transformers(
            networks.locate(model, folder=folder, auto=networks.ENCODER), networks.ENCODER
        )


def embeddings_origin(*, model: str, **keys: object) -> str:
    """Whose model it is: a folder or a hub id."""
    return model
