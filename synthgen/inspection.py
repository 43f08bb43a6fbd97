"""Looking at a run's folder: how far it is, and whether every byte is what its record says. Changes
nothing.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import pools, shards, storage, tars
from synthgen.claims import MAX_ATTEMPTS, Held, attempted, attempts, claims
from synthgen.errors import FolderError, SynthgenError, WorkError
from synthgen.reporting.report import latest_recipe
from synthgen.resharding import digest_of
from synthgen.uids import uid_strings

READ_AT_ONCE = 64
"""So many images of a source are read at a time."""
WORTH_KEEPING = 100
"""So many records newly read are worth a file of what was in them."""


class Stage(TypedDict):
    """The units of a stage. `claimed` are in work, `stale` were in the work of somebody who is gone."""

    done: int
    total: int
    claimed: int
    stale: int
    given_up: int


class Status(TypedDict):
    """How far a run is."""

    folder: str
    name: str
    sources: list[str]  # that the pool was imported from
    requests: int
    written: int
    failed: int
    failed_by_reason: dict[str, int]
    images_per_second: float | None  # of the workers that generate now
    seconds_left: float | None  # of generating
    stages: dict[str, Stage]
    subsets: dict[str, int]  # name -> kept
    combined: dict[str, str]  # name -> the expression that a subset was made of
    copies: dict[str, int]  # name -> kept, with repeats
    short: dict[str, int]  # name -> cells that have fewer than quota.accepted
    final: dict[str, dict[str, int]]  # subset -> split -> images
    claimed: dict[str, Held]
    given_up: dict[str, str]  # unit -> the last reason
    workers: dict[str, int]  # "host:pid" -> pool shards made


def open_run(folder: str | Path) -> Path:
    """The folder, if it is a run's.

    Raises:
        FolderError: it is not.
    """
    root = Path(folder)
    if (root / "recipe.toml").is_file():
        raise FolderError(f"{root}: is a recipe; the folder of a run is wanted, such as shards/{root.name}")
    if root.is_file():
        raise FolderError(f"{root}: is a file; the folder of a run is wanted, such as shards/emoji")
    if not shards.is_run(root):
        usual = Path(shards.DEFAULT_ROOT) / root
        hint = (
            f"did you mean {usual}?" if shards.is_run(usual) else f"`synthgen run RECIPE -o {root}` makes one"
        )
        raise FolderError(f"{root}: is no folder of a run; {hint}")
    return root


def status(folder: str | Path, cache: dict[str, Any] | None = None) -> Status:
    """How far a run is: units done and in all for each stage, images written and failed, who works on what.

    A record is read once: what is needed of it is kept in the folder, where that can be written.

    Args:
        cache: keeps it for the next call too.
    """
    root = open_run(folder)
    recipe = latest_recipe(root)
    n_shards, n_requests = len(shards.pool_stems(root)), shards.planned_requests(root)
    sources = [source.name for source in shards.imported(root)]
    held, given_up = claims(root), _given_up(root)

    def stage(folder: str, done: int) -> Stage:
        own = [lease["stale"] for unit, lease in held.items() if unit.startswith(f"{folder}/")]
        return {
            "done": done,
            "total": n_shards,
            "claimed": own.count(False),
            "stale": own.count(True),
            "given_up": sum(unit.startswith(f"{folder}/") for unit in given_up),
        }

    pool = _read_pool(root, {} if cache is None else cache)
    reasons, workers, written = Counter[str](), Counter[str](), 0
    for own_written, own_reasons, worker in pool:
        written += own_written
        reasons.update(own_reasons)
        workers[worker] += 1
    stages = {"import" if sources else "generate": stage(shards.POOL, len(pool))}
    for table in recipe["annotate"]:
        done = len(shards.annotated(root / shards.ANNOTATIONS / table["name"]))
        stages[f"annotate {table['name']}"] = stage(shards.ANNOTATIONS, done)
    alive = {unit: lease for unit, lease in held.items() if not lease["stale"]}
    workers.update({f"{lease['host']}:{lease['pid']}": 0 for lease in alive.values()})
    generating = [lease for unit, lease in alive.items() if unit.startswith(f"{shards.POOL}/")]
    rates = [lease["done"] / lease["seconds"] for lease in generating if lease["done"]]
    # who has just begun a shard is taken to be as fast as the others
    rate = sum(rates) * len(generating) / len(rates) if rates else None
    made = written + reasons.total() + sum(lease["done"] for lease in generating)
    subsets = [
        name.removesuffix(".json") for name in storage.names(root / shards.SUBSETS) if name.endswith(".json")
    ]
    funnels = {name: storage.read_json(root / shards.SUBSETS / f"{name}.json") for name in subsets}
    return {
        "folder": str(root),
        "name": recipe["name"],
        "sources": sources,
        "requests": n_requests,
        "written": written,
        "failed": reasons.total(),
        "failed_by_reason": dict(reasons),
        "images_per_second": rate,
        "seconds_left": max(0, n_requests - made) / rate if rate else None,
        "stages": stages,
        "subsets": {name: told["kept"] for name, told in funnels.items()},
        "combined": {
            name: told["inputs"]["expression"]
            for name, told in funnels.items()
            if "expression" in told["inputs"]
        },
        "copies": {name: told["copies"] for name, told in funnels.items()},
        "short": {name: len(told["short"]) for name, told in funnels.items()},
        "final": {name: _final(root / shards.FINAL / name) for name in storage.names(root / shards.FINAL)},
        "claimed": held,
        "given_up": given_up,
        "workers": dict(workers),
    }


def _read_pool(root: Path, cache: dict[str, Any]) -> list[tuple[int, dict[str, int], str]]:
    """For each pool shard that is done: images written, failed ones by reason, who made it."""
    path, stems = root / storage.WORK / "columns" / "pool.json", shards.records(root / shards.POOL)
    if not cache and storage.exists(path):
        with contextlib.suppress(WorkError):  # another status may have been cut off: read again
            cache |= storage.read_json(path)
    new = [stem for stem in stems if stem not in cache]
    for stem in new:
        record = shards.read_record(root / shards.POOL, stem)
        cache[stem] = record["written"], record["failed_by_reason"], f"{record['host']}:{record['pid']}"
    if len(new) >= WORTH_KEEPING:
        with contextlib.suppress(OSError):  # a folder that we may only read
            storage.replace(root, path, storage.to_json(cache))
    return [cache[stem] for stem in stems]


def _given_up(root: Path) -> dict[str, str]:
    """The units that a command has given up; whoever makes one removes its attempts."""
    found = {}
    for unit in attempted(root):
        tried = attempts(root, unit)
        if max(Counter(each["command"] for each in tried).values(), default=0) >= MAX_ATTEMPTS:
            found[unit] = tried[-1]["error"]
    return found


def _final(folder: Path) -> dict[str, int]:
    """Images in each split of a final folder."""
    return {
        split: sum(
            shards.read_record(folder / split, stem)["written"] for stem in shards.records(folder / split)
        )
        for split in storage.names(folder)
        if storage.is_folder(folder / split)
    }


def verify(folder: str | Path) -> list[str]:
    """Reads everything again; returns one line for each thing that is not as its record says.

    Hashes and sizes of all files, counts of rows and samples, keys and labels of samples against their rows,
    uids that are there twice, subsets that are not sorted or not in the pool, finals that do not hold their
    subset.
    """
    root = open_run(folder)
    problems: list[str] = []
    folders = [root / shards.PLAN, root / shards.SOURCES, root / shards.POOL, root / shards.REPORT]
    folders += [root / shards.ANNOTATIONS / name for name in storage.names(root / shards.ANNOTATIONS)]
    for name in storage.names(root / shards.FINAL):
        finals = [
            root / shards.FINAL / name,
            *(root / shards.FINAL / name / s for s in storage.names(root / shards.FINAL / name)),
        ]
        folders += [path for path in finals if storage.is_folder(path)]
    for path in folders:
        problems += _verify_files(path, [f"{stem}{shards.RECORD_SUFFIX}" for stem in shards.records(path)])
    views = [name for name in storage.names(root / shards.SUBSETS) if name.endswith(".json")]
    problems += _verify_files(root / shards.SUBSETS, views)
    rows: dict[str, str] = {}
    for stem in shards.records(root / shards.POOL):
        problems += _guard(_verify_pool_shard, root, stem, rows)
        for name in storage.names(root / shards.ANNOTATIONS):
            problems += _guard(_verify_annotation, root, name, stem)
    for name in storage.names(root / shards.SUBSETS):
        if name.endswith(".npy") and storage.exists(
            root / shards.SUBSETS / f"{name.removesuffix('.npy')}.json"
        ):
            problems += _guard(_verify_subset, root, name.removesuffix(".npy"), rows)
    return list(dict.fromkeys(problems))


def _guard(check: Callable[..., list[str]], *arguments: Any) -> list[str]:
    """A check's problems; a file that cannot be read at all is one."""
    try:
        return list(check(*arguments))
    except SynthgenError as error:
        return [str(error)]
    except Exception as error:
        return [f"{' '.join(map(str, arguments[:3]))}: cannot be read ({type(error).__name__}: {error})"]


