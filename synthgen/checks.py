"""What a folder holds against what a recipe wants: every difference is one line that names the key."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from synthgen import costs, shards, storage
from synthgen.annotators import CHECKS
from synthgen.errors import FolderError, UnansweredError
from synthgen.inputs import (
    annotation_inputs,
    final_inputs,
    fit_inputs,
    how,
    plan_inputs,
    pool_inputs,
    selection_inputs,
)
from synthgen.job import Job
from synthgen.recipe import check_columns, where

Entry = TypeVar("Entry")
SPOT_CHECKS = 16
ADDED = "reshard.add."
KEEP = "what is there stays: put the recipe back, or use another folder with -o DIR"


def check(job: Job, *, joins: bool = False) -> None:
    """Compares the folder with the recipe, and changes nothing.

    Args:
        joins: whether final shards are to be written: then it matters what other runs are joined.

    Raises:
        FolderError: the folder is not a run's, or it was made with other values of a key, which is named.
    """
    check_folder(job)
    if job.recipe.curates:
        with where(job.recipe_path, ""):
            check_columns(job.recipe, job.recipe_path.parent, _pool_columns(job))
        _ = job.classes  # whether they are those that were imported
    for table in job.annotated:
        with where(job.recipe_path, f"annotate.{table.name}"):
            if table.use in CHECKS:
                function = CHECKS[table.use]
                function(**job.annotations.given(table, function), **table.keys, fetch=job.fetch)
    check_plan(job)
    check_records(job, None if job.strict else SPOT_CHECKS)
    if not job.replace:
        check_final(job, joins=joins)
    job.requests.new()  # what is wrong with the prompts, or a model, is said before anything is made


def check_growth(job: Job) -> None:
    """Raises FolderError where the quota asks for more than `final/<subset>` was chosen from."""
    if not job.replace and _final_units(job) and job.requests.new():
        raise FolderError(
            f"{job.final}: was chosen from {shards.planned_requests(job.root)} requests, and quota.accepted "
            "asks for more now; add --subset NEW to make another beside it, or --replace to make it anew"
        )


def check_folder(job: Job) -> None:
    """Raises FolderError where the folder is neither a run's nor empty."""
    if storage.exists(job.root) and not storage.is_folder(job.root):
        raise FolderError(f"{job.root}: is a file; a folder is wanted")
    if not shards.is_run(job.root) and not storage.is_blank(job.root):
        raise FolderError(
            f"{job.root}: is not empty and was not made by synthgen; choose another folder with -o DIR"
        )
    sources = shards.imported(job.root)
    if sources and not job.recipe.curates:
        raise FolderError(
            f"{job.root}: holds what was imported, and {job.recipe_path} makes images; a recipe that curates "
            "has no [[prompts]], [[models]] and [quota]; or choose another folder with -o DIR"
        )
    if job.recipe.curates and not sources:
        raise FolderError(
            f"{job.root}: {job.recipe_path} makes no images, and nothing was imported there; "
            f"`synthgen import SOURCE -o {job.root}` brings some"
        )
    there = set(shards.records(job.root / shards.POOL)) if sources else set[str]()
    for source in sources:
        lacking = [stem for stem in source.stems if stem not in there]
        if lacking:
            raise FolderError(
                f'{job.root}: the import of "{source.name}" is not finished ({len(lacking)} of '
                f"{len(source.stems)} shards are left); repeat its `synthgen import`, which goes on"
            )


def _pool_columns(job: Job) -> dict[str, str]:
    """The columns of an imported pool, and their types."""
    return {
        field.name: str(field.type)
        for source in shards.imported(job.root)
        for field in shards.schema_of(job.root / shards.SOURCES / f"{source.name}.parquet")
    }


def planned_and_new(job: Job) -> dict[str, costs.Planned]:
    """What the recipe wants of each model, planned yet or not, and what of it is left to make."""
    found = costs.count_planned(job.root)
    for model, number in Counter(request.model for request in job.requests.new()).items():
        before = found.get(model, costs.Planned(0, 0))
        found[model] = costs.Planned(before.requests + number, before.left + number)
    return found


def final_part(job: Job, requests: int) -> float:
    """The part of so many requests that final/ will hold: what the quota accepts, or what the subset that is
    there keeps; 1 where neither says it.
    """
    if job.quota:
        return min(1.0, job.quota.accepted * len(job.requests.wanted()) / max(1, requests))
    path = job.root / shards.SUBSETS / f"{job.subset}.json"
    funnel = storage.read_json(path) if storage.exists(path) else {}
    return float(funnel["kept"] / funnel["requested"]) if funnel.get("requested") else 1.0


