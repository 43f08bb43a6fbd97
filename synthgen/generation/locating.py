"""Where the files of models, LoRAs, IP-Adapters and second stages are: here, in the cache, or on the hub.
safetensors only.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from synthgen.embedded import pipeline_folder
from synthgen.errors import ModelError
from synthgen.generation.checkpoints import weight_files
from synthgen.licenses import HUB_ID


class Lora(NamedTuple):
    """A file of LoRA weights, and how much of it is added."""

    file: Path
    weight: float = 1.0


class Adapter(NamedTuple):
    """The weights of an IP-Adapter, the folder of its image encoder, and how much of it is added."""

    file: Path
    encoder: Path
    scale: float


class Upscaler(NamedTuple):
    """The folder of a second stage, and the infix of its weight files."""

    folder: Path
    variant: str = ""


def locate(
    path: str,
    *,
    folder: Path,
    revision: str = "",
    variant: str = "",
    fetch: bool = True,
    without: Collection[str] = (),
) -> Path:
    """The local folder of a model, downloaded where it has to be.

    Args:
        path: "embedded", a folder (absolute, or relative to `folder`, the recipe's), or a hub id "ORG/NAME".
        revision: a branch, tag or commit on the hub; "" is its default.
        variant: the infix of the weight files, such as "fp16"; "" is none.
        fetch: download it; else of the hub's models only those in the cache are found.
        without: parts that are not downloaded.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached.
    """
    if path == "embedded":
        return pipeline_folder()
    local = folder / Path(path).expanduser()
    if (local / "model_index.json").is_file():
        return local.resolve()
    if local.is_dir():
        raise ModelError(
            f'path = "{path}": {local} has no model_index.json; a diffusers pipeline folder is wanted'
        )
    if local.is_file():
        raise ModelError(
            f'path = "{path}": {local} is one file; a diffusers pipeline folder is wanted, which '
            "diffusers makes of it: StableDiffusionXLPipeline, or the class that it is of, has "
            "from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if (Path(path) / "model_index.json").is_file():
        raise ModelError(
            f'path = "{path}": paths are relative to the folder of the recipe, {folder}; for the one in the '
            f"working directory say {Path(path).resolve()}"
        )
    if not HUB_ID.match(path):
        raise ModelError(
            f'path = "{path}": no such model; "embedded", a folder (looked for {local}), or a hub '
            f"id ORG/NAME is wanted"
        )
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    download = partial(
        DiffusionPipeline.download,
        path,
        revision=revision or None,
        variant=variant or None,
        use_safetensors=True,
        token=os.environ.get("HF_TOKEN"),
        **dict.fromkeys(without),
    )
    return _from_hub(download, path, local, fetch)


def locate_lora(path: str, *, folder: Path, file: str = "", revision: str = "", fetch: bool = True) -> Path:
    """The local file of LoRA weights, downloaded where it has to be.

    Args:
        path: a .safetensors file, a folder with one, or a hub id "ORG/NAME".
        file: which one of the folder, or of the hub's; "" is the only one, those in its folders aside.
        folder, revision, fetch: as for `locate`.

    Raises:
        ModelError: there is no such file, it is not the only one, or it is not .safetensors.
    """
    found = folder / Path(path).expanduser()
    if not found.exists():
        if not HUB_ID.match(path):
            raise ModelError(
                f'loras: path = "{path}": no such file; a .safetensors file, a folder with one (looked for '
                f"{found}), or a hub id ORG/NAME is wanted"
            )
        from huggingface_hub import HfApi

        hub, commit = HfApi(token=os.environ.get("HF_TOKEN")), revision or None

        def download(local_files_only: bool = False) -> str:
            wanted = file or "*.safetensors"
            if not local_files_only:  # all of them may be hundreds of gigabytes
                wanted = _which_lora(path, file, hub.list_repo_files(path, revision=commit))
            return hub.snapshot_download(
                path, revision=commit, allow_patterns=[wanted], local_files_only=local_files_only
            )

        found = _from_hub(download, path, found, fetch)
    if found.is_dir():
        names = [str(one.relative_to(found)) for one in found.rglob("*.safetensors")]
        found /= _which_lora(path, file, names)
    if found.suffix != ".safetensors":
        raise ModelError(f"loras: {found}: not .safetensors; others are not loaded (they can run code)")
    return found.absolute()


def _which_lora(path: str, file: str, names: Sequence[str]) -> str:
    """The file of LoRA weights among those of a folder or a hub's model.

    Raises:
        ModelError: there is none, or there are several and none is named.
    """
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    fitting = [name for name in weights if (name == file if file else "/" not in name)]
    if len(fitting) != 1:
        what = f"no {file}" if file else "one .safetensors file is wanted"
        raise ModelError(
            f'loras: path = "{path}": {what}; there is {", ".join(weights) or "none"}; name one with '
            'file = "..."'
        )
    return fitting[0]


def locate_adapter(
    path: str,
    *,
    folder: Path,
    file: str,
    image_encoder: str,
    scale: float,
    subfolder: str = "",
    revision: str = "",
    fetch: bool = True,
) -> Adapter:
    """An IP-Adapter, downloaded where it has to be.

    Args:
        path: a folder, or a hub id "ORG/NAME".
        file: its weights, in `subfolder`.
        image_encoder: the folder of its image encoder, in `path`.
        folder, revision, fetch: as for `locate`.

    Raises:
        ModelError: a part is not there, or is not .safetensors.
    """
    if not file.endswith(".safetensors"):
        raise ModelError(f"adapter: {file}: not .safetensors; others are not loaded (they can run code)")
    found = folder / Path(path).expanduser()
    if not found.is_dir():
        if not HUB_ID.match(path):
            raise ModelError(
                f'adapter: path = "{path}": no such folder; a folder (looked for {found}), or a hub id '
                "ORG/NAME is wanted"
            )
        from huggingface_hub import snapshot_download

        weights = f"{subfolder}/{file}" if subfolder else file
        download = partial(
            snapshot_download,
            path,
            revision=revision or None,
            allow_patterns=[weights, f"{image_encoder}/*.json", f"{image_encoder}/*.safetensors"],
            token=os.environ.get("HF_TOKEN"),
        )
        found = _from_hub(download, path, found, fetch)
    for wanted in (found / subfolder / file, found / image_encoder / "config.json"):
        if not wanted.is_file():
            raise ModelError(
                f"adapter: {wanted}: no such file; say subfolder, file and image_encoder otherwise"
            )
    weight_files(found, image_encoder, "")
    return Adapter((found / subfolder / file).absolute(), (found / image_encoder).absolute(), scale)


def _from_hub(download: Callable[..., str], path: str, local: Path, fetch: bool) -> Path:
    """The folder that a download gives, or the cache of earlier ones."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    first: Exception = FileNotFoundError("not downloaded yet")
    try:
        if fetch:
            return Path(download())
    except ModelError:
        raise
    except Exception as error:
        first = error
    try:  # a hub that is out of reach hides what the cache holds
        return Path(download(local_files_only=True))
    except Exception:
        reason = " ".join(str(first).split())[:160]
        raise ModelError(
            f'path = "{path}": cannot be had ({type(first).__name__}: {reason}); tried the folder '
            f"{local}, the Hugging "
            "Face hub and its cache. Give a local folder as path, set HF_ENDPOINT to a mirror, or "
            "HF_HOME to a filled cache"
        ) from first
