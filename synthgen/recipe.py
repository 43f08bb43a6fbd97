"""The typed recipe: load, validate strictly, resolve every file that it names. Only `cli` and `pipeline` see
it.

The keys of a `use = "..."` table are the keyword-only parameters of the function that it names, so a new
function is one entry in a dict. A string where a list of strings is wanted names a file with one a line.
"""

import inspect
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_type_hints

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from synthgen.annotators import ANNOTATORS, COLUMNS
from synthgen.data import Ask, Category, LanguageModel, Word
from synthgen.diversity import Embed, word_vectors
from synthgen.errors import RecipeError, nearest
from synthgen.prompts import SOURCES
from synthgen.prompts.categories import extra as add_classes
from synthgen.prompts.language import AXES_OF_TASKS
from synthgen.prompts.lists import name_classes, read_classes, read_lines, read_words, source_classes
from synthgen.prompts.templates import CLASS_SLOTS, naming_axes
from synthgen.selection import RULES, columns_read
from synthgen.shards import PLAN_ONLY, POOL_COLUMNS, REQUEST_COLUMNS

GIVEN = {"answers", "classes", "count_tokens", "device", "language_model", "seed"}
"""Parameters that the pipeline gives to a function, where it has them; no recipe key."""


def _problem(message: str) -> PydanticCustomError:
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
                    raise _problem(f'unknown key "{key}"{nearest(key, known)}')
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
            raise _problem(str(error)) from None
        return value

    return BeforeValidator(validate)


def _read_classes(name: str, place: Place) -> list[Category]:
    kind, _, source = name.partition(".")
    if kind != "sources":
        return read_classes(name, place.folder)
    if source not in place.sources:
        raise _problem(f'unknown source "{source}"{nearest(source, list(place.sources))}')
    return source_classes(place.folder / place.sources[source])


def _distinct(values: list[str]) -> list[str]:
    if not values:
        raise _problem("the list is empty; put one entry a line")
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise _problem(f'"{twice}" is there twice; each entry may be there once')
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
        raise _problem(str(error)) from None
    if not isinstance(value, list) or not all(isinstance(entry, str | Word) for entry in value):
        raise _problem(
            'a file, a list of strings, or a table such as { ask = "backgrounds", count = 8 } is wanted, got '
            + json.dumps(value, default=str)
        )
    words = [Word(entry) if isinstance(entry, str) else entry for entry in value]
    _distinct([f"{word.text} for {word.only}" if word.only else word.text for word in words])
    return words


def _distinct_categories(categories: list[Category]) -> list[Category]:
    if not categories:
        raise _problem("no classes; put one a line")
    for category in categories:
        if not category.name.strip() or not category.name.isprintable():
            raise _problem(
                f"class {category.id} is called {json.dumps(category.name)}; a name on one line is wanted"
            )
    _distinct([category.name for category in categories])
    _distinct([str(category.id) for category in categories])
    return categories


Functions = Mapping[str, Callable[..., Any]]
Lines = Annotated[
    list[str], _reader(lambda name, place: read_lines(name, place.folder), list), AfterValidator(_distinct)
]
Words = Annotated[Any, PlainValidator(_read_words)]
Categories = Annotated[
    list[Category], _reader(_read_classes, name_classes), AfterValidator(_distinct_categories)
]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
FILES: dict[object, Any] = {
    list[str]: Lines,
    list[Word]: Words,
    dict[str, list[Word]]: dict[Identifier, Words],
}
"""What a function's parameter is in a recipe, where that is a list which a file may hold."""


def _keys_model(function: Callable[..., object], use: str) -> type[Table]:
    """The keys of a function as a table: its keyword-only parameters, less those that the pipeline gives."""
    hints, fields = get_type_hints(function), dict[str, Any]()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in GIVEN:
            kind = FILES.get(hints[name], hints[name])
            fields[name] = (kind, ... if parameter.default is inspect.Parameter.empty else parameter.default)
    return create_model(use, __base__=Table, **fields)


