"""Real images that a recipe names: which there are, of which class, and their pixels.

A source is a folder with a folder a class, or a folder of webdataset tars. This room knows no recipe and no
run: it reads what other people made, and changes nothing.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from synthgen import storage
from synthgen.data import Category
from synthgen.errors import RecipeError, WorkError

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


class RealImage(NamedTuple):
    """A labelled image: its uid (32 hex digits), the name of its class, and where its bytes are. `key` is its
    place in the source.
    """

    uid: str
    class_name: str
    key: str
    file: Path
    offset: int
    size: int


class Source(NamedTuple):
    """The real images of a source by their uids, and the uids of each class."""

    images: dict[str, RealImage]
    by_class: dict[str, list[str]]


def open_source(path: Path, name: str, classes: Sequence[Category], *, complete: bool = True) -> Source:
    """What a source has of these classes, which it knows by name, or by synset as ImageNet's folders do.

    Args:
        complete: every class has to have an image; else one has to.

    Raises:
        RecipeError: as `list_images`; or a class has no image.
    """
    labels = {category.name: category.name for category in classes}
    synsets = Counter(category.synset for category in classes if category.synset)
    for category in classes:
        if synsets[category.synset] == 1:
            labels.setdefault(category.synset, category.name)
    images = {image.uid: image for image in list_images(path, name) if image.class_name in labels}
    by_class: dict[str, list[str]] = {category.name: [] for category in classes}
    for image in images.values():
        by_class[labels[image.class_name]].append(image.uid)
    for class_name, uids in by_class.items():
        if not uids and (complete or not images):
            raise RecipeError(f'{path}: no image of the class "{class_name}"; add some, or take it out')
    return Source(images, by_class)


def open_all(path: Path, name: str) -> Source:
    """All images of a source, those without a label too, by the class "".

    Raises:
        RecipeError: as `list_images`.
    """
    images = {image.uid: image for image in list_images(path, name, labelled=False)}
    return Source(images, {"": list(images)})


def listing(source: Source) -> dict[str, list[tuple[str, int]]]:
    """By class, uid and size of each image: what can be known of a source without reading it."""
    return {
        name: sorted((uid, source.images[uid].size) for uid in uids) for name, uids in source.by_class.items()
    }


def sha256_of(source: Source, uid: str) -> str:
    """Of the bytes of an image's file, hex; read once in a process."""
    return _sha256(source.images[uid])


@functools.cache
def _sha256(image: RealImage) -> str:
    return hashlib.sha256(read(image)).hexdigest()


def read_planned(source: Source, uid: str, sha256: str) -> bytes:
    """The bytes of an image's file, which have this sha256.

    Raises:
        RecipeError: they have another, or it has gone.
    """
    image = source.images.get(uid)
    data = read(image) if image else b""
    if not image or hashlib.sha256(data).hexdigest() != sha256:
        what = f"{image.key} has other bytes" if image else f"{uid} is no image of it any more"
        raise RecipeError(
            f"{what}, though images are planned from it; put it back, or use another folder with -o DIR"
        )
    return data


def list_images(path: Path, source: str, *, labelled: bool = True) -> list[RealImage]:
    """The labelled images of a source, in order of their places in it; with `labelled` False all, those
    without a label of the class "".

    A uid is the image's own name where that is 32 hex digits and unique in the source; else a hash of
    `source`, the source's name, and of the image's place: never of its bytes, nor of where the source lies.

    Raises:
        RecipeError: there is none, or a tar cannot be read.
    """
    files = [
        Path(folder, name)
        for folder, _, names in sorted(os.walk(path, followlinks=True))
        for name in sorted(names)
    ]
    tars = [file for file in files if file.suffix == ".tar"]
    classes = read_classes(path)
    found = list(
        itertools.chain.from_iterable(_in_tar(file, path, classes, labelled) for file in tars)
        if tars
        else _in_folders(files, path, labelled)
    )
    if not found:
        raise RecipeError(
            f"{path}: no {'labelled ' if labelled else ''}images there; a folder with a folder of images a "
            "class, or a folder of webdataset tars, is wanted"
        )
    names = [image.key.rpartition("/")[2].partition(".")[0] for image in found]
    counts = Counter(names)
    return [
        image._replace(
            uid=name
            if counts[name] == 1 and re.fullmatch("[0-9a-f]{32}", name)
            else hashlib.sha256(json.dumps([source, image.key]).encode()).hexdigest()[:32]
        )
        for image, name in zip(found, names, strict=True)
    ]


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


def _in_folders(files: Sequence[Path], path: Path, labelled: bool) -> Iterator[RealImage]:
    for file in files:
        class_name = file.relative_to(path).parts[0] if file.parent != path else ""
        if (class_name or not labelled) and file.suffix[1:].lower() in ENDINGS:
            key = file.relative_to(path).as_posix()
            yield RealImage("", class_name, key, file, 0, storage.size(file))


def _in_tar(file: Path, path: Path, classes: Sequence[str], labelled: bool) -> Iterator[RealImage]:
    place = file.relative_to(path).as_posix()
    try:
        with tarfile.open(file, "r:") as tar, io.FileIO(file) as data:
            for key, members in itertools.groupby(_members(tar), lambda member: member[0]):
                sample = {ending.lower(): (at, size) for _, ending, at, size in members}
                image = next((sample[ending] for ending in ENDINGS if ending in sample), None)
                if image:
                    class_name = _class_name(data, sample, classes, f"{file}: {key}") if labelled else ""
                    yield RealImage("", class_name, f"{place}/{key}", file, *image)
    except (tarfile.TarError, OSError) as error:
        raise RecipeError(f"{file}: cannot be read ({error}); put the whole file there") from None


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, int, int]]:
    """Key, ending, offset and size of each file of an archive: the key is the name up to the first dot of its
    last part (webdataset's rule).
    """
    for member in tar:
        if member.isreg():
            folder, slash, name = member.name.rpartition("/")
            name, _, ending = name.partition(".")
            yield folder + slash + name, ending, member.offset_data, member.size
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen


def _class_name(
    data: io.FileIO, sample: dict[str, tuple[int, int]], classes: Sequence[str], where: str
) -> str:
    """The class of a sample: the line of classes.txt that its .cls names, else its json's `class_name`."""

    def read(ending: str) -> bytes:
        offset, size = sample[ending]
        data.seek(offset)
        return data.read(size)

    if "cls" in sample and classes:
        label = read("cls").decode("ascii", "replace").strip()
        if not label.isdecimal() or int(label) >= len(classes):
            raise RecipeError(
                f'{where}.cls says "{label}"; a line of classes.txt, 0 to {len(classes) - 1}, is wanted'
            )
        return classes[int(label)]
    if "json" in sample:
        try:
            name = json.loads(read("json"))["class_name"]
        except (ValueError, KeyError, TypeError):
            name = None
        if isinstance(name, str):
            return name
    raise RecipeError(
        f"{where} has no class; a .cls with a classes.txt beside the tars, or a .json with class_name, is "
        "wanted"
    )


def read(image: RealImage) -> bytes:
    """The bytes of an image's file.

    Raises:
        RecipeError: it has gone, or become shorter, since it was listed.
    """
    try:
        return storage.read(image.file, image.offset, image.size)
    except WorkError:
        raise RecipeError(f"{image.file}: real image {image.key} is there no more; put it back") from None


def decode(data: bytes) -> npt.NDArray[np.uint8] | None:
    """The pixels of an image file, shape (height, width, 3): upright, on white, the first of several frames;
    None where it is no image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
