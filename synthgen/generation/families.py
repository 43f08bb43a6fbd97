"""What is known of the families of text-to-image pipelines, beyond what the signature of their call says.

A family that is not in the table goes the generic way; `probing` then tries how many prompts it takes a call.
"""

import inspect
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from synthgen.errors import ModelError, nearest

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Family(NamedTuple):
    """Facts of a family; each has the value that is right for most.

    Attributes:
        guidance: the argument of the call that the neutral `guidance` is.
        fixed: arguments that are always given, where the recipe's `call` does not say otherwise.
        load: options that it is loaded with.
        no_negative: the negative prompt that stands for none; guidance needs one.
        negative_with: the argument without which a negative prompt does nothing.
        doubles: a negative prompt is made as a prompt of its own, which wants a generator; none is given for
            "", so that a call has one prompt.
        alone: one prompt a call: beside others an image is another, or the call fails.
        multiple: sides are a multiple of so many pixels; 0 is unknown.
        patch: sides are a multiple of so many pixels of the latent image; 0 is unknown.
        tokens: what its call reads of a prompt, where neither tokenizer nor signature says so; 0 is unknown.
        negatives: where in what its `encode_prompt` returns the parts of the negative prompt are; None is
            unknown, or that there is no `encode_prompt`.
        optional: parts that it works without.
        tested: its tiny twin is in our tests.
    """

    guidance: str = "guidance_scale"
    fixed: Mapping[str, Any] = NOTHING
    load: Mapping[str, Any] = NOTHING
    no_negative: str = ""
    negative_with: str = ""
    doubles: bool = False
    alone: bool = False
    multiple: int = 0
    patch: int = 0
    tokens: int = 0
    negatives: Collection[int] | None = None
    optional: Collection[str] = ()
    tested: bool = True


UNTESTED = Family(tested=False)
# binning makes another size and crops; cleaning depends on whether two other packages are installed
PLAIN = {"use_resolution_binning": False, "clean_caption": False}

FAMILIES: Mapping[str, Family] = {
    "StableDiffusion": Family(multiple=8, negatives=(1,)),
    # it marks the pixels where the package for that is installed
    "StableDiffusionXL": Family(multiple=8, negatives=(1, 3), load={"add_watermarker": False}),
    "LatentConsistencyModel": Family(multiple=8, negatives=(1,)),
    "StableDiffusion3": Family(patch=2, negatives=(1, 3), optional=("text_encoder_3", "tokenizer_3")),
    "Flux": Family(patch=2, negatives=(), negative_with="true_cfg_scale"),
    "Flux2": Family(patch=2, negatives=()),
    "Flux2Klein": Family(patch=2, negatives=()),
    "PixArtAlpha": Family(patch=2, negatives=(2, 3), fixed=PLAIN, tested=False),
    "PixArtSigma": Family(patch=2, negatives=(2, 3), fixed=PLAIN),
    "Sana": Family(multiple=32, negatives=(2, 3), fixed=PLAIN),
    "SanaSprint": Family(multiple=32, negatives=(), fixed=PLAIN),
    # texts are padded to the longest of the call: masked, but 1 to 5 levels of the neighbours' images change
    "QwenImage": Family(guidance="true_cfg_scale", no_negative=" ", patch=2, alone=True, negatives=()),
    "ZImage": Family(patch=2, negatives=(1,)),
    # the decoder's; the prior keeps its own, 4.0 and 25 steps, unless `call` says otherwise
    "KandinskyV22Combined": Family(doubles=True, alone=True),
    "Kandinsky3": Family(tokens=128, tested=False),
    "IF": Family(fixed={"clean_caption": False}, load={"watermarker": None}, tokens=77, negatives=(1,)),
    "IFSuperResolution": Family(load={"watermarker": None}),
    # the decoder's guidance keeps its own, 0.0, unless `call` says otherwise
    "StableCascadeCombined": Family(guidance="prior_guidance_scale", tested=False),
    "WuerstchenCombined": Family(guidance="prior_guidance_scale", alone=True, tested=False),
    "HunyuanDiT": Family(fixed={"use_resolution_binning": False}, tested=False),
    "HunyuanImage": Family(guidance="distilled_guidance_scale", tested=False),
    # padded to the longest of the call with no mask: neighbours change an image by more than 100 levels
    "CogView4": Family(multiple=16, alone=True, tested=False),
    "Kandinsky5T2I": Family(alone=True, tested=False),
    # guidance fails for several prompts
    "PRX": Family(fixed={"use_resolution_binning": False}, alone=True, tested=False),
}
"""By the name of the class, less "Pipeline" (and less "Img2Img" and "Inpaint", which are of one family)."""