def _function_keys(value: object, functions: Functions, what: str, own: set[str]) -> object:
    """Splits a `use` table: the keys of the table itself, and `keys`, those of its function."""
    if not isinstance(value, dict):
        return value
    use = value.get("use")
    if not isinstance(use, str):
        raise _problem(f'missing key "use"; known {what}s: {", ".join(functions)}')
    if use not in functions:
        raise _problem(f'use: unknown {what} "{use}"{nearest(use, list(functions))}')
    allowed = [*own, *_keys_model(functions[use], use).model_fields]
    for key in value:
        if key not in allowed:
            raise _problem(f'unknown key "{key}"{nearest(key, allowed)}')
    keys = {key: entry for key, entry in value.items() if key not in own}
    return {**{key: entry for key, entry in value.items() if key in own}, "keys": keys}


class SourceTable(Table):
    path: str


class ExtraTable(Table):
    from_: str = Field(alias="from")
    below: float | None = None
    choose: Literal["all", "first", "farthest"] = "farthest"
    by: Literal["wordnet", "text"] = "wordnet"
    count: int | None = Field(default=None, ge=1)


def _extra(value: object, info: ValidationInfo) -> object:
    """The classes that the table `extra` adds to `classes`."""
    known = info.data.get("classes")
    if not isinstance(value, dict) or known is None:  # `classes` has its own error
        return value
    table = ExtraTable.model_validate(value, context=info.context)
    try:
        candidates = _read_classes(table.from_, cast(Place, info.context))
        return add_classes(
            known,
            candidates,
            below=table.below,
            choose=table.choose,
            count=table.count,
            embed=embed_definitions([*known, *candidates]) if table.by == "text" else None,
        )
    except RecipeError as error:
        raise _problem(str(error)) from None


def embed_definitions(categories: Sequence[Category]) -> Embed:
    """Prompts of classes as vectors of what they say and what WordNet says of them."""
    texts = {
        one.prompt: " ".join([one.prompt, *one.synonyms, one.hypernym, one.definition]) for one in categories
    }
    embed = word_vectors(list(texts.values()))
    return lambda prompts: embed([texts[prompt] for prompt in prompts])


class PromptsTable(Table):
    use: str
    classes: Categories
    extra: Annotated[list[Category], BeforeValidator(_extra), AfterValidator(_distinct_categories)] = []
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return _function_keys(value, SOURCES, "source of prompts", {"use", "classes", "extra"})

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

    @property
    def language_model(self) -> LanguageModel:
        """The model and what of its sampling is not its own default."""
        sampling = self.model_dump(exclude={"model"}, exclude_none=True)
        return LanguageModel(self.model, {key: value for key, value in sampling.items() if value})


class QuotaTable(Table):
    per: Literal["class"] | list[str] | None = None
    requests: int = Field(ge=1)

    @property
    def cell(self) -> list[str]:
        """What makes a cell: "class" and axes; nothing where the quota is of the whole."""
        return [self.per] if isinstance(self.per, str) else self.per or []


class ImagesTable(Table):
    format: Literal["jpg", "webp", "png"] = "jpg"
    shard_size: int = Field(default=1024, ge=1)


class ModelTable(Table):
    id: Identifier
    path: str
    revision: str = ""
    variant: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    scheduler: str = ""
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    negative: str = ""
    width: int = Field(default=0, ge=0)
    height: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    safety_checker: bool = True


class AnnotateTable(Table):
    name: Identifier
    use: str
    batch_size: int = Field(default=64, ge=1)
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return _function_keys(value, ANNOTATORS, "annotator", {"name", "use", "batch_size"})


class SelectTable(Table):
    use: str
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return _function_keys(value, RULES, "rule", {"use"})


class ReshardTable(Table):
    split: dict[Identifier, Annotated[float, Field(gt=0, le=1)]] = {"train": 1.0}
    shard_size: int = Field(default=10_000, ge=1)


