"""The tables of a recipe, as pydantic validates them, and the recipe that they make up."""

import json
from typing import Annotated

from pydantic import Field

from synthgen.annotators import FITS
from synthgen.data import Category
from synthgen.errors import RecipeError
from synthgen.prompts.language import AXES_OF_TASKS
from synthgen.prompts.templates import naming_axes
from synthgen.selection import Rule, columns_read
from synthgen.tables.curation import AnnotateTable, ReshardTable, SelectTable
from synthgen.tables.keys import Categories, Identifier, Table
from synthgen.tables.models import ImagesTable, ModelTable, QuotaTable
from synthgen.tables.prompts import LanguageTable, PromptsTable, SourceTable


class Recipe(Table):
    """A whole recipe; every list it names is read, every default filled in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    seed: int = Field(default=0, ge=0, lt=2**63)
    max_failed: float = Field(default=0.01, ge=0, le=1)
    sources: dict[Identifier, SourceTable] = {}
    language: LanguageTable | None = None
    classes_: Categories = Field(default=[], alias="classes")
    prompts: list[PromptsTable] = []
    quota: QuotaTable = QuotaTable.model_construct()
    images: ImagesTable = ImagesTable()
    models: list[ModelTable] = []
    annotate: list[AnnotateTable] = []
    select: list[SelectTable] = []
    reshard: ReshardTable = ReshardTable()

    def rules(self, subset: str) -> list[Rule]:
        """The rules of a named subset, none where the recipe has none of that name."""
        return [
            Rule(table.use, table.keys, table.of, number)
            for number, table in enumerate(self.select)
            if table.subset == subset
        ]

    @property
    def subsets(self) -> list[str]:
        """The named subsets, `main` first, which is there without a rule too."""
        return list(dict.fromkeys(["main", *(table.subset for table in self.select)]))

    @property
    def classes(self) -> list[Category]:
        """All classes, by id; none where a recipe that curates leaves them to what was imported."""
        made = [category for table in self.prompts for category in table.categories]
        return sorted({category.name: category for category in [*self.classes_, *made]}.values())

    @property
    def curates(self) -> bool:
        """Whether it makes no images, and chooses from those of an imported pool."""
        return not self.prompts

    @property
    def axes(self) -> list[str]:
        """The axes of all prompts, in order of appearance."""
        own = [
            [*table.keys.get("axes", {}), *AXES_OF_TASKS.get(table.keys.get("task", ""), ())]
            for table in self.prompts
        ]
        return list(dict.fromkeys(axis for axes in own for axis in axes))

    @property
    def made_by(self) -> dict[str, str]:
        """The annotation that makes each column and each features of the annotations."""
        return {name: table.name for table in self.annotate for name in table.makes}

    def judged_by(self, table: AnnotateTable) -> dict[str, str]:
        """What the rules read that say which samples are annotated, by the keys that name it."""
        return {
            f"on: {table.on}: {rule.use}.{key}": name
            for rule in self.rules(table.on)
            for key, name in columns_read(rule).items()
        }

    @property
    def fitted(self) -> set[str]:
        """The annotations that wait until something is fitted to the whole pool."""
        made_by, found = self.made_by, set[str]()
        for table in self.annotations:
            read = (table.reads | self.judged_by(table)).values()
            if table.use in FITS or found & {made_by.get(name) for name in read}:
                found.add(table.name)
        return found

    @property
    def annotations(self) -> list[AnnotateTable]:
        """The annotations, each behind those that it reads, else as they are written.

        Raises:
            RecipeError: some read each other in a circle.
        """
        made_by, left, found = self.made_by, list(self.annotate), list[AnnotateTable]()
        before = {
            table.name: {made_by.get(name) for name in (table.reads | self.judged_by(table)).values()}
            for table in left
        }
        while left:
            names = {table.name for table in left}
            ready = next((table for table in left if not before[table.name] & names), None)
            if ready is None:
                raise RecipeError(
                    f"annotate: {', '.join(sorted(names))} read each other in a circle; none can be the first"
                )
            found.append(ready)
            left.remove(ready)
        return found

    @property
    def measured_axes(self) -> list[str]:
        """Axes that no class should go with: all but those that have other words for each class by design."""
        asked = {axis for table in self.prompts for _, axis in table.asks if axis}
        own = asked.union(*(naming_axes(table.word_lists) for table in self.prompts))
        return [axis for axis in self.axes if axis not in own]

    def resolved(self) -> dict[str, object]:
        """The recipe as plain JSON values, word lists included."""
        values: dict[str, object] = json.loads(self.model_dump_json())
        return values
