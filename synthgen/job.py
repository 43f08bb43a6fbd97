"""A recipe and the folder that it is made in, as one worker has them: what the recipe wants, what the folder
holds, what is loaded. Like `pipeline`, it sees the Recipe; the stages get plain values from it.
"""

import contextlib
import functools
import gc
import json
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen import licenses, planning, resharding, selection, shards, sources
from synthgen.annotators import ANNOTATORS
from synthgen.data import Word
from synthgen.errors import ModelError, RecipeError
from synthgen.prompts import SOURCES
from synthgen.prompts.templates import cells
from synthgen.selection.rules import Columns, cell_columns
from synthgen.tables import (
    AdapterTable,
    AnnotateTable,
    LoraTable,
    ModelTable,
    PromptsTable,
    Recipe,
    UpscalerTable,
)
from synthgen.texts import Texts
from synthgen.workers.place import Place

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from diffusers import DiffusionPipeline

    from synthgen.annotators.shard import Annotate
    from synthgen.data import Request
    from synthgen.generation.memory import Need
    from synthgen.generation.options import Options

ALONE = Place(0, 1)
OPTIONS = ("embedding_cache", "vae_slicing", "channels_last", "compile")
"""Keys of a model that decide how it is run, and with that the last bits of its images."""
log = logging.getLogger(__name__)
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
        fetch: bool = True,
        offload: str = "",
    ) -> None:
        self.recipe_path, self.recipe, self.root = recipe_path, recipe, root
        self.limit, self.subset, self.replace = limit, subset, replace
        self.place, self.threads, self.strict, self.fetch = place, threads, strict, fetch
        self.offload = offload
        self._pipelines: dict[str, DiffusionPipeline] = {}
        self._requests: tuple[object, list[Request]] = (None, [])

    @functools.cached_property
    def models(self) -> dict[str, planning.ModelCall]:
        """How each model is called. Fingerprint and scheduler are pinned by the plan, once there is one."""
        calls = {}
        for table in self.recipe.models:
            pinned = self.pinned().get(table.id, {})
            if pinned.get("source") == source_of(table):
                fingerprint, scheduler, terms = (
                    pinned[key] for key in ("fingerprint", "scheduler", "license")
                )
            else:
                fingerprint, scheduler, terms = self._identify(table)
                if fingerprint == pinned.get("fingerprint"):  # the same model elsewhere: a copy has no card
                    terms = pinned["license"]
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
                call=table.json_call,
                license=table.license or terms,
                weight=table.weight,
                strength=table.strength or 0.0,
            )
        return calls

    def model_table(self, model: str) -> ModelTable:
        """The recipe's table of a model by its id."""
        return next(table for table in self.recipe.models if table.id == model)

    def pinned(self) -> dict[str, dict[str, str]]:
        """What the plan has found out about models, by their ids."""
        pinned: dict[str, dict[str, str]] = {}
        for stem in shards.records(self.root / shards.PLAN):
            pinned |= shards.read_record(self.root / shards.PLAN, stem).get("models", {})
        return pinned

    def _identify(self, table: ModelTable) -> tuple[str, str, str]:
        from synthgen.generation import checkpoints, conditioning, models, options, schedulers

        paths = [table.path, *(lora.path for lora in table.loras)]
        paths += [table.adapter.path] if table.adapter else []
        try:
            folder, added = self.locate(table), self._added(table)
        except ModelError:
            if self.fetch or not any(map(models.HUB_ID.match, paths)):
                raise
            return "", table.scheduler, licenses.UNKNOWN  # who only looks does not need it
        with where(self.recipe_path, f"models.{table.id}"):
            size = {"width": table.width, "height": table.height}
            checkpoints.check(
                folder,
                variant=table.variant,
                guidance=table.guidance,
                steps=table.steps,
                negative=table.negative,
                call=table.call,
                strength=table.strength or 0.0,
                **size,
            )
            if table.adapter:
                conditioning.check_adapter(checkpoints.pipeline_class(folder))
            if table.strength == 1:
                log.warning("models.%s: strength = 1: nothing of the real images is left", table.id)
            if table.upscaler:
                second = added["upscaler"].folder
                checkpoints.check_upscaler(folder, second, call=table.upscaler.call, **size)
            options.check(folder, self._options(table))
            scheduler = schedulers.scheduler_name(folder, table.scheduler)
            fingerprint = models.fingerprint(folder, variant=table.variant, **added)
        return fingerprint, scheduler, self.card_license(table, folder, fetch=self.fetch)

    def card_license(self, table: ModelTable, here: Path | None = None, *, fetch: bool) -> str:
        """The terms of a model, and of what is added to it, by their cards; that of the model is in `here` if
        its files are.
        """
        parts: list[ModelTable | LoraTable | UpscalerTable | AdapterTable] = [table, *table.loras]
        parts += [part for part in (table.upscaler, table.adapter) if part]
        told = [
            licenses.model_license(
                part.path,
                folder=self.recipe_path.parent,
                revision=part.revision,
                here=here if part is table else None,
                fetch=fetch,
            )
            for part in parts
        ]
        return ", ".join(dict.fromkeys(name for terms in told for name in terms.split(", ")))

    def locate(self, table: ModelTable) -> Path:
        """The local folder of a model."""
        with where(self.recipe_path, f"models.{table.id}"):
            return self._locate(table)

    def locate_upscaler(self, table: ModelTable) -> Path | None:
        """The local folder of a model's second stage; None where it has none."""
        with where(self.recipe_path, f"models.{table.id}.upscaler"):
            return self._locate(table.upscaler) if table.upscaler else None

    def _locate(self, table: ModelTable | UpscalerTable) -> Path:
        from synthgen.generation import models

        return models.locate(
            table.path,
            folder=self.recipe_path.parent,
            revision=table.revision,
            variant=table.variant,
            fetch=self.fetch,
            without=models.ENCODER if isinstance(table, UpscalerTable) else (),
        )

    def _added(self, table: ModelTable) -> dict[str, Any]:
        """What is added to a model: LoRAs, a second stage, an IP-Adapter."""
        from synthgen.generation import models

        place: dict[str, Any] = {"folder": self.recipe_path.parent, "fetch": self.fetch}
        with where(self.recipe_path, f"models.{table.id}"):
            loras = [
                models.Lora(
                    models.locate_lora(lora.path, file=lora.file, revision=lora.revision, **place),
                    lora.weight,
                )
                for lora in table.loras
            ]
            adapter = models.locate_adapter(**table.adapter.model_dump(), **place) if table.adapter else None
        with where(self.recipe_path, f"models.{table.id}.upscaler"):
            second = table.upscaler
            upscaler = models.Upscaler(self._locate(second), second.variant) if second else None
        return {"loras": loras, "upscaler": upscaler, "adapter": adapter}

    @functools.cached_property
    def real_images(self) -> dict[str, sources.Source]:
        """What models start from, by the names of the sources."""
        found = {}
        for name in dict.fromkeys(table.source for table in self.recipe.models if table.from_):
            path = self.recipe_path.parent / Path(self.recipe.sources[name].path).expanduser()
            with where(self.recipe_path, f"sources.{name}"):
                found[name] = sources.open_source(path, name, self.recipe.classes)
        return found

    def read_real_image(self, model: str, uid: str, sha256: str) -> bytes:
        """The file of a real image that a model starts from, as it was planned.

        Raises:
            RecipeError: it has gone, or has other bytes.
        """
        name = self.model_table(model).source
        with where(self.recipe_path, f"sources.{name}"):
            return sources.read_planned(self.real_images[name], uid, sha256)

    def real_image(self, request: "Request") -> "npt.NDArray[np.uint8] | None":
        """The pixels of the real image that a request is made from, None where they are damaged."""
        return sources.decode(self.read_real_image(request.model, request.source_uid, request.source_sha256))

    def image_size(self, table: ModelTable) -> tuple[int, int]:
        """Width and height of a model's images: the recipe's, else a guess from its configurations."""
        from synthgen.generation.flops import expected_size

        if table.width:
            return table.width, table.height
        try:
            return expected_size(self.locate(table))
        except ModelError:  # who only looks may not have it
            return expected_size(self.recipe_path.parent)

    @property
    def requests(self) -> "list[Request]":
        """The requests that are planned, and those that the recipe wants next, in order of their turns.

        Raises:
            UnansweredError: a language model has to be asked first.
        """
        known = shards.records(self.root / shards.PLAN), self.quota is not None and self.is_made()
        if known != self._requests[0]:
            calls, texts, wanted = list(self.models.values()), self._sources(), self.wanted()
            real = {
                table.id: planning.RealImages(own.by_class, partial(sources.sha256_of, own))
                for table in self.recipe.models
                for own in [self.real_images.get(table.source)]
                if own
            }
            with where(self.recipe_path, ""):
                made = planning.make_requests(
                    texts,
                    self.recipe.classes,
                    calls,
                    seed=self.recipe.seed,
                    requests=wanted,
                    per=self.recipe.quota.cell,
                    real=real,
                    planned=self.planned,
                    limit=self.most_requests,
                )
            self._requests = known, made
        return self._requests[1]

    def _sources(self) -> list[planning.Source]:
        found = []
        for number, table in enumerate(self.recipe.prompts):
            with where(self.recipe_path, f"prompts.{number}"):
                keys = self._source_keys(table)
                prompts = SOURCES[table.use](table.categories, seed=self.recipe.seed, **keys)
                found.append(planning.Source(prompts, self._cells(table)))
        return found

    @property
    def most_requests(self) -> int | None:
        """How many requests may be planned: the recipe's budget, or --limit."""
        bounds = [bound for bound in (self.limit, self.recipe.quota.max_requests) if bound is not None]
        return min(bounds, default=None)

    @property
    def quota(self) -> selection.Quota | None:
        """How many samples are to be accepted, where that is what the recipe wants."""
        quota = self.recipe.quota
        return selection.Quota(quota.accepted, quota.cell) if quota.accepted else None

    def wanted(self) -> dict[planning.Cell, int]:
        """How many requests each cell should have: with a quota of accepted samples, what it has, and where
        all of that is made and scored, what it asks for next.
        """
        quota = self.quota
        every = planning.cells_of(map(self._cells, self.recipe.prompts), self.recipe.quota.cell)
        if not quota:
            return dict.fromkeys(every, self.recipe.quota.requests or 0)
        if (self.recipe.quota.max_requests or 0) < quota.accepted * len(every):
            raise RecipeError(
                f"{self.recipe_path}: quota.max_requests: {self.recipe.quota.max_requests}; "
                f"{len(every)} cells with accepted = {quota.accepted} need {quota.accepted * len(every)}"
            )
        planned = shards.records(self.root / shards.PLAN)
        if planned and not self.is_made():
            return Counter(self._planned_cells())
        if not planned and not self.recipe.select:  # nothing rejects
            return dict.fromkeys(every, quota.accepted)
        made, kept = Counter[planning.Cell](), Counter[planning.Cell]()
        if planned:
            columns = self.columns()
            made, kept = selection.count_cells(columns, self.selected(columns).kept, quota.per)
        ask = partial(planning.next_ask, quota.accepted)
        return {cell: made[cell] + ask(kept=kept[cell], made=made[cell]) for cell in every}

    def _planned_cells(self) -> list[planning.Cell]:
        """The cell of each request in the plan."""
        names, folder = cell_columns(self.recipe.quota.cell), self.root / shards.PLAN
        tables = [
            shards.read_table(folder / f"{stem}.parquet", ["uid", *names]) for stem in shards.records(folder)
        ]
        if not names:
            return [()] * sum(map(len, tables))
        return [row for one in tables for row in zip(*(one[name].to_pylist() for name in names), strict=True)]

    def is_made(self) -> bool:
        """Whether all that is planned is made and scored."""
        folders = [shards.POOL, *(f"{shards.ANNOTATIONS}/{table.name}" for table in self.recipe.annotate)]
        stems = set(self.pool_stems())
        return all(stems <= set(shards.records(self.root / folder)) for folder in folders)

    @functools.cached_property
    def rules(self) -> list[selection.Rule]:
        return [selection.Rule(table.use, table.keys) for table in self.recipe.select]

    def selected(self, columns: Columns) -> selection.Selection:
        """What the recipe's rules say of the pool."""
        with where(self.recipe_path, "select"):
            return selection.select(columns, self.rules, self.quota)

    @functools.cached_property
    def texts(self) -> Texts:
        """What the recipe's language model was asked."""
        return Texts(self.recipe, [self.recipe_path.parent, self.root])

    def _source_keys(self, table: PromptsTable) -> dict[str, Any]:
        keys = self.texts.source_keys(table)
        return keys | {"count_tokens": self.count_tokens} if table.use == "language" else keys

    @functools.cached_property
    def count_tokens(self) -> Callable[[str], dict[str, tuple[int, int]]]:
        """Counts the tokens of a text for each model that is here."""
        from synthgen.generation.tokens import token_counter

        folders = {}
        for table in self.recipe.models:
            try:
                folders[table.id] = self.locate(table)
            except ModelError:  # who only looks may have none of them
                if self.fetch:
                    raise
        return token_counter(folders, {table.id: table.call for table in self.recipe.models})

    def _cells(self, table: PromptsTable) -> dict[str, list[dict[str, str]]]:
        """The cells that the quota of each class is cut into."""
        if set(self.recipe.quota.cell) - {"class"}:
            return cells(table.categories, **self.texts.source_keys(table))
        return {category.name: [{}] for category in table.categories}

    def plan_inputs(self) -> dict[str, object]:
        """What decides the requests, by the recipe's own keys."""
        inputs: dict[str, object] = {
            "seed": self.recipe.seed,
            "images.shard_size": self.recipe.images.shard_size,
            "axes": self.recipe.axes,
        }
        for number, prompts in enumerate(self.recipe.prompts):
            inputs |= flat(
                f"prompts.{number}",
                {"use": prompts.use, "classes": prompts.categories, **_plain(prompts.keys)},
            )
            if prompts.needs_language_model:
                inputs[f"prompts.{number}.texts"] = self.texts.digests[number]
        for call in self.models.values():
            inputs |= flat(f"models.{call.id}", call._asdict())
        for table in self.recipe.models:
            inputs[f"models.{table.id}.from"] = table.from_
        for name, source in self.real_images.items():
            for class_name, listed in sources.listing(source).items():
                inputs[f"sources.{name}.{class_name}"] = shards.digest(listed)[:16]
        return inputs | self.how(self.recipe.models) | flat("quota", self.recipe.quota.model_dump())

    def how(self, tables: Sequence[ModelTable]) -> dict[str, object]:
        """What else decides the bytes of images by these models, besides the requests."""
        images = self.recipe.images
        inputs: dict[str, object] = {"images.format": images.format, "images.mark": images.mark}
        if images.mark:
            inputs["name"] = self.recipe.name  # the mark says it
        for table in tables:
            inputs[f"models.{table.id}.batch_size"] = table.batch_size
            for key in ("safety_checker", *OPTIONS):
                inputs[f"models.{table.id}.{key}"] = getattr(table, key)
            inputs[f"models.{table.id}.license"] = table.license  # the key; a card's is pinned by the plan
        return inputs

    def pool_inputs(self, model: str, uids: Sequence[str]) -> dict[str, object]:
        return {
            "plan": shards.digest(list(uids)),
            f"models.{model}.fingerprint": self.models[model].fingerprint,
            **self.how([self.model_table(model)]),
        }

    def annotation_inputs(self, table: AnnotateTable) -> dict[str, object]:
        inputs = {"use": table.use, "batch_size": table.batch_size, **table.keys}
        if "classes" in ANNOTATORS[table.use].__annotations__:
            # what else is known of them does not reach an annotator, and each record repeats this
            inputs["classes"] = [[one.id, one.name, one.prompt] for one in self.recipe.classes]
        return flat(f"annotate.{table.name}", inputs)

    def selection_inputs(self) -> dict[str, object]:
        rules = [{"use": table.use, **table.keys} for table in self.recipe.select]
        planned = shards.planned_requests(self.root)
        if self.quota:
            return {"requests": planned, "select": rules, **flat("quota", self.quota._asdict())}
        return {"requests": planned + len(self.new_requests()), "select": rules}

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
        if self.is_planned() and not (self.quota and self.is_made()):
            return []
        planned = self.planned
        return [request for request in self.requests if request.uid not in planned]

    def is_planned(self) -> bool:
        """Whether the plan was made from this very recipe: then no request has to be compared."""
        folder = self.root / shards.PLAN
        for stem in shards.records(folder)[-1:]:
            record = shards.read_record(folder, stem)
            inputs: dict[str, object] = json.loads(shards.canonical(self.plan_inputs()))
            return bool(record["inputs"] == inputs and record["limit"] == self.limit)
        return False

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
            gc.collect()  # what a pipeline's options hold refers to it
            self._pipelines[model] = self._load(model)
        return self._pipelines[model]

    def _load(self, model: str) -> "DiffusionPipeline":
        from synthgen.generation import models

        table = self.model_table(model)
        folder = self.locate(table)
        added = self._added(table)
        found = models.fingerprint(folder, variant=table.variant, **added)
        if found != self.models[model].fingerprint:
            raise ModelError(
                f"models.{model}: the weights in {folder} have the fingerprint {found}, the plan is for "
                f"{self.models[model].fingerprint}; put those weights back, or use another folder with -o DIR"
            )
        if self.offload and self.device == "cpu":
            raise ModelError(f"--offload {self.offload}: there is no GPU to offload from; leave it out")
        if warning := self.doubt(model):
            log.warning("%s", warning)
        return models.load(
            folder,
            device=self.device,
            dtype=table.dtype,
            scheduler=table.scheduler,
            variant=table.variant,
            safety_checker=table.safety_checker,
            **added,
            changes=bool(table.strength),
            options=self._options(table),
        )

    def _options(self, table: ModelTable) -> "Options":
        from synthgen.generation.options import Options

        return Options(**{key: getattr(table, key) for key in OPTIONS}, offload=self.offload)

    def need(self, table: ModelTable) -> "Need":
        """The memory that a model needs."""
        from synthgen.generation import memory

        folder, upscaler = self.locate(table), self._added(table)["upscaler"]
        with where(self.recipe_path, f"models.{table.id}"):
            return memory.need(
                folder,
                variant=table.variant,
                safety_checker=table.safety_checker,
                upscaler=upscaler,
                width=table.width,
                height=table.height,
            )

    def doubt(self, model: str) -> str:
        """What to say of a model that may not fit on the device with its images; "" where it does.

        Raises:
            ModelError: its weights alone do not fit.
        """
        from synthgen.generation import memory

        table, free = self.model_table(model), memory.free_bytes(self.device)
        if free is None:
            return ""
        setup = memory.Setup(
            table.dtype, table.batch_size, table.embedding_cache, table.vae_slicing, self.offload
        )
        return memory.check(self.need(table), setup, free=free, model=model, device=self.device)

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


def _plain(keys: object) -> Any:
    """Keys with the words of axes as texts, as they are in most recipes."""
    if isinstance(keys, dict):
        return {key: _plain(value) for key, value in keys.items()}
    if isinstance(keys, list):
        return [value.text if isinstance(value, Word) and not value.only else value for value in keys]
    return keys


def source_of(table: ModelTable) -> str:
    """What a model is looked up by; the plan pins what was found."""
    about = {"path", "revision", "variant", "scheduler", "loras", "upscaler", "adapter"}
    return shards.digest(table.model_dump(include=about))


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
