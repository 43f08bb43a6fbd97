"""What the files of a pipeline folder say before any weight is loaded, and which folders are refused."""

import inspect
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen.errors import ModelError
from synthgen.generation.conditioning import changing_class, check_strength
from synthgen.generation.families import NOTHING, arguments, check_call, family, taken
from synthgen.generation.upscaling import factor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NOT_FROM_TEXT = re.compile(
    "Adapter|Audio|Control|Cycle|Decoder|Depth2Img|DiffEdit|Edit|Fill|GLIGEN|Img2Img|Inpaint|Layered|Music|"
    "Pix2Pix|Prior|Redux|Refiner|SuperResolution|Upscale|Variation|Video"
)
"""Parts of the names of pipelines that need an image, or make something else than one."""
IF_MULTIPLE = 8
"""Of the sides of the first stage's images."""
VARIANT = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?\.([^.]+?)(?:-\d+-of-\d+)?\.safetensors")
"""Names of weight files with the infix of a variant."""


def index(folder: Path) -> dict[str, Any]:
    """What `model_index.json` says.

    Raises:
        ModelError: it is no JSON object with the class of a pipeline.
    """
    path = folder / "model_index.json"
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = read["_class_name"]
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{path}: does not name a pipeline ({type(error).__name__}: {error}); download it again"
        ) from error
    if not isinstance(kind, str):
        raise ModelError(
            f"{path}: _class_name is {json.dumps(kind)}: code that comes with a model is not run"
        )
    return read


def components(folder: Path) -> dict[str, str]:
    """The parts of a pipeline: name -> class name."""
    return {name: entry[1] for name, entry in index(folder).items() if _is_part(entry) and entry[1]}


def settings(folder: Path) -> dict[str, Any]:
    """What else the pipeline is made with."""
    return {
        key: value for key, value in sorted(index(folder).items()) if key[0] != "_" and not _is_part(value)
    }


