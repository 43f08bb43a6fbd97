"""Networks that look at images, found and loaded. Weights are safetensors, or tensors that `weights_only`
reads; no pickle is opened and no code from elsewhere is run.
"""

import contextlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from synthgen import storage
from synthgen.annotators.weights import fingerprint, read_tensors, weights_file
from synthgen.errors import ModelError, RecipeError, nearest
from synthgen.licenses import HUB_ID

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]
WANTED = [
    "config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors",
    "model.safetensors.index.json", "model-*-of-*.safetensors",
]  # fmt: skip
"""What is downloaded of a hub's model."""
SIZES = ((37, 53), (64, 64))
"""Height and width of the images that show whether a preprocessing makes one size of all."""
SAVERS = {
    "timm": "import sys, timm; from timm.models import save_for_hf; save_for_hf(timm.create_model("
    "sys.argv[1], pretrained=True), sys.argv[2], safe_serialization=True)",
    "transformers": "import sys; from transformers import AutoImageProcessor as P, {auto} as M; "
    "M.from_pretrained(sys.argv[1], use_safetensors=False).save_pretrained(sys.argv[2]); "
    "P.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])",
}
CLASSIFIER, ENCODER = "AutoModelForImageClassification", "AutoModel"
"""Classes of transformers that load a model."""


class Network(NamedTuple):
    """A network that classifies images.

    Attributes:
        logits: of pixels (n, 3, height, width), shape (n, outputs).
        preprocess: makes pixels (3, height, width) of an image, uint8 of shape (height, width, 3).
        outputs: how many classes it knows.
        fingerprint: hash of its weights, 32 hex digits.
    """

    logits: "Callable[[torch.Tensor], torch.Tensor]"
    preprocess: "Callable[[Pixels], torch.Tensor]"
    outputs: int
    fingerprint: str


def locate(model: str, *, folder: Path, auto: str) -> Path:
    """The local folder of a timm or transformers model, downloaded where it has to be.

    Args:
        model: a folder (absolute, or relative to `folder`, the recipe's), or a hub id "ORG/NAME".
        auto: the class of transformers that loads it, for the command that converts other weights.

    Raises:
        RecipeError: that is neither.
        ModelError: it cannot be had, or its weights are not safetensors.
    """
    local = folder / Path(model).expanduser()
    if is_here(model, folder=folder):
        if not (local / "config.json").is_file():
            raise ModelError(
                f"{local}: has no config.json; a folder that timm or transformers saved is wanted"
            )
        return _safe(local, str(local), auto)
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    errors: list[Exception] = []
    for offline in (False, True):  # a hub that is out of reach hides what the cache holds
        try:
            found = snapshot_download(
                model, allow_patterns=WANTED, local_files_only=offline, token=os.environ.get("HF_TOKEN")
            )
            storage.size(Path(found) / "config.json")
            return _safe(Path(found), model, auto)
        except ModelError:
            raise
        except Exception as error:
            errors.append(error)
    reason = " ".join(str(errors[0]).split())[:160]
    raise ModelError(
        f'model = "{model}": cannot be had ({type(errors[0]).__name__}: {reason}); tried the folder {local}, '
        "the Hugging Face hub and its cache. Give a local folder as model, set HF_ENDPOINT to a mirror, or "
        "HF_HOME to a filled cache"
    ) from errors[0]


def is_here(model: str, *, folder: Path) -> bool:
    """Whether a model is a folder that is here, and no hub id.

    Raises:
        RecipeError: it is neither.
    """
    local = folder / Path(model).expanduser()
    if model and (local.is_dir() or HUB_ID.match(model)):
        return local.is_dir()
    here = Path(model).expanduser()
    raise RecipeError(
        f'model: "{model}": paths are relative to the folder of the recipe, {folder}; for the one in the '
        f"working directory say {here.resolve()}"
        if model and here.is_dir()
        else f'model: "{model}": no such model; a folder (looked for {local}), or a hub id such as '
        '"timm/resnet50.a1_in1k" or "facebook/dinov2-base" is wanted'
    )


def _safe(folder: Path, model: str, auto: str) -> Path:
    """The folder itself, which has weights as safetensors."""
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return folder
    library = library_of(folder)
    if library == "timm":
        model = f"{'local-dir' if Path(model).is_dir() else 'hf-hub'}:{model}"
    code = SAVERS[library].replace("{auto}", auto)
    raise ModelError(
        f"{model}: has no model.safetensors; other weights are not loaded (they can run code). If you trust "
        f"it, `python -c {shlex.quote(code)} {shlex.quote(model)} FOLDER` saves it as such; then say "
        'model = "FOLDER"'
    )


