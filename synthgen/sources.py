"""Real images that a recipe names: which there are, of which class, and their pixels.

A source is what `importing.forms` opens, with labels. This room knows no recipe and no run: it reads what
other people made, and changes nothing.
"""

import contextlib
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from synthgen import storage
from synthgen.data import Category
from synthgen.errors import RecipeError, WorkError
from synthgen.importing import UID, Found, uid_of
from synthgen.importing.forms import Form, Keys, open_form, samples_of


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


def open_source(
    path: Path,
    name: str,
    classes: Sequence[Category],
    *,
    complete: bool = True,
    image: str = "",
    label: str = "",
) -> Source:
    """What a source has of these classes, which it knows by name, or by synset as ImageNet's folders do.

    Args:
        complete: every class has to have an image; else one has to.
        image: of a table, the column of paths; `label` that of classes.

    Raises:
        RecipeError: as `list_images`; or a class has no image.
    """
    labels = {category.name: category.name for category in classes}
    synsets = Counter(category.synset for category in classes if category.synset)
    for category in classes:
        if synsets[category.synset] == 1:
            labels.setdefault(category.synset, category.name)
    every = list_images(path, name, image=image, label=label)
    images = {one.uid: one for one in every if one.class_name in labels}
    by_class: dict[str, list[str]] = {category.name: [] for category in classes}
    for one in images.values():
        by_class[labels[one.class_name]].append(one.uid)
    for class_name, uids in by_class.items():
        if not uids and (complete or not images):
            raise RecipeError(f'{path}: no image of the class "{class_name}"; add some, or take it out')
    return Source(images, by_class)


def open_all(path: Path, name: str, *, image: str = "", label: str = "") -> Source:
    """All images of a source, those without a label too, by the class "".

    Raises:
        RecipeError: as `list_images`.
    """
    images = {one.uid: one for one in list_images(path, name, labelled=False, image=image, label=label)}
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


def list_images(
    path: Path, source: str, *, labelled: bool = True, image: str = "", label: str = ""
) -> list[RealImage]:
    """The labelled images of a source, in order of their places in it; with `labelled` False all, those
    without a label of the class "".

    A uid is the image's own name where that is 32 hex digits and unique in the source; else a hash of
    `source`, the source's name, and of the image's place: never of its bytes, nor of where the source lies.

    Raises:
        RecipeError: there is none, or a tar cannot be read.
    """
    form = open_form(path, Keys(image, label))
    found = [
        _real_image(one, form, labelled)
        for piece in form.pieces
        for one in samples_of(form, piece, images=False)
        if one.error or (one.image and not (labelled and _is_loose(form, one)))
    ]
    if not found:
        raise RecipeError(
            f"{path}: no {'labelled ' if labelled else ''}images there; a folder with a folder of images a "
            "class, a folder of webdataset tars, a table with image and label, or a COCO or LVIS .json is "
            "wanted"
        )
    names = [image.key.rpartition("/")[2].partition(".")[0] for image in found]
    counts = Counter(names)
    return [
        image._replace(uid=name if counts[name] == 1 and UID.fullmatch(name) else uid_of(source, image.key))
        for image, name in zip(found, names, strict=True)
    ]


def _is_loose(form: Form, found: Found) -> bool:
    """Whether an image that is a file of its own has no class: it lies in no folder, or has no object."""
    return form.kind != "tars" and not {"class_name", "class_id"} & found.data.keys()


def _real_image(found: Found, form: Form, labelled: bool) -> RealImage:
    """A sample as an image, with its label where that is wanted.

    Raises:
        RecipeError: it has no class, or cannot be read.
    """
    file, name = form.folder / found.file, found.data.get("class_name")
    if form.kind == "table" and name is None and "class_id" in found.data:
        name = str(found.data["class_id"])
    what = f"{file}: {found.key}" if found.key not in ("", found.file) else f"{file}"
    if found.error or not found.image:
        raise RecipeError(f"{what}: {found.error}; put the whole file there")
    if labelled and not isinstance(name, str):
        raise RecipeError(
            f"{what} has no class; a .cls with a classes.txt beside the tars, or a .json with class_name, is "
            "wanted"
        )
    return RealImage("", str(name or ""), found.place, file, *found.image[1:])


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
    """The pixels of an image file, shape (height, width, 3), as `open_picture` has them; None as there."""
    picture = open_picture(data)
    return None if picture is None else np.asarray(picture)


def open_picture(data: bytes) -> Image.Image | None:
    """An image file in RGB: upright, on white, the first of several frames; None where it is no image, or a
    damaged one.
    """
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
        with contextlib.suppress(Exception):  # what is wrong with EXIF is many things, and no damage
            ImageOps.exif_transpose(opened, in_place=True)
        if opened.has_transparency_data:
            white = Image.new("RGBA", opened.size, "white")
            return Image.alpha_composite(white, opened.convert("RGBA")).convert("RGB")
        return opened if opened.mode == "RGB" else opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
