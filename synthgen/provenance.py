"""What is known of one image: what its mark says, and what the run that made it says."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from synthgen import marks, pools, shards, storage, tars
from synthgen.errors import FolderError
from synthgen.inspection import open_run

IMAGES = ("jpg", "jpeg", "webp", "png")
NOWHERE = "no run"


class Found(NamedTuple):
    """An image: where it is, what its mark says, and what else is known of it, by whom; {} is nothing."""

    image: str
    mark: marks.Mark
    provenance: dict[str, object]
    told_by: str


def find(path: str | Path, uid: str = "", output: str | Path | None = None) -> Found:
    """The image at a path, and where it is from.

    Args:
        path: an image file; a run's folder, or a shard of samples, with a uid.
        uid: of a run's sample, or the key in a shard; the beginning is enough where only one has it.
        output: the run that made an image file; None looks in the folders around it.

    Raises:
        FolderError: there is no such file, run or image.
    """
    path = Path(path)
    if not storage.exists(path):
        raise FolderError(f"{path}: is not there; an image, a .tar shard or the folder of a run is wanted")
    if path.suffix != ".tar" and not storage.is_folder(path):
        if uid:
            raise FolderError(f"{path}: is one image; a uid goes with a shard or the folder of a run")
        return _in_file(path, Path(output) if output else None)
    if output:
        raise FolderError(f"{path}: -o says which run made an image file; this is none")
    if not uid:
        raise FolderError(f"{path}: which image? `synthgen show {path} UID`")
    return _in_run(open_run(path), uid) if storage.is_folder(path) else _in_shard(path, uid)


def _in_file(path: Path, output: Path | None) -> Found:
    mark = marks.read(storage.read(path), str(path))
    around = [folder for folder in path.resolve().parents if shards.is_run(folder)]
    root = open_run(output) if output else next(iter(around), None)
    if root is None or not mark.uid:
        return Found(str(path), mark, {}, NOWHERE)
    try:
        _, row = _row(root, mark.uid)
    except FolderError:
        if output:  # who names a run wants to know; the folder around it may be of another
            raise
        return Found(str(path), mark, {}, NOWHERE)
    return Found(str(path), mark, row, str(root))


def _in_run(root: Path, uid: str) -> Found:
    stem, row = _row(root, uid)
    where = f"{root / shards.POOL / stem}.tar: {row['uid']}"
    if "source" in row and (row.get("error") or pools.is_in_place(root, stem)):
        where = (
            f"{pools.source_paths(root)[str(row['source'])]}/{row['file']}: {row.get('key') or row['uid']}"
        )
    if row.get("error"):
        return Found(where, marks.Mark(), row, str(root))
    table = shards.read_table(root / shards.POOL / f"{stem}.parquet")
    (data,) = pools.read_images(root, stem, table.filter(pc.equal(table["uid"], str(row["uid"]))))
    return Found(where, marks.read(data, where), row, str(root))


def _row(root: Path, uid: str) -> tuple[str, dict[str, object]]:
    """The pool's row of an image and its shard; the plan's, with an `error`, where it is not made yet."""
    found = []
    tables = [(shard.stem, shards.read_plan_shard(shard)) for shard in shards.load_plan(root)]
    for stem in (stem for source in shards.imported(root) for stem in source.stems):
        if shards.is_done(root / shards.POOL, stem):
            tables.append((stem, shards.read_table(root / shards.POOL / f"{stem}.parquet")))
    for stem, table in tables:
        rows = table.filter(pc.starts_with(table["uid"], uid)).to_pylist()
        found += [(stem, row) for row in rows]
    _require_one([row["uid"] for _, row in found], uid, root)
    stem, row = found[0]
    if not shards.is_done(root / shards.POOL, stem):
        return stem, {**row, "error": "not made yet"}
    table = shards.read_table(root / shards.POOL / f"{stem}.parquet").to_pylist()
    made = next(each for each in table if each["uid"] == row["uid"])
    made |= _scores(root, stem, str(row["uid"])) | _verdicts(root, str(row["uid"]))
    return stem, {key: value for key, value in made.items() if value is not None}


def _scores(root: Path, stem: str, uid: str) -> dict[str, object]:
    """What the annotations say of an image."""
    found: dict[str, object] = {}
    for name in storage.names(root / shards.ANNOTATIONS):
        if shards.is_done(root / shards.ANNOTATIONS / name, stem):
            rows = shards.read_table(root / shards.ANNOTATIONS / name / f"{stem}.parquet").to_pylist()
            found |= next(each for each in rows if each["uid"] == uid)
    return found


def _verdicts(root: Path, uid: str) -> dict[str, object]:
    """What each selection said of an image."""
    found: dict[str, object] = {}
    for name in storage.names(root / shards.SUBSETS):
        if name.endswith(".parquet"):
            table = shards.read_table(root / shards.SUBSETS / name, ["uid", "verdict"]).to_pydict()
            verdicts = dict(zip(table["uid"], table["verdict"], strict=True))
            found[f"subset {name.removesuffix('.parquet')}"] = verdicts.get(uid, "made after it")
    return found


def _in_shard(path: Path, key: str) -> Found:
    found = {name: members for name, members in tars.samples(storage.read(path)) if name.startswith(key)}
    name = key if key in found else next(iter(found), "")  # further copies of an image are called uid-1, ...
    _require_one([name] if name == key else found, key, path)
    members, where = found[name], f"{path}: {name}"
    image = next((data for suffix, data in members.items() if suffix.lower() in IMAGES), None)
    if image is None:
        raise FolderError(f"{where}: has no image; there are {', '.join(members)}")
    try:
        told = json.loads(members.get("json", b"{}"))
    except ValueError:
        raise FolderError(f"{where}.json: is not valid JSON") from None
    return Found(where, marks.read(image, where), told if isinstance(told, dict) else {"json": told}, where)


def _require_one(names: Iterable[str], wanted: str, where: Path) -> None:
    names = list(names)
    if not names:
        raise FolderError(f"{where}: has no image {wanted}")
    if len(names) > 1:
        raise FolderError(f"{where}: {wanted} is the beginning of {len(names)} uids, such as {names[0]}")
