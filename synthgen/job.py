"""A recipe and the folder that it is made in, as one worker has them: what the recipe wants, what the folder
holds, what is loaded. Like `pipeline`, it sees the Recipe; the stages get plain values from it.
"""

import contextlib
import functools
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from synthgen import planning, resharding, shards, storage
from synthgen.annotators import ANNOTATORS, CHECKS
from synthgen.errors import FolderError, ModelError, RecipeError
from synthgen.prompts import SOURCES
from synthgen.prompts.templates import cells
from synthgen.recipe import AnnotateTable, ModelTable, PromptsTable, Recipe
from synthgen.workers.place import Place

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from synthgen.annotators.shard import Annotate
    from synthgen.data import Request

Entry = TypeVar("Entry")
ALONE = Place(0, 1)
SPOT_CHECKS = 16
KEEP = "what is there stays: put the recipe back, or use another folder with -o DIR"
STACK = ("torch", "diffusers", "transformers", "open_clip_torch", "pillow", "pyarrow", "numpy")


class Job:
    """A recipe and the folder it is made in, with what a worker has loaded for it."""

    def __init__(
        self,
        recipe_path: Path,
        recipe: Recipe,
        root: Path,
        *,
        limit: int | None = None,
        subset: str = "main",
        replace: bool = False,
        place: Place = ALONE,
        threads: int = 1,
        strict: bool = False,
    ) -> None:
        self.recipe_path, self.recipe, self.root = recipe_path, recipe, root
        self.limit, self.subset, self.replace = limit, subset, replace
        self.place, self.threads, self.strict = place, threads, strict
        self._pipelines: dict[str, DiffusionPipeline] = {}

    @functools.cached_property
    def models(self) -> dict[str, planning.ModelCall]:
        """How each model is called. Fingerprint and scheduler are pinned by the plan, once there is one."""
        calls = {}
        for table in self.recipe.models:
            pinned = self._pinned().get(table.id, {})
            if pinned.get("source") == source_of(table):
                fingerprint, scheduler = pinned["fingerprint"], pinned["scheduler"]
            else:
                fingerprint, scheduler = self._identify(table)
            calls[table.id] = planning.ModelCall(
                id=table.id,
                fingerprint=fingerprint,
                steps=table.steps,
                guidance=float(table.guidance),
                negative=table.negative,
                scheduler=scheduler,
                dtype=table.dtype,
                width=table.width,
                height=table.height,
            )
        return calls

    def model_table(self, model: str) -> ModelTable:
        """The recipe's table of a model by its id."""
        return next(table for table in self.recipe.models if table.id == model)

    def _pinned(self) -> dict[str, dict[str, str]]:
        pinned: dict[str, dict[str, str]] = {}
        for stem in shards.records(self.root / shards.PLAN):
            pinned |= shards.read_record(self.root / shards.PLAN, stem).get("models", {})
        return pinned

    def _identify(self, table: ModelTable) -> tuple[str, str]:
        from synthgen.generation import models

        folder = self.locate(table)
        with where(self.recipe_path, f"models.{table.id}"):
            scheduler = models.scheduler_name(folder, table.scheduler)
            return models.fingerprint(folder, variant=table.variant), scheduler

    def locate(self, table: ModelTable) -> Path:
        from synthgen.generation import models

        with where(self.recipe_path, f"models.{table.id}"):
            return models.locate(
                table.path, folder=self.recipe_path.parent, revision=table.revision, variant=table.variant
            )

    @functools.cached_property
    def requests(self) -> "list[Request]":
        """All requests that the recipe wants, in order."""
        calls, sources = list(self.models.values()), []
        for number, table in enumerate(self.recipe.prompts):
            with where(self.recipe_path, f"prompts.{number}"):
                prompts = SOURCES[table.use](table.categories, seed=self.recipe.seed, **table.keys)
                cells = self._cells(table)
            sources.append(planning.Source(prompts, cells))
        with where(self.recipe_path, ""):
            return planning.make_requests(
                sources,
                self.recipe.classes,
                calls,
                seed=self.recipe.seed,
                requests=self.recipe.quota.requests,
                per=self.recipe.quota.cell,
                limit=self.limit,
            )

    def _cells(self, table: PromptsTable) -> dict[str, int]:
        """Into how many cells the quota of each class is cut."""
        if set(self.recipe.quota.cell) - {"class"}:
            return cells(table.categories, **table.keys)
        return {category.name: 1 for category in table.categories}

    def plan_inputs(self) -> dict[str, object]:
        """What decides the requests, by the recipe's own keys."""
        inputs: dict[str, object] = {
            "seed": self.recipe.seed,
            "images.shard_size": self.recipe.images.shard_size,
            "axes": self.recipe.axes,
        }
        for number, prompts in enumerate(self.recipe.prompts):
            inputs |= flat(
                f"prompts.{number}", {"use": prompts.use, "classes": prompts.categories, **prompts.keys}
            )
        for call in self.models.values():
            inputs |= flat(f"models.{call.id}", call._asdict())
        return (
            inputs
            | self._how(self.recipe.models)
            | {"quota.per": self.recipe.quota.per, "quota.requests": self.recipe.quota.requests}
        )

    def _how(self, tables: Sequence[ModelTable]) -> dict[str, object]:
        """What else decides the bytes of images by these models, besides the requests."""
        inputs: dict[str, object] = {"images.format": self.recipe.images.format}
        for table in tables:
            inputs[f"models.{table.id}.batch_size"] = table.batch_size
            inputs[f"models.{table.id}.safety_checker"] = table.safety_checker
        return inputs

    def pool_inputs(self, model: str, uids: Sequence[str]) -> dict[str, object]:
        return {
            "plan": shards.digest(list(uids)),
            f"models.{model}.fingerprint": self.models[model].fingerprint,
            **self._how([self.model_table(model)]),
        }

    def annotation_inputs(self, table: AnnotateTable) -> dict[str, object]:
        inputs = {"use": table.use, "batch_size": table.batch_size, **table.keys}
        if "classes" in ANNOTATORS[table.use].__annotations__:
            inputs["classes"] = self.recipe.classes
        return flat(f"annotate.{table.name}", inputs)

    def selection_inputs(self) -> dict[str, object]:
        rules = [{"use": table.use, **table.keys} for table in self.recipe.select]
        return {
            "requests": shards.planned_requests(self.root) + len(self.new_requests()),
            "select": rules,
        }

    def final_inputs(self) -> dict[str, object]:
        reshard = self.recipe.reshard
        return self.selection_inputs() | {
            "reshard.split": [list(part) for part in reshard.split.items()],
            "reshard.shard_size": reshard.shard_size,
        }

    @functools.cached_property
    def recipe_digest(self) -> str:
        """The name under which the folder keeps this recipe."""
        return shards.digest(self.recipe.resolved())[:32]

    def record(self, stage: str, inputs: dict[str, object]) -> dict[str, object]:
        """The start of a unit's record."""
        return {"version": 1, "stage": stage, "inputs": inputs, "digest": shards.digest(inputs)}

    @functools.cached_property
    def stack(self) -> dict[str, object]:
        """What else decides the bytes: versions, kind of device, threads."""
        from synthgen.workers.place import device_name

        stack: dict[str, object] = {name: version(name) for name in STACK}
        return stack | {
            "python": platform.python_version(),
            "device": device_name(self.device),
            "threads": self.threads,
        }

    @property
    def planned(self) -> dict[str, int]:
        """The uids in the plan so far, with their class ids."""
        folder = self.root / shards.PLAN
        tables = [
            shards.read_table(folder / f"{stem}.parquet", ["uid", "class_id"])
            for stem in shards.records(folder)
        ]
        return {
            uid: class_id
            for table in tables
            for uid, class_id in zip(table["uid"].to_pylist(), table["class_id"].to_pylist(), strict=True)
        }

    def new_requests(self) -> "list[Request]":
        """The requests that the recipe wants and that are not in the plan."""
        if self._is_planned():
            return []
        planned = self.planned
        return [request for request in self.requests if request.uid not in planned]

    def _is_planned(self) -> bool:
        """Whether the plan was made from this very recipe: then no request has to be compared."""
        folder = self.root / shards.PLAN
        for stem in shards.records(folder)[-1:]:
            record = shards.read_record(folder, stem)
            inputs: dict[str, object] = json.loads(shards.canonical(self.plan_inputs()))
            return bool(record["inputs"] == inputs and record["limit"] == self.limit)
        return False

    def check(self) -> None:
        """Compares the folder with the recipe, and changes nothing.

        Raises:
            FolderError: the folder is not a run's, or it was made with other values of a key, which is named.
        """
        if storage.exists(self.root) and not storage.is_folder(self.root):
            raise FolderError(f"{self.root}: is a file; a folder is wanted")
        if not shards.is_run(self.root) and not storage.is_blank(self.root):
            raise FolderError(
                f"{self.root}: is not empty and was not made by synthgen; choose another folder with -o DIR"
            )
        for table in self.recipe.annotate:
            with where(self.recipe_path, f"annotate.{table.name}"):
                if table.use in CHECKS:
                    CHECKS[table.use](**table.keys)
        self.check_plan()
        self.check_records(None if self.strict else SPOT_CHECKS)
        if not self.replace:
            self.check_final()

    def check_plan(self) -> None:
        """Raises FolderError where the plan was made from another recipe, unless all it has is still
        wanted.
        """
        folder = self.root / shards.PLAN
        if not shards.records(folder) or self._is_planned():
            return
        planned = self.planned
        if self.limit is not None and len(planned) > self.limit:
            raise FolderError(
                f"{self.root}: --limit {self.limit}: {len(planned)} requests are planned already; "
                "run without --limit, or use another folder with -o DIR"
            )
        inputs = self.plan_inputs()
        stem = shards.records(folder)[-1]
        labels = {request.uid: request.class_id for request in self.requests}
        if all(labels.get(uid) == class_id for uid, class_id in planned.items()):
            made = shards.read_record(folder, stem)["inputs"]
            kept = {"images.shard_size", "axes", *self._how(self.recipe.models)} & made.keys()
            inputs = {**made, **{key: inputs[key] for key in kept}}
        shards.require_inputs(folder, stem, inputs, KEEP)

    def check_records(self, at_most: int | None = None) -> None:
        """Compares what is made with what the recipe would make now. The plan guards the pool, so at the
        start of a worker a few shards are enough; selecting looks at all, and so does --strict.

        Args:
            at_most: so many of the records of each folder, spread over it; None is all.

        Raises:
            FolderError: a shard was made with other values of a key, which is named.
        """
        plan, pool = shards.load_plan(self.root), self.root / shards.POOL
        made, files = set(shards.records(pool)), dict[str, object]()
        for shard in _spread([shard for shard in plan if shard.stem in made], at_most):
            uids = shards.read_plan_shard(shard)["uid"].to_pylist()
            inputs = self.pool_inputs(shard.model, uids)
            record = shards.read_record(pool, shard.stem)
            shards.require_equal(pool / shard.stem, record["inputs"], inputs, KEEP)
            files[shard.stem] = record["files"]
            if self.strict:
                wanted = self.stack | {"smallest_batch": inputs[f"models.{shard.model}.batch_size"]}
                self._check_stack(pool / shard.stem, record, wanted)
        for table in self.recipe.annotate:
            folder = self.root / shards.ANNOTATIONS / table.name
            inputs, fingerprint = self.annotation_inputs(table), None
            for stem in _spread(shards.records(folder), at_most):
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
                if self.strict:
                    self._check_stack(folder / stem, record, self.stack)

    def _check_stack(self, unit: Path, record: dict[str, Any], wanted: dict[str, object]) -> None:
        made = {key: record.get(key, record.get("stack", {}).get(key)) for key in wanted}
        shards.require_equal(unit, made, wanted, f"--strict refuses a mixture; {KEEP}")

    def check_selected(self) -> None:
        """Raises FolderError where the subset is not this recipe's: another command has selected since."""
        path = self.root / shards.SUBSETS / f"{self.subset}.json"
        made = storage.read_json(path)["inputs"]
        wanted = self.selection_inputs()
        shards.require_equal(path, made, wanted, "another command has selected since; add --subset NEW")

    def check_final(self) -> None:
        inputs = self.final_inputs()
        folders = [self.final, *(self.final / split for split in storage.names(self.final))]
        for folder in folders:
            for stem in shards.records(folder):
                shards.require_inputs(
                    folder,
                    stem,
                    inputs,
                    "add --subset NEW to make another beside it, or --replace to make it anew",
                )

    def remove_other_final(self) -> None:
        """Removes the files that the records of `final/<subset>` name, where they were made from other
        inputs.
        """
        try:
            self.check_final()
        except FolderError:
            folders = [self.final / split for split in storage.names(self.final)] + [self.final]
            for folder in folders:
                for stem in shards.records(folder):
                    files = shards.read_record(folder, stem)["files"]
                    # the record first: data without one is garbage
                    storage.remove(shards.record_path(folder, stem))
                    for name in files:
                        storage.remove(folder / name)

    @property
    def final(self) -> Path:
        return self.root / shards.FINAL / self.subset

    def pool_stems(self) -> list[str]:
        return shards.pool_stems(self.root)

    def columns(self) -> shards.PoolColumns:
        return shards.PoolColumns(
            self.root, self.pool_stems(), [table.name for table in self.recipe.annotate]
        )

    def output_shards(self) -> list[resharding.OutputShard]:
        columns = self.columns()
        uids = shards.uid_strings(shards.read_npy(self.root / shards.SUBSETS / f"{self.subset}.npy"))
        where = {
            place.uid: place for stem in self.pool_stems() for place in resharding.places(self.root, stem)
        }
        groups = dict(zip(columns["uid"].tolist(), columns["group"].tolist(), strict=True))
        reshard = self.recipe.reshard
        return resharding.cut(uids, groups, where, split=reshard.split, shard_size=reshard.shard_size)

    @functools.cached_property
    def device(self) -> str:
        from synthgen.workers.place import find_device

        return find_device(self.threads, self.place.local_rank)

    def pipeline(self, model: str) -> "DiffusionPipeline":
        """The generator of an id; the one before is dropped first."""
        if model not in self._pipelines:
            self._pipelines.clear()
            self._pipelines[model] = self._load(model)
        return self._pipelines[model]

    def _load(self, model: str) -> "DiffusionPipeline":
        from synthgen.generation import models

        table = self.model_table(model)
        folder = self.locate(table)
        found = models.fingerprint(folder, variant=table.variant)
        if found != self.models[model].fingerprint:
            raise ModelError(
                f"models.{model}: the weights in {folder} have the fingerprint {found}, the plan is for "
                f"{self.models[model].fingerprint}; put those weights back, or use another folder with -o DIR"
            )
        return models.load(
            folder,
            device=self.device,
            dtype=table.dtype,
            scheduler=table.scheduler,
            variant=table.variant,
            safety_checker=table.safety_checker,
        )

    @functools.cache  # noqa: B019
    def annotator(self, name: str) -> "Annotate":
        table = next(table for table in self.recipe.annotate if table.name == name)
        given = {"classes": self.recipe.classes} if "classes" in ANNOTATORS[table.use].__annotations__ else {}
        with where(self.recipe_path, f"annotate.{name}"):
            annotate: Annotate = ANNOTATORS[table.use](device=self.device, **given, **table.keys)
        folder = self.root / shards.ANNOTATIONS / name
        fingerprint = getattr(annotate, "fingerprint", "")
        for stem in shards.records(folder)[:1]:
            other = shards.read_record(folder, stem).get("fingerprint")
            if other != fingerprint:
                raise ModelError(
                    f"annotate.{name}: the model has the fingerprint {fingerprint}, {folder / stem} "
                    f"was made with {other}; "
                    "put that model back, or give the annotation another name"
                )
        return annotate


def _spread(entries: Sequence[Entry], at_most: int | None) -> Sequence[Entry]:
    """At most so many, evenly spread, the first and the last among them."""
    if at_most is None or len(entries) <= at_most:
        return entries
    return [entries[k * (len(entries) - 1) // (at_most - 1)] for k in range(at_most)]


def source_of(table: ModelTable) -> str:
    """What a model is looked up by; the plan pins what was found."""
    return shards.digest([table.path, table.revision, table.variant, table.scheduler])


def flat(prefix: str, values: object) -> dict[str, object]:
    """Nested tables as one, keys joined by dots as in the recipe."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: entry for name, value in values.items() for key, entry in flat(f"{prefix}.{name}", value).items()
    }


@contextlib.contextmanager
def where(path: Path, key: str) -> Iterator[None]:
    """Puts the recipe's file and key before the message of a bad input."""
    try:
        yield
    except (RecipeError, ModelError) as error:
        raise type(error)(f"{path}: {key + ': ' if key else ''}{error}") from error.__cause__