def check_room(job: Job, stages: Sequence[str]) -> None:
    """Raises FolderError where the disk has less left than what these stages have to make would take; of a
    quota of accepted images, the requests that are known yet.
    """
    planned, made = planned_and_new(job), costs.measure(job.root)
    pool = final = 0.0
    for table in job.recipe.models:
        wanted = planned.get(table.id, costs.Planned(0, 0))
        width, height = job.generators[table.id].image_size()
        each = costs.sample_bytes(job.recipe.images.format, width, height, made.get(table.id))
        pool, final = pool + wanted.left * each, final + wanted.requests * each
    wants_final = "reshard" in stages and not storage.exists(job.final / shards.RECORD_SUFFIX)
    final *= final_part(job, sum(wanted.requests for wanted in planned.values())) if wants_final else 0.0
    free = storage.free_bytes(job.root)
    if free is not None and pool + final > free:
        also = f", and up to {costs.spell_bytes(final)} for final/{job.subset}" if wants_final else ""
        raise FolderError(
            f"{job.root}: {costs.spell_bytes(free)} are free there, and what is left to make takes about "
            f"{costs.spell_bytes(pool)}{also}; make room, choose another disk with -o DIR, or go on with "
            "--force"
        )


def check_plan(job: Job) -> None:
    """Raises FolderError where the plan was made from another recipe, unless all it has is still
    wanted.
    """
    folder = job.root / shards.PLAN
    if not shards.records(folder) or job.requests.is_planned():
        return
    planned = job.requests.planned_uids()
    if job.limit is not None and len(planned) > job.limit:
        raise FolderError(
            f"{job.root}: --limit {job.limit}: {len(planned)} requests are planned already; "
            "run without --limit, or use another folder with -o DIR"
        )
    inputs = plan_inputs(job)
    stem = shards.records(folder)[-1]
    pinned = {
        key: value
        for key, value in shards.read_record(folder, stem)["inputs"].items()
        if key.startswith("sources.")
    }
    wanted = {key: inputs.get(key) for key in pinned}
    shards.require_equal(
        folder / stem, pinned, wanted, "put the real images back, or use another folder with -o DIR"
    )
    try:
        labels = {request.uid: request.class_id for request in job.requests.still_wanted()}
    except UnansweredError:
        raise FolderError(
            f"{job.root}: was planned with a language model's answers that are not there any more; put "
            f"{shards.TEXTS}/{job.texts.stem}.jsonl back, there or into the recipe's folder"
        ) from None
    if all(labels.get(uid) == class_id for uid, class_id in planned.items()):
        made = shards.read_record(folder, stem)["inputs"]
        kept = {"images.shard_size", "axes", *how(job, job.recipe.models)} & made.keys()
        inputs = {**made, **{key: inputs[key] for key in kept}}
    else:
        check_real_images(job)
    shards.require_inputs(folder, stem, inputs, KEEP)