OURS = {
    "prompt": "prompts",
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "width": "width",
    "height": "height",
    "generator": "seed",
    "strength": "strength",
    "image": "from",
    "ip_adapter_image": "from",
    "num_images_per_prompt": "quota.requests",
    "output_type": "images.format",
    "return_dict": "images.format",
}
"""Arguments that synthgen gives itself, and the key of the recipe that decides them."""


def family(pipeline: type) -> Family:
    """What is known of the family of a pipeline's class."""
    return FAMILIES.get(re.sub("Img2Img|Inpaint|Pipeline", "", pipeline.__name__), UNTESTED)


def taken(pipeline: type) -> list[str]:
    """The arguments that the call of a pipeline's class names; what others it swallows is not among them."""
    parameters = inspect.signature(pipeline.__call__).parameters.values()
    named = [one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
    return [name for name in named if name != "self"]


def arguments(
    pipeline: type,
    *,
    guidance: float,
    steps: int,
    width: int,
    height: int,
    negative: list[str],
    call: Mapping[str, Any],
) -> dict[str, Any]:
    """What the call of a pipeline's class is given, besides prompts and generators.

    Args:
        width: 0 is the model's own, as is a height of 0.
        negative: one negative prompt for each prompt, "" is none.
        call: the recipe's own arguments.

    Raises:
        ModelError: the pipeline does not take an argument that is needed or given.
    """
    own, names, name = family(pipeline), taken(pipeline), pipeline.__name__
    check_call(pipeline, call)
    made: dict[str, Any] = {"num_inference_steps": steps, own.guidance: guidance, "output_type": "np"}
    made |= {key: value for key, value in {"width": width, "height": height}.items() if value}
    if "strength" in names:  # an image says its size, where these do not
        made = {key: value for key, value in made.items() if key in names or key not in ("width", "height")}
    lacking = [key for key in made if key not in names]
    if lacking:
        raise ModelError(f"{name}: does not take {', '.join(lacking)}; this model is not supported")
    wanted = any(negative)
    if wanted and "negative_prompt" not in names:
        raise ModelError(f"{name}: takes no negative prompt; remove `negative`")
    active = call.get(own.negative_with, 0) > 1 if own.negative_with else wanted or not own.doubles
    if wanted and not active:
        raise ModelError(
            f"{name}: a negative prompt does nothing without call = {{ {own.negative_with} = 4.0 }}, or "
            "another value above 1; add that, or remove `negative`"
        )
    if "negative_prompt" in names and active:
        made["negative_prompt"] = [text or own.no_negative for text in negative]
    fixed = {key: value for key, value in own.fixed.items() if key in names}
    # JSON has lists alone; some sizes have to be tuples
    kinds = {key: str(one.annotation) for key, one in inspect.signature(pipeline.__call__).parameters.items()}
    own_call = {
        key: tuple(value) if isinstance(value, list) and "tuple" in kinds[key] else value
        for key, value in call.items()
    }
    return {**made, **fixed, **own_call}


def check_call(pipeline: type, call: Mapping[str, Any]) -> None:
    """Raises ModelError where a class does not know an argument, or another key of the recipe decides it."""
    ours = OURS | {family(pipeline).guidance: "guidance"}
    known = [name for name in taken(pipeline) if name not in ours]
    for key in call:
        if key in ours:
            raise ModelError(f'call: "{key}" is decided by the key `{ours[key]}` of the recipe; use that')
        if key not in known:
            raise ModelError(f'call: {pipeline.__name__} takes no "{key}"{nearest(key, known)}')