def config(folder: Path) -> dict[str, Any]:
    """What a model's config.json says.

    Raises:
        ModelError: it is no JSON object.
    """
    path = folder / "config.json"
    try:
        read = json.loads(storage.read(path))
    except ValueError as error:
        raise ModelError(f"{path}: is no JSON ({error}); download it again") from error
    if not isinstance(read, dict):
        raise ModelError(f"{path}: is no JSON object; download it again")
    return read


def library_of(folder: Path) -> str:
    """Whose model a folder holds: "timm" or "transformers".

    Raises:
        ModelError: its config.json tells neither.
    """
    read = config(folder)
    if "architecture" in read:
        return "timm"
    if "model_type" in read:
        return "transformers"
    raise ModelError(
        f"{folder / 'config.json'}: has neither timm's architecture nor transformers' model_type; a folder "
        "that one of these saved is wanted"
    )


def load_classifier(
    model: str, *, weights: str = "", outputs: int = 0, folder: Path, device: str, whole: bool = False
) -> Network:
    """An image classifier.

    Args:
        model: a folder or hub id of timm or transformers; with `weights` the name of an architecture,
            "timm/NAME" or "torchvision/NAME".
        weights: a file with its state dict, relative to `folder`; "" is the model's own.
        outputs: how many classes those weights know.
        whole: look at all of a square image, where timm's and torchvision's preprocessing takes its middle.

    Raises:
        RecipeError: there is no such architecture.
        ModelError: it cannot be had, is no classifier, or the weights are another's or not safe.
    """
    if weights:
        return _load_architecture(model, weights_file(weights, folder), outputs, device, whole)
    found = locate(model, folder=folder, auto=CLASSIFIER)
    if library_of(found) == "timm":
        import timm

        tensors = read_tensors(found / "model.safetensors")
        with _told(model):
            own = {"state_dict": tensors}
            module = timm.create_model(f"local-dir:{found}", pretrained=True, pretrained_cfg_overlay=own)
        return _from_timm(module, device, whole)
    module, missing = load_transformers(found, CLASSIFIER, device)
    if missing:
        raise ModelError(
            f'model = "{model}": has no weights for {missing[0]}; it is no classifier, or they are another\'s'
        )
    return Network(
        lambda pixels: module(pixels).logits,
        preprocessing(found),
        int(module.config.num_labels),
        fingerprint(module.state_dict()),
    )


def classifier_labels(
    model: str, *, weights: str = "", outputs: int = 0, folder: Path, fetch: bool = True
) -> list[tuple[str, ...]] | None:
    """What each output of a classifier is called, in one or more words, of which one may be a synset; no word
    where nothing says it. None where the model would have to be fetched, and `fetch` is False.

    Of timm's, 1,000 outputs without names (and other sizes of ImageNet's lists) are ImageNet's.

    Raises:
        As `load_classifier`, as far as can be told without loading what transformers or timm saved.
    """
    if weights:
        return [()] * load_classifier(
            model, weights=weights, outputs=outputs, folder=folder, device="cpu"
        ).outputs
    if not is_here(model, folder=folder) and not fetch:
        return None
    found = locate(model, folder=folder, auto=CLASSIFIER)
    if library_of(found) == "transformers":
        names = check_transformers(found, CLASSIFIER).id2label
        said = [str(names[number]) for number in range(len(names))]
        return [() if name == f"LABEL_{number}" else _words(name) for number, name in enumerate(said)]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    read = config(found)
    own = read | read.get("pretrained_cfg", {}) | read
    if own.get("label_names"):
        names, texts = own["label_names"], own.get("label_descriptions") or {}
        texts = texts if isinstance(texts, dict) else dict(zip(names, texts, strict=False))
        return [(name, *_words(texts.get(name, name))) for name in names]
    count = own.get("num_classes", 0)
    if not (subset := infer_imagenet_subset({"num_classes": count})):
        return [()] * count
    info = ImageNetInfo(subset)
    return [(name, *_words(info.label_name_to_description(name))) for name in info.label_names()]


def _words(label: str) -> tuple[str, ...]:
    """A label, and its parts between commas: "tench, Tinca tinca"."""
    return tuple(dict.fromkeys([label, *(part.strip() for part in label.split(","))]))


