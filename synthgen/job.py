"""A recipe and the folder that it is made in, as one worker has them: what the recipe wants, what the folder
holds, what is loaded. Like `pipeline`, it sees the Recipe; the stages get plain values from it.
"""

import functools
import gc
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from synthgen import planning, pools, resharding, selection, shards, sources, storage, subsets
from synthgen.annotations import Annotations
from synthgen.data import Category
from synthgen.errors import ModelError, RecipeError
from synthgen.generators import Generator
from synthgen.importing.coco import image_folder
from synthgen.recipe import where
from synthgen.requests import Requests
from synthgen.selection.columns import cell_columns
from synthgen.tables import Recipe
from synthgen.tables.curation import AnnotateTable
from synthgen.texts import Texts
from synthgen.workers.place import Place

if TYPE_CHECKING:
    import numpy.typing as npt
    from diffusers import DiffusionPipeline

    from synthgen.data import Request

ALONE = Place(0, 1)
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
        add: Sequence[tuple[Path, str]] = (),
        only: Sequence[str] = (),
    ) -> None:
        self.recipe_path, self.recipe, self.root = recipe_path, recipe, root
        self.add, self.only = add, only
        self.limit, self.subset, self.replace = limit, subset, replace
        self.place, self.threads, self.strict, self.fetch = place, threads, strict, fetch
        self.generators = {
            table.id: Generator(table, recipe_path, fetch=fetch, offload=offload) for table in recipe.models
        }
        self.requests = Requests(self)
        self.annotations = Annotations(self)
        self._pipelines: dict[str, DiffusionPipeline] = {}
        self._output: tuple[object, resharding.Output | None] = (None, None)

    @functools.cached_property
    def models(self) -> dict[str, planning.ModelCall]:
        """How each model is called. Fingerprint and scheduler are pinned by the plan, once there is one."""
        calls = {}
        for table in self.recipe.models:
            pinned = self.pinned().get(table.id, {})
            if pinned.get("source") == self.generators[table.id].source:
                fingerprint, scheduler, terms = (
                    pinned[key] for key in ("fingerprint", "scheduler", "license")
                )
            else:
                fingerprint, scheduler, terms = self.generators[table.id].identify()
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

    def pinned(self) -> dict[str, dict[str, str]]:
        """What the plan has found out about models, by their ids."""
        pinned: dict[str, dict[str, str]] = {}
        for stem in shards.records(self.root / shards.PLAN):
            pinned |= shards.read_record(self.root / shards.PLAN, stem).get("models", {})
        return pinned

    @functools.cached_property
    def real_images(self) -> dict[str, sources.Source]:
        """What models start from, by the names of the sources."""
        names = dict.fromkeys(table.source for table in self.recipe.models if table.from_)
        return {name: self.open_source(name, "complete") for name in names}

    @functools.cache  # noqa: B019
    def open_source(self, name: str, what: Literal["complete", "some", "all"]) -> sources.Source:
        """A source's images: of all classes, which it has to have, or of those that it has, or all images
        whatever their class.
        """
        table = self.recipe.sources[name]
        path = self.recipe_path.parent / Path(table.path).expanduser()
        keys = {"image": table.image, "label": table.label}
        with where(self.recipe_path, f"sources.{name}"):
            if what == "all":
                return sources.open_all(path, name, **keys)
            return sources.open_source(path, name, self.classes, complete=what == "complete", **keys)

    def read_real_image(self, model: str, uid: str, sha256: str) -> bytes:
        """The file of a real image that a model starts from, as it was planned.

        Raises:
            RecipeError: it has gone, or has other bytes.
        """
        name = self.generators[model].table.source
        with where(self.recipe_path, f"sources.{name}"):
            return sources.read_planned(self.real_images[name], uid, sha256)

    def real_image(self, request: "Request") -> "npt.NDArray[np.uint8] | None":
        """The pixels of the real image that a request is made from, None where they are damaged."""
        return sources.decode(self.read_real_image(request.model, request.source_uid, request.source_sha256))

    @property
    def quota(self) -> selection.Quota | None:
        """How many samples are to be accepted, where that is what the recipe wants."""
        quota = self.recipe.quota
        return selection.Quota(quota.accepted, quota.cell) if quota.accepted else None

    @property
    def annotated(self) -> list[AnnotateTable]:
        """The annotations that are made, each behind those that it reads: all of the recipe's, or `only` some
        and those that they read.
        """
        tables, made_by, wanted = self.recipe.annotations, self.recipe.made_by, {*self.only}
        for table in reversed(tables if self.only else []):
            if table.name in wanted:
                read = (table.reads | self.recipe.judged_by(table)).values()
                wanted |= {made_by[name] for name in read if name in made_by}
        return [table for table in tables if not self.only or table.name in wanted]

    def is_made(self, stems: Sequence[str] | None = None) -> bool:
        """Whether all pool shards that are planned, or these, are made and scored."""
        folders = [shards.POOL, *(f"{shards.ANNOTATIONS}/{table.name}" for table in self.recipe.annotate)]
        planned = set(self.pool_stems() if stems is None else stems)
        return all(planned <= set(shards.records(self.root / folder)) for folder in folders)

    @property
    def subsets(self) -> list[str]:
        """The subsets that are chosen: the one that is asked for, and with `main` the recipe's other ones."""
        return self.recipe.subsets if self.subset == "main" else [self.subset]

    def rules_of(self, subset: str) -> list[selection.Rule]:
        """The rules of a subset; of another name than the recipe's, those of `main`."""
        return self.own_rules(subset) or self.own_rules("main")

    def own_rules(self, subset: str) -> list[selection.Rule]:
        return [rule.found_in(self.recipe_path.parent) for rule in self.recipe.rules(subset)]

    def quota_of(self, subset: str) -> selection.Quota | None:
        """The quota, for the subset that is asked for, or was when it was chosen: it is about no other."""
        was_asked = "quota.accepted" in subsets.told(self.root, subset).get("inputs", {})
        return self.quota if subset == self.subset or was_asked else None

    def is_given(self, subset: str) -> bool:
        """Whether a subset was made by `combine`: no rule is asked then."""
        return subsets.is_given(self.root, subset)

    def selected(self, columns: pools.PoolColumns, subset: str) -> selection.Selection:
        """What the recipe's rules say of the pool."""
        rules = self.rules_of(subset)
        named = {name for rule in rules for name in selection.columns_read(rule, columns).values()}
        columns.read([*subsets.READ, "class_id", "turn", *sorted(named)])
        with where(self.recipe_path, "select"):
            return selection.select(columns, rules, self.quota_of(subset))

    @functools.cached_property
    def texts(self) -> Texts:
        """What the recipe's language model was asked."""
        return Texts(self.recipe, [self.recipe_path.parent, self.root])

    @functools.cached_property
    def count_tokens(self) -> Callable[[str], dict[str, tuple[int, int]]]:
        """Counts the tokens of a text for each model that is here."""
        from synthgen.generation.tokens import token_counter

        folders = {}
        for table in self.recipe.models:
            try:
                folders[table.id] = self.generators[table.id].locate()
            except ModelError:  # who only looks may have none of them
                if self.fetch:
                    raise
        return token_counter(folders, {table.id: table.call for table in self.recipe.models})

    @functools.cached_property
    def listings(self) -> dict[str, str]:
        """Which real images there are of each class: a digest, as there may be a million."""
        return {
            f"sources.{name}.{class_name}": shards.digest(listed)[:16]
            for name, source in self.real_images.items()
            for class_name, listed in sources.listing(source).items()
        }

    @functools.cached_property
    def added(self) -> dict[str, str]:
        """What other runs are joined, by their names, and a digest of what of them is: subset and pool."""
        found = {}
        for root, subset in self.add:
            pool = [
                shards.read_record(root / shards.POOL, stem).get("files") for stem in shards.pool_stems(root)
            ]
            chosen = storage.checksum(root / shards.SUBSETS / f"{subset}.npy")["sha256"]
            found[f"{root.resolve().name}:{subset}"] = shards.digest([chosen, pool])[:16]
        return found

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

    @functools.cached_property
    def classes(self) -> list[Category]:
        """The recipe's classes; of one that curates and names none, those that were imported, by id.

        Raises:
            RecipeError: it names others, or with other ids.
        """
        found = {name: number for one in shards.imported(self.root) for name, number in one.classes.items()}
        if not self.recipe.classes:
            return sorted(Category(number, name, name) for name, number in found.items())
        own = {category.name: category.id for category in self.recipe.classes}
        for name, number in found.items():
            if self.recipe.curates and own.get(name) != number:
                is_there = f"has id {own[name]} here" if name in own else "is not there"
                raise RecipeError(
                    f'{self.recipe_path}: classes: "{name}" {is_there}, and id {number} in the pool; '
                    "classes are joined by name and keep their ids"
                )
        return self.recipe.classes

    @functools.cached_property
    def source_paths(self) -> dict[str, Path]:
        """Where sources of an imported pool are now, by the recipe; the others are where they were."""
        found, known = {}, {one.name: one for one in shards.imported(self.root)}
        for name, table in self.recipe.sources.items():
            path = self.recipe_path.parent / Path(table.path).expanduser()
            is_file = storage.exists(path) and not storage.is_folder(path)  # a table, a .json or a tar
            found[name] = path.parent if is_file else path
            if path.suffix == ".json" and name in known:  # its images lie elsewhere
                first = shards.read_table(
                    self.root / shards.POOL / f"{known[name].stems[0]}.parquet", ["error", "file"]
                )
                written = first.filter(first["error"].is_null())["file"].to_pylist()
                with where(self.recipe_path, f"sources.{name}"):
                    found[name] = image_folder(path, written)
        return found

    @property
    def final(self) -> Path:
        return self.root / shards.FINAL / self.subset

    def pool_stems(self) -> list[str]:
        return shards.pool_stems(self.root)

    def columns(self, stems: Sequence[str] | None = None) -> pools.PoolColumns:
        """The columns of all that is planned, or of these pool shards."""
        stems = self.pool_stems() if stems is None else stems
        return pools.PoolColumns(self.root, stems, [table.name for table in self.recipe.annotate])

    def output(self) -> resharding.Output:
        """What `final/<subset>` is to hold; worked out once for a subset."""
        own = {one.name for one in shards.imported(self.root)}
        of_others = {name: path for name, path in self.source_paths.items() if name not in own}
        parts = [
            resharding.Part(
                f"{root.resolve().name}:{subset}",
                root,
                shards.pool_stems(root),
                storage.names(root / shards.ANNOTATIONS),
                shards.read_npy(root / shards.SUBSETS / f"{subset}.npy"),
                self.source_paths if root == self.root else of_others,
            )
            for root, subset in [(self.root, self.subset), *self.add]
        ]
        known = [[part.stems, part.subset.tobytes()] for part in parts]
        if known != self._output[0] or self._output[1] is None:
            classes = {category.name: category.id for category in self.classes}
            with where(self.recipe_path, ""):
                self._output = known, resharding.cut_parts(parts, classes, self._reshard_settings())
        found = self._output[1]
        assert found is not None
        return found

    def _reshard_settings(self) -> resharding.Settings:
        values = self.recipe.reshard.model_dump()
        known = set(self.columns())
        if values["stratify"] is not None:
            values["stratify"] = cell_columns(values["stratify"], known)
        if isinstance(values["split"], str):
            values["split"] = cell_columns(values["split"], known)[0]
        values["repeat"] = {cell_columns(name, known)[0]: n for name, n in values["repeat"].items()}
        return resharding.Settings(**values)

    @functools.cached_property
    def device(self) -> str:
        from synthgen.workers.place import find_device

        return find_device(self.threads, self.place.local_rank)

    @property
    def decoders(self) -> int:
        """How many of this machine's cores are left beside the one of each worker, for each of them."""
        return max(0, min(16, len(os.sched_getaffinity(0)) // self.place.world_size - 1))

    def pipeline(self, model: str) -> "DiffusionPipeline":
        """The generator of an id; the one before is dropped first."""
        if model not in self._pipelines:
            self.drop()
            self._pipelines[model] = self.generators[model].load(
                self.device, fingerprint=self.models[model].fingerprint
            )
        return self._pipelines[model]

    def drop(self) -> None:
        """Drops the generator that is loaded."""
        self._pipelines.clear()
        gc.collect()  # what a pipeline's options hold refers to it
