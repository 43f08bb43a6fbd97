"""Where the arrays of an npz lie in the file, so that single rows of them can be read."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthgen import storage
from synthgen.errors import FolderError


class Place(NamedTuple):
    """An array in a file: where its numbers begin, in bytes, its shape, and their type; rows follow each
    other.
    """

    start: int
    shape: tuple[int, ...]
    kind: np.dtype[np.generic]


def places(path: Path) -> dict[str, Place]:
    """The arrays of an npz, by name.

    Raises:
        WorkError: the file is missing.
        FolderError: an array is compressed, or lies column by column.
    """
    found = {}
    with storage.open_read(path) as file, zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            file.seek(entry.header_offset + 26)
            file.seek(int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little"), 1)
            form = np.lib.format
            is_old = form.read_magic(file) == (1, 0)
            shape, is_fortran, kind = (
                form.read_array_header_1_0(file) if is_old else form.read_array_header_2_0(file)
            )
            if entry.compress_type != zipfile.ZIP_STORED or is_fortran:
                raise FolderError(f"{path}: {name} is compressed, or has no plain rows; make its shard anew")
            found[name] = Place(file.tell(), shape, kind)
    return found
