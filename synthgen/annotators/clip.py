"""CLIP scores and features of images against their prompts and against the dataset's classes (open_clip)."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen.data import Category, Sample
from synthgen.embedded import clip_folder
from synthgen.errors import ModelError, RecipeError, nearest
from synthgen.wording import fill, slots

if TYPE_CHECKING:
    import torch

CLIP_COLUMNS = {
    "similarity": "float32",
    "label_similarity": "float32",
    "margin": "float32",
    "top1": "int32",
    "rank": "int32",
}
TEXTS = 256
"""So many texts are encoded at a time."""
LABEL_TEMPLATES = ["a photo of a {class}", "an image of a {class}", "a {class}"]


def clip(
    *,
    device: str,
    classes: Sequence[Category],
    model: str = "embedded",
    pretrained: str = "",
    templates: list[str] = LABEL_TEMPLATES,
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """Cosines in [-1, 1] of an open_clip model.

    `similarity` is the cosine of image and prompt; `label_similarity` that of image and the plain captions
    of its class; `margin` is `label_similarity` less the best of the other classes (positive: zero-shot
    agrees); `top1` is the class id that zero-shot chooses, `rank` the rank of the true class (0 is first).
    Features `img` and `txt` (of the prompt) have unit length, shape (n, width). What is compared with a
    class, or with a prompt, is missing where a sample has none.

    Args:
        device: a torch device.
        classes: the classes that zero-shot chooses from.
        model: "embedded", an open_clip model name (with `pretrained`), "hf-hub:ORG/NAME", or a folder with
            open_clip_config.json and open_clip_model.safetensors.
        pretrained: open_clip's tag of the weights, such as "openai"; "" for the other forms.
        templates: plain captions of a class, with the slot `{class}`; their embeddings are averaged
            (prompt ensembling, Radford et al., arXiv 2103.00020, section 3.1.4).

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    import torch

    check_clip(model=model, pretrained=pretrained, templates=templates)
    network, preprocess, encode_text = _load(model, pretrained, device)

    with torch.inference_mode():
        plain = [[fill(each, {"class": category.prompt}) for each in templates] for category in classes]
        # of what has no classes, as one that nothing is
        means = [encode_text(own).mean(0) for own in plain] or [encode_text([""])[0]]
        labels = torch.nn.functional.normalize(torch.stack(means), dim=1)
    ids = np.array([category.id for category in classes] or [0], dtype=np.int32)
    place = {category.name: row for row, category in enumerate(classes)}

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        with torch.inference_mode():
            pixels = torch.stack([preprocess(Image.fromarray(sample.image)) for sample in samples])
            images = network.encode_image(pixels.to(device), normalize=True)
            texts = encode_text([sample.text or "" for sample in samples])
            similarity = (images * texts).sum(1).cpu().numpy()
            logits = (images @ labels.T).cpu().numpy()
        rows = np.arange(len(samples))
        true = np.array([place.get(sample.class_name or "", 0) for sample in samples])
        has_class = np.array([sample.class_name in place for sample in samples])
        has_text = np.array([bool(sample.text) for sample in samples])

        def where(
            is_known: npt.NDArray[np.bool_], values: npt.NDArray[np.generic]
        ) -> npt.NDArray[np.generic]:
            masked: npt.NDArray[np.generic] = np.ma.array(values, mask=~is_known)
            return values if is_known.all() else masked

        own = logits[rows, true]
        others = logits.copy()
        others[rows, true] = -np.inf
        return {
            "similarity": where(has_text, similarity),
            "label_similarity": where(has_class, own),
            "margin": where(has_class & (len(ids) > 1), own - others.max(1)),
            "top1": where(np.full(len(samples), bool(place)), ids[logits.argmax(1)]),
            "rank": where(has_class, (others > own[:, None]).sum(1).astype(np.int32)),
            "img": images.cpu().numpy().astype(np.float16),
            "txt": np.where(has_text[:, None], texts.cpu().numpy(), np.nan).astype(np.float16),
        }

    weights = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        weights.update(
            key.encode() + tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    annotate.fingerprint = weights.hexdigest()[:32]  # type: ignore[attr-defined]
    return annotate


def text_encoder(
    *, device: str, model: str = "embedded", pretrained: str = ""
) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """Gives n texts as unit vectors (n, width) of an open_clip model; the keys are those of `clip`.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    import torch

    _, _, encode = _load(model, pretrained, device)

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            parts = [encode(list(texts[k : k + TEXTS])).cpu().numpy() for k in range(0, len(texts), TEXTS)]
        return np.concatenate(parts)

    return embed


def _load(model: str, pretrained: str, device: str) -> tuple[Any, Any, "Callable[[list[str]], torch.Tensor]"]:
    """A network, its preprocessing of an image, and its encoding of texts as unit vectors."""
    import open_clip

    name = f"local-dir:{clip_folder()}" if model == "embedded" else _local(model)
    try:
        network, preprocess = open_clip.create_model_from_pretrained(
            name, pretrained=pretrained or None, device=device, precision="fp32"
        )
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:
        raise ModelError(_not_found(model, pretrained, error)) from error
    network.eval()

    def encode_text(texts: list[str]) -> "torch.Tensor":
        encoded: torch.Tensor = network.encode_text(tokenize(texts).to(device), normalize=True)
        return encoded

    return network, preprocess, encode_text


def _local(model: str) -> str:
    from pathlib import Path

    return f"local-dir:{model}" if (Path(model) / "open_clip_config.json").is_file() else model


def check_clip(*, model: str, pretrained: str, templates: list[str], fetch: bool = True) -> None:
    """Finds what is wrong with the keys before there are images; fetches weights from the hub to its cache,
    unless that is not wanted.

    Raises:
        RecipeError: a template has another slot than `{class}`, or open_clip knows no such name or tag.
        ModelError: the weights cannot be had.
    """
    for template in templates:
        if slots(template) != ["class"]:
            raise RecipeError(f'templates: "{template}": one slot {{class}} and no other is wanted')
    if model == "embedded" or _local(model) != model:
        return
    import open_clip
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hub_id = model.removeprefix("hf-hub:")
    if hub_id == model:
        if model not in open_clip.list_models():
            raise RecipeError(f'model: unknown "{model}"{nearest(model, open_clip.list_models())}')
        tags = open_clip.list_pretrained_tags_by_model(model)
        if pretrained not in tags:
            raise RecipeError(
                f'pretrained: unknown "{pretrained}" of model "{model}"{nearest(pretrained, tags)}'
            )
    if not fetch:
        return
    try:
        if hub_id == model:
            download_pretrained(open_clip.get_pretrained_cfg(model, pretrained))
        else:
            download_pretrained_from_hf(hub_id)
    except Exception as error:
        raise ModelError(_not_found(model, pretrained, error)) from error


def clip_origin(*, model: str, pretrained: str, templates: list[str]) -> str:
    """Whose model it is, by its keys: "embedded", a folder or a hub id; "" where open_clip names none."""
    if model == "embedded" or _local(model) != model:
        return model
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    import open_clip

    return str((open_clip.get_pretrained_cfg(model, pretrained) or {}).get("hf_hub", "")).rstrip("/")


def _not_found(model: str, pretrained: str, error: Exception) -> str:
    what = f'model = "{model}"' + (f', pretrained = "{pretrained}"' if pretrained else "")
    reason = " ".join(str(error).split())[:200]
    return (
        f"{what}: cannot be loaded ({type(error).__name__}: {reason}); tried the Hugging Face cache and hub. "
        "Without network give a local folder as model, fill HF_HOME beforehand, or set HF_ENDPOINT to a "
        "mirror"
    )
