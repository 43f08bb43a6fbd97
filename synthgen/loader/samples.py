"""A sample's members -> the fields of a batch: image, label, caption, mask, boxes, whatever its json says."""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from synthgen.errors import WorkError
from synthgen.importing import ENDINGS
from synthgen.sources import open_picture

if TYPE_CHECKING:
    import torch

PICTURES = ("image", "mask", "target")
"""Fields that pixels are decoded for."""
BATCHED = ("source", "positive", "probabilities")
"""Fields that do not come from the members."""
KEY = re.compile(r"([0-9a-f]{32})(-\d+)?")
"""What a key with a uid is: repeated samples have a number behind it."""


class Sample:
    """The members of one sample, read when they are asked for.

    Raises:
        WorkError: by each property: the member is missing, or is not what it should be.
    """

    def __init__(self, key: str, members: Mapping[str, bytes], classes: Mapping[str, int]) -> None:
        self.key, self.members, self._classes = key, members, classes

    @cached_property
    def json(self) -> dict[str, Any]:
        """The members' json; empty where there is none."""
        try:
            told = json.loads(self.members.get("json", b"{}"))
        except ValueError as error:
            raise WorkError(f"json: {error}") from None
        return told if isinstance(told, dict) else {}

    @property
    def uid(self) -> str:
        """The key's 32 hex digits, as in final/ and in a pool; else the json's uid, or the key."""
        found = KEY.fullmatch(self.key.rpartition("/")[2])
        return found[1] if found else str(self.json.get("uid", self.key))

    @property
    def class_id(self) -> int:
        told = self.members["cls"].decode("utf-8", "replace") if "cls" in self.members else None
        try:
            return int(self.json["class_id"] if told is None else told)
        except (ValueError, TypeError, KeyError):
            if told is not None and told.strip() in self._classes:  # other people's may hold names
                return self._classes[told.strip()]
            raise WorkError("no class id: a member .cls or class_id in its json is wanted") from None

    @property
    def text(self) -> str:
        if "txt" in self.members:
            return self.members["txt"].decode("utf-8", "replace")
        text = self.json.get("text") or self.json.get("caption")
        if not text:
            raise WorkError("no caption: a member .txt or text in its json is wanted")
        return str(text)

    @cached_property
    def image(self) -> "torch.Tensor":
        """The pixels, uint8 of shape (3, height, width); upright, transparent ones on white."""
        import torch

        data = next((self.members[suffix] for suffix in ENDINGS if suffix in self.members), None)
        if data is None:
            raise WorkError(f"no image: a member {', '.join(ENDINGS)} is wanted")
        picture = open_picture(data)
        if picture is None:
            raise WorkError("image does not decode")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    @cached_property
    def mask(self) -> "torch.Tensor":
        """Where the object is, uint8 of shape (height, width): 1 where the mask is over a half."""
        import torch

        try:
            with Image.open(io.BytesIO(self.members["mask.png"])) as picture:
                return torch.from_numpy((np.asarray(picture.convert("L")) > 127).astype(np.uint8))
        except KeyError:
            raise WorkError("no mask: a member mask.png is wanted") from None
        except (OSError, ValueError, SyntaxError):
            raise WorkError("mask.png does not decode") from None

    def target(self) -> dict[str, "torch.Tensor"]:
        """The objects as torchvision's detectors take them: `boxes` (n, 4) in pixels, x0 y0 x1 y1; `labels`
        (n,), int64; with a mask also `masks` (n, height, width). Of an imported COCO file all boxes of known
        classes that are not empty; else the one object of the mask.
        """
        import torch
        from torchvision import tv_tensors

        size = tuple(self.image.shape[1:])
        if "boxes" in self.json:
            try:
                named = zip(self.json["boxes"], self.json["box_objects"], strict=True)
                own = [
                    ([x, y, x + width, y + height], self._classes[name])
                    for (x, y, width, height), name in named
                    if name in self._classes and width > 0 and height > 0
                ]
            except (KeyError, TypeError, ValueError):
                raise WorkError("boxes: lists of x, y, width, height and box_objects are wanted") from None
            corners = torch.tensor([box for box, _ in own], dtype=torch.float32).reshape(-1, 4)
            labels = torch.tensor([label for _, label in own], dtype=torch.int64)
            found = {"labels": labels}
        else:
            rows, columns = self.mask.any(1).nonzero(), self.mask.any(0).nonzero()
            is_there = len(rows) > 0
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if is_there else []
            corners = torch.tensor(edges, dtype=torch.float32).reshape(-1, 4)
            labels = torch.tensor([self.class_id] if is_there else [], dtype=torch.int64)
            masks = tv_tensors.Mask(self.mask[None] if is_there else self.mask[None][:0])
            found = {"labels": labels, "masks": masks}
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)
        return {"boxes": boxes, **found}

    def other(self, field: str) -> object:
        """A member by its suffix (.npy as an array, text and json as they are, else bytes), or a key of the
        json.
        """
        data = self.members.get(field)
        if data is None:
            if field not in self.json:
                raise WorkError(f'no "{field}": neither a member nor a key of its json')
            return self.json[field]
        ending = field.rpartition(".")[2]
        try:
            if ending == "npy":
                return np.load(io.BytesIO(data), allow_pickle=False)
            if ending == "json":
                return json.loads(data)
        except (ValueError, EOFError) as error:
            raise WorkError(f"{field}: {error}") from None
        return data.decode("utf-8", "replace") if ending in ("txt", "cls") else data


def read_fields(
    sample: Sample, fields: Sequence[str], transform: "Callable[..., Any] | None", pixels: Any = None
) -> dict[str, object]:
    """The fields of a sample that its members hold, in the order given.

    Args:
        transform: takes the image; where masks or boxes are wanted too, (image, target) as tv_tensors, and
            returns both.
        pixels: an image in place of the sample's own.

    Raises:
        WorkError: one is missing or damaged.
    """
    found: dict[str, object] = {}
    if any(field in fields for field in PICTURES):
        found |= _pictures(sample, fields, transform, pixels)
    for field in fields:
        if field == "class_id":
            found[field] = sample.class_id
        elif field == "text":
            found[field] = sample.text
        elif field == "uid":
            found[field] = sample.uid
        elif field not in (*PICTURES, *BATCHED):
            found[field] = sample.other(field)
    return found


def _pictures(
    sample: Sample, fields: Sequence[str], transform: "Callable[..., Any] | None", pixels: Any
) -> dict[str, object]:
    image = sample.image if pixels is None else pixels
    if "target" not in fields and "mask" not in fields:
        return {"image": scaled(image) if transform is None else transform(image)}
    from torchvision import tv_tensors

    image = tv_tensors.Image(image)
    if "target" in fields:
        target: dict[str, Any] = sample.target()
    else:
        target = {}
    if "mask" in fields:
        target["mask"] = tv_tensors.Mask(sample.mask)
    if transform is None:
        image = scaled(image)
    else:
        image, target = transform(image, target)
    found: dict[str, object] = {"image": image.as_subclass(_tensor())}
    if "mask" in target:
        found["mask"] = target.pop("mask").as_subclass(_tensor()).long()
    return found | {"target": target}


def _tensor() -> "type[torch.Tensor]":
    import torch

    return torch.Tensor


def scaled(image: "torch.Tensor") -> "torch.Tensor":
    """float32 in [0, 1]."""
    return image.float() / 255
