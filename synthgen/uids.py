"""Uids as arrays: hex digits to pairs and back, sorted, looked up, counted. A pool has millions,
and as a string of Python's each takes five times the memory.
"""

import binascii
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UID = np.dtype("u8,u8")
"""Upper and lower half, as DataComp's subset files have them."""
MILLION = 1_000_000


def uid_array(uids: Sequence[str]) -> npt.NDArray[np.void]:
    """Hex uids as DataComp's pairs: dtype "u8,u8", shape (n,), in the order given."""
    return uid_pairs(pa.chunked_array([pa.array(uids, pa.large_string())]))


def uid_pairs(uids: pa.ChunkedArray) -> npt.NDArray[np.void]:
    """`uid_array` of a column of them; no uid becomes a string of Python's."""
    pairs = np.empty(len(uids), dtype=UID)
    halves, start = pairs.view(np.uint64).reshape(-1, 2), 0
    for chunk in uids.chunks:
        end = start + len(chunk)
        width = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
        ends = np.frombuffer(chunk.buffers()[1], width)[chunk.offset : chunk.offset + len(chunk) + 1]
        text = memoryview(chunk.buffers()[2] or b"")[ends[0] : ends[-1]] if len(chunk) else b""
        halves[start:end] = np.frombuffer(binascii.unhexlify(text), dtype=">u8").reshape(-1, 2)
        start = end
    return pairs


def uid_column(pairs: npt.NDArray[np.void]) -> pa.ChunkedArray:
    """The hex uids of an array made by `uid_pairs`, as a column, a million a chunk."""
    chunks = []
    for start in range(0, len(pairs), MILLION):
        text = uid_hex(pairs[start : start + MILLION]).encode()
        ends = np.arange(0, len(text) + 1, 32, dtype=np.int32)
        chunks.append(pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text)))
    return pa.chunked_array(chunks, pa.string())


def uid_strings(pairs: npt.NDArray[np.void]) -> list[str]:
    """The hex uids of an array made by `uid_array`."""
    text = uid_hex(pairs)
    return [text[at : at + 32] for at in range(0, len(text), 32)]


def uid_hex(pairs: npt.NDArray[np.void]) -> str:
    """The same as one string."""
    return np.stack([pairs["f0"], pairs["f1"]], axis=1).astype(">u8").tobytes().hex()


def sort_uids(pairs: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Uids in order, as DataComp's subset files hold them."""
    halves = np.ascontiguousarray(pairs).view(np.uint64).reshape(-1, 2)
    found = halves[np.argsort(halves[:, 0])]
    if (found[1:, 0] == found[:-1, 0]).any():  # the same upper half
        found = found[np.lexsort((found[:, 1], found[:, 0]))]
    return found.view(UID).reshape(-1)


def rows_of(pairs: npt.NDArray[np.void], pool: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """The row of the pool that each uid is, -1 where it is none; the pool has no uid twice."""
    both = np.concatenate([pool, pairs])
    order = np.lexsort((both["f1"], both["f0"]))
    number = np.empty(len(both), dtype=np.intp)
    ordered = both[order]
    number[order] = np.cumsum(np.r_[True, ordered[1:] != ordered[:-1]][: len(both)])
    row = np.full(len(both) + 1, -1, dtype=np.intp)
    row[number[: len(pool)]] = np.arange(len(pool))
    return row[number[len(pool) :]]


def repeated(pairs: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.intp]]:
    """The uids that are there several times, and how often."""
    high = np.sort(pairs["f0"])
    alike = high[1:][high[1:] == high[:-1]]
    if not len(alike):  # as mostly
        return pairs[:0], np.empty(0, np.intp)
    found, counts = np.unique(pairs[np.isin(pairs["f0"], alike)], return_counts=True)
    return found[counts > 1], counts[counts > 1]
