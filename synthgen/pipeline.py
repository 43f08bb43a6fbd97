"""The stages in order and the one loop that every worker runs: the reader's map, and the only room that
knows them all.

The folder is the state. A stage is a list of units; a unit is done when its record is there; a worker takes
a unit that is not done, claims it, makes it, publishes it. Running the command again is the retry.
"""

import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from synthgen import planning, recipe, resharding, selection, shards, storage
from synthgen.annotators import COLUMNS
from synthgen.errors import FolderError, LostClaimError, SynthgenError, WorkError
from synthgen.job import Job, source_of, where
from synthgen.recipe import AnnotateTable
from synthgen.workers import local
from synthgen.workers.place import default_workers, find_place, is_launched

WAIT_SECONDS = 0.5


class Unit(NamedTuple):
    """One piece of work. `done` looks at the folder; `make` does it while the claim is held."""

    name: str
    done: Callable[[], bool]
    make: Callable[[storage.Claim], None]


def _shard_unit(name: str, folder: Path, stem: str, make: Callable[[storage.Claim], None]) -> Unit:
    return Unit(name, functools.partial(storage.exists, shards.record_path(folder, stem)), make)


def plan_units(job: Job) -> list[Unit]:
    # the name first: if another worker plans meanwhile, this name is taken and its requests are not added
    stem = f"{len(shards.records(job.root / shards.PLAN)):03d}-000"
    planned = job.planned
    new = [request for request in job.requests if request.uid not in planned]
    if not new:
        return []

    def make(claim: storage.Claim) -> None:
        cut = planning.cut_shards(new, job.recipe.images.shard_size)
        tables = [shards.requests_table(rows, job.recipe.axes) for rows in cut]
        pinned = {
            table.id: {
                "source": source_of(table),
                "fingerprint": job.models[table.id].fingerprint,
                "scheduler": job.models[table.id].scheduler,
            }
            for table in job.recipe.models
        }
        record = job.record("plan", job.plan_inputs()) | {
            "requests": len(new),
            "shards": len(cut),
            "models": pinned,
        }
        with shards.new_unit(job.root, job.root / shards.PLAN, stem, record, claim) as create:
            create(".parquet").write(shards.to_parquet(tables))

    return [_shard_unit(f"plan/{stem}", job.root / shards.PLAN, stem, make)]


def pool_units(job: Job) -> list[Unit]:
    from synthgen.generation.shard import make_shard

    def unit(number: int, path: Path, group: int) -> Unit:
        stem = shards.shard_name(number)

        def make(claim: storage.Claim) -> None:
            plan = shards.read_plan_shard(path, group)
            model = plan["model"][0].as_py()
            inputs = job.pool_inputs(model, plan["uid"].to_pylist())
            make_shard(
                job.root,
                stem,
                plan,
                pipeline=lambda: job.pipeline(model),
                batch_size=job.model_table(model).batch_size,
                image_format=job.recipe.images.format,
                record=job.record("generate", inputs) | {"stack": job.stack()},
                claim=claim,
            )

        return _shard_unit(f"pool/{stem}", job.root / shards.POOL, stem, make)

    return [unit(number, *place) for number, place in enumerate(shards.load_plan(job.root))]


def annotation_units(job: Job) -> list[Unit]:
    from synthgen.annotators.shard import annotate_shard

    def unit(stem: str, table: AnnotateTable) -> Unit:
        folder = job.root / shards.ANNOTATIONS / table.name

        def make(claim: storage.Claim) -> None:
            annotate = job.annotator(table.name)
            record = job.record("annotate", job.annotation_inputs(table)) | {"stack": job.stack()}
            record["fingerprint"] = getattr(annotate, "fingerprint", "")
            record["pool"] = shards.read_record(job.root / shards.POOL, stem)["files"]
            annotate_shard(
                job.root,
                table.name,
                stem,
                annotate=annotate,
                kinds=COLUMNS[table.use],
                samples=job.samples(stem),
                batch_size=table.batch_size,
                record=record,
                claim=claim,
            )

        return _shard_unit(f"annotations/{table.name}/{stem}", folder, stem, make)

    return [unit(stem, table) for stem in job.pool_stems() for table in job.recipe.annotate]


