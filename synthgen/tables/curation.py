"""The tables of what is done with a pool: annotators, rules, `final/`."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, PlainValidator, Tag, model_validator

from synthgen.annotators import ANNOTATORS, COLUMNS, FEATURES, READS
from synthgen.errors import RecipeError
from synthgen.selection import RULES
from synthgen.tables.keys import Identifier, SubsetName, Table, function_keys, problem

SPLIT_TOLERANCE = 0.0101
"""Parts of a split are scaled to add up to 1 where they miss it by so little: 0.33 three times."""


class AnnotateTable(Table):
    name: Identifier
    use: str
    batch_size: int = Field(default=64, ge=1)
    license: str = ""
    on: str = ""
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return function_keys(value, ANNOTATORS, "annotator", {"name", "use", "batch_size", "license", "on"})

    @property
    def reads(self) -> dict[str, str]:
        """The columns and features that its annotator reads, by the keys that name them."""
        found = dict[str, str]()
        for key in READS.get(self.use, ()):
            value = self.keys[key]
            if isinstance(value, list):
                found |= {f"{key}.{k}": name for k, name in enumerate(value)}
            elif value:
                found[key] = value
        return found

    @property
    def makes(self) -> list[str]:
        """Its columns and features."""
        return [f"{self.name}_{key}" for key in (*COLUMNS[self.use], *FEATURES.get(self.use, ()))]


class SelectTable(Table):
    use: str
    subset: SubsetName = "main"
    of: Literal["survivors", "pool"] = "survivors"
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return function_keys(value, RULES, "rule", {"use", "subset", "of"})


def _one_repeat(repeat: dict[str, int]) -> dict[str, int]:
    if len(repeat) > 1:
        raise problem(f"{len(repeat)} columns; one is wanted, such as {{ class = 500 }}")
    return repeat


def _part(value: object) -> int | float:
    """A fraction is a part and a whole number a count, as in TOML: 1.0 is all, 1 is one image."""
    if isinstance(value, bool) or not (
        (isinstance(value, int) and value > 0) or (isinstance(value, float) and 0 < value <= 1)
    ):
        got = json.dumps(value, default=str)
        raise problem(f"a part above 0 and up to 1.0, or a count of images such as 50, is wanted, got {got}")
    return value


Parts = Annotated[dict[Identifier, Annotated[int | float, PlainValidator(_part)]], Field(min_length=1)]


class ReshardTable(Table):
    # the tags are left out where an error says its place
    split: Annotated[
        Annotated[str, Tag("[column]")] | Annotated[Parts, Tag("[parts]")],
        Discriminator(lambda value: "[column]" if isinstance(value, str) else "[parts]"),
    ] = {"train": 1.0}
    stratify: str | list[str] | None = None
    repeat: Annotated[dict[str, Annotated[int, Field(ge=1)]], AfterValidator(_one_repeat)] = {}
    order: Literal["shuffle", "blocks"] = "shuffle"
    seed: int = Field(default=0, ge=0, lt=2**63)
    shard_size: int | None = Field(default=None, ge=1)
    shard_bytes: int | None = Field(default=None, ge=20_480)
    members: list[Identifier] = []
    json_keys: Literal["equal", "common"] = "equal"
    image: Literal["", "jpg", "png", "webp"] = ""
    leave_out: list[str] = []

    def check_split(self) -> None:
        """Raises RecipeError where parts do not add up, or splits do not go with `stratify`."""
        if isinstance(self.split, str):
            if self.stratify is not None:
                raise RecipeError(
                    f'reshard.stratify: decides nothing where split is a column, "{self.split}"; leave one '
                    "out"
                )
            return
        for name, count in self.split.items():
            if isinstance(count, int) and self.stratify is None:
                raise RecipeError(
                    f"reshard.split.{name}: {count} is a count of images (a part has a dot, 1.0), and needs "
                    'stratify = "class" (so many of each class) or stratify = [] (so many in all)'
                )
        total = sum(part for part in self.split.values() if isinstance(part, float))
        if abs(total - 1) > SPLIT_TOLERANCE:
            raise RecipeError(f"reshard.split: the parts add up to {total:g}; 1.0 is wanted")
