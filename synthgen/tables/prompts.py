"""The tables of what images are to show: sources, classes, prompts, language model."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from synthgen.data import Ask, Category, LanguageModel, Word
from synthgen.diversity import Vectors, word_vectors
from synthgen.errors import RecipeError
from synthgen.prompts import SOURCES
from synthgen.prompts.categories import extra as add_classes
from synthgen.tables.keys import (
    Categories,
    Place,
    Table,
    classes_named,
    distinct_categories,
    function_keys,
    problem,
)


class SourceTable(Table):
    path: str = Field(min_length=1)
    license: str = ""
    image: str = ""
    label: str = ""


class ExtraTable(Table):
    from_: str = Field(alias="from")
    below: float | None = None
    choose: Literal["all", "first", "farthest"] = "farthest"
    by: Literal["wordnet", "text"] = "wordnet"
    count: int | None = Field(default=None, ge=1)


def _extra(value: object, info: ValidationInfo) -> object:
    """The classes that the table `extra` adds to `classes`."""
    known = info.data.get("classes")
    if known is None:  # `classes` has its own error
        return []
    if not isinstance(value, dict):
        raise problem(
            'a table is wanted, such as { from = "imagenet-1k", below = 0.4, count = 250 }, got '
            + json.dumps(value, default=str)
        )
    table = ExtraTable.model_validate(value, context=info.context)
    try:
        candidates = classes_named(table.from_, cast(Place, info.context))
        return add_classes(
            known,
            candidates,
            below=table.below,
            choose=table.choose,
            count=table.count,
            embed=_embed_definitions([*known, *candidates]) if table.by == "text" else None,
        )
    except RecipeError as error:
        raise problem(str(error)) from None


def _embed_definitions(categories: Sequence[Category]) -> Callable[[list[Category]], Vectors]:
    """Gives classes as vectors of what they are called and what WordNet says of them."""

    def say(one: Category) -> str:
        return " ".join([one.prompt, *one.synonyms, one.hypernym, one.definition])

    embed = word_vectors([say(one) for one in categories])
    return lambda some: embed([say(one) for one in some])


class PromptsTable(Table):
    use: str
    classes: Categories
    extra: Annotated[list[Category], BeforeValidator(_extra), AfterValidator(distinct_categories)] = []
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return function_keys(value, SOURCES, "source of prompts", {"use", "classes", "extra"})

    @property
    def categories(self) -> list[Category]:
        """The classes, and those that were added to them."""
        return [*self.classes, *self.extra]

    @property
    def asks(self) -> dict[tuple[str, str], Ask]:
        """The words that are asked for: the key and the axis that they are for ("": the key's only list)."""
        lists = {(key, ""): value for key, value in self.keys.items()}
        lists |= {("axes", axis): value for axis, value in self.keys.get("axes", {}).items()}
        return {place: value for place, value in lists.items() if isinstance(value, Ask)}

    @property
    def word_lists(self) -> dict[str, list[Word]]:
        """The axes whose words are known without asking."""
        axes = self.keys.get("axes", {}).items()
        return {axis: words for axis, words in axes if not isinstance(words, Ask)}

    @property
    def needs_language_model(self) -> bool:
        """Whether something in the table comes from a language model."""
        return self.use == "language" or bool(self.asks)


class LanguageTable(Table):
    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    license: str = ""

    @property
    def language_model(self) -> LanguageModel:
        """The model and what of its sampling is not its own default."""
        sampling = self.model_dump(exclude={"model", "license"}, exclude_none=True)
        return LanguageModel(self.model, {key: value for key, value in sampling.items() if value})