def selection_units(job: Job) -> list[Unit]:
    folder, inputs = job.root / shards.SUBSETS, job.selection_inputs()

    def done() -> bool:
        path = folder / f"{job.subset}.json"
        return storage.exists(path) and storage.read_json(path).get("inputs") == inputs

    def make(claim: storage.Claim) -> None:
        columns = job.columns()
        rules = [selection.Rule(table.use, table.keys) for table in job.recipe.select]
        with where(job.recipe_path, "select"):
            chosen = selection.select(columns, rules)
        array = resharding.subset_array(columns["uid"][chosen.kept].tolist())
        names = {-1: "kept", -2: "failed"} | {k: f"select.{k} {rule.label}" for k, rule in enumerate(rules)}
        verdicts = [names[code] for code in chosen.verdict.tolist()]
        table = shards.verdict_table(
            columns["uid"].tolist(), chosen.kept, verdicts, columns["error"].tolist()
        )
        files = {
            f"{job.subset}.npy": shards.to_npy(array),
            f"{job.subset}.parquet": shards.to_parquet([table]),
        }
        funnel = {
            "inputs": inputs,
            "recipe": job.recipe_digest,
            "requested": len(verdicts),
            "failed": verdicts.count("failed"),
            "kept": len(array),
            "funnel": [stage._asdict() for stage in chosen.funnel],
            "files": {name: storage.checksum_of(data) for name, data in files.items()},
        }
        storage.remove(folder / f"{job.subset}.json")  # while it is away, the others say nothing
        for name, data in {**files, f"{job.subset}.json": storage.to_json(funnel)}.items():
            claim.check()
            storage.replace(job.root, folder / name, data)

    return [Unit(f"subsets/{job.subset}", done, make)]


def replace_units(job: Job) -> list[Unit]:
    """With --replace: removes what `final/<subset>` holds of other rules, now that the new selection is
    there.
    """

    def done() -> bool:
        try:
            job.check_final()
        except FolderError:
            return False
        return True

    return [Unit(f"final/{job.subset}", done, lambda claim: job.remove_other_final())] if job.replace else []


def final_units(job: Job) -> list[Unit]:
    """The output shards; the last unit, made when all others are there, describes them."""
    output, inputs = job.output_shards(), job.final_inputs()

    def unit(shard: resharding.OutputShard) -> Unit:
        def make(claim: storage.Claim) -> None:
            record = job.record("reshard", inputs)
            resharding.write_shard(job.root, job.final, shard, record=record, claim=claim)

        folder = job.final / shard.split
        return _shard_unit(f"final/{job.subset}/{shard.split}/{shard.stem}", folder, shard.stem, make)

    return [unit(shard) for shard in output]


def card_units(job: Job) -> list[Unit]:
    """What stands beside the output shards: sizes, class names, timm's info, the dataset card."""
    from synthgen.reporting.card import card

    def make(claim: storage.Claim) -> None:
        output = job.output_shards()
        names = {category.id: category.name for category in job.recipe.classes}
        info = resharding.info(job.recipe.name, output)
        files = {
            "classes.txt": "".join(f"{names.get(k, '')}\n" for k in range(max(names) + 1)).encode(),
            "_info.json": storage.to_json(info),
            "README.md": card(job.recipe.name, job.recipe.classes, info).encode(),
        }
        for split in dict.fromkeys(shard.split for shard in output):
            files[f"{split}/sizes.json"] = storage.to_json(resharding.sizes(output, split))
        for name, data in files.items():
            claim.check()
            storage.replace(job.root, job.final / name, data)
        record = job.record("card", job.final_inputs()) | {
            "written": sum(len(shard.samples) for shard in output),
            "files": {name: storage.checksum(job.final / name) for name in files},
        }
        storage.replace(job.root, job.final / shards.RECORD_SUFFIX, storage.to_json(record))

    return [Unit(f"final/{job.subset}", lambda: storage.exists(job.final / shards.RECORD_SUFFIX), make)]


