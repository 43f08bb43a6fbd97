"""Lists that a recipe names: lines, the words of an axis, classes. A name with an ending is a file in the
recipe's folder; one without is a list that ships (prompts/lists/).
"""

import csv
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen.data import Category, Word
from synthgen.errors import RecipeError, nearest
from synthgen.prompts import wordnet
from synthgen.prompts.categories import complete, known_words, read_list, read_table, tell_apart


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
    try:
        lines = read_lines(name, folder)
        rows = list(csv.DictReader(lines, restkey="", restval="", skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise RecipeError(f'"{name}": no table: {error}') from None
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


def name_classes(names: Sequence[str]) -> list[Category]:
    """Classes of which only the names are known; the place in the list is the id."""
    return [Category(number, name, name) for number, name in enumerate(names)]


def source_classes(path: Path) -> list[Category]:
    """The classes of other data: the lines of its classes.txt, the categories of a COCO or LVIS file, or the
    names of the folders in a folder.

    Raises:
        RecipeError: it has none of these.
    """
    if path.suffix == ".json" and path.is_file():
        return _coco_classes(path)
    if (path / "classes.txt").is_file():
        return name_classes(read_lines("classes.txt", path))
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    if not folders:
        raise RecipeError(
            f"{path}: no classes there; a folder with a classes.txt or with a folder a class, or a COCO or "
            "LVIS .json is wanted"
        )
    return name_classes(folders)


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
