"""The verbs that make something: `run`, `ask` and `report`. They open a job; `run` starts workers, and each
worker goes through the stages.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synthgen import asking, checks, shards, storage, subsets
from synthgen.asking import Counts
from synthgen.engine import Worker
from synthgen.errors import FolderError, SynthgenError, WorkError, nearest
from synthgen.job import Job
from synthgen.language_models import open_local, open_server
from synthgen.opening import open_job, require_making
from synthgen.stages import STAGES, Listings, final_warning, phases, plan_units, write_report
from synthgen.workers import local, ray
from synthgen.workers.place import (
    default_workers,
    find_command,
    find_parent,
    is_launched,
    say_made,
)

MAKING = ("plan", "generate", "annotate")
"""Stages that are gone through again while a quota of accepted samples is not met."""
SLOW = {"generate", "annotate"}
"""Stages worth starting processes for."""
ENGINES = {"local": local.run_workers, "ray": ray.run_workers}


def work(job: Job, stages: Sequence[str], *, deadline: float | None = None) -> None:
    """What every worker does: the stages' units, its own share first, until none is left.

    Raises:
        WorkError: units were given up.
    """
    parent = find_parent()
    worker = Worker(
        job.root,
        command=find_command(),
        deadline=deadline,
        parent=parent.pid if parent else None,
        on_made=say_made if parent else lambda unit: None,
    )
    if {"RANK", "WORLD_SIZE"} & os.environ.keys() and SLOW & set(stages):
        _ = job.device  # a launcher's processes meet here once: later some may have nothing left to do
    making = [stage for stage in stages if stage in MAKING]
    while True:
        for listings in phases(making):
            _work(worker, job, listings)
        if not _makes_rounds(job, making) or (not job.requests.new() and job.is_made()):
            break
    for listings in phases([stage for stage in stages if stage not in MAKING]):
        _work(worker, job, listings)
    if job.strict:
        checks.check_records(job)


def _work(worker: Worker, job: Job, listings: Listings) -> None:
    checks.check_plan(job)  # another command may have planned meanwhile
    while listings == STAGES["plan"] and job.requests.new():  # or less than this one wants
        worker.work(plan_units(job))
        checks.check_plan(job)
        if job.quota:  # what is asked for next is known when these are made
            break
    worker.work([unit for units_of in listings for unit in job.place.own_first(units_of(job))])


def _makes_rounds(job: Job, stages: Sequence[str]) -> bool:
    """Whether to ask again, until the quota of accepted samples is met, or the budget is spent."""
    if job.only:
        return False
    needed = MAKING if job.recipe.annotate else MAKING[:2]
    return job.quota is not None and set(needed) <= set(stages)


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
    engine: str = "local",
    strict: bool = False,
    deadline: int | None = None,
    offload: str = "",
    force: bool = False,
    add: Sequence[str] = (),
    only: Sequence[str] = (),
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
        engine: "local", or "ray" for one actor a GPU of a Ray cluster.
        strict: refuse to go on with other library versions, another kind of device or other threads than
            what is there was made with, and to halve a micro-batch where memory runs out.
        deadline: seconds that a micro-batch may take before its process is ended as hung (and started again,
            where it is one of several workers); None is no end.
        offload: "model" or "sequential" keeps weights on the CPU, and moves the model that runs, or each of
            its layers, to the GPU; the bytes stay the same.
        add: other runs whose subsets go into the final shards too, "RUN" (its subset main) or "RUN:SUBSET".
        only: of the annotations make only these, by name, and those that they read; no stage after `annotate`
            can follow.
        force: start even where the disk has less room than what is left to make would take.

    Returns:
        The run's folder.

    Raises:
        SynthgenError: bad input; nothing was changed.
        WorkError: a unit could not be made; what is published stays.
    """
    if engine not in ENGINES:
        raise SynthgenError(f'--engine "{engine}"{nearest(engine, list(ENGINES))}')
    if list(stages) not in [list(STAGES)[k : k + len(stages)] for k in range(len(STAGES))]:
        raise SynthgenError(
            f"--stages {','.join(stages)}: leaves some out; stages that follow each other are wanted, of "
            f"{','.join(STAGES)}"
        )
    if only and not set(stages) <= set(MAKING):
        raise SynthgenError(
            f"--only {','.join(only)}: leaves annotations out, and {stages[-1]} may need them; "
            f"--stages {','.join(stage for stage in stages if stage in MAKING)} stops before that"
        )
    job = open_job(
        recipe_name,
        output,
        settings=settings,
        limit=limit,
        subset=subset,
        replace=replace,
        share=share,
        threads=threads,
        strict=strict,
        offload=offload,
        add=add,
        only=only,
    )
    checks.check(job, joins="reshard" in stages)
    if job.recipe.curates:  # what it chooses from is there
        stages = [stage for stage in stages if stage not in ("plan", "generate")]
    if not stages:
        require_making(job)
    if _makes_rounds(job, stages):
        checks.check_growth(job)
    for stage in list(STAGES)[: list(STAGES).index(stages[0])]:
        _require(job, stage, stages[0])
    if not find_parent():
        if "generate" in stages and not force:
            checks.check_room(job, stages)
        _keep_recipe(job)
    is_short_work = not SLOW & set(stages) and workers is None
    if is_launched() or is_short_work or (engine == "local" and (workers or default_workers()) == 1):
        work(job, stages, deadline=deadline)
        _warn(job, stages)
        return job.root
    work(job, [stage for stage in stages if stage == "plan"])
    arguments = ["run", str(job.recipe_path.resolve()), "-o", str(job.root.resolve())]
    arguments += ["--stages", ",".join(stages), "--subset", subset, "--threads", str(threads)]
    arguments += [part for setting in settings for part in ("--set", setting)]
    arguments += ["--limit", str(limit)] if limit is not None else []
    arguments += ["--deadline", str(deadline)] if deadline is not None else []
    arguments += [part for other in add for part in ("--add", other)]
    arguments += ["--only", ",".join(only)] if only else []
    arguments += ["--replace"] if replace else []
    arguments += ["--strict"] if strict else []
    arguments += ["--offload", offload] if offload else []
    ended = ENGINES[engine](workers, arguments, job.place, uuid.uuid4().hex)
    failures = [log.strip() for status, log in ended if status]
    is_short = _makes_rounds(job, stages) and bool(job.requests.new())
    if failures and (is_short or any(_missing(job, stage) for stage in stages)):
        for log in {log for log in failures if "Traceback" in log}:
            logging.getLogger(__name__).error("a worker failed:\n%s", log)
        said = "; ".join(sorted({local.last_words(log) for log in failures}))
        stays = (
            "" if "what is finished stays" in said else "; what is finished stays, the same command goes on"
        )
        raise WorkError(said + stays)
    _warn(job, stages)
    return job.root