def _verify_files(folder: Path, records: list[str]) -> list[str]:
    problems = []
    for record in records:
        try:
            files = storage.read_json(folder / record)["files"]
        except (WorkError, KeyError) as error:
            problems.append(f"{folder / record}: damaged record ({error})")
            continue
        for name, expected in files.items():
            if not storage.exists(folder / name):
                problems.append(f"{folder / name}: missing")
            elif (found := storage.checksum(folder / name)) != expected:
                problems.append(
                    f"{folder / name}: {found['bytes']} bytes, sha256 {found['sha256']}; the record "
                    f"says {expected}"
                )
    return problems


def _verify_pool_shard(root: Path, stem: str, rows: dict[str, str]) -> list[str]:
    """Rows against the record and against the tar, or the source that they lie in; fills `rows`: uid -> "" or
    its error.
    """
    path, record = root / shards.POOL / stem, shards.read_record(root / shards.POOL, stem)
    table = shards.read_table(path.with_suffix(".parquet")).to_pylist()
    problems = []
    failed = sum(row["error"] is not None for row in table)
    counts = (len(table), len(table) - failed, failed)
    if counts != (record["requested"], record["written"], record["failed"]):
        problems.append(f"{path}: {counts} rows, written, failed; the record says otherwise")
    for row in table:
        if row["uid"] in rows:
            problems.append(f"{path}: uid {row['uid']} is there twice")
        rows[row["uid"]] = row["error"] or ""
    if pools.is_in_place(root, stem):
        return problems + _verify_source(root, stem)
    samples = list(tars.samples(storage.read(path.with_suffix(".tar"))))
    expected = [row for row in table if row["error"] is None]
    if [key for key, _ in samples] != [row["uid"] for row in expected]:
        problems.append(f"{path}.tar: the keys are not the uids of the rows")
        return problems
    for (key, members), row in zip(samples, expected, strict=True):
        told = {"cls": "" if row["class_id"] is None else str(row["class_id"]), "txt": row["text"] or ""}
        if any(members.get(suffix, b"").decode("utf-8", "replace") != text for suffix, text in told.items()):
            problems.append(f"{path}.tar: {key}: label or prompt differ from its row")
    return problems


