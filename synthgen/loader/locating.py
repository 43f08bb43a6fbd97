"""Where the shards of a source are: a split, a run's folder, an imported pool, tars by pattern or URL."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from synthgen import shards, storage
from synthgen.errors import FolderError, WorkError
from synthgen.loader.classes import class_names, joined
from synthgen.loader.fetching import fetch, is_url
from synthgen.pools import is_in_place


class ShardFile(NamedTuple):
    """A shard to read: a tar by path or URL, or with `root` a shard of an imported pool, whose bytes lie
    elsewhere. `samples` is how many it is said to have, -1 is unknown.
    """

    path: str
    samples: int = -1
    root: str = ""


class Source(NamedTuple):
    """What is loaded under one name: its shards in order, its classes by id, and the run's folder that it is
    of ("" is none).
    """

    name: str
    shards: list[ShardFile]
    classes: dict[int, str]
    root: str = ""


def identity(shard: ShardFile) -> bytes:
    """What tells a shard from another one, wherever it lies: of its tar, or of its rows in an imported pool,
    the name, the size and the first bytes, which have the first key. Of a URL it is the address, as it may
    not have been fetched yet.
    """
    if is_url(shard.path):
        return shard.path.encode()
    path = Path(shard.path)
    if shard.root:
        path = Path(shard.root) / shards.POOL / f"{shard.path}.parquet"
    size = storage.size(path)
    return f"{path.name}/{size}/".encode() + storage.read(path, 0, min(size, 4096))


def locate(name: str, paths: Sequence[str | Path]) -> Source:
    """The shards of a source that is named by one or several paths.

    Raises:
        FolderError: one of them has no shards, or their classes disagree.
    """
    found: list[ShardFile] = []
    classes: dict[str, dict[int, str]] = {}
    roots = set()
    for path in paths:
        files, classes[str(path)], root = _locate(str(path))
        found += files
        roots.add(root)
    return Source(name, found, joined(classes), roots.pop() if len(roots) == 1 else "")


def _locate(path: str) -> tuple[list[ShardFile], dict[int, str], str]:
    """Shards, classes, and the run's folder that a path is of."""
    if is_url(path):
        return _urls(path), {}, ""
    if any(sign in path for sign in "*?{[") and not storage.exists(Path(path)):
        tars = _expand(path)
        if not tars:
            raise FolderError(f"{path}: no file is called so; a pattern of .tar files is wanted")
        folder = next((tar for tar in tars if storage.is_folder(Path(tar))), None)
        if folder:
            raise FolderError(f"{path}: {folder} is a folder; a pattern of .tar files is wanted")
        folders = dict.fromkeys(Path(tar).parent for tar in tars)
        return _sized(tars), joined({str(each): _classes(each) for each in folders}), ""
    root = Path(path)
    if root.suffix == ".tar" and storage.exists(root) and not storage.is_folder(root):
        return _sized([path]), _classes(root.parent), ""
    if storage.is_folder(root / shards.POOL):
        return _pool(root)
    tars = [str(root / name) for name in storage.names(root) if name.endswith(".tar")]
    if not tars:
        splits = [name for name in storage.names(root) if storage.exists(root / name / "sizes.json")]
        hint = (
            f"name one of its splits: {', '.join(splits)}"
            if splits
            else "a split such as final/main/train is wanted"
        )
        raise FolderError(f"{root}: no .tar shards there; {hint}")
    return _sized(tars), _classes(root), ""


def _expand(pattern: str) -> list[str]:
    """The files that a pattern with braces and asterisks names, in the order of its braces."""
    import braceexpand

    found = []
    for one in braceexpand.braceexpand(pattern):
        found += sorted(glob.glob(one))
    return list(dict.fromkeys(found))


def _classes(split: Path) -> dict[int, str]:
    """The classes above a split, where there are some."""
    return class_names(split) if storage.exists(split.resolve().parent / "classes.txt") else {}


def _sized(tars: Sequence[str]) -> list[ShardFile]:
    """The tars with their numbers of samples, where sizes.json or a record says them."""
    sizes: dict[Path, dict[str, int]] = {}
    found = []
    for tar in tars:
        path = Path(tar)
        if path.parent not in sizes:
            listed = path.parent / "sizes.json"
            sizes[path.parent] = storage.read_json(listed) if storage.exists(listed) else {}
        count = sizes[path.parent].get(path.name, -1)
        record = path.with_name(f"{path.stem}_stats.json")
        if count < 0 and storage.exists(record):
            count = int(storage.read_json(record).get("successes", -1))
        found.append(ShardFile(tar, count))
    return found


def _pool(root: Path) -> tuple[list[ShardFile], dict[int, str], str]:
    """The shards of a run's pool that are done, and its classes by id."""
    stems = shards.records(root / shards.POOL)
    if not stems:
        raise FolderError(f"{root}: its pool has no shards yet; run it first")
    found, classes = [], dict[int, str]()
    for stem in stems:
        table = shards.read_table(root / shards.POOL / f"{stem}.parquet", ["class_id", "class_name", "error"])
        rows = table.filter(table["error"].is_null())
        pairs = rows.select(["class_id", "class_name"]).group_by(["class_id", "class_name"]).aggregate([])
        classes |= {k: name for k, name in zip(*pairs.to_pydict().values(), strict=True) if name is not None}
        if is_in_place(root, stem):
            found.append(ShardFile(stem, len(rows), str(root)))
        else:
            found.append(ShardFile(str(root / shards.POOL / f"{stem}.tar"), len(rows)))
    return found, dict(sorted(classes.items())), str(root)


def _urls(path: str) -> list[ShardFile]:
    """The tars that a URL with braces names; sizes.json beside them says how many samples they have."""
    import braceexpand

    urls = list(braceexpand.braceexpand(path))
    wrong = next((url for url in urls if not url.endswith(".tar")), None)
    if wrong:
        raise FolderError(
            f"{wrong}: URLs of .tar files are wanted, as https://.../{{00000000..00000009}}.tar"
        )
    sizes: dict[str, dict[str, int]] = {}
    found = []
    for url in urls:
        folder, _, name = url.rpartition("/")
        if folder not in sizes:
            try:
                sizes[folder] = storage.read_json(fetch(f"{folder}/sizes.json"))
            except WorkError:
                sizes[folder] = {}
        found.append(ShardFile(url, sizes[folder].get(name, -1)))
    return found
