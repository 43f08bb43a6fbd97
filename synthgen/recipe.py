"""A recipe found, loaded and checked as a whole. Only `cli`, `pipeline` and what lies between see it."""

import contextlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from synthgen.annotators import ANNOTATORS, COLUMNS, FITS
from synthgen.data import Category
from synthgen.errors import ModelError, RecipeError, nearest
from synthgen.importing import ENDINGS
from synthgen.prompts import SOURCES
from synthgen.prompts.templates import CLASS_SLOTS
from synthgen.selection import COLUMN_KINDS, RULES, Quota, Rule, check_quota, columns_read
from synthgen.selection.columns import CELL_COLUMNS, cell_columns
from synthgen.shards import PLAN_ONLY, POOL_COLUMNS, REQUEST_COLUMNS
from synthgen.tables import Recipe
from synthgen.tables.curation import AnnotateTable, SelectTable
from synthgen.tables.keys import Functions, Place, keys_model
from synthgen.tables.prompts import PromptsTable

LEAST = {
    "count": 1,
    "per_call": 1,
    "least_words": 1,
    "most_words": 1,
    "balance": 0,
    "thin": 0,
    "max_unanswered": 0,
}
"""The least value of keys of sources."""


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
                keys = keys_model(functions[table.use], table.use).model_validate(table.keys, context=context)
            except ValidationError as error:
                raise RecipeError(f"{path}: {_first(error, f'{where}.{number}')}") from None
            table.keys.update({name: getattr(keys, name) for name in type(keys).model_fields})
    try:
        _check(recipe, path.parent)
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
    except tomllib.TOMLDecodeError as error:
        if text.lstrip().startswith(("{", "[")):
            raise RecipeError(f"--set {setting}: not valid TOML: {error}") from None
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
    where = [part for part in problem["loc"] if part != "keys" and not str(part).startswith("[")]
    place = ".".join(str(part) for part in ([prefix] if prefix else []) + where)
    if problem["type"] == "missing":
        parent, _, key = place.rpartition(".")
        return f'{parent + ": " if parent else ""}missing key "{key}"'
    message = problem["msg"]
    if problem["type"] != "recipe":
        message = f"{message[:1].lower()}{message[1:]}, got {json.dumps(problem['input'], default=str)}"
    return f"{place}: {message}" if place else message


def known_columns(recipe: Recipe, imported: Mapping[str, str] | None = None) -> dict[str, str]:
    """Every column of the pool and of the annotations: name -> its type in parquet.

    Args:
        imported: those of the pool that a recipe which curates chooses from.
    """
    columns = {name: kind for name, kind in REQUEST_COLUMNS.items() if name not in PLAN_ONLY} | POOL_COLUMNS
    known = {name: str(kind) for name, kind in columns.items()}
    known |= {f"axis_{axis}": "string" for axis in recipe.axes}
    known = known if imported is None else dict(imported)
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


def _check(recipe: Recipe, folder: Path) -> None:
    """What no single table can see."""
    quota = recipe.quota.requests or recipe.quota.accepted
    making = {"prompts": recipe.prompts, "models": recipe.models, "quota": quota}
    lacking = [key for key, value in making.items() if not value]
    if 0 < len(lacking) < len(making):
        raise RecipeError(
            f'missing key "{lacking[0]}"; a recipe that makes images has [[prompts]], [[models]] and '
            "[quota], one that curates what `synthgen import` brought has none of them"
        )
    if recipe.prompts and recipe.classes_:
        raise RecipeError("classes: where there are [[prompts]], each of them names its classes")
    for what, names in (
        ("models: id", [table.id for table in recipe.models]),
        ("annotate: name", [table.name for table in recipe.annotate]),
    ):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise RecipeError(f'{what} "{twice}" is there twice; each needs its own')
    for number, prompts in enumerate(recipe.prompts):
        for key, least in LEAST.items():
            if prompts.keys.get(key, least) < least:
                raise RecipeError(f"prompts.{number}.{key}: {prompts.keys[key]}; {least} or more is wanted")
        if prompts.keys.get("least_words", 1) > prompts.keys.get("most_words", 1):
            raise RecipeError(f"prompts.{number}.least_words: is above most_words; no text could pass")
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
        known = [f"sources.{name}" for name in recipe.sources]
        if model.from_ and model.from_ not in known:
            raise RecipeError(
                f'models.{number}.from: unknown source "{model.from_}"{nearest(model.from_, known)}'
            )
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
    for number, one in enumerate(recipe.annotate):
        source, known = one.keys.get("source"), [f"sources.{name}" for name in recipe.sources]
        if source and source not in known:
            raise RecipeError(f'annotate.{number}.source: unknown source "{source}"{nearest(source, known)}')
    if not recipe.curates:
        check_columns(recipe, folder)


