"""How a loaded pipeline is run: cached embeddings, slices, the layout of memory, compiled blocks, offload."""

from typing import TYPE_CHECKING, Any, NamedTuple

from synthgen.errors import ModelError
from synthgen.generation.embeddings import EmbeddingCache

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


def place(pipeline: "DiffusionPipeline", options: Options, device: str) -> None:
    """Puts a pipeline on its device, to be run with these options.

    Raises:
        ModelError: the pipeline, or torch here, cannot do what an option asks.
    """
    import torch

    if options.embedding_cache:
        pipeline.embeddings = EmbeddingCache(pipeline, device)
    parts = [pipeline, *filter(None, [getattr(pipeline, "upscaler", None)])]
    for part in parts:
        if options.vae_slicing:
            _vae(part, "vae_slicing", "enable_slicing").enable_slicing()
        if options.channels_last:
            for module in _networks(part):
                module.to(memory_format=torch.channels_last)
        if options.offload == "model":
            part.enable_model_cpu_offload(device=device)
        elif options.offload:
            _offload_layers(part, device)
        else:
            _to_device(part, device)
        if options.compile:
            _compile(part, device)


def _offload_layers(pipeline: "DiffusionPipeline", device: str) -> None:
    """Brings each layer to the device when it runs, by diffusers' hooks, which work on any device."""
    import torch

    try:
        pipeline.enable_group_offload(
            onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
    except ValueError as error:
        reason = " ".join(str(error).split())[:80]
        raise ModelError(
            f"--offload sequential: {type(pipeline).__name__} cannot be moved layer by layer ({reason}); "
            "take --offload model"
        ) from error


def _to_device(pipeline: "DiffusionPipeline", device: str) -> None:
    """Where all does not fit and prompts are cached, without the text encoders."""
    from synthgen.generation.sampling import free_memory, is_out_of_memory

    try:
        pipeline.to(device)
        return
    except Exception as error:
        if not (is_out_of_memory(error) and hasattr(pipeline, "embeddings")):
            raise
    # out of the except block: the error holds what is on the device
    pipeline.to("cpu")
    free_memory()
    pipeline.embeddings.free()
    pipeline.embeddings.move_rest(device)


def _vae(pipeline: "DiffusionPipeline", key: str, method: str) -> Any:
    vae = getattr(pipeline, "vae", None)
    if not hasattr(vae, method):
        raise ModelError(f"{key}: {type(pipeline).__name__} decodes no images in slices; remove the key")
    return vae


def _networks(pipeline: "DiffusionPipeline") -> list[Any]:
    """The denoisers and the decoder: what has convolutions."""
    names = ("unet", "transformer", "prior_prior", "decoder_unet", "vae", "movq", "decoder_movq")
    return [part for name in names if (part := getattr(pipeline, name, None)) is not None]


def _compile(pipeline: "DiffusionPipeline", device: str) -> None:
    """Compiles the blocks that a denoiser repeats, for the one shape of the planned micro-batch."""
    import torch

    denoiser: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not getattr(denoiser, "_repeated_blocks", None):
        raise ModelError(f"compile: {type(pipeline).__name__} repeats no blocks; remove the key")
    try:  # a compiler is looked for when something is first run
        torch.compile(lambda values: values * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"compile: torch cannot compile here ({type(error).__name__}: {reason}); install a C++ "
            "compiler (for a GPU also Triton), or remove the key"
        ) from error
    denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