def check_real_images(job: Job) -> None:
    """Raises RecipeError where a real image that was planned is not there any more, or is another."""
    names = {table.id for table in job.recipe.models if table.from_}
    planned = dict[tuple[str, ...], None]()
    for shard in shards.load_plan(job.root):
        if shard.model in names:
            rows = shards.read_plan_shard(shard).select(["model", "source_uid", "source_sha256"])
            planned |= dict.fromkeys(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    for image in planned:
        job.read_real_image(*image)


def check_records(job: Job, at_most: int | None = None) -> None:
    """Compares what is made with what the recipe would make now. The plan guards the pool, so at the
    start of a worker a few shards are enough; selecting looks at all, and so does --strict.

    Args:
        at_most: so many of the records of each folder, spread over it; None is all.

    Raises:
        FolderError: a shard was made with other values of a key, which is named.
    """
    plan, pool = shards.load_plan(job.root), job.root / shards.POOL
    made, files = set(shards.records(pool)), dict[str, object]()
    for shard in _spread([shard for shard in plan if shard.stem in made], at_most):
        uids = shards.read_plan_shard(shard)["uid"].to_pylist()
        inputs = pool_inputs(job, shard.model, uids)
        record = shards.read_record(pool, shard.stem)
        shards.require_equal(pool / shard.stem, record["inputs"], inputs, KEEP)
        files[shard.stem] = record["files"]
        if job.strict:
            wanted = job.stack | {"smallest_batch": inputs[f"models.{shard.model}.batch_size"]}
            _check_stack(job, pool / shard.stem, record, wanted)
    for table in job.recipe.annotate:
        folder = job.root / shards.ANNOTATIONS / table.name
        inputs, fingerprint = annotation_inputs(job, table), None
        if shards.is_done(folder, shards.FITTED):
            next_step = "put it back, or give the annotation another name"
            shards.require_inputs(folder, shards.FITTED, fit_inputs(job, table), next_step)
        for stem in _spread(shards.annotated(folder), at_most):
            record = shards.read_record(folder, stem)
            shards.require_equal(
                folder / stem,
                record["inputs"],
                inputs,
                "put it back, or give the annotation another name",
            )
            fingerprint = fingerprint or record["fingerprint"]
            if record["fingerprint"] != fingerprint:
                raise FolderError(
                    f"{folder / stem} was made by a model with the fingerprint {record['fingerprint']}, "
                    f"others by {fingerprint}; delete the _stats.json of the unwanted ones and run again"
                )
            if stem in made and stem not in files:
                files[stem] = shards.read_record(pool, stem)["files"]
            if stem in made and record["pool"] != files[stem]:
                raise FolderError(
                    f"{folder / stem} was made from other images than the pool holds; delete its "
                    "_stats.json and run again"
                )
            for other, made_from in record.get("reads", {}).items():
                source = folder.with_name(other)
                if shards.is_done(source, stem) and made_from != shards.read_record(source, stem)["files"]:
                    raise FolderError(
                        f"{folder / stem} was made from another {source / stem} than is there; delete its "
                        "_stats.json and run again"
                    )
            if job.strict:
                _check_stack(job, folder / stem, record, job.stack)


def _check_stack(job: Job, unit: Path, record: dict[str, Any], wanted: dict[str, object]) -> None:
    made = {key: record.get(key, record.get("stack", {}).get(key)) for key in wanted}
    shards.require_equal(unit, made, wanted, f"--strict refuses a mixture; {KEEP}")


def check_selected(job: Job) -> None:
    """Raises FolderError where the subset is not this recipe's: another command has selected since."""
    path = job.root / shards.SUBSETS / f"{job.subset}.json"
    made = storage.read_json(path)["inputs"]
    wanted = selection_inputs(job, job.subset)
    shards.require_equal(path, made, wanted, "another command has selected since; add --subset NEW")


def check_final(job: Job, *, joins: bool = True) -> None:
    """Raises FolderError where `final/<subset>` was made from other inputs; `joins` as in `check`."""
    made = _final_units(job)
    wanted = final_inputs(job) if made else {}
    for folder, stem in made:
        inputs = shards.read_record(folder, stem).get("inputs", {})
        added = {key: value for key, value in inputs.items() if key.startswith(ADDED)}
        lost = next((key.removeprefix(ADDED) for key in added if key not in wanted), None)
        if lost and joins:
            raise FolderError(
                f"{folder / stem} was made with --add {lost}; give that again, or add --subset NEW to make "
                "another beside it, or --replace to make it anew without"
            )
        shards.require_equal(
            folder / stem,
            inputs,
            wanted if joins else wanted | added,
            "add --subset NEW to make another beside it, or --replace to make it anew",
        )


def _final_units(job: Job) -> list[tuple[Path, str]]:
    """Folder and stem of each unit of `final/<subset>` that is done."""
    folders = [job.final, *(job.final / split for split in storage.names(job.final))]
    return [(folder, stem) for folder in folders for stem in shards.records(folder)]


def remove_other_final(job: Job) -> None:
    """Removes the files that the records of `final/<subset>` name, where they were made from other
    inputs.
    """
    try:
        check_final(job)
    except FolderError:
        folders = [job.final / split for split in storage.names(job.final)] + [job.final]
        for folder in folders:
            for stem in shards.records(folder):
                files = shards.read_record(folder, stem)["files"]
                # the record first: data without one is garbage
                storage.remove(shards.record_path(folder, stem))
                for name in files:
                    storage.remove(folder / name)


def _spread(entries: Sequence[Entry], at_most: int | None) -> Sequence[Entry]:
    """At most so many, evenly spread, the first and the last among them."""
    if at_most is None or len(entries) <= at_most:
        return entries
    return [entries[k * (len(entries) - 1) // (at_most - 1)] for k in range(at_most)]
