"""What the keys of a recipe's tables may hold: strict types, no unknown key, every list read that they name.

The keys of a `use = "..."` table are the keyword-only parameters of the function that it names, so a new
function is one entry in a dict. A string where a list of strings is wanted names a file with one a line.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from synthgen.data import Ask, Category, Word
from synthgen.errors import RecipeError, nearest
from synthgen.prompts.lists import name_classes, read_classes, read_lines, read_words, source_classes

GIVEN = {
    "answers", "classes", "count_tokens", "device", "encode", "fitted", "folder", "language_model", "real",
    "seed",
}  # fmt: skip
"""Parameters that the pipeline gives to a function, where it has them; no recipe key. A `seed` that has a
default is one.
"""


def problem(message: str) -> PydanticCustomError:
    """An error that pydantic puts the place in the recipe before."""
    return PydanticCustomError("recipe", message)


class Table(BaseModel):
    """A table of the recipe: strict types, no unknown key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        if isinstance(value, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in value:
                if key not in known:
                    raise problem(f'unknown key "{key}"{nearest(key, known)}')
        return value


class Place(NamedTuple):
    """Where a recipe is, to which the files that it names are relative, and the paths of its sources."""

    folder: Path
    sources: dict[str, str]


def _reader(read: Callable[[str, Place], object], make: Callable[[list[str]], object]) -> BeforeValidator:
    """Reads what a string names; makes the same of a list of strings."""

    def validate(value: object, info: ValidationInfo) -> object:
        try:
            if isinstance(value, str):
                return read(value, cast(Place, info.context))
            if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                return make(value)
        except RecipeError as error:
            raise problem(str(error)) from None
        return value

    return BeforeValidator(validate)


def classes_named(name: str, place: Place) -> list[Category]:
    """The classes that a string names: a file, a list that ships, or what a source has."""
    kind, _, source = name.partition(".")
    if kind != "sources":
        return read_classes(name, place.folder)
    if source not in place.sources:
        raise problem(f'unknown source "{source}"{nearest(source, list(place.sources))}')
    return source_classes(place.folder / Path(place.sources[source]).expanduser())


def _distinct(values: list[str]) -> list[str]:
    if not values:
        raise problem("the list is empty; at least one entry is wanted")
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise problem(f'"{twice}" is there twice; each entry may be there once')
    return values


class AskTable(Table):
    ask: Literal["backgrounds", "attributes"]
    count: int = Field(ge=1)


def _read_words(value: object, info: ValidationInfo) -> object:
    """The words of an axis: what a string names, a list, or a table that asks for them."""
    if isinstance(value, dict):
        table = AskTable.model_validate(value)
        return Ask(table.ask, table.count)
    try:
        if isinstance(value, str):
            value = read_words(value, cast(Place, info.context).folder)
    except RecipeError as error:
        raise problem(str(error)) from None
    if not isinstance(value, list) or not all(isinstance(entry, str | Word) for entry in value):
        raise problem(
            'a file, a list of strings, or a table such as { ask = "backgrounds", count = 8 } is wanted, got '
            + json.dumps(value, default=str)
        )
    words = [Word(entry) if isinstance(entry, str) else entry for entry in value]
    for word in words:
        if not word.text.strip() or not word.text.isprintable():
            raise problem(f"{json.dumps(word.text)} is no word; each entry is text on one line")
    _distinct([f"{word.text} for {word.only}" if word.only else word.text for word in words])
    general = {word.text for word in words if not word.only}
    twice = next((word for word in words if word.only and word.text in general), None)
    if twice:
        raise problem(f'"{twice.text}" is there for all classes and for "{twice.only}"; once is enough')
    return words


def _axis_names(value: object) -> object:
    if isinstance(value, str):
        raise problem(f'a list of axes is wanted, such as ["{value}"]')
    if isinstance(value, list) and len(set(map(str, value))) < len(value):
        raise problem(f"{json.dumps(value)}: each axis may be there once")
    return value


def _rules(value: object) -> object:
    is_list = isinstance(value, list) and all(isinstance(rule, dict) for rule in value)
    if not is_list:
        raise problem(
            'a list of tables is wanted, such as never = [{ place = "at sea", weather = "in snow" }]'
        )
    for number, rule in enumerate(cast(list[dict[str, object]], value)):
        for axis, words in rule.items():
            if not words:
                raise problem(
                    f"{number}.{axis}: there is no word; name one, or take the axis out of the rule"
                )
    return value


def distinct_categories(categories: list[Category]) -> list[Category]:
    """Classes of which each has a name and an id of its own."""
    if not categories:
        raise problem("no classes; put one a line")
    for category in categories:
        for name in (category.name, category.prompt):
            if not name.strip() or not name.isprintable():
                raise problem(
                    f"class {category.id} is called {json.dumps(name)}; a name on one line is wanted"
                )
        if not 0 <= category.id < 2**31:
            raise problem(f'class "{category.name}" has id {category.id}; 0 to 2**31 - 1 is allowed')
    _distinct([category.name for category in categories])
    ids: dict[int, str] = {}
    for category in categories:
        if category.id in ids:
            raise problem(f'id {category.id} is there twice, for "{ids[category.id]}" and "{category.name}"')
        ids[category.id] = category.name
    return categories


Functions = Mapping[str, Callable[..., Any]]
Lines = Annotated[
    list[str], _reader(lambda name, place: read_lines(name, place.folder), list), AfterValidator(_distinct)
]
Words = Annotated[Any, PlainValidator(_read_words)]
Categories = Annotated[
    list[Category], _reader(classes_named, name_classes), AfterValidator(distinct_categories)
]
SubsetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Never = Annotated[list[dict[str, str | list[str]]], BeforeValidator(_rules)]
Axes = Annotated[list[str], BeforeValidator(_axis_names)]
KINDS: dict[object, Any] = {
    Path: Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)],
    Sequence[str]: Axes,
    list[dict[str, str | list[str]]]: Never,
    list[str]: Lines,
    list[Word]: Words,
    dict[str, list[Word]]: dict[Identifier, Words],
}
"""What a function's parameter of some types is in a recipe: a file's name, axes, rules, lists which a file
may hold.
"""


def keys_model(function: Callable[..., object], use: str) -> type[Table]:
    """The keys of a function as a table: its keyword-only parameters, less those that the pipeline gives."""
    hints, fields = get_type_hints(function), dict[str, Any]()
    for name, parameter in inspect.signature(function).parameters.items():
        is_needed = parameter.default is inspect.Parameter.empty
        is_given = name in GIVEN and (is_needed or name != "seed")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_given:
            kind = KINDS.get(hints[name], hints[name])
            fields[name] = (kind, ... if is_needed else parameter.default)
    return create_model(use, __base__=Table, **fields)


def function_keys(value: object, functions: Functions, what: str, own: set[str]) -> object:
    """Splits a `use` table: the keys of the table itself, and `keys`, those of its function."""
    if not isinstance(value, dict):
        return value
    use = value.get("use")
    if not isinstance(use, str):
        raise problem(f'missing key "use"; known {what}s: {", ".join(functions)}')
    if use not in functions:
        raise problem(f'use: unknown {what} "{use}"{nearest(use, list(functions))}')
    allowed = [*own, *keys_model(functions[use], use).model_fields]
    for key in value:
        if key not in allowed:
            raise problem(f'unknown key "{key}"{nearest(key, allowed)}')
    keys = {key: entry for key, entry in value.items() if key not in own}
    return {**{key: entry for key, entry in value.items() if key in own}, "keys": keys}
