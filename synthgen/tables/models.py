"""The tables of how images are made: how many, in what format, by which models."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from synthgen.shards import canonical
from synthgen.tables.keys import Identifier, Table, problem


def _cell(value: object) -> object:
    if value == "class" or (isinstance(value, list) and "class" in value):
        return value
    raise problem(f'"class", or ["class", ...] with the axes of the grid, is wanted, got {json.dumps(value)}')


class QuotaTable(Table):
    per: Annotated[Literal["class"] | list[str] | None, BeforeValidator(_cell)] = None
    requests: int | None = Field(default=None, ge=1)
    accepted: int | None = Field(default=None, ge=1)
    max_requests: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_of(self) -> "QuotaTable":
        if (self.requests is None) == (self.accepted is None):
            raise problem("give either requests, images made, or accepted, images kept")
        if (self.accepted is None) != (self.max_requests is None):
            raise problem(
                "accepted = N wants max_requests = M, the budget: so many images are made at most, in total"
                if self.accepted
                else "max_requests is the budget of accepted = N; requests = N says already how many are made"
            )
        return self

    @property
    def cell(self) -> list[str]:
        """What makes a cell: "class" and axes; nothing where the quota is of the whole."""
        return [self.per] if isinstance(self.per, str) else self.per or []


class ImagesTable(Table):
    format: Literal["jpg", "webp", "png"] = "jpg"
    shard_size: int = Field(default=1024, ge=1)
    mark: bool = True


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical(value)
    except (TypeError, ValueError):
        raise problem("strings, numbers, true, false, and lists and tables of them are wanted") from None
    return value


Call = Annotated[dict[str, Any], AfterValidator(_json)]


class LoraTable(Table):
    path: str = Field(min_length=1)
    file: str = ""
    revision: str = ""
    weight: float = 1.0


def _lora(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class UpscalerTable(Table):
    path: str = Field(min_length=1)
    revision: str = ""
    variant: str = ""
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    call: Call = {}


def _scheduler(value: object) -> object:
    """A table of a scheduler's class and settings as the text that a request has."""
    if isinstance(value, dict):
        settings = {key: entry for key, entry in value.items() if key != "use"}
        return f"{value.get('use', '')} {canonical(settings).decode()}"
    return value


class AdapterTable(Table):
    path: str = Field(min_length=1)
    revision: str = ""
    subfolder: str = ""
    file: str
    image_encoder: str
    scale: float = Field(ge=0)


class ModelTable(Table):
    id: Identifier
    path: str = Field(min_length=1)
    revision: str = ""
    variant: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    scheduler: Annotated[str, BeforeValidator(_scheduler)] = ""
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    negative: str = ""
    width: int = Field(default=0, ge=0)
    height: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    safety_checker: bool = True
    embedding_cache: bool = False
    vae_slicing: bool = False
    channels_last: bool = False
    compile: bool = False
    call: Call = {}
    loras: list[Annotated[LoraTable, BeforeValidator(_lora)]] = []
    upscaler: UpscalerTable | None = None
    from_: str = Field(default="", alias="from")
    strength: float | None = Field(default=None, gt=0, le=1)
    adapter: AdapterTable | None = None
    text: bool = True
    weight: float = Field(default=1.0, gt=0)
    license: str = ""

    @model_validator(mode="after")
    def _from_images(self) -> "ModelTable":
        ways = [key for key in ("strength", "adapter") if getattr(self, key) is not None]
        if not self.from_ and (ways or not self.text):
            key = (ways or ["text"])[0]
            raise problem(f'{key}: is for images made from real ones; name these with from = "sources.NAME"')
        if self.from_ and len(ways) != 1:
            raise problem(
                f"from: {'strength and adapter are both there' if ways else 'how is not said'}; give either "
                "strength = 0.6, the part of each real image that is replaced (img2img), or adapter = "
                "{ path, file, image_encoder, scale } (IP-Adapter)"
            )
        if self.from_ and self.upscaler:
            raise problem("upscaler: makes images from text alone; remove it, or from")
        return self

    @property
    def source(self) -> str:
        """The name of the source whose real images it starts from, "" for none."""
        return self.from_.removeprefix("sources.")

    @property
    def json_call(self) -> str:
        """What else its pipeline is called with, and its second stage, as a request has it; an empty prompt
        where the request's is not read.
        """
        call = dict(self.call) if self.text else {**self.call, "prompt": ""}
        if self.upscaler:
            second = {"num_inference_steps": self.upscaler.steps, "guidance_scale": self.upscaler.guidance}
            call["upscaler"] = {**self.upscaler.call, **second}
        return canonical(call).decode() if call else ""
