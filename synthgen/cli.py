"""The command line: parse, call one function, print. Results go to stdout, progress and errors to stderr."""

import argparse
import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen import display, display_recipe, progress
from synthgen.arguments import MAKE, parser
from synthgen.engine import Stopped, listen
from synthgen.errors import DeviceError, FolderError, RecipeError, SynthgenError, nearest
from synthgen.workers.place import find_parent, find_place

if TYPE_CHECKING:
    from synthgen.job import Job


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 unfinished or damaged, 2 bad input, 130/143
    stopped.
    """
    logging.basicConfig(format="synthgen: %(message)s", level=logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        listen(signal.SIGTERM, signal.SIGINT)
        if (
            find_parent()
        ):  # a terminal's Ctrl-C reaches parent and workers: the parent tells its workers, once
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _COMMANDS[options.command](options)
    except DeviceError as error:
        print(f"synthgen: {error}", file=sys.stderr)
        return 1
    except SynthgenError as error:
        print(f"synthgen: {error}", file=sys.stderr)
        return 2 if find_parent() else error.exit_status  # 2: not to be started again
    except Stopped as stopped:
        print("synthgen: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + stopped.number
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"synthgen: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 1


def _make(options: argparse.Namespace) -> int:
    from synthgen import pipeline
    from synthgen.inspection import status
    from synthgen.opening import open_job, reinforcing
    from synthgen.stages import STAGES

    _recipe_not_run(options.recipe, options.command)
    if "dry_run" in options and options.dry_run:
        return _dry_run(options)
    stages = MAKE[options.command][1] or options.stages or tuple(STAGES)
    job = open_job(options.recipe, options.output, settings=options.set, subset=options.subset)
    reinforced = reinforcing(job) if options.command == "reinforce" else []
    with progress.progress(job.root, stages, quiet=_is_quiet()):
        root = pipeline.run(
            options.recipe,
            options.output,
            stages=stages,
            settings=options.set,
            limit=options.limit,
            subset=options.subset,
            replace="replace" in options and options.replace,
            workers=options.workers,
            share=options.share,
            threads=options.threads,
            engine=options.engine,
            strict=options.strict,
            deadline=options.deadline,
            offload=getattr(options, "offload", ""),
            force="force" in options and options.force,
            add=getattr(options, "add", ()),
            only=reinforced or getattr(options, "only", ()),
        )
    if _is_quiet():
        return 0
    if getattr(options, "explain", None) is not None:
        return _explain(job, options)
    found = status(root)
    failed, requests = found["failed"], found["requests"]
    short = pipeline.short_cells(job) if {"select", "reshard"} & set(stages) else []
    if options.json:
        print(json.dumps({**found, "short_cells": short}, indent=1))
    else:
        print(display.summary(found, job.subsets))
        for name in reinforced:
            print(f"reinforcement: {root / 'annotations' / name}")
        if "report" in stages:
            print(f"report: {root / 'report' / 'index.html'}")
    for line in display.short_lines(short, job.recipe.quota, requests, stages):
        print(f"synthgen: {line}", file=sys.stderr)
    if failed > job.recipe.max_failed * requests and not job.recipe.curates:  # others' are as they are
        print(
            f"synthgen: {failed} of {requests} images failed, more than max_failed = "
            f"{job.recipe.max_failed} allows",
            file=sys.stderr,
        )
        return 1
    is_look = options.limit is not None and options.limit < (job.recipe.quota.max_requests or 0)
    return 1 if short and not is_look else 0


def _explain(job: "Job", options: argparse.Namespace) -> int:
    from synthgen.explaining import explain_sample, explain_subset

    if options.explain:
        sample = explain_sample(job, options.explain)
        if options.json:
            looks = [look._asdict() for look in sample.looks]
            print(json.dumps({**sample._asdict(), "looks": looks}, indent=1))
        else:
            print("\n".join(display.sample_lines(sample)))
        return 0
    found = explain_subset(job)
    if options.json:
        groups = {what: [one._asdict() for one in own] for what, own in found.groups.items()}
        print(json.dumps({**found._asdict(), "groups": groups}, indent=1))
    else:
        print("\n".join(display.explained_lines(found)))
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    from synthgen.costs import plain
    from synthgen.opening import open_job, require_making
    from synthgen.preview import cost

    job = open_job(
        options.recipe,
        options.output,
        settings=options.set,
        limit=options.limit,
        subset=options.subset,
        replace=True,  # what is in final/ keeps nobody from looking
        fetch=False,
    )
    require_making(job)
    found = cost(job)
    if options.json:
        print(json.dumps(plain(found), indent=1))
    else:
        print("\n".join(display_recipe.cost_lines(found)))
    return 0


def _is_quiet() -> bool:
    """Whether another process shows the progress: the parent of this worker, or a launcher's first rank."""
    return find_parent() is not None or find_place().rank != 0


