"""The classes of what is loaded, joined by name."""

from collections.abc import Sequence
from pathlib import Path

from synthgen import storage
from synthgen.errors import FolderError


def class_names(split: str | Path) -> dict[int, str]:
    """The classes of a split's dataset by id, from the classes.txt above it (line number = id; an empty line
    is none).

    Raises:
        FolderError: there is no classes.txt.
    """
    path = Path(split).resolve().parent / "classes.txt"
    if not storage.exists(path):
        raise FolderError(
            f"{split}: no classes.txt in {path.parent}; a split such as final/main/train is wanted"
        )
    try:
        return {k: name for k, name in enumerate(storage.read(path).decode().splitlines()) if name}
    except UnicodeDecodeError as error:
        raise FolderError(f"{path}: byte {error.start} is not UTF-8; a class a line is wanted") from None


def join_classes(splits: Sequence[str | Path]) -> dict[int, str]:
    """The classes of all splits.

    Raises:
        FolderError: a split has no classes.txt; an id means two names, or a name has two ids.
    """
    return joined({str(split): class_names(split) for split in splits})


def joined(named: dict[str, dict[int, str]]) -> dict[int, str]:
    """The classes of several datasets, each by what it is called.

    Raises:
        FolderError: an id means two names, or a name has two ids.
    """
    found, ids = dict[int, str](), dict[str, int]()
    for where, names in named.items():
        for k, name in names.items():
            other = ids.setdefault(name, k)
            if found.setdefault(k, name) != name or other != k:
                raise FolderError(
                    f'{where}: class id {k} is "{name}", elsewhere {other} is "{found[other]}"; join them by '
                    "`[reshard]` or --add, which give each class one id"
                )
    return found
