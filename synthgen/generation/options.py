"""How a loaded pipeline is run: cached embeddings, slices, the layout of memory, compiled blocks, offload."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synthgen.errors import ModelError, OutOfMemoryError
from synthgen.generation.checkpoints import components, pipeline_class
from synthgen.generation.embeddings import EmbeddingCache
from synthgen.generation.families import family
from synthgen.generation.sampling import free_memory, is_out_of_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Options(NamedTuple):
    """All are off unless asked for. The first four change the last bits of images, so they are keys of a
    recipe; `offload` ("model", "sequential" or "") moves weights and changes no bit.
    """

    embedding_cache: bool = False
    vae_slicing: bool = False
    channels_last: bool = False
    compile: bool = False
    offload: str = ""


PLAIN = Options()
DENOISERS = ("unet", "transformer")
MOST_SHAPES = 4096
"""That blocks are compiled for in a process, all models together; torch by itself fails at the ninth.
Qwen-Image has one for each length of a prompt, up to 1024."""


def check(folder: Path, options: Options) -> None:
    """Looks whether the pipeline in a folder can be run with these options.

    Raises:
        ModelError: it cannot; the message names the option.
    """
    import diffusers

    pipeline, parts = pipeline_class(folder), components(folder)
    name = pipeline.__name__

    def has(part: str, what: str) -> bool:
        return bool(getattr(getattr(diffusers, parts.get(part, ""), None), what, None))

    if options.embedding_cache and family(pipeline).negatives is None:
        raise ModelError(f"embedding_cache: how {name} encodes prompts is not known; remove the key")
    if options.vae_slicing and not has("vae", "enable_slicing"):
        raise ModelError(f"vae_slicing: {name} decodes no images in slices; remove the key")
    if options.compile and not any(has(part, "_repeated_blocks") for part in DENOISERS):
        raise ModelError(f"compile: diffusers names no blocks of {name} to compile; remove the key")
    if options.compile and options.offload == "sequential":
        raise ModelError("compile: not together with --offload sequential; take --offload model")


def place(pipeline: "DiffusionPipeline", options: Options, device: str) -> None:
    """Puts a pipeline on its device, to be run with these options.

    Raises:
        ModelError: torch here, or the pipeline, cannot do what an option asks.
        OutOfMemoryError: the weights do not fit.
    """
    import torch

    if options.embedding_cache:
        pipeline.embeddings = EmbeddingCache(pipeline, device, can_free=not options.offload)
    parts = [pipeline, *filter(None, [getattr(pipeline, "upscaler", None)])]
    for part in parts:
        if options.vae_slicing:
            part.vae.enable_slicing()
        if options.channels_last:
            for module in _networks(part):
                module.to(memory_format=torch.channels_last)
        if options.offload:
            _offload(part, options.offload, device)
        else:
            _to_device(part, device)
        if options.compile:
            _compile(part, device)


def _offload(pipeline: "DiffusionPipeline", way: str, device: str) -> None:
    """Brings each part, or with "sequential" each layer, to the device when it runs, by diffusers' hooks,
    which work on any device.
    """
    import torch

    try:
        if way == "model":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.enable_group_offload(
                onload_device=torch.device(device),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
            )
    except ValueError as error:
        reason = " ".join(str(error).split())[:80]
        unit, other = ("part", "sequential") if way == "model" else ("layer", "model")
        raise ModelError(
            f"--offload {way}: {type(pipeline).__name__} cannot be moved {unit} by {unit} ({reason}); take "
            f"--offload {other}"
        ) from error


def _to_device(pipeline: "DiffusionPipeline", device: str) -> None:
    """Where all does not fit and prompts are cached, without the text encoders.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    try:
        pipeline.to(device)
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if not hasattr(pipeline, "embeddings"):
            reason = " ".join(str(error).split())[:200]
            raise OutOfMemoryError(f"the weights need more memory than {device} has ({reason})") from error
    # out of the except block: the error holds what is on the device
    pipeline.to("cpu")
    free_memory()
    pipeline.embeddings.free()
    pipeline.embeddings.move_rest(device)


def _networks(pipeline: "DiffusionPipeline") -> list[Any]:
    """The denoisers and the decoder: what has convolutions."""
    names = (*DENOISERS, "vae", "movq")
    return [part for name in names if (part := getattr(pipeline, name, None)) is not None]


def _compile(pipeline: "DiffusionPipeline", device: str) -> None:
    """Compiles the blocks that a denoiser repeats, for each shape that comes."""
    import torch

    denoiser = next(part for name in DENOISERS if (part := getattr(pipeline, name, None)) is not None)
    try:  # a compiler is looked for when something is first run
        torch.compile(lambda values: values * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"compile: torch cannot compile here ({type(error).__name__}: {reason}); install a C++ "
            "compiler (for a GPU also Triton), or remove the key"
        ) from error
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_SHAPES
    denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