def _warn(job: Job, stages: Sequence[str]) -> None:
    """Says what its maker, whose words nobody may have read, has left in the record of `final/<subset>`."""
    warning = "" if find_parent() or job.place.rank or "reshard" not in stages else final_warning(job)
    if warning:
        logging.getLogger(__name__).warning("%s: %s", job.final, warning)


def ask(
    job: Job,
    *,
    local: str = "",
    concurrency: int = 8,
    retries: int = 5,
    timeout: float = 120.0,
    on_questions: Callable[[int], None] = lambda number: None,
    on_progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Asks the recipe's language model what it has not answered yet, at most `job.limit` questions; returns
    what there is then.

    Args:
        local: a folder or hub id of a transformers model that is asked in this process; "" asks the server at
            OPENAI_BASE_URL, with the key OPENAI_API_KEY.
        concurrency: questions in flight at once, on a server.
        retries: attempts after the first one, for a question.
        timeout: seconds that a server's reply may take.
        on_questions: told how many questions there are, before they are asked.
        on_progress: told the counts after each answer.

    Raises:
        SynthgenError: bad input, or a model that cannot be asked; what is answered stays.
    """
    checks.check_folder(job)
    done, reply = Counts(0, 0, 0, 0, {}), None
    while True:  # with the words that were asked for, more questions are known
        questions = job.texts.all_questions()
        waiting = [question for question in questions if question.key not in job.texts.answers][: job.limit]
        if not waiting:
            break
        reply = reply or (open_local(local, device=job.device) if local else open_server(timeout=timeout))
        _keep_recipe(job)
        on_questions(len(waiting))
        found = asking.ask(
            waiting,
            reply,
            root=job.root,
            stem=job.texts.stem,
            saved=job.texts.files,
            concurrency=1 if local else concurrency,
            retries=retries,
            on_progress=on_progress,
        )
        done = Counts(
            done.asked + found.asked,
            done.answered + found.answered,
            0,
            done.failed + found.failed,
            {**done.reasons, **found.reasons},
        )
        del job.texts  # it has read the answers before these
        if found.failed or job.limit:
            break
    return done._replace(
        already=sum(question.key in job.texts.answers for question in questions) - done.answered
    )


def save_answers(job: Job) -> int:
    """Puts the answers into the recipe's folder, so that it makes the same plan with no model; returns how
    many are new there.
    """
    return asking.save(
        job.texts.all_questions(), root=job.root, stem=job.texts.stem, folder=job.recipe_path.parent
    )


def _keep_recipe(job: Job) -> None:
    """Makes the folder a run's: it says from then on which recipe it is for."""
    storage.make_folder(job.root)
    storage.replace(
        job.root,
        job.root / shards.RECIPES / f"{job.recipe_digest}.json",
        storage.to_json(
            {
                "time": time.time(),
                "recipe": job.recipe.resolved(),
                "measured_axes": job.recipe.measured_axes,
            }
        ),
    )


def short_cells(job: Job) -> list[dict[str, Any]]:
    """The cells that have fewer accepted samples than the quota wants, as the last selection found them: with
    the fields of `selection.ShortCell`.
    """
    found: list[dict[str, Any]] = storage.read_json(job.root / shards.SUBSETS / f"{job.subset}.json")["short"]
    return found


def report(root: Path, subset: str = "main") -> Path:
    """Makes the report of a run anew and returns the page's path.

    Raises:
        FolderError: there is no such subset.
    """
    if not storage.exists(root / shards.SUBSETS / f"{subset}.json"):
        raise FolderError(subsets.unknown(root, subset))
    chosen_from = storage.read_json(root / shards.SUBSETS / f"{subset}.json")["requested"]
    planned = shards.planned_requests(root)
    if chosen_from != planned:
        raise FolderError(
            f"{root}: subset {subset} was chosen from {chosen_from} of {planned} requests; select again"
        )
    write_report(root, subset)
    return root / shards.REPORT / "index.html"


def _missing(job: Job, stage: str) -> list[str]:
    """The units of a stage that are not done."""
    if stage == "plan" and job.quota and shards.records(job.root / shards.PLAN):
        return []  # what is there may be scored and chosen from, quota or not
    try:
        return [unit.name for units_of in STAGES[stage] for unit in units_of(job) if not unit.done()]
    except WorkError:
        return [stage]


def _require(job: Job, stage: str, wanted: str) -> None:
    """Raises FolderError where a stage that `wanted` builds on is not finished."""
    missing = _missing(job, stage)
    if missing:
        named = f" --subset {job.subset}" if stage == "select" and job.subset != "main" else ""
        raise FolderError(
            f"{job.root}: `{stage}` is not finished ({len(missing)} left, first {missing[0]}), and "
            f"`{wanted}` needs it; "
            f"`synthgen {stage} {job.recipe_path.parent} -o {job.root}{named}` goes on with it"
        )
