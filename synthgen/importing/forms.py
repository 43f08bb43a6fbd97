"""What kind of data a source is, which pieces it has, and the samples of each: tars, a folder of images, a
table of image paths, a COCO or LVIS file.
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from synthgen import shards, storage
from synthgen.errors import RecipeError, WorkError
from synthgen.importing import ENDINGS, Found, archives, coco, tables

IMAGES_A_PIECE = 10_000
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
"""Folders that are splits, not classes, where they lie at the top of a source, and nothing else does."""


class Piece(NamedTuple):
    """A tar, or some of the images that are files of their own. `size` is the tar's bytes, or the sum of the
    images'.
    """

    first: str
    last: str
    images: int
    size: int
    entries: Sequence[Found] = ()


class Form(NamedTuple):
    """A source opened: how it is laid out, the folder that its paths are below, its pieces, the names of its
    classes where it has a list of them; images that lie beside its tars, and are not brought in.
    """

    kind: str
    folder: Path
    pieces: list[Piece]
    classes: list[str]
    ids: dict[str, int]
    loose: Sequence[str] = ()


class Keys(NamedTuple):
    """Which columns of a table hold what; "" is not told."""

    image: str = ""
    label: str = ""
    group: str = ""
    split: str = ""


def open_form(path: Path, keys: Keys = Keys()) -> Form:  # noqa: B008
    """What a source is, and all that it has.

    Args:
        path: a folder with tars below it, or with images (a folder a class), a .tar, a table (.csv, .tsv,
            .parquet, .jsonl), or a COCO or LVIS .json.
        keys: for a table, which of its columns are what.

    Raises:
        RecipeError: it is none of these, or cannot be read.
    """
    kind = path.suffix.lower()
    if kind in tables.KINDS or kind == ".json":
        if not path.is_file():
            raise RecipeError(f"{path}: there is no such file")
        entries, ids = (
            coco.entries(path) if kind == ".json" else (tables.entries(path, *keys), dict[str, int]())
        )
        names = [entry.file for entry in entries if not entry.error]
        folder = coco.image_folder(path, names) if kind == ".json" else path.parent
        return Form("coco" if kind == ".json" else "table", folder, _cut(entries, folder), [], ids)
    if any(keys):
        raise RecipeError(
            f"{path}: --image, --label, --group and --split are for a table (.csv, .tsv, .parquet, .jsonl); "
            "--columns NEW=OLD names columns of other data"
        )
    files = [path] if path.is_file() and kind == ".tar" else _files(path)
    folder = path.parent if path.is_file() else path
    packed = [file for file in files if file.suffix == ".tar"]
    if packed:
        names = [file.relative_to(folder).as_posix() for file in packed]
        sizes = [storage.size(file) for file in packed]
        pieces = [Piece(name, name, 0, size) for name, size in zip(names, sizes, strict=True)]
        loose = [file.relative_to(folder).as_posix() for file in files if file.suffix[1:].lower() in ENDINGS]
        return Form("tars", folder, pieces, read_classes(folder), {}, loose)
    entries = _in_folders(files, folder)
    if not entries:
        wrong = "no images there" if storage.exists(path) else "is not there"
        raise RecipeError(
            f"{path}: {wrong}; a folder of webdataset tars (not compressed), a folder with a folder of "
            "images a class, a table of image paths, or a COCO or LVIS .json is wanted"
        )
    return Form("folder", folder, _cut(entries, folder), read_classes(folder), {})


def samples_of(form: Form, piece: Piece, *, images: bool = True) -> Iterator[Found]:
    """The samples of a piece, in order; with `images` their images are read."""
    if form.kind == "tars":
        split = split_of(piece.first)
        path = form.folder / piece.first
        for found in _with_own_keys(archives.samples(path, piece.first, form.classes, images=images)):
            yield found._replace(data={"split": split, **found.data}) if split else found
        return
    for entry in piece.entries:
        if not entry.members or not images:
            yield entry
            continue
        try:
            data = storage.read(form.folder / entry.file)
        except (WorkError, OSError):
            yield entry._replace(error="cannot be read")
            continue
        yield entry._replace(stored=data, members=[(entry.members[0][0], 0, len(data))])


def passed_over(form: Form, output: Path) -> str:
    """What is to be said of a source's loose images: how many of which kinds, where, and how they are brought
    in.
    """
    kinds = Counter(name.rpartition(".")[2].lower() for name in form.loose)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    own = posixpath.commonpath([posixpath.dirname(name) for name in form.loose])
    is_apart = own and not any(piece.first.startswith(f"{own}/") for piece in form.pieces)
    then = "move them into a folder without tars, and import that by itself"
    if is_apart:
        then = f"`synthgen import {form.folder / own} -o {output}` brings them in"
    return (
        f"{form.folder}: {len(form.loose)} images that lie beside its tars were passed over "
        f"({counted}; first {form.loose[0]}); {then}"
    )


def split_of(file: str) -> str:
    """The split that a file is of, by the folder at the top that it lies in; "" for none."""
    top, slash, _ = file.partition("/")
    return top if slash and top in SPLITS else ""


def read_classes(path: Path) -> list[str]:
    """The names of the classes in a source's classes.txt, or, where it is a split of a dataset in tars, in
    the dataset's; nothing where there is none.
    """
    has_tars = any(name.endswith(".tar") for name in storage.names(path))
    for folder in (path, path.parent) if has_tars else (path,):
        if storage.exists(folder / "classes.txt"):
            lines = storage.read(folder / "classes.txt").decode("utf-8-sig").splitlines()
            return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return []


def _files(path: Path) -> list[Path]:
    """All files below a folder, in order of folders, then of names, but hidden ones: `.ipynb_checkpoints` has
    copies of images. A link to a folder is followed, but to one that it lies in, which would never end.

    Raises:
        RecipeError: a folder cannot be listed.
    """

    def stop(error: OSError) -> None:
        if path.is_dir():  # else there are no images, which is said elsewhere
            raise RecipeError(f"{error.filename}: cannot be listed: {error.strerror}")

    found, above = list[tuple[str, list[str]]](), {str(path): {os.path.realpath(path)}}
    for folder, folders, names in os.walk(path, followlinks=True, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.append((folder, [name for name in names if not name.startswith(".")]))
        own = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in own]
        above |= {os.path.join(folder, name): own | {real[name]} for name in folders}
    return [Path(folder, name) for folder, names in sorted(found) for name in sorted(names)]


def _in_folders(files: Sequence[Path], folder: Path) -> list[Found]:
    """A folder's images, whose class is the folder at the top, or below a split; none where there is no
    folder.
    """
    names = [file.relative_to(folder).as_posix() for file in files if file.suffix[1:].lower() in ENDINGS]
    has_splits = all(split_of(name) for name in names)
    found = []
    for name in names:
        split = split_of(name) if has_splits else ""
        label = posixpath.relpath(name, split).split("/")[:-1] if split else name.split("/")[:-1]
        data: dict[str, object] = {"class_name": label[0]} if label else {}
        found.append(Found(name, name, [_whole(name)], None, data | ({"split": split} if split else {})))
    return found


def _whole(name: str) -> tuple[str, int, int]:
    """An image file as the only member of its sample; its size is found when it is read."""
    return name.rpartition(".")[2].lower(), 0, 0


def _cut(entries: Sequence[Found], folder: Path) -> list[Piece]:
    """Images in files of their own, so many a piece."""
    pieces, whole = [], list(_with_own_keys(entries))
    for start in range(0, len(entries), IMAGES_A_PIECE):
        own = [_with_size(entry, folder) for entry in whole[start : start + IMAGES_A_PIECE]]
        size = sum(entry.members[0][2] for entry in own if entry.members)
        pieces.append(Piece(own[0].place, own[-1].place, len(own), size, own))
    return pieces


def _with_own_keys(all_found: Iterable[Found]) -> Iterator[Found]:
    """Samples whose keys are there once: a further one of a key is another row, with an error."""
    seen = Counter[str]()
    for found in all_found:
        seen[found.key] += 1
        if seen[found.key] > 1:
            error = found.error or "duplicate key"
            found = found._replace(key=f"{found.key}#{seen[found.key]}", error=error)
        yield found


def _with_size(entry: Found, folder: Path) -> Found:
    if not entry.members:
        return entry
    try:
        size = os.stat(folder / entry.file).st_size
    except (OSError, ValueError):
        return entry._replace(members=[], error="no such file")
    return entry._replace(members=[(entry.members[0][0], 0, size)])


def spell(piece: Piece) -> list[object]:
    """A piece as records hold it; of images their paths, sizes and columns are in a hash."""
    listed = [[entry.place, entry.members, entry.data, entry.error] for entry in piece.entries]
    told = shards.digest(_plain(listed))[:16] if listed else ""
    return [piece.first, piece.last, piece.images, piece.size, told]


def _plain(value: object) -> object:
    """A value of a table as JSON can say it."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return repr(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
