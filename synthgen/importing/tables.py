"""A table of image paths: csv, tsv, parquet or jsonl -> entries, with all of its columns."""

import posixpath
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import RecipeError, nearest
from synthgen.importing import ENDINGS, Found

KINDS = (".csv", ".tsv", ".parquet", ".jsonl")
SPLIT_NUMBERS = {"0": "train", "1": "val", "2": "test"}
"""As the tables of Waterbirds and WILDS number splits."""


def entries(path: Path, image: str, label: str, group: str, split: str) -> list[Found]:
    """An entry for each row; paths of images are relative to the table's folder.

    Args:
        path: the table.
        image: the column of paths.
        label: the column of classes, numbers or names; "" is none.
        group: the column of what ties samples together; "" is none.
        split: the column of splits, names or 0, 1, 2 for train, val, test; "" is none.

    Raises:
        RecipeError: it is no table, or has no such column.
    """
    table = read(path)
    if not image:
        raise RecipeError(
            f"{path}: which column holds the paths of the images? --image NAME, one of: "
            f"{', '.join(table.column_names)}"
        )
    for option, name in (("image", image), ("label", label), ("group", group), ("split", split)):
        if name and name not in table.column_names:
            raise RecipeError(f'{path}: --{option}: no column "{name}"{nearest(name, table.column_names)}')
    found = []
    for number, row in enumerate(table.to_pylist(), 1):
        name, data = row.pop(image), row
        if label:
            data["class_id" if isinstance(row[label], int) else "class_name"] = row[label]
        if group:
            data["group"] = row[group]
        if split:
            data["split"] = split_name(row[split])
        data = {key: value for key, value in data.items() if value is not None}
        if not isinstance(name, str) or not is_below(name):
            error = "no path below the folder of the table"
            found.append(Found(f"row {number}", path.name, [], None, data, error))
            continue
        name = posixpath.normpath(name)
        suffix = name.rpartition(".")[2].lower()
        found.append(Found(name, name, [(suffix if suffix in ENDINGS else "jpg", 0, 0)], None, data))
    if not found:
        raise RecipeError(f"{path}: has no rows")
    return found


def split_name(value: object) -> object:
    """The split that a value stands for: itself, but for numbers that are known."""
    return SPLIT_NUMBERS.get(str(value).removesuffix(".0"), value)


def is_below(name: str) -> bool:
    """Whether a relative path leads to a file that does not lie outside of the folder it starts from."""
    there = posixpath.normpath(name)
    return bool(name) and not there.startswith(("/", "../")) and there not in (".", "..") and "\0" not in name


def read(path: Path) -> pa.Table:
    """A table file; types are those that its values have.

    Raises:
        RecipeError: it cannot be read.
    """
    data = pa.BufferReader(storage.read(path))
    try:
        if path.suffix == ".parquet":
            return pq.read_table(data)
        if path.suffix == ".jsonl":
            return pa.json.read_json(data)
        strings = pa.csv.ConvertOptions(
            strings_can_be_null=True, null_values=["", "nan", "NaN", "null", "NULL"]
        )
        parse = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
        return pa.csv.read_csv(data, parse_options=parse, convert_options=strings)
    except (pa.ArrowException, OSError) as error:
        raise RecipeError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from None
