"""Fingerprinting and loading text-to-image models. safetensors only, no remote code."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.errors import ModelError
from synthgen.generation.checkpoints import (
    check,
    missing,
    own_size,
    parts_given,
    pipeline_class,
    settings,
    used,
    weight_files,
    weights,
)
from synthgen.generation.conditioning import add_adapter, changing
from synthgen.generation.families import family
from synthgen.generation.locating import Adapter, Lora, Upscaler
from synthgen.generation.options import PLAIN, Options, place
from synthgen.generation.options import check as check_options
from synthgen.generation.probing import probe
from synthgen.generation.schedulers import set_scheduler

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WRITTEN_BY = ("transformers_version", "torch_dtype", "dtype")
"""Keys of configurations that change when a model is saved again, and nothing else; the dtype is ours."""
READ = (".json", ".txt", ".model", ".jinja")
"""How the files of tokenizers and processors end."""
ENCODER = ("text_encoder", "tokenizer")
"""What a second stage is loaded without: the first has read the prompts."""

log = logging.getLogger(__name__)


def fingerprint(
    folder: Path,
    *,
    variant: str = "",
    loras: Sequence[Lora] = (),
    upscaler: Upscaler | None = None,
    adapter: Adapter | None = None,
    without: Collection[str] = (),
) -> str:
    """32 hex digits over what decides a model's images: one model, wherever it lies.

    Names and sha256 of the weight files that are loaded, the configurations (without what only says who wrote
    them), the tokenizers' files, and the pipeline's class and settings; then LoRAs with their weights, the
    second stage, and the IP-Adapter with its scale. Nothing else that may lie beside them: a clone has more
    files than a download.

    Args:
        without: parts that are not loaded.

    Raises:
        ModelError: a part has no safetensors weights.
    """
    digests, others, kinds = list[list[str]](), list[list[str]](), used(folder)
    for part, files in weights(folder, variant, without).items():
        digests += [[f"{part}/{file.name}", _digest(file)] for file in files]
        others.append([part, kinds[part]])
        whole = folder / part / ("config.json" if files else "scheduler_config.json")
        read = [file for file in sorted((folder / part).glob("*")) if file.suffix in READ]
        read = [whole] if whole in read else read
        others += [[f"{part}/{file.name}", _digest(file)] for file in read]
    if not digests:
        raise ModelError(
            f"{folder}: no .safetensors weights there; other formats are not loaded (they can run code)"
        )
    # the class that is loaded: a checkpoint may name another of its family
    about: list[object] = [digests, others, pipeline_class(folder).__name__, settings(folder)]
    about += [[_digest(lora.file), lora.weight] for lora in loras]
    if upscaler:
        about.append(fingerprint(upscaler.folder, variant=upscaler.variant, without=ENCODER))
    if adapter:
        parts = [
            adapter.encoder / "config.json",
            *weight_files(adapter.encoder.parent, adapter.encoder.name, ""),
        ]
        about.append([_digest(adapter.file), adapter.scale, [[part.name, _digest(part)] for part in parts]])
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _digest(file: Path) -> str:
    """sha256 of a file; of a configuration, of what it configures."""
    if file.name.endswith("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key[0] != "_" or key == "_class_name"}
        config = {key: value for key, value in config.items() if key not in WRITTEN_BY}
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def load(
    folder: Path,
    *,
    device: str,
    dtype: str,
    scheduler: str = "",
    variant: str = "",
    safety_checker: bool = True,
    loras: Sequence[Lora] = (),
    upscaler: Upscaler | None = None,
    adapter: Adapter | None = None,
    changes: bool = False,
    options: Options = PLAIN,
) -> "DiffusionPipeline":
    """The pipeline, on its device, silent.

    Args:
        dtype: "float32", "float16" or "bfloat16".
        scheduler: a diffusers class, with settings as JSON after it; "" keeps the checkpoint's own.
        safety_checker: False loads the pipeline without the checkpoint's.
        loras: are added in this order.
        upscaler: the second stage of DeepFloyd IF.
        adapter: an IP-Adapter.
        changes: whether it is to change images, not to make them from text.
        options: how it is run.

    Raises:
        ModelError: it does not make images from text, or diffusers cannot load it.
    """
    silence()
    check(folder, variant=variant)
    check_options(folder, options)
    kind = pipeline_class(folder)
    own, without = family(kind), missing(folder, kind)
    if told := [part for part in without if part in own.optional and part.startswith("text_encoder")]:
        log.warning("%s: is loaded without %s, which it does not have", folder, ", ".join(told))
    pipeline = _from_pretrained(folder, dtype, variant, parts_given(folder, safety_checker=safety_checker))
    set_scheduler(pipeline, scheduler)
    if loras:
        _add_loras(pipeline, loras)
    if adapter:
        add_adapter(pipeline, adapter)
    if upscaler:
        given = parts_given(upscaler.folder, safety_checker=safety_checker, without=ENCODER)
        pipeline.upscaler = _from_pretrained(upscaler.folder, dtype, upscaler.variant, given)
        pipeline.upscaler.set_progress_bar_config(disable=True)
    if changes:
        pipeline = changing(pipeline, own_size(folder))
    place(pipeline, options, device)  # what fails here is the device, not the model
    pipeline.set_progress_bar_config(disable=True)
    if not own.tested and not changes:
        pipeline.alone = probe(pipeline)
    return pipeline


def silence() -> None:
    """Lets diffusers and transformers say errors alone, and draw no bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _from_pretrained(
    folder: Path, dtype: str, variant: str, given: Mapping[str, object]
) -> "DiffusionPipeline":
    import torch

    how = {"dtype": getattr(torch, dtype), "variant": variant or None, "use_safetensors": True}
    try:
        return pipeline_class(folder).from_pretrained(folder, local_files_only=True, **how, **given)
    except Exception as error:
        raise ModelError(f"{folder}: diffusers cannot load it ({_reason(error)})") from error


def _add_loras(pipeline: "DiffusionPipeline", loras: Sequence[Lora]) -> None:
    """Adds LoRAs, unfused: fusing changes weights by rounding."""
    from diffusers.utils import is_peft_available

    name = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"loras: {name} takes none; remove them")
    if not is_peft_available():
        raise ModelError("loras: need the package peft; install synthgen with its extra [loras]")
    names = [f"lora_{number}" for number in range(len(loras))]
    for adapter, lora in zip(names, loras, strict=True):
        try:
            pipeline.load_lora_weights(
                str(lora.file.parent), weight_name=lora.file.name, adapter_name=adapter, local_files_only=True
            )
        except Exception as error:
            raise ModelError(f"loras: {lora.file}: does not fit {name} ({_reason(error)})") from error
        if adapter not in {one for added in pipeline.get_list_adapters().values() for one in added}:
            raise ModelError(f"loras: {lora.file}: changes nothing in {name}; it is for another model")
    pipeline.set_adapters(names, [lora.weight for lora in loras])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
