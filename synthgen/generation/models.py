"""Finding, fingerprinting and loading text-to-image models. safetensors only, no remote code."""

import hashlib
import json
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.embedded import pipeline_folder
from synthgen.errors import ModelError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WRITTEN_BY = ("transformers_version", "torch_dtype", "dtype")
"""Keys of configurations that change when a model is saved again, and nothing else; the dtype is ours."""
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def locate(path: str, *, folder: Path, revision: str = "", variant: str = "", fetch: bool = True) -> Path:
    """The local folder of a model, downloaded where it has to be.

    Args:
        path: "embedded", a folder (absolute, or relative to `folder`, the recipe's), or a hub id "ORG/NAME".
        revision: a branch, tag or commit on the hub; "" is its default.
        variant: the infix of the weight files, such as "fp16"; "" is none.
        fetch: download it; else of the hub's models only those in the cache are found.

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
    if not HUB_ID.match(path):
        raise ModelError(
            f'path = "{path}": no such model; "embedded", a folder (looked for {local}), or a hub '
            f"id ORG/NAME is wanted"
        )
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    download = partial(
        DiffusionPipeline.download,
        path,
        revision=revision or None,
        variant=variant or None,
        use_safetensors=True,
        token=os.environ.get("HF_TOKEN"),
    )
    first: Exception = FileNotFoundError("not downloaded yet")
    try:
        if fetch:
            return Path(download())
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


def components(folder: Path) -> dict[str, str]:
    """The parts of a pipeline that are loaded: name -> class name (from model_index.json)."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {
        name: entry[1]
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1]
    }


def pipeline_class(folder: Path) -> type["DiffusionPipeline"]:
    """The diffusers class of a pipeline folder, the generic one where diffusers does not know it."""
    import diffusers

    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    found: type[DiffusionPipeline] = getattr(diffusers, name, diffusers.DiffusionPipeline)
    return found


def fingerprint(folder: Path, *, variant: str = "") -> str:
    """32 hex digits over what decides a model's images: one model, wherever it lies.

    Names and sha256 of the weight files that are loaded, the configurations (without what only says who wrote
    them), and the tokenizers' files.

    Raises:
        ModelError: the folder has no safetensors weights.
    """
    weights, others = list[list[str]](), list[list[str]]()
    for part, kind in sorted(components(folder).items()):
        files = sorted((folder / part).glob("*.safetensors"))
        chosen = [file for file in files if bool(variant) and f".{variant}" in file.name]
        chosen = chosen or [
            file for file in files if re.fullmatch(r"[^.]+(-\d+-of-\d+)?\.safetensors", file.name)
        ]
        weights += [[f"{part}/{file.name}", _digest(file)] for file in chosen]
        others.append([part, kind])
        for file in sorted((folder / part).glob("*")):
            if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json"):
                others.append([f"{part}/{file.name}", _digest(file)])
    if not weights:
        raise ModelError(
            f"{folder}: no .safetensors weights there; other formats are not loaded (they can run code)"
        )
    return hashlib.sha256(json.dumps([weights, others]).encode()).hexdigest()[:32]


def _digest(file: Path) -> str:
    """sha256 of a file; of a configuration, of what it configures."""
    if file.name.endswith("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key[0] != "_" or key == "_class_name"}
        config = {key: value for key, value in config.items() if key not in WRITTEN_BY}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def scheduler_name(folder: Path, scheduler: str = "") -> str:
    """The class of the scheduler that is used: the one asked for, else the checkpoint's own.

    Raises:
        ModelError: diffusers has no such scheduler, or it draws noise that no seed of ours governs.
    """
    if not scheduler:
        return components(folder).get("scheduler", "")
    import diffusers

    known = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    if scheduler not in known:
        from synthgen.errors import nearest

        raise ModelError(f'scheduler: unknown "{scheduler}"{nearest(scheduler, known)}')
    if scheduler in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        raise ModelError(
            f'scheduler: "{scheduler}" draws noise from a global generator; choose one that takes seeds'
        )
    return scheduler


def load(
    folder: Path,
    *,
    device: str,
    dtype: str,
    scheduler: str = "",
    variant: str = "",
    safety_checker: bool = True,
) -> "DiffusionPipeline":
    """The pipeline, on its device, silent.

    Args:
        dtype: "float32", "float16" or "bfloat16".
        scheduler: a diffusers class; "" keeps the checkpoint's own.
        safety_checker: False loads the pipeline without the checkpoint's.

    Raises:
        ModelError: diffusers cannot load it.
    """
    import diffusers
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    options: dict[str, object] = {
        "dtype": getattr(torch, dtype),
        "use_safetensors": True,
        "local_files_only": True,
    }
    if variant:
        options["variant"] = variant
    if not safety_checker and "safety_checker" in components(folder):
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        try:
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(folder, **options)
        except ValueError as error:
            if "AutoPipeline" not in str(error):
                raise
            pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
        if scheduler:
            pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: diffusers cannot load it ({type(error).__name__}: {reason})") from error
    pipeline.to(device)  # what fails here is the device, not the model
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