def _recipe_not_run(name: str, command: str) -> None:
    folder = Path(name)
    if (folder / "recipes").is_dir() and not (folder / "recipe.toml").is_file():
        raise RecipeError(
            f"{name}: is the folder of a run; `{command}` takes the recipe: synthgen {command} "
            f"RECIPE -o {name}"
        )


def _check(options: argparse.Namespace) -> int:
    from synthgen.diversity import unmet
    from synthgen.opening import open_job
    from synthgen.preview import preview

    _recipe_not_run(options.recipe, "check")
    if options.licenses:
        return _check_licenses(options)
    job = open_job(
        options.recipe,
        options.output,
        settings=options.set,
        limit=options.limit,
        subset=options.subset,
        fetch=False,
    )
    found = preview(job, options.embed)
    if not found.figures and (options.fail_under or options.fail_over):
        raise RecipeError(found.notes[0])
    failed = unmet(found.figures, options.fail_under, least=True)
    failed += unmet(found.figures, options.fail_over, least=False)
    if options.json:
        figures = {key: None if math.isnan(value) else value for key, value in found.figures.items()}
        print(json.dumps(found._replace(figures=figures)._asdict(), indent=1))  # type: ignore[arg-type]
    else:
        print("\n".join(display_recipe.preview_lines(job.recipe, found)))
    for line in failed:
        print(f"synthgen: {line}", file=sys.stderr)
    return 1 if failed else 0


def _doctor(options: argparse.Namespace) -> int:
    from synthgen.doctor import examine, lines_to_paste
    from synthgen.opening import open_job, require_making

    _recipe_not_run(options.recipe, "doctor")
    job = open_job(
        options.recipe,
        options.output,
        settings=options.set,
        threads=options.threads,
        offload=options.offload,
    )
    require_making(job)
    findings = examine(job, most=options.most, on_trial=progress.say_trial)
    lines = lines_to_paste(job, findings)
    if options.json:
        print(json.dumps({"models": [one.as_dict() for one in findings], "lines": lines}, indent=1))
    else:
        print("\n".join(display_recipe.doctor_lines(findings, lines)))
    return 1 if any(one.error for one in findings) else 0


def _check_licenses(options: argparse.Namespace) -> int:
    from synthgen.opening import open_job
    from synthgen.preview import terms

    job = open_job(options.recipe, options.output, settings=options.set, fetch=False)
    found = terms(job)
    if options.json:
        print(json.dumps([one._asdict() for one in found], indent=1))
    else:
        print("\n".join(display_recipe.terms_lines(found)))
    for one in found:
        if one.concern:
            print(f"synthgen: {one.key}: {one.license}: {one.concern}", file=sys.stderr)
    return 0


def _prompts(options: argparse.Namespace) -> int:
    from synthgen import pipeline
    from synthgen.opening import open_job, require_making
    from synthgen.preview import sheets

    _recipe_not_run(options.recipe, "prompts")
    if options.save and not Path(options.recipe).exists():
        raise RecipeError(
            f"--save: {options.recipe} is a recipe that ships; `synthgen init DIR --from {options.recipe}` "
            "makes one of yours, which can keep answers"
        )
    job = open_job(options.recipe, options.output, settings=options.set, limit=options.limit, fetch=False)
    require_making(job)
    counts = None
    if not options.show:
        with progress.asking(str(job.recipe_path), options.local) as (on_questions, on_progress):
            counts = pipeline.ask(
                job,
                local=options.local,
                concurrency=options.concurrency,
                retries=options.retries,
                timeout=options.timeout,
                on_questions=on_questions,
                on_progress=on_progress,
            )
    saved = pipeline.save_answers(job) if options.save else 0
    found, problem = sheets(job)
    if options.json:
        asked = counts._asdict() if counts else {}
        print(
            json.dumps({**asked, "saved": saved, "classes": [sheet._asdict() for sheet in found]}, indent=1)
        )
    else:
        if counts and job.recipe.language:
            print(
                f"{job.recipe_path}: {counts.asked} questions asked, {counts.answered} answered; "
                f"{counts.already} were answered before"
            )
        if saved:
            print(f"{saved} answers saved in {job.recipe_path.parent / 'texts'}")
        print("\n".join(display_recipe.sheet_lines(found, everything=options.all)))
    for reason, number in counts.reasons.items() if counts else ():
        replies = job.root / "texts" / f"{job.texts.stem}.jsonl"
        print(f"synthgen: without an answer: {number} x {reason}; replies: {replies}", file=sys.stderr)
    if problem:
        print(f"synthgen: {problem}", file=sys.stderr)
    return 1 if problem or (counts and counts.failed) else 0