def _is_part(entry: object) -> bool:
    """Whether it is the library and the class of a part, which are null where there is none."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(one, str | None) for one in entry)


def pipeline_class(folder: Path) -> type["DiffusionPipeline"]:
    """The class that makes images from text with the weights of a folder: as AutoPipelineForText2Image
    chooses it, else the folder's own.

    Raises:
        ModelError: diffusers has none.
    """
    import diffusers
    from diffusers.pipelines import auto_pipeline

    name = index(folder)["_class_name"]
    auto = auto_pipeline._get_task_class(auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, name, False)
    found: type[DiffusionPipeline] | None = auto or getattr(diffusers, name, None)
    if found is None:
        raise ModelError(f"{folder}: diffusers has no {name}, and code from elsewhere is not run")
    return found


def used(folder: Path) -> dict[str, str]:
    """The components that are really loaded."""
    unused = {part for part, what in family(pipeline_class(folder)).load.items() if what is None}
    return {part: kind for part, kind in components(folder).items() if part not in unused}


def parts_given(folder: Path, *, safety_checker: bool, without: Collection[str] = ()) -> dict[str, Any]:
    """What the class of a pipeline is given beside its files; a part that is None is not loaded.

    Args:
        safety_checker: False leaves the checkpoint's out.
        without: parts that are left out.

    Raises:
        ModelError: it cannot work without a part that the folder does not have.
    """
    kind = pipeline_class(folder)
    given = {**dict.fromkeys([*missing(folder, kind), *without]), **family(kind).load}
    if not safety_checker and "safety_checker" in components(folder):
        given |= {"safety_checker": None, "requires_safety_checker": False}
    return given


def missing(folder: Path, pipeline: type) -> list[str]:
    """The parts that the pipeline's class wants and the folder does not have.

    Raises:
        ModelError: it cannot work without one.
    """
    own, has = family(pipeline), components(folder)
    optional = {*own.optional, *pipeline._optional_components}  # type: ignore[attr-defined]
    without = [
        name
        for name, parameter in inspect.signature(pipeline.__init__).parameters.items()  # type: ignore[misc]
        if name != "self" and parameter.default is inspect.Parameter.empty and name not in has
    ]
    for name in without:
        if name not in optional or (name.startswith("text_encoder") and name not in own.optional):
            raise ModelError(
                f"{folder}: has no {name}, without which {pipeline.__name__} makes nothing from text"
            )
    return without


def check(
    folder: Path,
    *,
    variant: str = "",
    guidance: float = 0.0,
    steps: int = 1,
    width: int = 0,
    height: int = 0,
    negative: str = "",
    call: Mapping[str, Any] = NOTHING,
    strength: float = 0.0,
) -> None:
    """Looks whether the pipeline in a folder makes images from text, and takes this call.

    Args:
        strength: how much of a real image it replaces; 0 where it starts from none.

    Raises:
        ModelError: it does not; the message says why.
    """
    pipeline = pipeline_class(folder)
    name, names = pipeline.__name__, taken(pipeline)
    if NOT_FROM_TEXT.search(name) or "prompt" not in names or "num_frames" in names:
        raise ModelError(f"{folder}: {name} does not make an image from text alone; take another model")
    missing(folder, pipeline)
    weights(folder, variant)
    if family(pipeline).tested:
        _check_channels(folder, name)
    if strength:
        check_strength(pipeline, strength, steps)
    arguments(
        changing_class(pipeline) if strength else pipeline,
        guidance=guidance,
        steps=steps,
        width=width,
        height=height,
        negative=[negative],
        call=call,
    )
    _check_size(name, _multiple(folder, pipeline), width, height)


def check_upscaler(folder: Path, second: Path, *, width: int, height: int, call: Mapping[str, Any]) -> None:
    """Looks whether a folder is the second stage of the model in another, and takes this call.

    Raises:
        ModelError: it is not or does not; the message says why.
    """
    import diffusers

    names = [pipeline_class(folder).__name__, index(second)["_class_name"]]
    if names != ["IFPipeline", "IFSuperResolutionPipeline"]:
        raise ModelError(f"upscaler: {names[1]} after {names[0]}; DeepFloyd IF alone has a second stage")
    check_call(diffusers.IFSuperResolutionPipeline, call)
    times = factor(*(config(stage, "unet")["sample_size"] for stage in (folder, second)))
    _check_size("DeepFloyd IF with this second stage", IF_MULTIPLE * times, width, height)


def _check_size(name: str, multiple: int, width: int, height: int) -> None:
    for key, value in {"width": width, "height": height}.items():
        if multiple and value % multiple:
            low = value - value % multiple
            near = f"{low} or {low + multiple}" if low else str(multiple)
            raise ModelError(f"{key} = {value}: {name} makes multiples of {multiple}; say {near}")


def _check_channels(folder: Path, name: str) -> None:
    """Raises ModelError where the denoiser takes more than the latent image."""
    latent = config(folder, "vae")
    channels = latent.get("latent_channels") or latent.get("z_dim")
    for part in ("unet", "transformer"):
        takes = config(folder, part).get("in_channels")
        # FLUX and its like take squares of four
        if takes and channels and takes not in (channels, 4 * channels):
            kind = "an inpainting model has 5 more" if takes == channels + 5 else "it is for another task"
            raise ModelError(
                f"{folder}: its {part} takes {takes} channels, an image has {channels} ({kind}); {name} "
                "cannot make an image from text with it"
            )


def _multiple(folder: Path, pipeline: type) -> int:
    """What the sides of an image are a multiple of, 0 where it is not known."""
    own, vae = family(pipeline), config(folder, "vae")
    if not own.patch or not vae:
        return own.multiple
    halvings = len(vae.get("temperal_downsample") or vae["block_out_channels"][1:])
    return int(own.patch * 2**halvings)


def own_size(folder: Path) -> tuple[int, int]:
    """Width and height of the images that a pipeline makes unasked, guessed from its configurations alone."""
    denoiser = config(folder, "unet") or config(folder, "transformer")
    side = denoiser.get("sample_size") or 128  # pipelines have that where the configuration says none
    vae = config(folder, "vae") or config(folder, "movq")
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
    scale = 2 ** (len(blocks) - 1) if vae else 1
    height, width = side if isinstance(side, list) else (side, side)
    return width * scale, height * scale


def config(folder: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    path = folder / part / file
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def weights(folder: Path, variant: str, without: Collection[str] = ()) -> dict[str, list[Path]]:
    """The weight files of each part that is loaded; none of a tokenizer or its like.

    Args:
        without: parts that are not loaded.

    Raises:
        ModelError: a part should have some, or no part has the variant.
    """
    found = {
        part: weight_files(folder, part, variant) for part in sorted(used(folder)) if part not in without
    }
    if variant and not any(variant in _variants(files) for files in found.values()):
        others = {one for part in found for one in _variants((folder / part).glob("*.safetensors"))}
        has = ", ".join(f'"{one}"' for one in sorted(others)) or "none"
        raise ModelError(f'{folder}: has no weights of variant = "{variant}"; variants that it has: {has}')
    return found


def weight_files(folder: Path, part: str, variant: str) -> list[Path]:
    """The weight files of a part that are loaded; none where it has no weights of its own, as a tokenizer.

    Raises:
        ModelError: it should have some.
    """
    own = folder / part
    for infix in [f".{variant}", ""] if variant else [""]:
        for stem in ("diffusion_pytorch_model", "model"):
            whole = own / f"{stem}{infix}.safetensors"
            indices = [own / f"{stem}.safetensors{end}.json" for end in (f".index{infix}", f"{infix}.index")]
            shards = next((path for path in indices if path.is_file()), None)
            # where both are there, diffusers takes the shards, transformers the whole
            if whole.is_file() and (stem == "model" or not shards):
                return [whole]
            if shards:
                names = json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values()
                files = [own / name for name in sorted(set(names))]
                if lost := [file.name for file in files if not file.is_file()]:
                    raise ModelError(f"{own}: has no {lost[0]}, which {shards.name} names; download it again")
                return files
    if variants := _variants(own.glob("*.safetensors")):
        raise ModelError(
            f"{own}: has the weights of "
            + " and ".join(f'variant = "{found}"' for found in sorted(variants))
            + " alone; add that to the recipe"
        )
    if not own.is_dir():
        raise ModelError(f"{folder}: has no folder {part}, which model_index.json names; download it again")
    if (own / "config.json").is_file() and not part.startswith("tokenizer"):
        raise ModelError(
            f"{own}: no .safetensors weights there; other formats are not loaded (they can run code)"
        )
    return []


def _variants(files: Iterable[Path]) -> set[str]:
    """The infixes in the names of weight files."""
    return {found[1] for file in files if (found := VARIANT.fullmatch(file.name))}
