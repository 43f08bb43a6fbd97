"""CLIP scores and features of images against their prompts and against the dataset's classes (open_clip)."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen.annotators.networks import Network
from synthgen.annotators.weights import fingerprint
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
TEXTS, NEW_TEXTS = 256, 16
"""So many texts are encoded at a time: of a list, and of those that are new in a shard."""
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

    `similarity` is the cosine of image and prompt, null where a sample has no text; `label_similarity` that
    of image and the plain captions of its class; `margin` is `label_similarity` less the best of the other
    classes (positive: zero-shot agrees); `top1` is the class id that zero-shot chooses, `rank` the rank of
    the true class (0 is first). What needs the true class is null where a sample has none of `classes`.
    Features `img` and `txt` (of the prompt) have unit length, shape (n, width).

    Each image is preprocessed as open_clip does it, from its RGB pixels, upright and on white: of images in
    another mode (palette, alpha), open_clip resizes before it converts, and leaves those lying that a camera
    turned.

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
    shrink, encode = _image_side(network, preprocess, device)
    known = dict[str, torch.Tensor]()

    labels = _class_vectors(encode_text, classes, templates) if classes else torch.zeros(0)
    ids = np.array([category.id for category in classes], dtype=np.int32)
    place = {category.name: row for row, category in enumerate(classes)}

    def prepare(sample: Sample) -> npt.NDArray[np.uint8]:
        return np.asarray(shrink(sample.picture))

    def encode_new(texts: Sequence[str]) -> None:
        """Encodes the texts that are new in this shard, always so many at a time."""
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(new), NEW_TEXTS):
            some = new[start : start + NEW_TEXTS]
            encoded = encode_text([*some, *[some[-1]] * (NEW_TEXTS - len(some))])
            known.update(zip(some, encoded, strict=False))

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        with torch.inference_mode():
            made = [one.prepared_by(prepare) for one in samples]
            images = encode(made)
            encode_new([sample.text for sample in samples if sample.text])
            nothing = torch.full_like(images[0], torch.nan)
            texts = torch.stack([known.get(sample.text or "", nothing) for sample in samples])
            similarity = (images * texts).sum(1).cpu().numpy()
            logits = (images @ labels.T).cpu().numpy() if classes else np.zeros((len(samples), 0), np.float32)
        return {
            "similarity": similarity,
            **_zero_shot(logits, ids, np.array([place.get(one.class_name or "", -1) for one in samples])),
            "img": images.cpu().numpy().astype(np.float16),
            "txt": texts.cpu().numpy().astype(np.float16),
        }

    annotate.prepare = prepare  # type: ignore[attr-defined]
    # a text's last bits may depend on what it is encoded with, so that must not be another shard's
    annotate.start = known.clear  # type: ignore[attr-defined]
    annotate.encode = _encoder(network, preprocess, device)  # type: ignore[attr-defined]
    annotate.fingerprint = annotate.encode.fingerprint  # type: ignore[attr-defined]
    return annotate


def _class_vectors(
    encode_text: "Callable[[list[str]], torch.Tensor]", classes: Sequence[Category], templates: Sequence[str]
) -> "torch.Tensor":
    """Unit vectors of the classes' plain captions, shape (classes, width)."""
    import torch

    with torch.inference_mode():
        every = [
            encode_text([fill(plain, {"class": category.prompt}) for plain in templates]).mean(0)
            for category in classes
        ]
        vectors: torch.Tensor = torch.nn.functional.normalize(torch.stack(every), dim=1)
    return vectors


def clip_classifier(
    *, device: str, classes: Sequence[Category], model: str, pretrained: str, templates: Sequence[str]
) -> Network:
    """An open_clip model that classifies by the plain captions of the classes, one output each: cosines by
    the temperature that it was trained with. The keys are those of `clip`.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    network, preprocess, encode_text = _load(model, pretrained, device)
    labels = _class_vectors(encode_text, classes, templates)

    def logits(pixels: "torch.Tensor") -> "torch.Tensor":
        cosines = network.encode_image(pixels, normalize=True) @ labels.T
        scaled: torch.Tensor = cosines * network.logit_scale.exp()
        return scaled

    return Network(
        logits,
        lambda image: preprocess(Image.fromarray(image)),
        len(classes),
        fingerprint(network.state_dict()),
    )


def _zero_shot(
    logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int32], true: npt.NDArray[np.intp]
) -> dict[str, npt.NDArray[np.generic]]:
    """What the cosines (n, classes) say of the classes `true`, -1 where a sample has none."""
    rows, unknown = np.arange(len(logits)), true < 0
    if not len(ids):
        nan = np.full(len(logits), np.nan, np.float32)
        none = np.ma.masked_all(len(logits), np.int32)  # type: ignore[no-untyped-call]
        return {"label_similarity": nan, "margin": nan, "top1": none, "rank": none}
    own = np.where(unknown, np.float32(np.nan), logits[rows, true])
    others = logits.copy()
    others[rows, true] = -np.inf
    return {
        "label_similarity": own,
        "margin": own - others.max(1) if len(ids) > 1 else np.full_like(own, np.nan),
        "top1": ids[logits.argmax(1)],
        "rank": np.ma.array((others > own[:, None]).sum(1).astype(np.int32), mask=unknown),
    }


def split(preprocess: Any) -> tuple[Any, "Callable[[npt.NDArray[np.uint8], str], torch.Tensor]"]:
    """open_clip's preprocessing in two: what is done to one image, which stays one of bytes, and what can be
    done to all of a batch on the device, with the same bits.
    """
    import torch

    *shrink, _, normalize = preprocess.transforms
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalize.mean, normalize.std))

    def finish(pixels: npt.NDArray[np.uint8], device: str) -> torch.Tensor:
        batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        batch = batch.to(torch.float32, memory_format=torch.contiguous_format)
        return batch.div_(255).sub_(mean.to(device)).div_(std.to(device))

    return type(preprocess)(shrink), finish


def image_encoder(
    *, device: str, model: str, pretrained: str
) -> Callable[[list[npt.NDArray[np.uint8]]], npt.NDArray[np.float32]]:
    """Gives n images as unit vectors (n, width) of an open_clip model, whose keys are those of `clip`; its
    attribute `fingerprint` is that of the weights.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    network, preprocess, _ = _load(model, pretrained, device)
    return _encoder(network, preprocess, device)


def _image_side(
    network: Any, preprocess: Any, device: str
) -> tuple[Any, "Callable[[Sequence[npt.NDArray[np.uint8]]], torch.Tensor]"]:
    """What is done to one picture, which Pillow has, and what makes unit vectors of a batch of those."""
    shrink, finish = split(preprocess)

    def encode(made: "Sequence[npt.NDArray[np.uint8]]") -> "torch.Tensor":
        encoded: torch.Tensor = network.encode_image(finish(np.stack(made), device), normalize=True)
        return encoded

    return shrink, encode


def _encoder(
    network: Any, preprocess: Any, device: str
) -> Callable[[list[npt.NDArray[np.uint8]]], npt.NDArray[np.float32]]:
    import torch

    shrink, look = _image_side(network, preprocess, device)

    def encode(images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            made = [np.asarray(shrink(Image.fromarray(image))) for image in images]
            encoded: npt.NDArray[np.float32] = look(made).cpu().numpy()
        return encoded

    encode.fingerprint = fingerprint(network.state_dict())  # type: ignore[attr-defined]
    return encode


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
