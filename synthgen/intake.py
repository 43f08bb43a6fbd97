"""The verb `import`: sources are brought into a folder's pool where they lie, by any number of workers.

Three rounds of units: every piece of a source is scanned (into `.work/`, rebuildable), the source is settled
(`sources/<name>`, which says what its shards are), its shards are written. Like `pipeline`, it knows several
rooms and makes none of their work itself.
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import licenses, pools, shards, storage, tars
from synthgen.claims import Claim
from synthgen.engine import Unit, Worker
from synthgen.errors import FolderError, SynthgenError, WorkError
from synthgen.importing import ENDINGS, settling
from synthgen.importing.forms import Form, Keys, open_form, passed_over, spell
from synthgen.importing.scanning import MEMBERS, metadata_files, scan
from synthgen.workers import local
from synthgen.workers.place import find_command, find_parent, find_place, is_launched, say_made

NEXT = "import it into another folder, or under another --name"


class Source(NamedTuple):
    """A source as it is to be imported, and the folder that it goes into.

    Attributes:
        inputs: all that decides the rows.
        renamed: name in the pool -> name in the data.
    """

    root: Path
    name: str
    form: Form
    inputs: dict[str, object]
    renamed: dict[str, str]
    license: str
    is_copied: bool
    is_decoded: bool

    @property
    def scans(self) -> Path:
        """Where the scans of these very pieces are kept meanwhile, whatever columns are to be called. Another
        source may have pieces of the same names and sizes: it lies elsewhere.
        """
        read = {key: value for key, value in self.inputs.items() if key not in ("--columns", "--copy")}
        read |= {"name": self.name, "path": str(self.form.folder.resolve())}
        return self.root / storage.WORK / shards.SCANS / shards.digest(read)[:16]


def bring(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    name: str = "",
    keys: Keys = Keys(),  # noqa: B008
    columns: Sequence[str] = (),
    copy: bool = False,
    decode: bool = False,
    workers: int | None = None,
    share: str = "",
    on_made: Callable[[str], None] = lambda unit: None,
) -> Path:
    """Makes a pool of other data, or adds to one, or goes on where the last call stopped.

    Args:
        sources: folders and files; see `importing.forms.open_form`.
        output: the folder of the pool.
        name: the source's name; "" is that of its folder or file. Uids that are not the data's own depend on
            it.
        keys: for a table, which of its columns are what.
        columns: "NEW=OLD", names that columns get.
        copy: whether the samples are copied into tars of the pool; else only their places are written.
        decode: whether to decode every image, not only to read its header.
        workers: processes; None is one a core, or a piece where these are fewer.
        share: "k/n", the place of this launch among several on one folder.
        on_made: told the name of each unit that is made.

    Returns:
        The folder.

    Raises:
        SynthgenError: bad input; nothing was changed.
        WorkError: a unit could not be made; what is published stays.
    """
    root, renamed = Path(output), _renamed(columns)
    if name and len(sources) > 1:
        raise SynthgenError("--name: is for one source; without, each is called as its folder")
    if storage.exists(root) and not storage.is_folder(root):
        raise FolderError(f"{root}: is a file; a folder is wanted")
    if not shards.is_run(root) and not storage.is_blank(root):
        raise FolderError(
            f"{root}: is not empty and was not made by synthgen; choose another folder with -o DIR"
        )
    if shards.records(root / shards.PLAN):
        raise FolderError(
            f"{root}: is the folder of a run that makes images; import into a folder of its own"
        )
    opened = [
        _open(root, Path(path), name, keys, renamed, is_copied=copy, is_decoded=decode) for path in sources
    ]
    names = [source.name for source in opened]
    for one in names:
        if names.count(one) > 1:
            raise SynthgenError(f'two sources are called "{one}"; import one after the other, with --name')
    for source in opened:
        _check(source)
    storage.make_folder(root)
    count = workers or min(os.cpu_count() or 1, max(len(source.form.pieces) for source in opened))
    if count > 1 and not is_launched():
        _start(opened, sources, output, keys=keys, columns=columns, workers=count)
    else:
        for source in opened:
            _work(source, share, on_made)
    for source in opened:
        for scanned in storage.names(source.scans):
            storage.remove(source.scans / scanned)
        if source.form.loose and not find_parent():
            logging.getLogger(__name__).warning("%s", passed_over(source.form, root))
    return root


def _start(
    opened: Sequence[Source],
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    keys: Keys,
    columns: Sequence[str],
    workers: int,
) -> None:
    """Runs the same command in several processes."""
    for source, path in zip(opened, sources, strict=True):
        arguments = ["import", str(Path(path).resolve()), "-o", str(Path(output).resolve())]
        arguments += ["--name", source.name]
        arguments += [part for key, value in keys._asdict().items() if value for part in (f"--{key}", value)]
        arguments += [part for column in columns for part in ("--columns", column)]
        arguments += ["--copy"] if source.is_copied else []
        arguments += ["--decode"] if source.is_decoded else []
        ended = local.run_workers(workers, arguments, find_place(), uuid.uuid4().hex, uses_gpus=False)
        failures = [log.strip() for status, log in ended if status]
        if failures and not is_complete(source.root, source.name):
            raise WorkError(f"{local.last_words(failures[0])}; what is done is kept for the next try")


def _work(source: Source, share: str, on_made: Callable[[str], None]) -> None:
    parent = find_parent()
    worker = Worker(
        source.root,
        command=find_command(),
        parent=parent.pid if parent else None,
        on_made=say_made if parent else on_made,
    )
    place = find_place(share)
    if not shards.is_done(source.root / shards.SOURCES, source.name):
        worker.work(place.own_first(_scan_units(source)))
        worker.work([_settle_unit(source)])
    worker.work(place.own_first(_pool_units(source)))


def _renamed(columns: Sequence[str]) -> dict[str, str]:
    found = dict[str, str]()
    for column in columns:
        new, equals, old = column.partition("=")
        if not equals or not new or not old:
            raise SynthgenError(f"--columns {column}: NEW=OLD is wanted, such as --columns text=caption")
        if new in found:
            raise SynthgenError(f"--columns {column}: {new} is there twice")
        if not re.fullmatch(r"[A-Za-z]\w*", new) or (new in settling.FIXED and new not in settling.TOLD):
            raise SynthgenError(f"--columns {column}: {new} is no name that a column can have here")
        found[new] = old
    return found


def _open(
    root: Path,
    path: Path,
    name: str,
    keys: Keys,
    renamed: dict[str, str],
    *,
    is_copied: bool,
    is_decoded: bool,
) -> Source:
    if path.resolve() == root.resolve() or root.resolve() in path.resolve().parents:
        raise SynthgenError(
            f"{path}: lies in the folder that it is imported into; choose another with -o DIR"
        )
    if path.resolve() in root.resolve().parents:
        raise SynthgenError(f"{root}: lies in what is imported, {path}; choose a folder outside with -o DIR")
    form = open_form(path, keys)
    own = name or re.sub(r"\W+", "_", path.resolve().stem if path.is_file() else path.resolve().name).strip(
        "_"
    )
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", own):
        raise SynthgenError(f'"{own}": is no name of a source; --name NAME, letters, digits and _, gives one')
    if len({*form.classes}) < len(form.classes):
        raise SynthgenError(f"{path}: its classes.txt has a line twice; each class has one line")
    inputs: dict[str, object] = {
        "form": form.kind,
        **{f"--{key}": value for key, value in keys._asdict().items()},
        "--columns": renamed,
        "--copy": is_copied,
        "--decode": is_decoded,
        "classes.txt": form.classes,
        "pieces": [spell(piece) for piece in form.pieces],
    }
    if form.kind == "tars":
        beside = [form.folder / piece.first for piece in form.pieces]
        beside = [file.with_suffix(".parquet") for file in beside]
        told = [file for file in beside if storage.exists(file)] + metadata_files(form.folder)
        inputs["parquet"] = [[file.name, storage.size(file)] for file in told]
    terms = licenses.folder_license(path)
    return Source(root, own, form, inputs, renamed, terms, is_copied, is_decoded)


def _check(source: Source) -> None:
    """Raises FolderError where the folder has a source of that name that is another, or was another."""
    folder = source.root / shards.SOURCES
    if not shards.is_done(folder, source.name):
        return
    record = shards.read_record(folder, source.name)
    made, now = record["inputs"], json.loads(shards.canonical(source.inputs))
    for old, new in zip(made["pieces"], now["pieces"], strict=False):
        if old != new:
            raise FolderError(
                f'{source.root}: source "{source.name}" has changed since it was imported: '
                f"{_differs(source, old, new)}; put it back, or {NEXT}"
            )
    if len(made["pieces"]) != len(now["pieces"]):
        raise FolderError(
            f'{source.root}: source "{source.name}" has changed since it was imported: it had '
            f"{len(made['pieces'])} pieces and has {len(now['pieces'])}; put it back, or {NEXT}"
        )
    shards.require_equal(folder / source.name, made, now, NEXT)
    if record["path"] != str(source.form.folder.resolve()):  # it has moved, and is the same
        moved = {**record, "path": str(source.form.folder.resolve())}
        storage.replace(source.root, shards.record_path(folder, source.name), storage.to_json(moved))


def _differs(source: Source, old: Sequence[object], new: Sequence[object]) -> str:
    if source.form.kind == "tars":
        had = f"{old[0]} ({old[3]} bytes)"
        return (
            f"{had} is {new[0]} ({new[3]} bytes) now" if old[0] != new[0] else f"{had} has {new[3]} bytes now"
        )
    return f"an image, or what is told of it, from {old[0]} to {old[1]}"


def is_complete(root: Path, name: str) -> bool:
    """Whether all shards of a source are there."""
    there = {source.name: source for source in shards.imported(root)}
    return name in there and all(shards.is_done(root / shards.POOL, stem) for stem in there[name].stems)


def _scan_units(source: Source) -> list[Unit]:
    def make(number: int, claim: Claim) -> None:
        claim.progress(0)
        storage.replace(source.root, _scan_path(source, number), _scanned(source, number))

    return [
        Unit(
            f"import/{source.name}/{number:08d}",
            partial(storage.exists, _scan_path(source, number)),
            partial(make, number),
        )
        for number in range(len(source.form.pieces))
    ]


def _scan_path(source: Source, number: int) -> Path:
    return source.scans / f"{number:08d}.parquet"


def _scanned(source: Source, number: int) -> bytes:
    return shards.to_parquet([scan(source.form, source.form.pieces[number], decode=source.is_decoded)])


def _settle_unit(source: Source) -> Unit:
    folder, root, form = source.root / shards.SOURCES, source.root, source.form

    def make(claim: Claim) -> None:
        before = shards.imported(root)
        for one in before:
            if not is_complete(root, one.name):
                raise FolderError(
                    f'{root}: the import of "{one.name}" is not finished; repeat its command before this one'
                )
        given = dict(form.ids) if form.ids else {name: number for number, name in enumerate(form.classes)}
        settled = settling.settle(
            (_read_scan(source, number) for number in range(len(form.pieces))),
            renamed=source.renamed,
            classes=given,
            known={name: number for one in before for name, number in one.classes.items()},
            taken=pools.PoolColumns(root, [stem for one in before for stem in one.stems], []).uids,
            source=source.name,
        )
        lengths = [ends[-1] if ends else 0 for ends in settled.cuts]
        record: dict[str, object] = {
            "version": 1,
            "stage": "import",
            "inputs": source.inputs,
            "digest": shards.digest(source.inputs),
            "path": str(form.folder.resolve()),
            "license": source.license,
            "first": sum(len(one.stems) for one in before),
            "shards": [
                [number, start, stop]
                for number, ends in enumerate(settled.cuts)
                for start, stop in zip([0, *ends], ends, strict=False)
            ],
            "columns": settled.columns,
            "classes": [[number, name] for name, number in settled.classes.items()],
            "required": settled.required,
            "twice": settled.twice,
            "cuts": settled.cuts,
            "partial": settled.partial,
            "requested": sum(lengths),
        }
        with shards.new_unit(root, folder, source.name, record, claim) as create:
            create(".parquet").write(shards.to_parquet([settled.schema.empty_table()]))

    # one at a time, whatever its name: it takes the next numbers of shards
    return Unit("sources", partial(shards.is_done, folder, source.name), make)


def _read_scan(source: Source, number: int) -> pa.Table:
    path = _scan_path(source, number)
    data = storage.read(path) if storage.exists(path) else _scanned(source, number)
    return pq.read_table(pa.BufferReader(data))


def _pool_units(source: Source) -> list[Unit]:
    root, pool = source.root, source.root / shards.POOL
    record = shards.read_record(root / shards.SOURCES, source.name)
    shards.require_equal(root / shards.SOURCES / source.name, record["inputs"], source.inputs, NEXT)
    schema = shards.schema_of(root / shards.SOURCES / f"{source.name}.parquet")
    settled = settling.Settled(
        record["columns"],
        schema,
        {name: number for number, name in record["classes"]},
        record["required"],
        record["twice"],
        record["cuts"],
        record["partial"],
    )

    def make(stem: str, number: int, start: int, stop: int, claim: Claim) -> None:
        claim.progress(0)
        table = settling.rows(
            _read_scan(source, number),
            settled,
            twice=settled.twice[number],
            start=start,
            stop=stop,
            source=source.name,
            license=record["license"],
        )
        errors = [error for error in table["error"].to_pylist() if error]
        unit: dict[str, object] = {
            "version": 1,
            "stage": "import",
            "inputs": {
                "source": source.name,
                "piece": record["inputs"]["pieces"][number],
                "rows": [start, stop],
            },
            "requested": len(table),
            "written": len(table) - len(errors),
            "failed": len(errors),
            "failed_by_reason": {reason: errors.count(reason) for reason in sorted(set(errors))},
            "successes": len(table) - len(errors),
        }
        unit["digest"] = shards.digest(unit["inputs"])
        with shards.new_unit(root, pool, stem, unit, claim) as create:
            if source.is_copied:
                table = _copy(create(".tar"), table, source.form.folder, settled.partial)
            create(".parquet").write(shards.to_parquet([table]))

    return [
        Unit(f"pool/{stem}", partial(shards.is_done, pool, stem), partial(make, stem, *cut))
        for k, cut in enumerate(record["shards"])
        for stem in [shards.shard_name(record["first"] + k)]
    ]


def _copy(tar: BinaryIO, table: pa.Table, folder: Path, partial: Sequence[str]) -> pa.Table:
    """Writes the samples of rows into a tar, keys and members as in final/; returns the rows, which say where
    the images lie in it.
    """
    offsets = list[int | None]()
    for row, added in zip(table.to_pylist(), pools.added_members(table, partial), strict=True):
        if row["error"]:
            offsets.append(None)
            continue
        spans = [(each["offset"], each["size"]) for each in row["members"]]
        data = storage.read_spans(folder / row["file"], spans)
        members = {each["suffix"]: one for each, one in zip(row["members"], data, strict=True)}
        image = next(ending for ending in ENDINGS if ending in members)
        # the image first: a sample runs from one image to the next
        written = tars.add_sample(tar, row["uid"], {image: members.pop(image), **members, **added})
        offsets.append(written[image].offset)
    tars.finish(tar)
    changed = {"image_offset": pa.array(offsets, pa.int64()), "members": pa.nulls(len(table), MEMBERS)}
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table