class Recipe(Table):
    """A whole recipe; every list it names is read, every default filled in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    seed: int = Field(default=0, ge=0, lt=2**63)
    max_failed: float = Field(default=0.01, ge=0, le=1)
    sources: dict[Identifier, SourceTable] = {}
    language: LanguageTable | None = None
    prompts: list[PromptsTable] = Field(min_length=1)
    quota: QuotaTable
    images: ImagesTable = ImagesTable()
    models: list[ModelTable] = Field(min_length=1)
    annotate: list[AnnotateTable] = []
    select: list[SelectTable] = []
    reshard: ReshardTable = ReshardTable()

    @property
    def classes(self) -> list[Category]:
        """All classes, by id."""
        return sorted(
            {category.name: category for table in self.prompts for category in table.categories}.values()
        )

    @property
    def axes(self) -> list[str]:
        """The axes of all prompts, in order of appearance."""
        own = [
            [*table.keys.get("axes", {}), *AXES_OF_TASKS.get(table.keys.get("task", ""), ())]
            for table in self.prompts
        ]
        return list(dict.fromkeys(axis for axes in own for axis in axes))

    @property
    def axes_of_classes(self) -> set[str]:
        """Axes that have other words for each class, so that they go with it by design."""
        asked = {axis for table in self.prompts for _, axis in table.asks if axis}
        return asked.union(*(naming_axes(table.word_lists) for table in self.prompts))

    def resolved(self) -> dict[str, object]:
        """The recipe as plain JSON values, word lists included."""
        values: dict[str, object] = json.loads(self.model_dump_json())
        return values


def find(recipe: str | Path) -> Path:
    """The recipe.toml of an argument: a folder, a .toml file, or the bare name of a recipe that ships.

    Raises:
        RecipeError: there is none.
    """
    path = Path(recipe)
    for candidate in (path / "recipe.toml", path):
        if candidate.is_file():
            return candidate
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)] / "recipe.toml"
    if path.is_dir():
        raise RecipeError(
            f"{path}: no recipe.toml there; `synthgen init DIR --from emoji` makes a recipe to start from"
        )
    raise RecipeError(
        f'"{recipe}": no such recipe{nearest(str(recipe), list(shipped))}. A folder with a recipe.toml, '
        "a .toml file, or one of these names is wanted"
    )


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with synthgen: name -> folder."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "prompts"):
        found = {path.parent.name: path.parent for path in sorted(folder.glob("*/recipe.toml"))}
        if found:
            return found
    return {}


def load(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.toml; `settings` are overrides "a.b=c", c in TOML or plain text.

    Raises:
        RecipeError: one line that says where, what was got and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    for setting in settings:
        _override(values, setting)
    tables = values.get("sources")
    sources = tables.items() if isinstance(tables, dict) else ()
    paths = {name: str(table.get("path")) for name, table in sources if isinstance(table, dict)}
    context = Place(path.parent, paths)
    try:
        recipe = Recipe.model_validate(values, context=context)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_first(error)}") from None
    tables_with_keys: list[tuple[str, Sequence[PromptsTable | AnnotateTable | SelectTable], Functions]] = [
        ("prompts", recipe.prompts, SOURCES),
        ("annotate", recipe.annotate, ANNOTATORS),
        ("select", recipe.select, RULES),
    ]
    for where, tables, functions in tables_with_keys:
        for number, table in enumerate(tables):
            try:
                keys = _keys_model(functions[table.use], table.use).model_validate(
                    table.keys, context=context
                )
            except ValidationError as error:
                raise RecipeError(f"{path}: {_first(error, f'{where}.{number}')}") from None
            table.keys.update({name: getattr(keys, name) for name in type(keys).model_fields})
    try:
        _check(recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def _override(values: dict[str, Any], setting: str) -> None:
    where, equals, text = setting.partition("=")
    if not equals or not where:
        raise RecipeError(
            f"--set {setting}: KEY=VALUE is wanted, such as --set quota.requests=2 or models.0.steps=20"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = where.split(".")
    table: Any = values
    for parent in parents:
        if isinstance(table, list):
            table = _entry(table, parent, where)
        elif isinstance(table, dict):
            table = table.setdefault(parent, {})
    if not isinstance(table, dict):
        raise RecipeError(
            f"--set {setting}: {where} is no key of a table; tables in a list go by number, models.0.steps"
        )
    table[last] = value


def _entry(tables: list[Any], key: str, where: str) -> Any:
    for number, table in enumerate(tables):
        if key == str(number) or (isinstance(table, dict) and key in (table.get("id"), table.get("name"))):
            return table
    raise RecipeError(
        f'--set {where}: there is no "{key}"; numbers from 0 to {len(tables) - 1}, or an id, are wanted'
    )


def _first(error: ValidationError, prefix: str = "") -> str:
    """The first problem as one line: where, what was got, what is allowed."""
    problem = error.errors(include_url=False)[0]
    where = [part for part in problem["loc"] if part not in ("keys", "[key]")]
    place = ".".join(str(part) for part in ([prefix] if prefix else []) + where)
    if problem["type"] == "missing":
        parent, _, key = place.rpartition(".")
        return f'{parent + ": " if parent else ""}missing key "{key}"'
    message = problem["msg"]
    if problem["type"] != "recipe":
        message = f"{message[:1].lower()}{message[1:]}, got {json.dumps(problem['input'], default=str)}"
    return f"{place}: {message}" if place else message


def known_columns(recipe: Recipe) -> dict[str, str]:
    """Every column of the pool and of the annotations: name -> its type in parquet."""
    columns = {name: kind for name, kind in REQUEST_COLUMNS.items() if name not in PLAN_ONLY} | POOL_COLUMNS
    known = {name: str(kind) for name, kind in columns.items()}
    known |= {f"axis_{axis}": "string" for axis in recipe.axes}
    for number, table in enumerate(recipe.annotate):
        for column, kind in COLUMNS[table.use].items():
            if f"{table.name}_{column}" in known:
                raise RecipeError(
                    f'annotate.{number}.name: "{table.name}" makes a column {table.name}_{column}, '
                    f"which is there already; "
                    "choose another name"
                )
            known[f"{table.name}_{column}"] = kind
    return known


def _check(recipe: Recipe) -> None:
    """What no single table can see."""
    for what, names in (
        ("models: id", [table.id for table in recipe.models]),
        ("annotate: name", [table.name for table in recipe.annotate]),
    ):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise RecipeError(f'{what} "{twice}" is there twice; each needs its own')
    ids: dict[str, Category] = {}
    for number, prompts in enumerate(recipe.prompts):
        for category in prompts.categories:
            other = ids.setdefault(category.name, category)
            if other.id != category.id:
                raise RecipeError(
                    f'prompts.{number}.classes: "{category.name}" has id {category.id} here and '
                    f"{other.id} before"
                )
    for number, prompts in enumerate(recipe.prompts):
        if recipe.language is None and prompts.needs_language_model:
            raise RecipeError(
                f"prompts.{number}: asks a language model, and there is none; add a table [language] with "
                "model, the name that its server knows"
            )
    for axis in ("model", *CLASS_SLOTS):
        if axis in recipe.axes:
            raise RecipeError(f'axes.{axis}: "{axis}" means something else already; choose another name')
    for number, prompts in enumerate(recipe.prompts):
        crossed, wanted = {"class", *prompts.keys.get("grid", [])}, set(recipe.quota.cell)
        if wanted - {"class"} and wanted != crossed:
            raise RecipeError(
                f"quota.per: {json.dumps(recipe.quota.per)}, but prompts.{number}.grid crosses "
                f'{json.dumps(sorted(crossed - {"class"}))}; a quota a cell is of "class" and all of these'
            )
    if len({category.id for category in ids.values()}) < len(ids):
        raise RecipeError("prompts: two classes have one id; give a .csv with columns id and name")
    for number, model in enumerate(recipe.models):
        if (model.width == 0) != (model.height == 0):
            raise RecipeError(
                f"models.{number}: width = {model.width}, height = {model.height}; give both, or neither"
            )
        if recipe.images.shard_size % model.batch_size:
            raise RecipeError(
                f"images.shard_size: {recipe.images.shard_size} is no multiple of "
                f"models.{number}.batch_size = "
                f"{model.batch_size}; choose "
                f"{-(-recipe.images.shard_size // model.batch_size) * model.batch_size}"
            )
    if abs(sum(recipe.reshard.split.values()) - 1) > 1e-9:
        raise RecipeError(
            f"reshard.split: the parts add up to {sum(recipe.reshard.split.values()):g}; 1 is wanted"
        )
    known = known_columns(recipe)
    for number, table in enumerate(recipe.select):
        for key, column in columns_read(table.keys).items():
            if column not in known:
                raise RecipeError(
                    f'select.{number}.{key}: unknown column "{column}"{nearest(column, list(known))}'
                )
            text = known[column] == "string"
            if text and (key == "best" or (key == "column" and table.use in ("range", "top"))):
                raise RecipeError(
                    f'select.{number}.{key}: "{column}" holds text; a column of numbers is wanted'
                )
        empty = {name: np.empty(0, "U1" if kind == "string" else "f8") for name, kind in known.items()}
        try:
            RULES[table.use](empty, **table.keys)
        except RecipeError as error:
            raise RecipeError(f"select.{number}: {error}") from None
