"""Samples of other people's tars: members of one key together, with what is said of them in json, txt and
cls.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from synthgen import tars
from synthgen.errors import WorkError
from synthgen.importing import ENDINGS, Found

BUFFER = 2**20
TOLD = ("cls", "txt", "json")
"""Members that say something of the sample."""


def samples(path: Path, file: str, classes: Sequence[str], *, images: bool) -> Iterator[Found]:
    """The samples of a tar in order. What stops its reading is the error of a last one, which has no key.

    Args:
        path: the tar.
        file: its path below the source's folder.
        classes: names of the classes that .cls members number; none where they are not known.
        images: whether to read the images too.
    """
    wanted = (*TOLD, *ENDINGS) if images else TOLD
    with open(path, "rb", buffering=BUFFER) as tar:
        key, members, read = "", list[tuple[str, int, int]](), dict[str, bytes]()
        stopped = ""
        walk = tars.walk(tar)
        while not stopped:
            try:
                member = next(walk, None)
            except WorkError as error:
                member, stopped = None, str(error)
            own, suffix = tars.split_name(member.name) if member else ("", "")
            # a member that is there twice begins another sample, so that no byte of it is mixed in
            if members and (member is None or own != key or any(suffix == each[0] for each in members)):
                yield _found(key, file, members, read, classes)
                members, read = [], {}
            if member is None:
                break
            key = own
            members.append((suffix, member.offset, member.size))
            if suffix in wanted:
                tar.seek(member.offset)
                read[suffix] = tar.read(member.size)
        if stopped:
            yield Found("", file, [], None, {}, stopped)


def _found(
    key: str, file: str, members: list[tuple[str, int, int]], read: dict[str, bytes], classes: Sequence[str]
) -> Found:
    found = Found(key, file, members, None, {})
    image = found.image
    try:
        data = _told(read, classes)
    except ValueError as error:
        return found._replace(error=str(error))
    return found._replace(data=data, stored=read.get(image[0]) if image else None)


def _told(read: dict[str, bytes], classes: Sequence[str]) -> dict[str, object]:
    """The columns of a sample. Raises ValueError, which says why, where a member is not what it has to be."""
    data = dict[str, object]()
    if "json" in read:
        try:
            value = json.loads(read["json"])
        except (ValueError, RecursionError):
            raise ValueError("json: not valid JSON") from None
        if not isinstance(value, dict):
            raise ValueError(f"json: a JSON object is wanted, got {type(value).__name__}")
        data |= value
    if "txt" in read:
        try:
            data["text"] = read["txt"].decode()
        except UnicodeDecodeError:
            raise ValueError("txt: not UTF-8") from None
    if "cls" in read:
        label = read["cls"].decode("ascii", "replace").strip()
        number = int(label) if label.isdecimal() and len(label) < 10 else None
        if number is None and not classes:
            data["class_name"] = label
        elif number is not None and not classes:
            data["class_id"] = number
        elif number is None or number >= len(classes):
            raise ValueError(f"cls: no line of classes.txt, 0 to {len(classes) - 1}")
        else:
            data |= {"class_id": number, "class_name": classes[number]}
    return data
