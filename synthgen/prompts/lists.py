"""Lists that a recipe names: lines, the words of an axis, classes. A name with an ending is a file in the
recipe's folder; one without is a list that ships (prompts/lists/).
"""

import csv
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthgen import wordnet
from synthgen.data import Category, Word
from synthgen.errors import RecipeError, nearest
from synthgen.importing.forms import read_classes as read_classes_file
from synthgen.prompts.categories import complete, tell_apart

COLUMNS = Category._fields


def read_lines(name: str, folder: Path) -> list[str]:
    """The lines of a file or of a list that ships, without empty ones and those that begin with #.

    Raises:
        RecipeError: there is no such list.
    """
    return [
        line.strip() for line in _read(name, folder).splitlines() if line.strip() and not line.startswith("#")
    ]


def read_words(name: str, folder: Path) -> list[Word]:
    """The words of an axis: lines, or a .csv with columns `word` and `class`, for whom it is ("": all).

    Raises:
        RecipeError: there is no such list, or its columns are others.
    """
    if not name.endswith(".csv"):
        return [Word(line) for line in read_lines(name, folder)]
    _, rows = _csv_table(read_lines(name, folder), name)
    if any(set(row) != {"word", "class"} for row in rows):
        raise RecipeError(f'"{name}" has columns {", ".join(rows[0])}; word and class are wanted')
    return [Word(row["word"].strip(), row["class"].strip()) for row in rows]


def read_classes(name: str, folder: Path) -> list[Category]:
    """The classes of a file or of a list that ships, completed from WordNet by their synsets.

    Raises:
        RecipeError: there is no such list, or it holds something else.
    """
    if "." not in name:
        return read_list(name)
    if name.endswith((".csv", ".toml")):
        return tell_apart(complete(read_table(_read(name, folder), name)))
    return name_classes(read_lines(name, folder))


def read_list(name: str) -> list[Category]:
    """The classes of a list that ships, such as "imagenet-1k", completed from WordNet and told apart.

    Raises:
        RecipeError: there is no list of this name.
    """
    lists = known_lists()
    if name not in lists:
        raise RecipeError(f'unknown list of classes "{name}"{nearest(name, list(lists))}')
    return tell_apart(complete(read_table(lists[name].read_text(encoding="utf-8"), lists[name].name)))


def read_table(text: str, where: str) -> list[Category]:
    """The classes of a table, as written.

    Args:
        text: CSV with a header, or, if `where` ends in .toml, an array of tables `[[classes]]`. Columns or
            keys: `id` and `name`; if wanted `prompt` ("": the name), `synset`, `synonyms` (separated by |; in
            TOML a list too), `definition`, `hypernym`, `plural`. A class with a synset needs no name:
            `complete` takes it from WordNet.
        where: the file's name, for messages.

    Raises:
        RecipeError: a line that says what is wrong in which file.
    """
    rows = _toml_rows(text, where) if where.endswith(".toml") else _csv_rows(text, where)
    return [_category(row, where) for row in rows]


def name_classes(names: Sequence[str]) -> list[Category]:
    """Classes of which only the names are known; the place in the list is the id."""
    return [Category(number, name, name) for number, name in enumerate(names)]


def source_classes(path: Path) -> list[Category]:
    """The classes of other data: the lines of its classes.txt (of a split in tars, of the folder above), the
    categories of a COCO or LVIS file, or the
    names of the folders in a folder.

    Raises:
        RecipeError: it has none of these.
    """
    if path.suffix == ".json" and path.is_file():
        return _coco_classes(path)
    if names := read_classes_file(path):
        return name_classes(names)
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    if not folders:
        raise RecipeError(
            f"{path}: no classes there; a folder with a classes.txt or with a folder a class, or a COCO or "
            "LVIS .json is wanted"
        )
    return name_classes(folders)


def known_lists() -> dict[str, Path]:
    """The class lists that come with synthgen: name -> file."""
    return _shipped("csv")


def known_words() -> dict[str, Path]:
    """The word lists (for axes, and CLIP's templates) that come with synthgen: name -> file."""
    return _shipped("txt")


def _shipped(suffix: str) -> dict[str, Path]:
    package = Path(__file__).parent.parent
    for folder in (package / "recipes" / "lists", package.parent / "prompts" / "lists"):
        found = {path.stem: path for path in sorted(folder.glob(f"*.{suffix}"))}
        if found:
            return found
    return {}