def report_units(job: Job) -> list[Unit]:
    inputs, path = _report_inputs(job.root, job.subset), shards.record_path(job.root / shards.REPORT, "index")

    def done() -> bool:
        there = storage.exists(path) and storage.exists(path.with_name("index.html"))
        return there and storage.read_json(path).get("inputs") == inputs

    return [Unit("report", done, lambda claim: _write_report(job.root, job.subset))]


def _report_inputs(root: Path, subset: str) -> dict[str, object]:
    from synthgen.reporting.report import inputs

    return {"subset": subset, **inputs(root, subset)}


def _write_report(root: Path, subset: str) -> None:
    from synthgen.reporting.report import contact_sheet, page

    folder = root / shards.REPORT
    files = {"index.html": page(root, subset), "contact_sheet.jpg": contact_sheet(root, subset)}
    record = {"stage": "report", "inputs": _report_inputs(root, subset)}
    record["files"] = {name: storage.checksum_of(data) for name, data in files.items()}
    for name, data in {**files, f"index{shards.RECORD_SUFFIX}": storage.to_json(record)}.items():
        storage.replace(root, folder / name, data)


STAGES: dict[str, Sequence[Callable[[Job], list[Unit]]]] = {
    "plan": [plan_units],
    "generate": [pool_units],
    "annotate": [annotation_units],
    "select": [selection_units],
    "reshard": [replace_units, final_units, card_units],
    "report": [report_units],
}


def work(job: Job, stages: Iterable[str]) -> None:
    """The loop of every worker: own share of a stage's units first, then the others'; wait for what is
    claimed elsewhere.
    """
    for stage in stages:
        for units_of in STAGES[stage]:
            units = units_of(job)
            first = len(units) * job.place.rank // job.place.world_size
            units = units[first:] + units[:first]
            while units := [unit for unit in units if not unit.done()]:
                if not sum(_attempt(job.root, unit) for unit in units):
                    time.sleep(WAIT_SECONDS)


def _attempt(root: Path, unit: Unit) -> bool:
    """Makes a unit, unless it is done or another worker holds it. False: it is not done."""
    if unit.done():
        return True
    with storage.claim(root, unit.name) as claim:
        if claim is None:
            return False
        if unit.done():
            return True
        try:
            unit.make(claim)
        except LostClaimError:
            return False
        return True


