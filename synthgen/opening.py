"""A recipe and its folder, opened as a job: arguments are looked at, nothing is written."""

import re
from collections.abc import Sequence
from pathlib import Path

from synthgen import recipe, selection, shards, storage, subsets
from synthgen.errors import FolderError, RecipeError, SynthgenError, nearest
from synthgen.job import Job
from synthgen.workers.place import find_place

OFFLOADS = ("", "model", "sequential")


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
    strict: bool = False,
    fetch: bool = True,
    offload: str = "",
    add: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Job:
    """A recipe with its folder (`output`, default shards/<name>), validated; nothing is written. Without
    `fetch` no model is downloaded either.

    Raises:
        SynthgenError: the recipe is wrong, or another argument.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", subset):
        raise SynthgenError(f'--subset "{subset}": letters, digits, - and _ are allowed')
    if offload not in OFFLOADS:
        raise SynthgenError(f'--offload "{offload}": model or sequential is wanted')
    if limit is not None and limit < 1:
        raise SynthgenError(f"--limit {limit}: a whole number from 1 is wanted")
    path = recipe.find(recipe_name)
    loaded = recipe.load(path, settings)
    known = [table.name for table in loaded.annotate]
    for name in only:
        if name not in known:
            raise SynthgenError(f'--only: {path} has no annotation "{name}"{nearest(name, known)}')
    root = Path(output) if output else Path(shards.DEFAULT_ROOT) / loaded.name
    job = Job(
        path,
        loaded,
        root,
        limit=limit,
        subset=subset,
        replace=replace,
        place=find_place(share),
        threads=threads,
        strict=strict,
        fetch=fetch,
        offload=offload,
        add=_find_added(add, root, subset),
        only=only,
    )
    if job.quota:
        with recipe.where(path, ""):
            selection.check_quota(job.rules_of(subset), job.quota)
    return job


def require_making(job: Job) -> None:
    """Raises RecipeError where a recipe makes no images, for commands that are about making them."""
    if job.recipe.curates:
        raise RecipeError(
            f"{job.recipe_path}: makes no images, as it has no [[prompts]], [[models]] and [quota]; "
            "`synthgen run` curates with it what was imported"
        )


def reinforcing(job: Job) -> list[str]:
    """The annotations that write down what a teacher says, by name.

    Raises:
        RecipeError: there is none.
    """
    found = [table.name for table in job.recipe.annotate if table.use == "reinforce"]
    if not found:
        raise RecipeError(
            f'{job.recipe_path}: no annotation has use = "reinforce"; add [[annotate]] with name = "dr", '
            'use = "reinforce", and teacher = "clip" or "classifier" with its model'
        )
    return found


def _find_added(add: Sequence[str], root: Path, subset: str) -> list[tuple[Path, str]]:
    """Other runs and their subsets, of arguments RUN[:SUBSET].

    Raises:
        FolderError: there is no such run or subset, or two have one name.
    """
    found: list[tuple[Path, str]] = []
    for text in add:
        folder, colon, name = text.rpartition(":")
        if not colon or storage.is_folder(Path(text)):
            folder, name = text, "main"
        other = Path(folder)
        known = subsets.names(other)
        if name not in known:
            what = f"no subset {name}; known: {', '.join(known)}" if known else "no run there with a subset"
            raise FolderError(f"--add {text}: {what}; RUN[:SUBSET] is wanted, such as shards/birds:strict")
        names = [f"{one.resolve().name}:{own}" for one, own in [(root, subset), *found]]
        if f"{other.resolve().name}:{name}" in names:
            raise FolderError(
                f"--add {text}: {other.resolve().name}:{name} is there twice; each needs its own name"
            )
        found.append((other, name))
    return found
