"""The stages in order, each as the list of its units: the reader's map, and the only room that knows them
all.

The folder is the state: a unit is done when its record is there. `engine` makes the units.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from synthgen import checks, planning, resharding, selection, shards, storage, subsets
from synthgen.annotators import COLUMNS, FITS, READS
from synthgen.claims import Claim
from synthgen.engine import Unit
from synthgen.errors import FolderError, WorkError
from synthgen.inputs import (
    annotation_inputs,
    final_inputs,
    fit_inputs,
    plan_inputs,
    pool_inputs,
    selection_inputs,
)
from synthgen.job import Job
from synthgen.resharding.cutting import OutputShard
from synthgen.tables.curation import AnnotateTable


def _shard_unit(name: str, folder: Path, stem: str, make: Callable[[Claim], None]) -> Unit:
    return Unit(name, partial(shards.is_done, folder, stem), make)


def plan_units(job: Job) -> list[Unit]:
    # the name first: if another worker plans meanwhile, this name is taken and its requests are not added
    rounds, folder = shards.records(job.root / shards.PLAN), job.root / shards.PLAN
    new = job.requests.new()

    def make(claim: Claim) -> None:
        cut = planning.cut_shards(new, job.recipe.images.shard_size)
        tables = [shards.requests_table(rows, job.recipe.axes) for rows in cut]
        pinned = {
            table.id: {
                "source": job.generators[table.id].source,
                "fingerprint": job.models[table.id].fingerprint,
                "scheduler": job.models[table.id].scheduler,
                "license": job.models[table.id].license,
            }
            for table in job.recipe.models
        }
        record = job.record("plan", plan_inputs(job)) | {
            "limit": job.limit,
            "requests": len(new),
            "shards": [
                [model, len(list(run))] for model, run in itertools.groupby(rows[0].model for rows in cut)
            ],
            "models": pinned,
        }
        with shards.new_unit(job.root, folder, stems[-1], record, claim) as create:
            create(".parquet").write(shards.to_parquet(tables))

    stems = [*rounds, f"{len(rounds):03d}-000"] if new else rounds
    return [_shard_unit(f"plan/{stem}", folder, stem, make) for stem in stems]


def pool_units(job: Job) -> list[Unit]:
    from synthgen.generation.shard import make_shard

    folder = job.root / shards.POOL

    def make(shard: shards.PlannedShard, claim: Claim) -> None:
        plan = shards.read_plan_shard(shard)
        inputs = pool_inputs(job, shard.model, plan["uid"].to_pylist())
        with job.generators[shard.model].where():  # what a pipeline refuses is known when it is called
            make_shard(
                job.root,
                shard.stem,
                plan,
                pipeline=lambda: job.pipeline(shard.model),
                batch_size=job.generators[shard.model].table.batch_size,
                image_format=job.recipe.images.format,
                dataset=job.recipe.name if job.recipe.images.mark else "",
                record=job.record("generate", inputs) | {"stack": job.stack},
                claim=claim,
                real=job.real_image,
                halve=not job.strict,
            )

    return [
        _shard_unit(f"pool/{shard.stem}", folder, shard.stem, partial(make, shard))._replace(
            model=shard.model
        )
        for shard in shards.load_plan(job.root)
    ]


def annotation_units(job: Job) -> list[Unit]:
    """One unit a pool shard, for all annotations that wait for nothing else: they share the reading and the
    decoding.
    """
    fitted = job.recipe.fitted
    return _annotation_units(job, [table for table in job.annotated if table.name not in fitted])


def fitted_units(job: Job) -> list[Unit]:
    """One unit a pool shard, for all annotations that need what is fitted to the whole pool."""
    fitted = job.recipe.fitted
    return _annotation_units(job, [table for table in job.annotated if table.name in fitted])


def _annotation_units(job: Job, tables: Sequence[AnnotateTable]) -> list[Unit]:
    from synthgen.annotators.shard import Annotation, annotate_shard

    pool = job.root / shards.POOL
    folders = {table.name: job.root / shards.ANNOTATIONS / table.name for table in tables}

    def is_done(stem: str) -> bool:
        return all(shards.is_done(folder, stem) for folder in folders.values())

    def begin(table: AnnotateTable, stem: str) -> Annotation:
        annotate = job.annotations.annotator(table.name)
        record = job.record("annotate", annotation_inputs(job, table)) | {"stack": job.stack}
        record["fingerprint"] = getattr(annotate, "fingerprint", "")
        record |= getattr(annotate, "tells", {})
        record["pool"] = shards.read_record(pool, stem)["files"]
        return Annotation(
            table.name,
            annotate,
            COLUMNS[table.use],
            table.batch_size,
            record,
            list(dict.fromkeys(table.reads.values())),
            *job.annotations.keep_of(table.name),
        )

    def make(stem: str, claim: Claim) -> None:
        missing = [begin(table, stem) for table in tables if not shards.is_done(folders[table.name], stem)]
        annotate_shard(
            job.root,
            stem,
            missing,
            job.recipe.made_by,
            claim=claim,
            sources=job.source_paths,
            decoders=job.decoders,
        )

    def unit(stem: str) -> Unit:
        images = Unit(f"pool/{stem}", partial(shards.is_done, pool, stem), lambda claim: None)
        name = "-".join([stem, *(table.name for table in tables if table.name in job.recipe.fitted)])
        return Unit(f"annotations/{name}", partial(is_done, stem), partial(make, stem), needs=images)

    return [unit(stem) for stem in job.pool_stems()] if tables else []


def fit_units(job: Job) -> list[Unit]:
    """One unit an annotation that is fitted to the whole pool."""

    def make(table: AnnotateTable, claim: Claim) -> None:
        checks.check_records(job)
        record = job.record("fit", fit_inputs(job, table)) | {"stack": job.stack}
        keys = {key: value for key, value in table.keys.items() if key not in READS[table.use]}
        [name] = table.reads.values()
        arrays = FITS[table.use](job.annotations.read_features(name), **keys)
        folder = job.root / shards.ANNOTATIONS / table.name
        with shards.new_unit(job.root, folder, shards.FITTED, record, claim) as create:
            create(".npz").write(shards.to_npz(arrays))

    return [
        _shard_unit(
            f"annotations/{table.name}/{shards.FITTED}",
            job.root / shards.ANNOTATIONS / table.name,
            shards.FITTED,
            partial(make, table),
        )
        for table in job.annotated
        if table.use in FITS
    ]


def selection_units(job: Job) -> list[Unit]:
    columns = functools.cache(job.columns)  # read once for all of them

    def unit(subset: str) -> Unit:
        inputs = selection_inputs(job, subset)

        def done() -> bool:
            try:
                return bool(subsets.told(job.root, subset).get("inputs") == inputs)
            except WorkError:  # about to be replaced
                return False

        def make(claim: Claim) -> None:
            subsets.check_is_view(job.root, subset)
            checks.check_records(job)
            chosen = job.selected(columns(), subset)
            rules, quota = job.rules_of(subset), job.quota_of(subset)
            short = []
            if quota:
                short = selection.short_cells(columns(), chosen, rules, quota, list(job.requests.wanted()))
            subsets.publish(
                job.root,
                subset,
                claim,
                columns(),
                chosen.verdict,
                selection.verdict_names(rules),
                chosen.steps,
                head={"inputs": inputs, "recipe": job.recipe_digest},
                tail={"short": [cell._asdict() for cell in short]},
            )

        return Unit(f"subsets/{subset}", done, make)

    return [unit(subset) for subset in job.subsets]


def replace_units(job: Job) -> list[Unit]:
    """With --replace: removes what `final/<subset>` holds of other rules, now that the new selection is
    there, and what is to come in its place can be made.
    """
    if job.replace:
        job.output()

    def done() -> bool:
        try:
            checks.check_final(job)
        except FolderError:
            return False
        return True

    return (
        [Unit(f"final/{job.subset}", done, lambda claim: checks.remove_other_final(job))]
        if job.replace
        else []
    )


def final_units(job: Job) -> list[Unit]:
    """The output shards; the last unit, made when all others are there, describes them."""
    checks.check_selected(job)
    output, inputs = job.output(), final_inputs(job)
    checks.check_selected(job)
    checks.check_final(job)

    def unit(shard: OutputShard) -> Unit:
        def make(claim: Claim) -> None:
            record = job.record("reshard", inputs)
            resharding.write_shard(
                job.root, job.final, shard, output.chosen, output.added, record=record, claim=claim
            )

        folder = job.final / shard.split
        return _shard_unit(f"final/{job.subset}/{shard.split}/{shard.stem}", folder, shard.stem, make)

    return [unit(shard) for shard in output.shards]


def card_units(job: Job) -> list[Unit]:
    """What stands beside the output shards: sizes, class names, timm's info, the dataset card."""
    from synthgen.reporting.card import card

    def make(claim: Claim) -> None:
        output = job.output()
        keys = resharding.check_written(
            output, lambda shard: shards.read_record(job.final / shard.split, shard.stem)
        )
        classes = {number: name for name, number in output.classes.items()}
        info = resharding.info(job.recipe.name, output)
        models = [
            # where a folder lies is nobody else's business
            (
                one.id,
                Path(one.path).name if one.path.startswith(("/", "~", ".")) else one.path,
                call.fingerprint,
                call.license,
            )
            for one, call in zip(job.recipe.models, job.models.values(), strict=True)
        ]
        files = {
            "_info.json": storage.to_json(info),
            "README.md": card(
                job.recipe.name,
                sorted(classes.items()),
                info,
                models,
                marked=job.recipe.images.mark and not job.recipe.curates,
                sources=[(one.name, one.license) for one in shards.imported(job.root)],
            ).encode(),
        }
        if classes:
            listed = "".join(f"{classes.get(k, '')}\n" for k in range(max(classes) + 1))
            files = {"classes.txt": listed.encode(), **files}
        for split in info["splits"]:
            files[f"{split}/sizes.json"] = storage.to_json(resharding.sizes(output, split))
        for name, data in files.items():
            claim.check()
            storage.replace(job.root, job.final / name, data)
        record = job.record("card", final_inputs(job)) | {
            "written": len(keys),
            "keys": resharding.digest_of(sorted(keys)),
            "warning": output.warning,
            "files": {name: storage.checksum(job.final / name) for name in files},
        }
        storage.replace(job.root, job.final / shards.RECORD_SUFFIX, storage.to_json(record))

    return [Unit(f"final/{job.subset}", lambda: storage.exists(job.final / shards.RECORD_SUFFIX), make)]


