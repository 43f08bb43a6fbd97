"""COCO and LVIS instance files: one sample an image, whose label is that of its largest object.

An image with several objects has one class all the same, since a sample has one: that of the category with
the largest area in it (crowds last; equal areas: the smaller id). `objects` holds the names of all its
categories and `boxes` all its boxes, so that a rule or a training can treat it otherwise; `n_classes` says
how many there are. An image without objects has no class.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import RecipeError
from synthgen.importing import ENDINGS, Found
from synthgen.importing.tables import is_below


def entries(path: Path) -> tuple[list[Found], dict[str, int]]:
    """An entry for each image, in order of file names, and the ids of the classes.

    Raises:
        RecipeError: it is no such file.
    """
    try:
        told = json.loads(storage.read(path))
        names = {one["id"]: str(one["name"]) for one in told["categories"]}
        licenses = {one["id"]: str(one["name"]) for one in told.get("licenses", ())}
        objects = defaultdict[int, list[dict[str, Any]]](list)
        for one in told["annotations"]:
            objects[one["image_id"]].append(one)
        found = [_entry(image, objects[image["id"]], names, licenses) for image in told["images"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(
            f"{path}: no COCO or LVIS file of instances: {type(error).__name__} {error}"
        ) from None
    if not found:
        raise RecipeError(f"{path}: names no images")
    return sorted(found, key=lambda entry: entry.key), {name: number for number, name in names.items()}


def _entry(
    image: dict[str, Any], objects: Sequence[dict[str, Any]], names: dict[int, str], licenses: dict[int, str]
) -> Found:
    # LVIS has no file names: its images are COCO's, below the folders that their URLs end in
    name = str(image.get("file_name") or "/".join(str(image["coco_url"]).split("/")[-2:]))
    areas = defaultdict[int, float](float)
    for one in objects:
        areas[one["category_id"]] += 0.0 if one.get("iscrowd") else float(one.get("area", 0.0))
    largest = min(areas, key=lambda number: (-areas[number], number), default=None)
    data: dict[str, object] = {
        "image_id": image["id"],
        "objects": [names[number] for number in sorted(areas)],
        "boxes": [[float(side) for side in one["bbox"]] for one in objects],
        "box_objects": [names[one["category_id"]] for one in objects],
        "n_classes": len(areas),
    }
    if largest is not None:
        data |= {"class_id": largest, "class_name": names[largest]}
    if image.get("license") in licenses:
        data["license"] = licenses[image["license"]]
    suffix = name.rpartition(".")[2].lower()
    if not is_below(name):
        return Found(name, name, [], None, data, "no path below the folder of images")
    return Found(name, name, [(suffix if suffix in ENDINGS else "jpg", 0, 0)], None, data)


def image_folder(path: Path, names: Sequence[str]) -> Path:
    """The folder that the file names start from: that of the file, the one above, `images` in either, or the
    split that the file is named after ("instances_val2017.json": val2017), in any of these.

    Raises:
        RecipeError: the first images are in none.
    """
    split = path.stem.rpartition("_")[2]
    near = [path.parent, path.parent.parent]
    near += [folder / "images" for folder in near]
    folders = [*near, *(folder / split for folder in near)]
    names = names[:20]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    raise RecipeError(
        f"{path}: its images are not there: {names[0] if names else 'none'} was looked for in "
        f"{', '.join(str(folder) for folder in folders)}; put the .json beside them"
    )