def _csv_table(lines: Sequence[str], where: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of CSV with a header. What has no column is under ""; what is missing is ""."""
    reader = csv.DictReader(lines, restkey="", restval="", skipinitialspace=True, strict=True)
    try:
        reader.fieldnames = [column.strip() for column in reader.fieldnames or []]
        return list(reader.fieldnames), list(reader)
    except csv.Error as error:
        raise RecipeError(f'"{where}": no table: {error}') from None


def _csv_rows(text: str, where: str) -> Sequence[Mapping[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    columns, rows = _csv_table(lines, where)
    for column in columns:
        if column not in COLUMNS:
            raise RecipeError(f'"{where}": unknown column "{column}"{nearest(column, list(COLUMNS))}')
    if "id" not in columns or not {"name", "synset"} & {*columns}:
        raise RecipeError(
            f'"{where}" has columns {", ".join(columns)}; id and name (or synset) are needed, the others of '
            f"{', '.join(COLUMNS)} optional"
        )
    for number, row in enumerate(rows, 1):
        if "" in row:
            raise RecipeError(
                f'"{where}": class {number} has more values than columns; a value with a comma '
                'stands in "quotes"'
            )
    return rows


def _toml_rows(text: str, where: str) -> Sequence[Mapping[str, str]]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f'"{where}": not valid TOML: {error}') from None
    tables: list[dict[str, object]] = values.pop("classes", [])
    if values or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f'"{where}": one array of tables, [[classes]], is wanted, and nothing else')
    for number, table in enumerate(tables, 1):
        for key, value in table.items():
            if key not in COLUMNS:
                raise RecipeError(
                    f'"{where}": class {number}: unknown key "{key}"{nearest(key, list(COLUMNS))}'
                )
            if key == "synonyms" and isinstance(value, list) and all(isinstance(word, str) for word in value):
                table[key] = "|".join(value)
            elif type(value) is not (int if key == "id" else str):
                wanted = "a whole number" if key == "id" else "text"
                raise RecipeError(f'"{where}": class {number}: {key} = {value!r}; {wanted} is wanted')
    return [{key: str(value) for key, value in table.items()} for table in tables]


def _category(row: Mapping[str, str], where: str) -> Category:
    number, name, prompt, synset, synonyms, *rest = (row.get(column, "").strip() for column in COLUMNS)
    if not number.isdecimal() or int(number) >= 2**31:
        raise RecipeError(f'"{where}": id "{number}"; a whole number below 2**31 is wanted')
    if not name and not synset:
        raise RecipeError(f'"{where}": class {number} has no name')
    words = tuple(word.strip() for word in synonyms.split("|") if word.strip())
    return Category(int(number), name, prompt or name, synset, words, *rest)


def _coco_classes(path: Path) -> list[Category]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["categories"]
        return tell_apart(complete([_coco_class(one) for one in found]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RecipeError(f"{path}: no COCO or LVIS file: {type(error).__name__} {error}") from None


def _coco_class(found: dict[str, Any]) -> Category:
    """A category of a COCO or LVIS file; LVIS has some synsets that WordNet 3.0 has not."""
    name, synset = found["name"], str(found.get("synset", ""))
    if not isinstance(name, str) or type(found["id"]) is not int:
        raise TypeError(f"id {found['id']!r}, name {name!r}; a whole number and a text are wanted")
    words = [str(word).replace("_", " ") for word in found.get("synonyms", [])]
    prompt = name.replace("_", " ")
    return Category(
        found["id"],
        name,
        prompt,
        synset if wordnet.is_known(synset) else "",
        tuple(word for word in words if word != prompt),
        str(found.get("def", "")),
    )


def _read(name: str, folder: Path) -> str:
    shipped = known_words()
    path = folder / name if "." in name else shipped.get(name, folder / name)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        files = sorted(p.name for p in folder.glob("*.txt")) + sorted(p.name for p in folder.glob("*.csv"))
        close = difflib.get_close_matches(name, files, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else "; give a file, or the list itself"
        if "." not in name:
            hint += f", or a list that ships{nearest(name, list(shipped))}"
        raise RecipeError(f'no file "{name}" in {folder}{hint}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f'cannot read "{name}" in {folder} ({error})') from None
