"""Samples that a file names: to keep, or to leave out."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from synthgen.errors import RecipeError
from synthgen.selection.columns import AnyColumn, Columns, Mask, codes, is_text, texts, uids
from synthgen.uids import UID, uid_array


def listed(columns: Columns, *, file: Path, column: AnyColumn = "uid", field: str = "") -> Mask:
    """Keeps what a file lists: uids, or another column's values, such as urls or keys.

    The file is a .txt with one value a line, a .csv with a header or a .parquet, of which `field` is read
    ("": the one that is called as the column), or a .npy of uids as DataComp's subsets are.

    Raises:
        RecipeError: the file cannot be read, has no such field, or holds values of another kind.
    """
    is_listed, missing = _look_up("listed", columns, file, column, field)
    return is_listed & ~missing


def not_listed(columns: Columns, *, file: Path, column: AnyColumn = "uid", field: str = "") -> Mask:
    """Keeps what a file does not list, for opt-outs and takedowns; the file as in `listed`.

    A sample without a value in the column is not kept: nothing says that it is not one of them.

    Raises:
        RecipeError: the file cannot be read, has no such field, or holds values of another kind.
    """
    is_listed, missing = _look_up("not_listed", columns, file, column, field)
    return ~is_listed & ~missing


def _look_up(rule: str, columns: Columns, file: Path, column: str, field: str) -> tuple[Mask, Mask]:
    """Which values a file lists, and which are missing."""
    key = f"{rule}.file: {file.name}"
    wanted = _read(key, file, field or column)
    if column == "uid":
        own, wanted = _as_bytes(uids(columns)), _as_bytes(_pairs(key, wanted))
        missing = np.zeros(len(own), bool)
    elif isinstance(wanted, np.ndarray):
        raise RecipeError(f"{key}: holds uids; leave `column` out")
    else:
        values = np.empty(0) if is_text(columns, column) else columns[column]
        if values.ndim > 1 or _has_fractions(values):
            raise RecipeError(
                f'{rule}.column: "{column}": texts or whole numbers are wanted, to be looked up'
            )
        if is_text(columns, column):
            own, (_, missing) = texts(columns, column), codes(columns, column)
        else:
            own, missing = (
                pa.array(values),
                np.isnan(values) if values.dtype.kind == "f" else values != values,
            )
        try:
            wanted = wanted.cast(own.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise RecipeError(f'{key}: not of the kind of "{column}": {_line(error)}') from None
    return pc.is_in(own, value_set=wanted).to_numpy(zero_copy_only=False), missing


def _has_fractions(values: npt.NDArray[np.generic]) -> bool:
    return values.dtype.kind == "f" and bool((np.mod(values.astype(np.float64), 1) > 0).any())


def _read(key: str, file: Path, field: str) -> pa.Array | npt.NDArray[np.void]:
    """The values that a file lists."""
    try:
        if file.suffix == ".npy":
            pairs: npt.NDArray[np.void] = np.load(file, allow_pickle=False)
            if pairs.dtype != UID or pairs.ndim != 1:
                raise RecipeError(f"{key}: holds {pairs.dtype}; uids as DataComp's u8,u8 are wanted")
            return pairs
        if file.suffix == ".txt":
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
            return pa.array([line for line in lines if line], pa.string())
        if file.suffix == ".parquet":
            names = pq.read_schema(file).names
            table = pq.read_table(file, columns=[field]) if field in names else None
        elif file.suffix == ".csv":
            names = pyarrow.csv.open_csv(file).schema.names
            as_text = pyarrow.csv.ConvertOptions(include_columns=[field], column_types={field: pa.string()})
            table = pyarrow.csv.read_csv(file, convert_options=as_text) if field in names else None
        else:
            raise RecipeError(f"{key}: a .txt, .csv, .parquet or .npy file is wanted")
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise RecipeError(f"{key}: cannot be read: {_line(error)}") from None
    if table is None:
        raise RecipeError(f'{key}: has no column "{field}"; `field` names one of {", ".join(names)}')
    return table[field].drop_null().combine_chunks()


def _pairs(key: str, wanted: pa.Array | npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    if isinstance(wanted, np.ndarray):
        return wanted
    found = wanted.cast(pa.string())
    wrong = found.filter(pc.invert(pc.match_substring_regex(found, "^[0-9a-f]{32}$")))
    if len(wrong):
        raise RecipeError(f'{key}: "{wrong[0]}" is no uid; 32 of 0-9 and a-f are wanted, or another `column`')
    return uid_array(found.to_pylist())


def _as_bytes(pairs: npt.NDArray[np.void]) -> pa.Array:
    """Uids as 16 bytes each."""
    buffer = pa.py_buffer(np.ascontiguousarray(pairs))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(pairs), [None, buffer])


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
