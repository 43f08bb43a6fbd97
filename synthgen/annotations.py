"""The annotators of a job, as one worker has them: loaded, with what they compare with, read, and are for."""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from synthgen import selection, shards, sources, storage
from synthgen.annotators import ANNOTATORS
from synthgen.errors import ModelError, RecipeError
from synthgen.recipe import where
from synthgen.tables.curation import AnnotateTable
from synthgen.uids import uid_strings

if TYPE_CHECKING:
    import numpy.typing as npt

    from synthgen.annotators.shard import Annotate, Keep
    from synthgen.job import Job


class Annotations:
    """What a worker has loaded for the annotations of a job."""

    def __init__(self, job: "Job") -> None:
        self.job = job

    def read_features(
        self, name: str
    ) -> "Iterator[tuple[list[str], list[str | None], npt.NDArray[np.float16]]]":
        """Uids, class names and features of each pool shard that has these features."""
        folder = self.job.root / shards.ANNOTATIONS / self.job.recipe.made_by[name]
        for stem in self.job.pool_stems():
            features = shards.read_npz(folder / f"{stem}.npz").get(name)
            if features is not None:
                path = self.job.root / shards.POOL / f"{stem}.parquet"
                rows = shards.read_table(path, ["uid", "class_name"])
                yield rows["uid"].to_pylist(), rows["class_name"].to_pylist(), features

    def subset_of(self, table: AnnotateTable) -> Path:
        path = self.job.root / shards.SUBSETS / f"{table.on}.npy"
        if not storage.exists(path):
            raise RecipeError(
                f"{self.job.recipe_path}: annotate.{table.name}.on: no [[select]] has subset = "
                f'"{table.on}", and {path} is not there; add such rules, or select that subset first'
            )
        return path

    @functools.cache  # noqa: B019
    def keep_of(self, name: str) -> "tuple[Keep | None, list[str]]":
        """What says which samples an annotation is for, and the columns that it looks at; None is all."""
        table = next(table for table in self.job.recipe.annotate if table.name == name)
        if not table.on:
            return None, []
        rules = self.job.own_rules(table.on)
        if rules:
            read = ["uid", *self.job.recipe.judged_by(table).values()]
            return partial(selection.passing, rules=rules), list(dict.fromkeys(read))
        uids = set(uid_strings(shards.read_npy(self.subset_of(table))))
        return lambda columns: np.array([uid in uids for uid in columns["uid"].tolist()], bool), ["uid"]

    def references(self, table: AnnotateTable) -> tuple[sources.Source, str]:
        """The real images that an annotator compares with, and a digest of which there are."""
        name = table.keys["source"].removeprefix("sources.")
        return self._listed(name, "all" if table.keys.get("per") == "" else "some")

    @functools.cache  # noqa: B019
    def _listed(self, name: str, what: Literal["some", "all"]) -> tuple[sources.Source, str]:
        found = self.job.open_source(name, what)
        return found, shards.digest(sources.listing(found))[:32]

    def given(self, table: AnnotateTable, function: Callable[..., object]) -> dict[str, Any]:
        """What a function of an annotator is given beside the keys of the recipe."""
        makers: dict[str, Callable[[], object]] = {
            "classes": lambda: self.job.classes,
            "folder": lambda: self.job.recipe_path.parent,
            "real": lambda: self.references(table)[0] if table.keys.get("source") else None,
            "encode": lambda: self._encode(table),
            "fitted": lambda: shards.read_npz(
                self.job.root / shards.ANNOTATIONS / table.name / f"{shards.FITTED}.npz"
            ),
        }
        return {name: make() for name, make in makers.items() if name in signature(function).parameters}

    def _encode(self, table: AnnotateTable) -> object:
        """What makes the features that an annotator reads."""
        maker = self.job.recipe.made_by.get(table.keys["features"])
        return self.annotator(maker).encode if maker else None  # type: ignore[attr-defined]

    @functools.cache  # noqa: B019
    def annotator(self, name: str) -> "Annotate":
        table = next(table for table in self.job.recipe.annotate if table.name == name)
        function = ANNOTATORS[table.use]
        with where(self.job.recipe_path, f"annotate.{name}"):
            annotate: Annotate = function(device=self.job.device, **self.given(table, function), **table.keys)
        folder = self.job.root / shards.ANNOTATIONS / name
        fingerprint = getattr(annotate, "fingerprint", "")
        for stem in shards.annotated(folder)[:1]:
            other = shards.read_record(folder, stem).get("fingerprint")
            if other != fingerprint:
                raise ModelError(
                    f"annotate.{name}: the model has the fingerprint {fingerprint}, {folder / stem} "
                    f"was made with {other}; "
                    "put that model back, or give the annotation another name"
                )
        return annotate
