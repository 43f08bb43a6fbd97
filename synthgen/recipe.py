"""The typed recipe: load, validate strictly, resolve every file that it names. Only `cli` and `pipeline` see
it.

The keys of a `use = "..."` table are the keyword-only parameters of the function that it names, so a new
function is one entry in a dict. A string where a list of strings is wanted names a file with one a line.
"""

import csv
import difflib
import inspect
import io
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from synthgen.annotators import ANNOTATORS, COLUMNS
from synthgen.data import Category
from synthgen.errors import RecipeError, nearest
from synthgen.prompts import SOURCES
from synthgen.selection import RULES, columns_read
from synthgen.shards import PLAN_ONLY, POOL_COLUMNS, REQUEST_COLUMNS

GIVEN = {"classes", "device", "seed"}
"""Parameters that the pipeline gives to a function, where it has them; no recipe key."""


def _problem(message: str) -> PydanticCustomError:
    return PydanticCustomError("recipe", message)


def _read_lines(name: str, folder: Path) -> list[str]:
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        files = sorted(p.name for p in folder.glob("*.txt")) + sorted(p.name for p in folder.glob("*.csv"))
        close = difflib.get_close_matches(name, files, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else "; give a file, or the list itself"
        raise _problem(f'no file "{name}" in {folder}{hint}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise _problem(f'cannot read "{name}" in {folder} ({error})') from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _folder(info: ValidationInfo) -> Path:
    """The recipe's folder, to which the files that it names are relative."""
    folder: Path = (info.context or {})["folder"]
    return folder


def _lines(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return _read_lines(value, _folder(info))
    return value


def _distinct(values: list[str]) -> list[str]:
    if not values:
        raise _problem("the list is empty; put one entry a line")
    twice = next((value for k, value in enumerate(values) if value in values[:k]), None)
    if twice is not None:
        raise _problem(f'"{twice}" is there twice; each entry may be there once')
    return values


def _categories(value: object, info: ValidationInfo) -> object:
    folder = _folder(info)
    if isinstance(value, str) and value.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO("\n".join(_read_lines(value, folder)))))
        columns = {str(column) for row in rows for column in row}
        if rows and not {"id", "name"} <= columns <= {"id", "name", "prompt"}:
            raise _problem(
                f'"{value}" has columns {", ".join(sorted(columns))}; id and name are needed, '
                f"prompt is optional"
            )
        if not all((row["id"] or "").isdecimal() and int(row["id"]) < 2**31 for row in rows):
            raise _problem(f'"{value}": column id holds something else than whole numbers below 2**31')
        names = [(row["name"] or "").strip() for row in rows]
        prompts = [(row.get("prompt") or "").strip() for row in rows]
        value = [
            Category(int(row["id"]), name, prompt or name)
            for row, name, prompt in zip(rows, names, prompts, strict=True)
        ]
    elif isinstance(value, str):
        value = [Category(k, name, name) for k, name in enumerate(_read_lines(value, folder))]
    elif isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = [Category(k, name, name) for k, name in enumerate(value)]
    if value == []:
        raise _problem("no classes; put one a line")
    return value


def _distinct_categories(categories: list[Category]) -> list[Category]:
    for category in categories:
        if not category.name.strip() or not category.name.isprintable():
            raise _problem(
                f"class {category.id} is called {json.dumps(category.name)}; a name on one line is wanted"
            )
    _distinct([category.name for category in categories])
    _distinct([str(category.id) for category in categories])
    return categories


Functions = Mapping[str, Callable[..., Any]]
Lines = Annotated[list[str], BeforeValidator(_lines), AfterValidator(_distinct)]
Categories = Annotated[list[Category], BeforeValidator(_categories), AfterValidator(_distinct_categories)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


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


def _keys_model(function: Callable[..., object], use: str) -> type[Table]:
    """The keys of a function as a table: its keyword-only parameters, less those that the pipeline gives."""
    hints, fields = get_type_hints(function), dict[str, Any]()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in GIVEN:
            kind = {list[str]: Lines, dict[str, list[str]]: dict[Identifier, Lines]}.get(
                hints[name], hints[name]
            )
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


class PromptsTable(Table):
    use: str
    classes: Categories
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return _function_keys(value, SOURCES, "source of prompts", {"use", "classes"})


class QuotaTable(Table):
    per: Literal["class"] | None = None
    requests: int = Field(ge=1)


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
            {category.name: category for table in self.prompts for category in table.classes}.values()
        )

    @property
    def axes(self) -> list[str]:
        """The axes of all prompts, in order of appearance."""
        return list(dict.fromkeys(axis for table in self.prompts for axis in table.keys.get("axes", {})))

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
    context = {"folder": path.parent}
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
            table.keys.update(keys.model_dump())
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
        for category in prompts.classes:
            other = ids.setdefault(category.name, category)
            if other.id != category.id:
                raise RecipeError(
                    f'prompts.{number}.classes: "{category.name}" has id {category.id} here and '
                    f"{other.id} before"
                )
    for axis in ("class", "model"):
        if axis in recipe.axes:
            raise RecipeError(f'axes.{axis}: "{axis}" means something else already; choose another name')
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