def check_columns(recipe: Recipe, folder: Path, imported: Mapping[str, str] | None = None) -> None:
    """Whether what annotators, rules and resharding read is there.

    Args:
        folder: that of the recipe, to which the files are relative that rules name.
        imported: the columns of the pool that a recipe which curates chooses from, and their types.

    Raises:
        RecipeError: a column is not there, or is of another type; or annotators go in a circle.
    """
    columns = known_columns(recipe, imported)
    features = [name for name in recipe.made_by if name not in columns]
    for number, one in enumerate(recipe.annotate):
        for key, name in one.reads.items():
            known = features if key.split(".")[0] == "features" else [*columns, *features]
            if name not in known:
                what = "features" if known is features else "column or features"
                raise RecipeError(f'annotate.{number}.{key}: unknown {what} "{name}"{nearest(name, known)}')
        if one.use in FITS and recipe.quota.accepted:
            raise RecipeError(
                f"annotate.{number}.use: {one.use} is fitted to the whole pool, which grows until "
                "quota.accepted is met; give quota.requests instead"
            )
        rules = recipe.rules(one.on)
        if one.on and recipe.quota.accepted and not rules:
            raise RecipeError(
                f'annotate.{number}.on: no rule has subset = "{one.on}"; with quota.accepted the samples are '
                "not all there yet, so rules have to say which are annotated"
            )
        for rule in rules:
            if not rule.judges_alone:
                raise RecipeError(
                    f'annotate.{number}.on: "{one.on}" has the rule {rule.use}, which compares samples; only '
                    "rules that judge a sample by itself can say which are annotated"
                )
    fitted = recipe.fitted  # refuses a circle
    for number, one in enumerate(recipe.annotate):
        read = (one.reads | recipe.judged_by(one)).items()
        later = next((key for key, name in read if recipe.made_by.get(name) in fitted), None)
        if one.use in FITS and later:
            raise RecipeError(
                f"annotate.{number}.{later}: is itself made by something that is fitted to the whole pool; "
                f"{one.use} reads only what is there before"
            )
    _check_reshard(recipe, columns)
    _check_rules(recipe, columns, features, folder)
    if recipe.quota.accepted:
        cell_columns(recipe.quota.cell, columns)
        check_quota(recipe.rules("main"), Quota(recipe.quota.accepted, recipe.quota.cell))


def _check_rules(recipe: Recipe, columns: Mapping[str, str], features: Sequence[str], folder: Path) -> None:
    """Each rule: the columns that it names, then the rule itself on a pool without a row."""
    empty: dict[str, npt.NDArray[np.generic]] = {
        name: np.empty(0, _dtype(kind)) for name, kind in columns.items()
    }
    empty |= {name: np.empty((0, 1), np.float16) for name in features}
    for number, table in enumerate(recipe.select):
        rule = Rule(table.use, table.keys, table.of, number).found_in(folder)
        try:
            for key, name in columns_read(rule, columns).items():
                wanted = COLUMN_KINDS[rule.use].get(key, "cell" if key.startswith("per") else "numbers")
                known = list(features if wanted == "features" else columns)
                if name not in known:
                    what = "features" if wanted == "features" else "column"
                    if wanted == "cell":  # the name as it was given
                        what, known = "class, model, axis or column", [*CELL_COLUMNS, *recipe.axes, *known]
                        name = name.removeprefix("axis_")
                    raise RecipeError(f'{key}: unknown {what} "{name}"{nearest(name, known)}')
                holds = "text" if columns.get(name) == "string" else "numbers"
                if wanted == "cell" and columns[name] in ("float", "double", "float32"):
                    raise RecipeError(f'{key}: "{name}" holds fractions; texts or whole numbers are wanted')
                if wanted in ("numbers", "text") and wanted != holds:
                    a = {"text": "a column of text", "numbers": "a column of numbers"}[wanted]
                    raise RecipeError(f'{key}: "{name}" holds {holds}; {a} is wanted')
            RULES[rule.use](empty, **rule.keys)
        except RecipeError as error:
            joint = "." if str(error).split(":")[0] in (*rule.keys, "per") else ": "
            raise RecipeError(f"select.{number}{joint}{error}") from None


def _dtype(kind: str) -> "np.dtype[np.generic]":
    """What a column of parquet is as rules see it."""
    try:
        found: np.dtype[np.generic] = np.dtype(pa.type_for_alias(kind).to_pandas_dtype())
        return found
    except (ValueError, NotImplementedError):  # texts, lists
        return np.dtype(object)


def _check_reshard(recipe: Recipe, columns: Mapping[str, str]) -> None:
    reshard = recipe.reshard
    reshard.check_split()
    cells: dict[str, str | list[str]] = {
        "split": reshard.split if isinstance(reshard.split, str) else [],
        "stratify": reshard.stratify or [],
        "repeat": list(reshard.repeat),
    }
    for key, named in cells.items():
        names = [named] if isinstance(named, str) else named
        for name, column in zip(names, cell_columns(names, columns), strict=True):
            if column not in columns:
                known = ["class", "model", *recipe.axes, *columns]
                raise RecipeError(f'reshard.{key}: unknown "{name}"{nearest(name, known)}')
            if columns[column] in ("float", "double", "float32"):
                raise RecipeError(
                    f'reshard.{key}: "{name}" holds measured numbers; names or whole numbers are wanted'
                )
    for name in reshard.members:
        if name not in columns and not any(name.startswith(f"{table.name}_") for table in recipe.annotate):
            raise RecipeError(
                f'reshard.members: unknown column or feature "{name}"{nearest(name, list(columns))}'
            )
        if columns.get(name) == "uint64":
            raise RecipeError(f"reshard.members: {name} is uint64, which readers of json members cannot hold")
    if {*reshard.leave_out} & {*ENDINGS}:
        raise RecipeError(
            f"reshard.leave_out: {json.dumps(reshard.leave_out)}: a sample without its image is none"
        )
    if len(set(reshard.members)) < len(reshard.members):
        raise RecipeError(f"reshard.members: {json.dumps(reshard.members)}: each may be there once")


@contextlib.contextmanager
def where(path: Path, key: str) -> Iterator[None]:
    """Puts the recipe's file and key before the message of a bad input, if they are not there yet."""
    try:
        yield
    except (RecipeError, ModelError) as error:
        said = str(error)
        if said.startswith(f"{path}: "):
            raise
        key = "" if not key or said.startswith(f"{key}: ") else f"{key}: "
        raise type(error)(f"{path}: {key}{said}") from error.__cause__
