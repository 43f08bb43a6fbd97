"""The nouns of the house, as plain frozen values."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

Prepared = TypeVar("Prepared")


class Category(NamedTuple):
    """A class: `id` is its label, `name` what joins it with other datasets, `prompt` how templates call it.

    The rest is "" or () where it is not known: `synset` (WordNet 3.0, "n02084071"), other words for it, a
    definition, the word for what it is a kind of, and its plural.
    """

    id: int
    name: str
    prompt: str
    synset: str = ""
    synonyms: tuple[str, ...] = ()
    definition: str = ""
    hypernym: str = ""
    plural: str = ""


class Word(NamedTuple):
    """A word of an axis. `only` names the classes that it is for: a class, or a WordNet noun for all that
    are a kind of it; "" is for all.
    """

    text: str
    only: str = ""


class Ask(NamedTuple):
    """Words of an axis that a language model is asked for: so many for each class, by a task of its."""

    task: str
    number: int


class LanguageModel(NamedTuple):
    """A language model, by the name that its server knows, and how it samples (temperature, top_p, ...)."""

    name: str
    sampling: dict[str, float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to ask of a model for one class. `axes` are the words chosen for it.

    `group` ties what must stay on one side of a split; "" is the prompt itself. `noise`, where it is given,
    decides the seed in place of the text: prompts with the same are counterfactuals of each other.
    `template` is what the text was filled from; "" where there was none.
    """

    text: str
    class_name: str
    negative: str = ""
    group: str = ""
    axes: dict[str, str] = field(default_factory=dict)
    noise: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One image to be made: everything that decides its pixels, and its labels.

    `width` and `height` are 0 where the model's own size is wanted; `seed` is below 2**63; `replicate`
    counts how often this (class, prompt, negative prompt, model) was asked for before. `turn` is its place in
    the endless sequence of its class. `call` is JSON, what else the pipeline is called with, "" for nothing.
    `strength` is 0 where no image is changed. `source_uid` is the real image that it is made from, of bytes
    with this sha256; "" where there is none.
    """

    uid: str
    class_id: int
    class_name: str
    text: str
    negative: str
    group: str
    prompt_id: str
    axes: dict[str, str]
    model: str
    fingerprint: str
    seed: int
    replicate: int
    steps: int
    guidance: float
    scheduler: str
    dtype: str
    call: str
    width: int
    height: int
    turn: int
    strength: float = 0.0
    source_uid: str = ""
    source_sha256: str = ""
    license: str = ""
    template: str = ""


@dataclass(frozen=True)
class Sample:
    """A stored image as annotators see it.

    Attributes:
        class_id: None, like `class_name`, where it has no label; `text` where it has no caption.
        image: uint8 of shape (height, width, 3); of shape (0, 0, 3) for annotators that need no pixels, or
            have looked at them in `prepare`.
        stored: its file's bytes; b"" for annotators that need no pixels.
        read: what the annotator reads of other annotations and of the pool, by name: a column's value
            (a numpy scalar, or a string), or features (float16 of shape (width,)). Nothing is missing in it.
        prepared: what the annotator's own `prepare` made of the sample; None where it has none.
    """

    uid: str
    class_id: int | None
    class_name: str | None
    text: str | None
    image: npt.NDArray[np.uint8]
    stored: bytes
    read: Mapping[str, Any] = field(default_factory=dict)
    prepared: Any = None

    def prepared_by(self, prepare: Callable[["Sample"], Prepared]) -> Prepared:
        """What `prepare` makes of the sample, which mostly was made ahead of the call."""
        return prepare(self) if self.prepared is None else cast(Prepared, self.prepared)

    @functools.cached_property
    def picture(self) -> Image.Image:
        """The image as Pillow has it, RGB."""
        return Image.fromarray(self.image)

    @functools.cached_property
    def luma(self) -> npt.NDArray[np.uint8]:
        """ITU-R 601 luma as Pillow rounds it, shape (height, width)."""
        return np.asarray(self.picture.convert("L"))