def _architecture(model: str) -> tuple[str, str]:
    """Library and name of an architecture.

    Raises:
        RecipeError: there is none.
    """
    library, _, name = model.partition("/")
    if library == "timm":
        import timm

        known = timm.list_models()
    elif library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(torchvision.models)
    else:
        raise RecipeError(
            f'model: "{model}": with weights an architecture, "timm/NAME" or "torchvision/NAME", is wanted'
        )
    if name not in known:
        raise RecipeError(f'model: {library} has no "{name}"{nearest(name, known)}')
    return library, name


def _load_architecture(model: str, path: Path, outputs: int, device: str, whole: bool) -> Network:
    library, name = _architecture(model)
    tensors = read_tensors(path)
    with _told(f"{model} with {path}"):
        if library == "timm":
            import timm

            own = {"state_dict": tensors, "num_classes": outputs}
            module = timm.create_model(name, pretrained=True, num_classes=outputs, pretrained_cfg_overlay=own)
            return _from_timm(module, device, whole)
        import torchvision

        module = torchvision.models.get_model(name, weights=None, num_classes=outputs)
        module.load_state_dict(tensors)
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        if whole:
            transform.resize_size = transform.crop_size
    module.to(device).eval()
    return Network(
        module,
        lambda image: transform(Image.fromarray(image)),
        outputs,
        fingerprint(module.state_dict()),
    )


def _from_timm(module: Any, device: str, whole: bool) -> Network:
    """timm's model with its own evaluation transform."""
    from timm.data import create_transform, resolve_model_data_config

    module.to(device).eval()
    own = resolve_model_data_config(module) | ({"crop_pct": 1.0} if whole else {})
    transform = create_transform(**own, is_training=False)
    return Network(
        module,
        lambda image: transform(Image.fromarray(image)),
        int(module.num_classes),
        fingerprint(module.state_dict()),
    )


def check_transformers(folder: Path, auto: str) -> Any:
    """transformers' configuration of what a folder holds.

    Raises:
        ModelError: the class loads no model of it, or one that does not look at images alone.
    """
    import transformers

    if library_of(folder) != "transformers":
        raise ModelError(f"{folder}: is timm's; a vision model that transformers saved is wanted")
    model_type = config(folder)["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f'{folder}: transformers has no "{model_type}", and code that comes with a model is not run'
        )
    with _told(str(folder)):
        configuration = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        kind = getattr(transformers, auto)._model_mapping.get(type(configuration), None)
    named = configuration.architectures or []
    if auto == CLASSIFIER and named and not any("ForImageClassification" in name for name in named):
        kind = None
    if auto == ENCODER and getattr(kind, "input_modalities", ()) != ("image",):
        kind = None
    if kind is None:
        task = "looks at images alone" if auto == ENCODER else "classifies images"
        what = " or ".join(named) or model_type
        raise ModelError(f"{folder}: is a {what}, which is none that {task}; take another model")
    return configuration


def load_transformers(folder: Path, auto: str, device: str) -> tuple[Any, list[str]]:
    """transformers' model in a folder, in eval mode, and the names of tensors that it has no weights for.

    Raises:
        ModelError: transformers has no such model, or the weights are another's.
    """
    import torch
    import transformers

    check_transformers(folder, auto)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with _told(str(folder)):
        module, told = getattr(transformers, auto).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    return module.to(device).eval(), sorted(told["missing_keys"])


def preprocessing(folder: Path) -> "Callable[[Pixels], torch.Tensor]":
    """What transformers' image processor in a folder makes of one image.

    Raises:
        ModelError: there is none, or it makes images of several sizes, which no batch can hold.
    """
    from transformers import AutoImageProcessor

    with _told(str(folder)):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def preprocess(image: Pixels) -> "torch.Tensor":
        # a copy: torch warns of what cannot be written to
        made = processor(images=np.array(image), input_data_format="channels_last", return_tensors="pt")
        pixels: torch.Tensor = made["pixel_values"][0]
        return pixels

    shapes = {tuple(preprocess(np.zeros((*size, 3), np.uint8)).shape) for size in SIZES}
    if len(shapes) > 1:
        raise ModelError(
            f"{folder}: its preprocessor_config.json makes images of several sizes; give it one size (such "
            "as do_center_crop = true with crop_size), so that they fit into a batch"
        )
    return preprocess


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Makes one line of whatever a library says that cannot load something."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{what}: cannot be loaded ({type(error).__name__}: {reason})") from error