def open_job(
    recipe_name: str | Path,
    output: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    limit: int | None = None,
    subset: str = "main",
    replace: bool = False,
    share: str = "",
    threads: int = 1,
) -> Job:
    """A recipe with its folder (`output`, default shards/<name>), validated; nothing is written.

    Raises:
        SynthgenError: the recipe is wrong, or another argument.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", subset):
        raise SynthgenError(f'--subset "{subset}": letters, digits, - and _ are allowed')
    if limit is not None and limit < 1:
        raise SynthgenError(f"--limit {limit}: a whole number from 1 is wanted")
    path = recipe.find(recipe_name)
    loaded = recipe.load(path, settings)
    root = Path(output) if output else Path(shards.DEFAULT_ROOT) / loaded.name
    place = find_place(share)
    return Job(path, loaded, root, limit=limit, subset=subset, replace=replace, place=place, threads=threads)


def run(
    recipe_name: str | Path,
    output: str | Path | None = None,
    *,
    stages: Sequence[str] = tuple(STAGES),
    settings: Sequence[str] = (),
    limit: int | None = None,
    subset: str = "main",
    replace: bool = False,
    workers: int | None = None,
    share: str = "",
    threads: int = 1,
) -> Path:
    """Makes what a recipe describes, or goes on where the last run stopped.

    Args:
        recipe_name: a folder with a recipe.toml, a .toml file, or the name of a recipe that ships.
        output: the run's folder; None is shards/<name>.
        stages: some of `STAGES`, in their order.
        settings: overrides of recipe keys, "a.b=c".
        limit: plan at most so many requests, a balanced prefix; None is all.
        subset: the name of the selection and of the folder in final/.
        replace: make final/<subset> anew where the recipe now selects otherwise.
        workers: processes; 1 works in this one, None is one a visible GPU, or one a core.
        share: "k/n", the place of this launch among several launches on one folder.
        threads: CPU threads of torch in each worker; the bytes depend on it.

    Returns:
        The run's folder.

    Raises:
        SynthgenError: bad input; nothing was changed.
        WorkError: a unit could not be made; what is published stays.
    """
    job = open_job(
        recipe_name,
        output,
        settings=settings,
        limit=limit,
        subset=subset,
        replace=replace,
        share=share,
        threads=threads,
    )
    job.check()
    for stage in list(STAGES)[: list(STAGES).index(stages[0])]:
        _require(job, stage, stages[0])
    storage.make_folder(job.root)
    storage.replace(
        job.root,
        job.root / shards.RECIPES / f"{job.recipe_digest}.json",
        storage.to_json({"time": time.time(), "recipe": job.recipe.resolved()}),
    )
    slow = {"generate", "annotate"} & set(stages)
    count = 1 if is_launched() or not slow else workers or default_workers()
    if count == 1:
        work(job, stages)
        return job.root
    work(job, [stage for stage in stages if stage == "plan"])
    arguments = [
        "run",
        str(recipe_name),
        "-o",
        str(job.root),
        "--stages",
        ",".join(stages),
        "--subset",
        subset,
    ]
    arguments += [part for setting in settings for part in ("--set", setting)]
    arguments += ["--threads", str(threads)] + (["--limit", str(limit)] if limit is not None else [])
    arguments += ["--replace"] if replace else []
    failures = [log.strip() for status, log in local.run_workers(count, arguments, job.place) if status]
    if failures and any(_missing(job, stage) for stage in stages):
        for log in {log for log in failures if "Traceback" in log}:
            logging.getLogger(__name__).error("a worker failed:\n%s", log)
        said = "; ".join(sorted({_last_words(log) for log in failures}))
        raise WorkError(f"{said}; what is finished stays, the same command goes on")
    return job.root


def _last_words(log: str) -> str:
    """The line in which a worker said why it stopped; libraries may print after it."""
    lines = log.splitlines() or ["a worker was killed"]
    own = [line for line in lines if line.startswith("synthgen: ")]
    return (own or lines)[-1].removeprefix("synthgen: ")


def report(root: Path, subset: str = "main") -> Path:
    """Makes the report of a run anew and returns the page's path.

    Raises:
        FolderError: there is no such subset.
    """
    if not storage.exists(root / shards.SUBSETS / f"{subset}.json"):
        known = [
            name.removesuffix(".npy")
            for name in storage.names(root / shards.SUBSETS)
            if name.endswith(".npy")
        ]
        raise FolderError(f"{root}: no subset {subset}; known: {', '.join(known) or 'none, select first'}")
    chosen_from = storage.read_json(root / shards.SUBSETS / f"{subset}.json")["requested"]
    planned = shards.planned_requests(root)
    if chosen_from != planned:
        raise FolderError(
            f"{root}: subset {subset} was chosen from {chosen_from} of {planned} requests; select again"
        )
    _write_report(root, subset)
    return root / shards.REPORT / "index.html"


def _missing(job: Job, stage: str) -> list[str]:
    """The units of a stage that are not done."""
    try:
        return [unit.name for units_of in STAGES[stage] for unit in units_of(job) if not unit.done()]
    except WorkError:
        return [stage]


def _require(job: Job, stage: str, wanted: str) -> None:
    """Raises FolderError where a stage that `wanted` builds on is not finished."""
    missing = _missing(job, stage)
    if missing:
        raise FolderError(
            f"{job.root}: `{stage}` is not finished ({len(missing)} left, first {missing[0]}), and "
            f"`{wanted}` needs it; "
            f"`synthgen {stage} {job.recipe_path.parent} -o {job.root}` goes on with it"
        )
