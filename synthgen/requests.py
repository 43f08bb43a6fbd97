"""The requests of a job: which its folder has planned, and which its recipe wants next, cell by cell."""

import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from synthgen import planning, selection, shards, sources
from synthgen.errors import RecipeError
from synthgen.inputs import plan_inputs
from synthgen.prompts import SOURCES
from synthgen.prompts.templates import cells
from synthgen.recipe import where
from synthgen.selection.columns import cell_columns
from synthgen.tables.prompts import PromptsTable

if TYPE_CHECKING:
    from synthgen.data import Request
    from synthgen.job import Job


class Requests:
    """What a job asks for; the new ones are listed once for each state of its folder."""

    def __init__(self, job: "Job") -> None:
        self.job = job
        self._new: tuple[object, list[Request]] = (None, [])

    def all(self) -> "list[Request]":
        """The requests that are planned and still wanted, then those that the recipe wants next.

        Raises:
            UnansweredError: a language model has to be asked first.
        """
        return self.still_wanted() + self.new()

    def still_wanted(self) -> "list[Request]":
        """Those of the planned requests that the recipe wants."""
        planned = self._planned_cells()
        if not planned:
            return []
        wanted = self.wanted()
        return self._make({cell: min(n, wanted.get(cell, 0)) for cell, n in planned.items()})

    def new(self) -> "list[Request]":
        """The requests that the recipe wants and that are not in the plan, in order of their turns.

        Raises:
            UnansweredError: a language model has to be asked first.
        """
        job = self.job
        known = shards.records(job.root / shards.PLAN), job.quota is not None and job.is_made()
        if known != self._new[0]:
            self._new = known, self._list_new()
        return self._new[1]

    def _list_new(self) -> "list[Request]":
        if self.is_planned() and not (self.job.quota and self.job.is_made()):
            return []
        planned, wanted = self._planned_cells(), self.wanted()
        bounds = [most for most in (self.job.limit, self.job.recipe.quota.max_requests) if most is not None]
        room = max(0, min(bounds) - planned.total()) if bounds else None
        if room == 0 or all(number <= planned[cell] for cell, number in wanted.items()):
            return []
        return self._make(wanted, skip=planned, limit=room)

    def _make(self, wanted: dict[planning.Cell, int], **keys: Any) -> "list[Request]":
        job, texts = self.job, self._sources()
        real = {
            table.id: planning.RealImages(own.by_class, partial(sources.sha256_of, own))
            for table in job.recipe.models
            for own in [job.real_images.get(table.source)]
            if own
        }
        calls = list(job.models.values())
        with where(job.recipe_path, ""):
            return planning.make_requests(
                texts,
                job.classes,
                calls,
                seed=job.recipe.seed,
                requests=wanted,
                per=job.recipe.quota.cell,
                real=real,
                **keys,
            )

    def _sources(self) -> list[planning.Source]:
        found = []
        for number, table in enumerate(self.job.recipe.prompts):
            with where(self.job.recipe_path, f"prompts.{number}"):
                keys = self.job.texts.source_keys(table)
                if table.use == "language":
                    keys |= {"count_tokens": self.job.count_tokens}
                prompts = SOURCES[table.use](table.categories, seed=self.job.recipe.seed, **keys)
                found.append(planning.Source(prompts, self._cells(table)))
        return found

    def _cells(self, table: PromptsTable) -> dict[str, list[dict[str, str]]]:
        """The cells that the quota of each class is cut into."""
        if set(self.job.recipe.quota.cell) - {"class"}:
            return cells(table.categories, **self.job.texts.source_keys(table))
        return {category.name: [{}] for category in table.categories}

    def wanted(self) -> dict[planning.Cell, int]:
        """How many requests each cell should have: with a quota of accepted samples, what it has, and where
        all of that is made and scored, what it asks for next.
        """
        job, quota = self.job, self.job.quota
        table = job.recipe.quota
        every = planning.cells_of(map(self._cells, job.recipe.prompts), table.cell)
        if not quota:
            return dict.fromkeys(every, table.requests or 0)
        if (table.max_requests or 0) < quota.accepted * len(every):
            raise RecipeError(
                f"{job.recipe_path}: quota.max_requests: {table.max_requests}; "
                f"{len(every)} cells with accepted = {quota.accepted} need {quota.accepted * len(every)}"
            )
        stems = job.pool_stems()
        if stems and (job.is_given(job.subset) or not job.is_made(stems)):
            return self._planned_cells()
        if not stems and not job.rules_of(job.subset):  # nothing rejects
            return dict.fromkeys(every, quota.accepted)
        made, kept = Counter[planning.Cell](), Counter[planning.Cell]()
        if stems:
            columns = job.columns(stems)
            made, kept = selection.count_cells(columns, job.selected(columns, job.subset).kept, quota.per)
        ask = partial(planning.next_ask, quota.accepted)
        return {cell: made[cell] + ask(kept=kept[cell], made=made[cell]) for cell in every}

    def _planned_cells(self) -> Counter[planning.Cell]:
        """How many requests of each cell are in the plan."""
        names, found = cell_columns(self.job.recipe.quota.cell), Counter[planning.Cell]()
        folder = self.job.root / shards.PLAN
        for stem in shards.records(folder):
            axes = {f"axis_{axis}" for axis in shards.read_record(folder, stem)["inputs"]["axes"]}
            has = ["uid", *({"class_name", *axes} & set(names))]
            table = shards.read_table(folder / f"{stem}.parquet", has)
            # an axis that the plan does not have is no cell that the recipe wants
            columns = [
                table[name].to_pylist() if name in table.column_names else [""] * len(table) for name in names
            ]
            found.update(zip(*columns, strict=True) if names else [()] * len(table))
        return found

    def planned_uids(self) -> dict[str, int]:
        """The uids in the plan so far, with their class ids."""
        folder = self.job.root / shards.PLAN
        tables = [
            shards.read_table(folder / f"{stem}.parquet", ["uid", "class_id"])
            for stem in shards.records(folder)
        ]
        return {
            uid: class_id
            for table in tables
            for uid, class_id in zip(table["uid"].to_pylist(), table["class_id"].to_pylist(), strict=True)
        }

    def is_planned(self) -> bool:
        """Whether the plan was made from this very recipe: then no request has to be compared."""
        folder = self.job.root / shards.PLAN
        for stem in shards.records(folder)[-1:]:
            record = shards.read_record(folder, stem)
            inputs: dict[str, object] = json.loads(shards.canonical(plan_inputs(self.job)))
            return bool(record["inputs"] == inputs and record["limit"] == self.job.limit)
        return False