def final_warning(job: Job) -> str:
    """What has to be said of `final/<subset>`, whoever made it, and when; "" for nothing."""
    if not storage.exists(job.final / shards.RECORD_SUFFIX):
        return ""
    return str(storage.read_json(job.final / shards.RECORD_SUFFIX).get("warning", ""))


def report_units(job: Job) -> list[Unit]:
    inputs, path = _report_inputs(job.root, job.subset), shards.record_path(job.root / shards.REPORT, "index")

    def done() -> bool:
        there = storage.exists(path) and storage.exists(path.with_name("index.html"))
        return there and storage.read_json(path).get("inputs") == inputs

    return [Unit("report", done, lambda claim: write_report(job.root, job.subset, job.source_paths))]


def _report_inputs(root: Path, subset: str) -> dict[str, object]:
    from synthgen.reporting.report import inputs

    return {"subset": subset, **inputs(root, subset)}


def write_report(root: Path, subset: str, sources: Mapping[str, Path] = {}) -> None:
    from synthgen.reporting.report import contact_sheet, page

    folder = root / shards.REPORT
    files = {
        "index.html": page(root, subset, sources),
        "contact_sheet.jpg": contact_sheet(root, subset, sources),
    }
    record = {"stage": "report", "inputs": _report_inputs(root, subset)}
    record["files"] = {name: storage.checksum_of(data) for name, data in files.items()}
    for name, data in {**files, f"index{shards.RECORD_SUFFIX}": storage.to_json(record)}.items():
        storage.replace(root, folder / name, data)


Listings = Sequence[Callable[[Job], list[Unit]]]
STAGES: dict[str, Listings] = {
    "plan": [plan_units],
    "generate": [pool_units],
    "annotate": [annotation_units, fit_units, fitted_units],
    "select": [selection_units],
    "reshard": [replace_units, final_units, card_units],
    "report": [report_units],
}


def phases(stages: Sequence[str]) -> Sequence[Listings]:
    """What is listed together, as the units of it do not wait for each other: a shard is annotated while
    others are generated. Everything else looks at all that was made before it.
    """
    found: list[list[Callable[[Job], list[Unit]]]] = []
    for stage in stages:
        if stage == "annotate" and "generate" in stages:
            found[-1] += STAGES[stage][:1]
            found += [[listing] for listing in STAGES[stage][1:]]
        else:
            found += [[listing] for listing in STAGES[stage]]
    return found
