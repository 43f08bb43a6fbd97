"""The columns that rules see, and what rules make of them: numbers, texts, cells, the order in which samples
were asked for. Looks at columns only.
"""

import hashlib
from collections.abc import Container, Iterator, Mapping
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from synthgen.errors import RecipeError
from synthgen.uids import uid_array

Columns = Mapping[str, npt.NDArray[np.generic]]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]
CELL_COLUMNS = {"class": "class_name", "model": "model"}

AnyColumn = Annotated[str, "column"]
NumberColumn = Annotated[str, "numbers"]
TextColumn = Annotated[str, "text"]
Features = Annotated[str, "features"]
"""Types of a rule's keys that name columns, so that `check` knows which must be there; "" names none."""


class Survivors(Mapping[str, npt.NDArray[np.generic]]):
    """The columns at some rows; a column is cut when a rule asks for it. What is worked out of a whole column
    is kept for the rules after, and a pool's texts do not become Python's where Arrow's will do.
    """

    def __init__(self, columns: Columns, rows: npt.NDArray[np.intp] | None = None) -> None:
        self._columns, self._rows, self._whole = columns, rows, self
        self._codes, self._texts = dict[str, tuple[Codes, Mask]](), dict[str, pa.Array]()
        self._uids: npt.NDArray[np.void] | None = None

    def at(self, rows: npt.NDArray[np.intp] | None) -> "Survivors":
        """The columns at some of all rows; None is all of them."""
        whole = self._whole
        part = Survivors(whole._columns, None if rows is not None and len(rows) == whole.n_rows else rows)
        part._whole = whole
        return part

    def is_there(self, read: Mapping[str, str]) -> Mask:
        """Which rows have whole numbers in the columns that a rule reads, by its keys, but not as
        `numbers`; what it cannot see itself.
        """
        there = np.ones(self.n_rows, np.bool_)
        for key, name in read.items():
            if self.is_text(name):
                continue
            values = self._columns[name]
            if np.ma.is_masked(values):
                there &= self._cut(np.ma.getmaskarray(values)) == 0
            elif key.startswith("per") and values.dtype.kind == "f":
                there &= ~np.isnan(self._cut(values))
        return there

    @property
    def n_rows(self) -> int:
        return len(self.uids()) if self._rows is None else len(self._rows)

    def uids(self) -> npt.NDArray[np.void]:
        """See the function `uids`."""
        whole = self._whole
        if whole._uids is None:
            known = getattr(self._columns, "uids", None)  # a pool's
            whole._uids = uid_array(self._columns["uid"].tolist()) if known is None else known
        return self._cut(whole._uids)  # type: ignore[return-value]

    def is_missing(self, name: str) -> Mask:
        """Which texts of a column are ""."""
        stored = self._stored(name)
        if stored is None:
            return self.codes(name)[1]
        found: npt.NDArray[np.generic] = pc.fill_null(pc.equal(stored, ""), True).to_numpy()
        return self._cut(found)  # type: ignore[return-value]

    def codes(self, name: str) -> tuple[Codes, Mask]:
        """See the function `codes`."""
        known = self._whole._codes
        if name not in known:
            stored = self._stored(name)
            known[name] = _encode(self._columns[name] if stored is None else stored.fill_null(""), name)
        found, missing = known[name]
        return self._cut(found), self._cut(missing)  # type: ignore[return-value]

    def texts(self, name: str) -> pa.Array:
        """See the function `texts`."""
        known = self._whole._texts
        if name not in known:
            stored = self._stored(name)
            known[name] = (
                _texts(self._columns[name])
                if stored is None
                else pa.concat_arrays(
                    [pa.array([], pa.large_string()), *stored.cast(pa.large_string()).fill_null("").chunks]
                )
            )
        return known[name] if self._rows is None else known[name].take(pa.array(self._rows))

    def masked(self, name: str) -> npt.NDArray[np.generic]:
        """A column, whole numbers that are missing masked."""
        values = self._columns[name]
        return values if self._rows is None else values[self._rows]

    def is_text(self, name: str) -> bool:
        """See the function `is_text`."""
        known = getattr(self._columns, "is_text", None)  # a pool's, which reads nothing
        return known(name) if known else self._columns[name].dtype.kind in "OU"

    def _stored(self, name: str) -> pa.ChunkedArray | None:
        """A column of texts in Arrow's form, where there is one."""
        is_stored = hasattr(self._columns, "stored") and self.is_text(name)
        return self._columns.stored(name) if is_stored else None  # type: ignore[attr-defined]

    def _cut(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        plain = np.ma.getdata(values)
        return plain if self._rows is None else plain[self._rows]

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        return self._cut(self._columns[name])

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def n_rows(columns: Columns) -> int:
    """How many rows the columns have."""
    return columns.n_rows if isinstance(columns, Survivors) else len(columns["uid"])


def is_text(columns: Columns, name: str) -> bool:
    """Whether a column holds texts."""
    return columns.is_text(name) if isinstance(columns, Survivors) else columns[name].dtype.kind in "OU"


def numbers(columns: Columns, name: str) -> npt.NDArray[np.floating]:
    """A column as floats, NaN where it is missing: float32 stays float32, everything else becomes float64."""
    values = columns.masked(name) if isinstance(columns, Survivors) else columns[name]
    if values.dtype.kind not in "biuf" or values.ndim > 1:
        what = "features" if values.ndim > 1 else "text"
        raise RecipeError(f'column "{name}" holds {what}; a rule that compares wants numbers')
    if values.dtype == np.float32:
        return values  # type: ignore[return-value]
    return np.ma.filled(values.astype(np.float64), np.nan)


def texts(columns: Columns, name: str) -> pa.Array:
    """A column of texts in Arrow's form; missing is ""."""
    if not is_text(columns, name):
        raise RecipeError(f'column "{name}" holds numbers; a column of texts is wanted')
    return columns.texts(name) if isinstance(columns, Survivors) else _texts(columns[name])


def _texts(values: npt.NDArray[np.generic]) -> pa.Array:
    return pa.array(values.astype(object), pa.large_string())


def features(columns: Columns, name: str) -> npt.NDArray[np.floating]:
    """Features, shape (rows, width), NaN where they are missing."""
    values = columns[name]
    if values.ndim != 2 or values.dtype.kind != "f":
        raise RecipeError(f'"{name}" is a column; features are wanted, such as "clip_img"')
    return values  # type: ignore[return-value]


def codes(columns: Columns, name: str) -> tuple[Codes, Mask]:
    """A number for each value of a column, the same for equal values, and which values are missing."""
    return columns.codes(name) if isinstance(columns, Survivors) else _encode(columns[name], name)


def _encode(values: npt.NDArray[np.generic] | pa.ChunkedArray, name: str) -> tuple[Codes, Mask]:
    if not isinstance(values, pa.ChunkedArray):
        if values.ndim > 1:
            raise RecipeError(f'"{name}" are features; a column is wanted')
        plain = np.ma.getdata(values)
        if plain.dtype.kind == "f":
            plain = plain + plain.dtype.type(0)  # -0.0 equals 0.0
        is_text = plain.dtype.kind in "OU"
        values = pa.chunked_array([_texts(plain) if is_text else pa.array(plain)])
    encoded = values.dictionary_encode().combine_chunks()
    found, every = encoded.indices.to_numpy(), encoded.dictionary
    if pa.types.is_floating(every.type):
        missing = np.isnan(every.to_numpy())
    elif pa.types.is_integer(every.type) or pa.types.is_boolean(every.type):
        missing = np.zeros(len(every), bool)
    else:
        missing = pc.equal(every, "").to_numpy(zero_copy_only=False)
    return found, missing[found]


def uids(columns: Columns) -> npt.NDArray[np.void]:
    """The uids as DataComp has them: dtype "u8,u8"; their order is that of the texts."""
    if isinstance(columns, Survivors):
        return columns.uids()
    return uid_array(columns["uid"].tolist())


def sequence(columns: Columns) -> tuple[npt.NDArray[np.generic], ...]:
    """Keys for `np.lexsort`, the first last, that put samples in the order in which they were asked for: by
    turn, within a turn by class.
    """
    pairs = uids(columns)
    return pairs["f1"], pairs["f0"], *(columns[name] for name in ("class_id", "turn") if name in columns)


def hashed(columns: Columns, salt: str) -> npt.NDArray[np.uint64]:
    """64 random bits for each sample, a function of the salt and its uid alone."""
    pairs, before = uids(columns), f"{salt} ".encode()
    found = np.empty(len(pairs), np.uint64)
    for start in range(0, len(pairs), 2**20):
        part = pairs[start : start + 2**20]
        text = np.stack([part["f0"], part["f1"]], axis=1).astype(">u8").tobytes().hex().encode()
        digests = [hashlib.sha256(before + text[at : at + 32]).digest()[:8] for at in range(0, len(text), 32)]
        found[start : start + len(part)] = np.frombuffer(b"".join(digests), ">u8")
    return found


def cell_columns(per: str | list[str], known: Container[str] | None = None) -> list[str]:
    """The columns whose values together are a cell: "class", "model", the name of an axis, or that of any
    column.

    Args:
        known: the columns that are there; None takes every other name for an axis.

    Raises:
        RecipeError: a name is that of an axis and of a column.
    """
    found = []
    for name in [per] if isinstance(per, str) else per:
        own = CELL_COLUMNS.get(name, f"axis_{name}")
        if name not in CELL_COLUMNS and known is not None and name in known:
            if own in known:
                raise RecipeError(
                    f'per: "{name}" is a column and an axis; write "{own}" for the axis, or rename it'
                )
            own = name
        found.append(own)
    return found


def cell_numbers(columns: Columns, per: str | list[str]) -> npt.NDArray[np.intp]:
    """The number of each row's cell, from 0; a missing text is a value like others.

    Raises:
        RecipeError: a column holds fractions or features.
    """
    cells = np.zeros(n_rows(columns), dtype=np.int64)
    for name in cell_columns(per, columns):
        values = np.empty(0) if is_text(columns, name) else columns[name]
        if values.dtype.kind == "f" and (values.ndim > 1 or not (values == np.floor(values)).all()):
            raise RecipeError(f'per: "{name}" holds fractions; a cell is made of texts or of whole numbers')
        ids, _ = codes(columns, name)
        merged = cells * (int(ids.max(initial=0)) + 1) + ids
        cells = pa.array(merged).dictionary_encode().indices.to_numpy().astype(np.int64)
    return cells.astype(np.intp, copy=False)