def _status(options: argparse.Namespace) -> int:
    from synthgen.inspection import status

    found = status(options.folder)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("\n".join(display.status_lines(found)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from synthgen.inspection import verify

    problems = verify(options.folder)
    if options.json:
        print(json.dumps(problems, indent=1))
    else:
        print("\n".join(problems) if problems else f"{options.folder}: everything is as its record says")
    return 1 if problems else 0


def _combine(options: argparse.Namespace) -> int:
    from synthgen.combining import combine

    found = combine(options.folder, options.name, options.expression, replace=options.replace)
    if options.json:
        operands = {name: own._asdict() for name, own in found.operands.items()}
        print(json.dumps({**found._asdict(), "operands": operands}, indent=1))
    else:
        print("\n".join(display.combined_lines(found)))
    for line in display.unknown_lines(found):
        print(f"synthgen: {line}", file=sys.stderr)
    return 0


def _show(options: argparse.Namespace) -> int:
    from synthgen.provenance import find

    found = find(options.path, options.uid, options.output)
    if options.json:
        print(json.dumps(found._replace(mark=found.mark._asdict())._asdict(), indent=1))  # type: ignore[arg-type]
    else:
        print("\n".join(display.image_lines(found)))
    return 0 if found.mark.is_ours else 1


def _report(options: argparse.Namespace) -> int:
    from synthgen import pipeline
    from synthgen.inspection import open_run

    print(pipeline.report(open_run(options.folder), options.subset))
    return 0


def _import(options: argparse.Namespace) -> int:
    from synthgen.importing.forms import Keys
    from synthgen.inspection import status
    from synthgen.intake import bring

    with progress.importing(quiet=_is_quiet()) as on_made:
        root = bring(
            options.source,
            options.output,
            name=options.name,
            keys=Keys(options.image, options.label, options.group, options.split),
            columns=options.columns,
            copy=options.copy,
            decode=options.decode,
            workers=options.workers,
            share=options.share,
            on_made=on_made,
        )
    if _is_quiet():
        return 0
    found = status(root)
    print(json.dumps(found, indent=1) if options.json else "\n".join(display.import_lines(found)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from synthgen.exporting import to_datacomp
    from synthgen.inspection import open_run

    done = to_datacomp(
        open_run(options.folder),
        Path(options.output),
        columns=options.columns,
        features=options.features,
        subset=options.subset,
    )
    if options.json:
        print(json.dumps(done._asdict(), indent=1))
    else:
        print("\n".join(display.export_lines(done)))
    return 0


def _init(options: argparse.Namespace) -> int:
    from synthgen.recipe import shipped_recipes

    shipped, target = shipped_recipes(), Path(options.folder)
    if options.source not in shipped:
        raise RecipeError(f"--from {options.source}: no such recipe{nearest(options.source, list(shipped))}")
    if target.exists():
        raise FolderError(f"{target}: is there already; name a folder that does not exist")
    target.mkdir(parents=True)
    source = shipped[options.source]
    for path in sorted(source.rglob("*")):
        if path.suffix in (".toml", ".txt", ".csv", ".jsonl"):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    recipe = target / "recipe.toml"
    text = recipe.read_text(encoding="utf-8").replace(f"prompts/{options.source}", options.folder)
    text = text.replace(f'name = "{options.source}"', f'name = "{target.resolve().name}"')
    recipe.write_text(text, encoding="utf-8")
    print(f"{target}: a copy of {options.source}; next: synthgen check {target}")
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    **dict.fromkeys(MAKE, _make),
    "check": _check,
    "doctor": _doctor,
    "prompts": _prompts,
    "status": _status,
    "verify": _verify,
    "combine": _combine,
    "show": _show,
    "report": _report,
    "import": _import,
    "export": _export,
    "init": _init,
}
