"""All scans of a source seen at once -> what no piece knows by itself, then the shards of the pool.

Only what is small is kept of each scan: types of columns, labels, members, uids.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import shards
from synthgen.errors import FolderError, RecipeError, nearest
from synthgen.importing import ENDINGS, place_of, uid_of
from synthgen.importing.scanning import MEMBERS, as_text
from synthgen.uids import uid_array

SHARD_ROWS = 10_000
"""About so many rows a shard; a tar of up to half as many again is one."""
FIXED = {
    "uid": pa.string(),
    "error": pa.string(),
    "class_id": pa.int32(),
    "class_name": pa.string(),
    "text": pa.string(),
    "group": pa.string(),
    "source": pa.string(),
    "file": pa.string(),
    "key": pa.string(),
    "license": pa.string(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "image_offset": pa.int64(),
    "image_bytes": pa.int64(),
    "sha256": pa.string(),
    "members": MEMBERS,
}
"""The columns that every imported pool has; documented in shards/README.md."""
TOLD = ("class_id", "class_name", "text", "group", "license", "original_width", "original_height")
"""Those of them that data may tell."""
OWN_NAMES = {"caption": "text"}
"""What img2dataset calls them."""


class Settled(NamedTuple):
    """What all scans of a source say together.

    Attributes:
        columns: name in the pool -> name in the data.
        schema: of the pool's shards.
        classes: name -> id.
        required: the members that a whole sample has besides its image: each that more than half have.
        twice: of each piece, the rows whose uid another sample has already.
        cuts: of each piece, the rows at which its shards end.
        partial: columns of numbers and the like that some whole samples have no value of.
    """

    columns: dict[str, str]
    schema: pa.Schema
    classes: dict[str, int]
    required: list[str]
    twice: list[list[int]]
    cuts: list[list[int]]
    partial: list[str]


def settle(
    scans: Iterable[pa.Table],
    *,
    renamed: Mapping[str, str],
    classes: Mapping[str, int],
    known: Mapping[str, int],
    taken: npt.NDArray[np.void],
    source: str,
) -> Settled:
    """What all scans of a source say together.

    Args:
        scans: in order, one at a time.
        renamed: name in the pool -> name in the data, by the user's wish.
        classes: ids that the source gives to names.
        known: ids that other sources of the folder have given.
        taken: uids that the folder has already.
        source: the source's name, for messages.

    Raises:
        RecipeError: a column that is to be renamed is not there, or two columns would have one name.
        FolderError: a class has another id than elsewhere.
    """
    schemas, lengths, uids = list[pa.Schema](), list[int](), [taken]
    labels, members = dict[tuple[int | None, str | None], None](), Counter[str]()
    whole, known_of, is_labelled = 0, Counter[str](), True
    for table in scans:
        schemas.append(table.schema)
        lengths.append(len(table))
        labels |= _labels(table, renamed)
        good = table.filter(pc.equal(table["error"], ""))
        members.update(_members(good))
        whole += len(good)
        known_of.update({column: _known(good[column]) for column in good.column_names})
        own_labels = _labels(good, renamed)
        is_labelled &= not len(good) or bool(own_labels and (None, None) not in own_labels)
        own = np.array([uid or "" for uid in table["own_uid"].to_pylist()])
        own[[bool(error) for error in table["error"].to_pylist()]] = ""
        uids.append(_halves(own.tolist()))
    merged = _unify(schemas)
    columns = _columns(merged, renamed, source)
    fields = [pa.field(name, kind) for name, kind in FIXED.items()]
    for name, raw in columns.items():
        if name not in FIXED:
            fields.append(
                pa.field(name, pa.string() if name == "split" else merged.field(f"data.{raw}").type)
            )
    plain = [one.name for one in fields if one.name not in FIXED and not _is_text_or_list(one.type)]
    partial = [name for name in plain if known_of[f"data.{columns[name]}"] < whole]
    return Settled(
        columns,
        pa.schema(fields),
        _ids(labels, dict(classes), dict(known), source),
        sorted(suffix for suffix, count in members.items() if 2 * count > whole),
        _repeated(uids),
        [_ends(length) for length in lengths],
        partial if is_labelled else ["class_id", *partial],
    )


def rows(
    table: pa.Table,
    settled: Settled,
    *,
    twice: Sequence[int],
    start: int,
    stop: int,
    source: str,
    license: str,
) -> pa.Table:
    """The pool's rows of a scan's rows from `start` to `stop`."""
    errors = _errors(table, settled, twice)[start:stop]
    part = table.slice(start, stop - start)
    good = [error is None for error in errors]
    written = pa.array(good)

    def if_good(name: str) -> pa.Array:
        return pc.if_else(written, part[name].combine_chunks(), pa.scalar(None, part.schema.field(name).type))

    def told(name: str) -> list[object]:
        raw = settled.columns.get(name)
        column = f"data.{raw}"
        return part[column].to_pylist() if raw and column in part.column_names else [None] * len(part)

    places = [
        place_of(file, key)
        for file, key in zip(part["file"].to_pylist(), part["key"].to_pylist(), strict=True)
    ]
    names = {number: name for name, number in settled.classes.items()}
    labels = [_label(*each, names) for each in zip(told("class_id"), told("class_name"), strict=True)]
    ids = [settled.classes.get(name) if name else None for name in labels]
    sizes = {
        f"original_{side}": [
            _whole(own) or stored
            for own, stored in zip(told(f"original_{side}"), if_good(side).to_pylist(), strict=True)
        ]
        for side in ("width", "height")
    }
    found: dict[str, object] = {
        "uid": [
            own if is_good and own else uid_of(source, place)
            for own, is_good, place in zip(part["own_uid"].to_pylist(), good, places, strict=True)
        ],
        "error": errors,
        "class_id": ids,
        "class_name": labels,
        "text": [_text(value) for value in told("text")],
        "group": [_text(value) for value in told("group")],
        "source": [source] * len(part),
        "file": part["file"],
        "key": part["key"],
        "license": [_text(value) or license for value in told("license")],
        **sizes,
        **{name: if_good(name) for name in ("image_offset", "image_bytes", "sha256")},
        "members": _true_members(if_good("members"), part, ids, settled),
    }
    for name, raw in settled.columns.items():
        if name not in FIXED:
            kind, column = settled.schema.field(name).type, f"data.{raw}"
            found[name] = (
                _cast(part[column], kind) if column in part.column_names else pa.nulls(len(part), kind)
            )
    arrays = [_as_array(found[field.name], field.type) for field in settled.schema]
    return pa.Table.from_arrays(arrays, schema=settled.schema)


def _true_members(members: pa.Array, part: pa.Table, ids: Sequence[int | None], settled: Settled) -> pa.Array:
    """The members of each row without a `cls` that says otherwise than the settled id (it is a name, or
    another column is the label), and without `txt` where another column is the text: the columns' are given
    in their place.
    """
    there = set(pc.unique(members.flatten().field("suffix")).to_pylist())
    left_out = {"txt"} & there if settled.columns.get("text", "text") != "text" else set()
    wrong = [False] * len(part)
    if "cls" in there:
        named = "data.class_id" in part.column_names
        raw = part["data.class_id"].to_pylist() if named else [None] * len(part)
        wrong = [own is not None and _whole(told) != own for own, told in zip(ids, raw, strict=True)]
    if not left_out and not any(wrong):
        return members
    kept = [
        own and [one for one in own if one["suffix"] not in (left_out | {"cls"} if is_wrong else left_out)]
        for own, is_wrong in zip(members.to_pylist(), wrong, strict=True)
    ]
    return pa.array(kept, members.type)


def _known(column: pa.ChunkedArray) -> int:
    """How many values a json can hold as numbers."""
    if pa.types.is_floating(column.type):
        return int(pc.sum(pc.is_finite(column)).as_py() or 0)
    return len(column) - int(column.null_count)


def _is_text_or_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_nested(kind))


def _errors(table: pa.Table, settled: Settled, twice: Sequence[int]) -> list[str | None]:
    repeated = set(twice)
    found = []
    for row, (error, members) in enumerate(
        zip(table["error"].to_pylist(), table["members"].to_pylist(), strict=True)
    ):
        lacking = [] if error else _lacking(members, settled.required)
        if error or lacking:
            found.append(error or f"missing {', '.join(lacking)}")
        else:
            found.append("duplicate uid" if row in repeated else None)
    return found


def _lacking(members: Sequence[Mapping[str, object]], required: Sequence[str]) -> list[str]:
    there = {member["suffix"] for member in members}
    return [suffix for suffix in required if suffix not in there]


def _members(good: pa.Table) -> dict[str, int]:
    """The members, besides their images, of samples, with how many have them; none has one twice."""
    suffixes = pc.struct_field(pc.list_flatten(good["members"].combine_chunks()), "suffix")
    counts = {each["values"]: each["counts"] for each in pc.value_counts(suffixes).to_pylist()}
    return {suffix: count for suffix, count in counts.items() if suffix not in ENDINGS}


def _ends(length: int) -> list[int]:
    """Where the shards of a piece of so many rows end: parts of about equal size."""
    parts = max(1, round(length / SHARD_ROWS))
    return [length * (k + 1) // parts for k in range(parts)]


def _halves(uids: Sequence[str]) -> npt.NDArray[np.void]:
    return uid_array([uid or "0" * 32 for uid in uids])


def _repeated(parts: Sequence[npt.NDArray[np.void]]) -> list[list[int]]:
    """The rows of each part but the first whose uid is in an earlier row; zero is no uid."""
    whole = np.concatenate(parts)
    order = np.lexsort((whole["f1"], whole["f0"]))
    ordered = whole[order]
    again = np.zeros(len(whole), bool)
    again[order[1:]] = (ordered["f0"][1:] == ordered["f0"][:-1]) & (ordered["f1"][1:] == ordered["f1"][:-1])
    again &= (whole["f0"] != 0) | (whole["f1"] != 0)
    ends = np.cumsum([len(part) for part in parts])
    return [np.flatnonzero(own).tolist() for own in np.split(again, ends[:-1])[1:]]


def _unify(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One type for each column: what holds all values, text where nothing else does."""
    kinds = dict[str, pa.DataType]()
    for schema in schemas:
        for field in schema:
            kinds[field.name] = shards.either_type(kinds.get(field.name), _plain(field.type))
    return pa.schema(
        [pa.field(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in kinds.items()]
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without its ways of storing it."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _flat(kind: pa.DataType) -> pa.DataType:
    """A type that values can be grouped by: of lists, their text."""
    return pa.string() if pa.types.is_nested(kind) else kind


def _columns(merged: pa.Schema, renamed: Mapping[str, str], source: str) -> dict[str, str]:
    """Name in the pool -> name in the data. What an imported pool means otherwise gets `data_` before it."""
    raws = [name.removeprefix("data.") for name in merged.names if name.startswith("data.")]
    for new, old in renamed.items():
        if old not in raws:
            raise RecipeError(
                f'--columns {new}={old}: source "{source}" has no column "{old}"{nearest(old, raws)}'
            )
    found = dict(renamed)
    for raw in raws:
        name = re.sub(r"\W+", "_", raw).strip("_") or "column"
        if OWN_NAMES.get(name) and OWN_NAMES[name] not in (*raws, *renamed):
            name = OWN_NAMES[name]
        if raw in renamed.values() or raw in ("uid", "key"):
            continue
        if (name in FIXED and name not in TOLD) or (name in renamed and renamed[name] != raw):
            name = f"data_{name}"
        if name in found:
            raise RecipeError(
                f'source "{source}" has two columns for {name}: {found[name]} and {raw}; '
                f"--columns NEW={raw} gives one another name"
            )
        found[name] = raw
    return found


def _labels(table: pa.Table, renamed: Mapping[str, str]) -> dict[tuple[int | None, str | None], None]:
    """The different pairs of a class's id and name."""
    columns = [f"data.{renamed.get(name, name)}" for name in ("class_id", "class_name")]
    there = [column for column in columns if column in table.column_names]
    if not there:
        return {}
    labels = pa.table({column: _cast(table[column], _flat(table[column].type)) for column in there})
    pairs = labels.group_by(there).aggregate([]).to_pylist()
    return {_id_and_name(*(row.get(column) for column in columns)): None for row in pairs}


def _id_and_name(number: object, name: object) -> tuple[int | None, str | None]:
    """A label as data tell it: whole numbers are ids, whatever column holds them; anything else is a name."""
    if number is None and _whole(name) is not None:
        number, name = name, None
    whole = _whole(number)
    if whole is None and number is not None and name is None:
        name = number
    return whole, " ".join((_text(name) or "").split()) or None


def _whole(value: object) -> int | None:
    """A whole number that fits an id or a size, None where it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _text(value: object) -> str | None:
    return None if value is None or value == "" else as_text(value) if not isinstance(value, str) else value


def _label(number: object, name: object, names: Mapping[int, str]) -> str | None:
    whole, text = _id_and_name(number, name)
    return text if text is not None else names.get(whole) if whole is not None else None


def _ids(
    labels: Iterable[tuple[int | None, str | None]], given: dict[str, int], known: dict[str, int], source: str
) -> dict[str, int]:
    """The id of each class: the source's own, else that of another source, else the next ones by name."""
    found = dict(given)
    for number, name in labels:
        if number is not None and name is not None and found.setdefault(name, number) != number:
            raise FolderError(
                f'source "{source}": class "{name}" has id {number} and id {found[name]}; a class has one'
            )
    taken = {number: name for name, number in found.items()}
    for number, name in labels:
        if number is not None and name is None and number not in taken:
            taken[number], found[str(number)] = str(number), number
    if len(taken) < len(found):
        number = next(n for n, count in Counter(found.values()).items() if count > 1)
        same = [name for name, own in found.items() if own == number]
        raise FolderError(
            f'source "{source}": id {number} is "{same[0]}" and "{same[1]}"; each class has its own'
        )
    for name, number in found.items():
        if known.get(name, number) != number or any(
            own == number and other != name for other, own in known.items()
        ):
            other = next(other for other, own in known.items() if other == name or own == number)
            raise FolderError(
                f'source "{source}" has class "{name}" with id {number}, and in the folder "{other}" has id '
                f"{known[other]}; classes are joined by name and keep their ids: use another folder"
            )
    nameless = sorted({name for number, name in labels if name is not None and name not in found})
    if not found and not known and all(str(_number(name)) == name for name in nameless):
        found = {name: _number(name) for name in nameless}  # folders that are called by ids
    last = max([*found.values(), *known.values()], default=-1)
    for name in nameless if not found.keys() >= {*nameless} else ():
        if name not in known:
            last += 1
        found[name] = known.get(name, last)
    return dict(sorted(found.items(), key=lambda each: each[1]))


def _number(name: str) -> int:
    return int(name) if name.isdecimal() and len(name) < 10 else -1


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column.combine_chunks()
    if pa.types.is_string(kind) and not pa.types.is_string(_plain(column.type)):
        return pa.array([_text(value) for value in column.to_pylist()], kind)
    return column.cast(kind).combine_chunks()


def _as_array(values: object, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)