def _verify_source(root: Path, stem: str) -> list[str]:
    """The images of a shard, in the sources where they lie, against their sha256."""
    table = shards.read_table(root / shards.POOL / f"{stem}.parquet")
    written = table.filter(pc.is_valid(table["image_offset"]))
    problems = []
    for start in range(0, len(written), READ_AT_ONCE):
        part = written.slice(start, READ_AT_ONCE)
        try:
            pools.read_images(root, stem, part)
        except FolderError:  # which of them are damaged, or gone
            for row in range(len(part)):
                problems += _guard(_verify_image, root, stem, part.slice(row, 1))
    return problems


def _verify_image(root: Path, stem: str, row: pa.Table) -> list[str]:
    pools.read_images(root, stem, row)
    return []


def _verify_annotation(root: Path, name: str, stem: str) -> list[str]:
    folder = root / shards.ANNOTATIONS / name
    if not shards.is_done(folder, stem):
        return []
    made_of = shards.read_record(folder, stem)["pool"]
    if made_of != shards.read_record(root / shards.POOL, stem)["files"]:
        return [f"{folder / stem}: was made from other images than the pool holds"]
    pool = shards.read_table(root / shards.POOL / f"{stem}.parquet", ["uid"])["uid"]
    if shards.read_table(folder / f"{stem}.parquet", ["uid"])["uid"].to_pylist() != pool.to_pylist():
        return [f"{folder / stem}.parquet: the rows are not those of the pool"]
    return []


def _verify_subset(root: Path, name: str, rows: dict[str, str]) -> list[str]:
    path = root / shards.SUBSETS / f"{name}.npy"
    array = shards.read_npy(path)
    uids = uid_strings(array)
    problems = []
    if (np.sort(array, order=["f0", "f1"]) != array).any():
        problems.append(f"{path}: not sorted")
    stray = [uid for uid in uids if rows.get(uid, "missing")]
    if stray:
        problems.append(f"{path}: {len(stray)} uids are not written samples of the pool, first {stray[0]}")
    final = root / shards.FINAL / name
    if storage.exists(final / shards.RECORD_SUFFIX):
        found = []
        for split in filter(lambda name: storage.is_folder(final / name), storage.names(final)):
            for stem in shards.records(final / split):
                found += [key for key, _ in tars.samples(storage.read(final / split / f"{stem}.tar"))]
        record = storage.read_json(final / shards.RECORD_SUFFIX)
        if digest_of(sorted(found)) != record.get("keys"):
            problems.append(f"{final}: holds {len(found)} samples that are not those of its record")
        lacking = Counter(uids) - Counter(key.partition("-")[0] for key in found)
        if lacking:
            problems.append(f"{final}: lacks {lacking.total()} samples of {path.name}")
    return problems
