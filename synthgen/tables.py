"""The tables of a recipe, as pydantic validates them: strict types, no unknown key, every list read that they
name.

The keys of a `use = "..."` table are the keyword-only parameters of the function that it names, so a new
function is one entry in a dict. A string where a list of strings is wanted names a file with one a line.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from synthgen.annotators import ANNOTATORS, COLUMNS, FEATURES, FITS, READS
from synthgen.data import Ask, Category, LanguageModel, Word
from synthgen.diversity import Vectors, word_vectors
from synthgen.errors import RecipeError, nearest
from synthgen.prompts import SOURCES
from synthgen.prompts.categories import extra as add_classes
from synthgen.prompts.language import AXES_OF_TASKS
from synthgen.prompts.lists import name_classes, read_classes, read_lines, read_words, source_classes
from synthgen.prompts.templates import naming_axes
from synthgen.selection import RULES, Rule, columns_read
from synthgen.shards import canonical

GIVEN = {
    "answers", "classes", "count_tokens", "device", "encode", "fitted", "folder", "language_model", "real",
    "seed",
}  # fmt: skip
"""Parameters that the pipeline gives to a function, where it has them; no recipe key. A `seed` that has a
default is one.
"""


def _problem(message: str) -> PydanticCustomError:
    return PydanticCustomError("recipe", message)


class Table(BaseModel):
    """A table of the recipe: strict types, no unknown key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        if isinstance(value, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in value:
                if key not in known:
                    raise _problem(f'unknown key "{key}"{nearest(key, known)}')
        return value


class Place(NamedTuple):
    """Where a recipe is, to which the files that it names are relative, and the paths of its sources."""

    folder: Path
    sources: dict[str, str]


def _reader(read: Callable[[str, Place], object], make: Callable[[list[str]], object]) -> BeforeValidator:
    """Reads what a string names; makes the same of a list of strings."""

    def validate(value: object, info: ValidationInfo) -> object:
        try:
            if isinstance(value, str):
                return read(value, cast(Place, info.context))
            if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                return make(value)
        except RecipeError as error:
            raise _problem(str(error)) from None
        return value

    return BeforeValidator(validate)


def _read_classes(name: str, place: Place) -> list[Category]:
    kind, _, source = name.partition(".")
    if kind != "sources":
        return read_classes(name, place.folder)
    if source not in place.sources:
        raise _problem(f'unknown source "{source}"{nearest(source, list(place.sources))}')
    return source_classes(place.folder / Path(place.sources[source]).expanduser())


def _distinct(values: list[str]) -> list[str]:
    if not values:
        raise _problem("the list is empty; at least one entry is wanted")
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise _problem(f'"{twice}" is there twice; each entry may be there once')
    return values


class AskTable(Table):
    ask: Literal["backgrounds", "attributes"]
    count: int = Field(ge=1)


def _read_words(value: object, info: ValidationInfo) -> object:
    """The words of an axis: what a string names, a list, or a table that asks for them."""
    if isinstance(value, dict):
        table = AskTable.model_validate(value)
        return Ask(table.ask, table.count)
    try:
        if isinstance(value, str):
            value = read_words(value, cast(Place, info.context).folder)
    except RecipeError as error:
        raise _problem(str(error)) from None
    if not isinstance(value, list) or not all(isinstance(entry, str | Word) for entry in value):
        raise _problem(
            'a file, a list of strings, or a table such as { ask = "backgrounds", count = 8 } is wanted, got '
            + json.dumps(value, default=str)
        )
    words = [Word(entry) if isinstance(entry, str) else entry for entry in value]
    for word in words:
        if not word.text.strip() or not word.text.isprintable():
            raise _problem(f"{json.dumps(word.text)} is no word; each entry is text on one line")
    _distinct([f"{word.text} for {word.only}" if word.only else word.text for word in words])
    general = {word.text for word in words if not word.only}
    twice = next((word for word in words if word.only and word.text in general), None)
    if twice:
        raise _problem(f'"{twice.text}" is there for all classes and for "{twice.only}"; once is enough')
    return words


def _axis_names(value: object) -> object:
    if isinstance(value, str):
        raise _problem(f'a list of axes is wanted, such as ["{value}"]')
    if isinstance(value, list) and len(set(map(str, value))) < len(value):
        raise _problem(f"{json.dumps(value)}: each axis may be there once")
    return value


def _rules(value: object) -> object:
    is_list = isinstance(value, list) and all(isinstance(rule, dict) for rule in value)
    if not is_list:
        raise _problem(
            'a list of tables is wanted, such as never = [{ place = "at sea", weather = "in snow" }]'
        )
    for number, rule in enumerate(cast(list[dict[str, object]], value)):
        for axis, words in rule.items():
            if not words:
                raise _problem(
                    f"{number}.{axis}: there is no word; name one, or take the axis out of the rule"
                )
    return value


def _distinct_categories(categories: list[Category]) -> list[Category]:
    if not categories:
        raise _problem("no classes; put one a line")
    for category in categories:
        for name in (category.name, category.prompt):
            if not name.strip() or not name.isprintable():
                raise _problem(
                    f"class {category.id} is called {json.dumps(name)}; a name on one line is wanted"
                )
        if not 0 <= category.id < 2**31:
            raise _problem(f'class "{category.name}" has id {category.id}; 0 to 2**31 - 1 is allowed')
    _distinct([category.name for category in categories])
    ids: dict[int, str] = {}
    for category in categories:
        if category.id in ids:
            raise _problem(f'id {category.id} is there twice, for "{ids[category.id]}" and "{category.name}"')
        ids[category.id] = category.name
    return categories


Functions = Mapping[str, Callable[..., Any]]
Lines = Annotated[
    list[str], _reader(lambda name, place: read_lines(name, place.folder), list), AfterValidator(_distinct)
]
Words = Annotated[Any, PlainValidator(_read_words)]
Categories = Annotated[
    list[Category], _reader(_read_classes, name_classes), AfterValidator(_distinct_categories)
]
SubsetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Never = Annotated[list[dict[str, str | list[str]]], BeforeValidator(_rules)]
Axes = Annotated[list[str], BeforeValidator(_axis_names)]
KINDS: dict[object, Any] = {
    Path: Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)],
    Sequence[str]: Axes,
    list[dict[str, str | list[str]]]: Never,
    list[str]: Lines,
    list[Word]: Words,
    dict[str, list[Word]]: dict[Identifier, Words],
}
"""What a function's parameter of some types is in a recipe: a file's name, axes, rules, lists which a file
may hold.
"""


def keys_model(function: Callable[..., object], use: str) -> type[Table]:
    """The keys of a function as a table: its keyword-only parameters, less those that the pipeline gives."""
    hints, fields = get_type_hints(function), dict[str, Any]()
    for name, parameter in inspect.signature(function).parameters.items():
        is_needed = parameter.default is inspect.Parameter.empty
        is_given = name in GIVEN and (is_needed or name != "seed")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_given:
            kind = KINDS.get(hints[name], hints[name])
            fields[name] = (kind, ... if is_needed else parameter.default)
    return create_model(use, __base__=Table, **fields)


def _function_keys(value: object, functions: Functions, what: str, own: set[str]) -> object:
    """Splits a `use` table: the keys of the table itself, and `keys`, those of its function."""
    if not isinstance(value, dict):
        return value
    use = value.get("use")
    if not isinstance(use, str):
        raise _problem(f'missing key "use"; known {what}s: {", ".join(functions)}')
    if use not in functions:
        raise _problem(f'use: unknown {what} "{use}"{nearest(use, list(functions))}')
    allowed = [*own, *keys_model(functions[use], use).model_fields]
    for key in value:
        if key not in allowed:
            raise _problem(f'unknown key "{key}"{nearest(key, allowed)}')
    keys = {key: entry for key, entry in value.items() if key not in own}
    return {**{key: entry for key, entry in value.items() if key in own}, "keys": keys}


class SourceTable(Table):
    path: str = Field(min_length=1)
    license: str = ""
    image: str = ""
    label: str = ""


class ExtraTable(Table):
    from_: str = Field(alias="from")
    below: float | None = None
    choose: Literal["all", "first", "farthest"] = "farthest"
    by: Literal["wordnet", "text"] = "wordnet"
    count: int | None = Field(default=None, ge=1)


def _extra(value: object, info: ValidationInfo) -> object:
    """The classes that the table `extra` adds to `classes`."""
    known = info.data.get("classes")
    if known is None:  # `classes` has its own error
        return []
    if not isinstance(value, dict):
        raise _problem(
            'a table is wanted, such as { from = "imagenet-1k", below = 0.4, count = 250 }, got '
            + json.dumps(value, default=str)
        )
    table = ExtraTable.model_validate(value, context=info.context)
    try:
        candidates = _read_classes(table.from_, cast(Place, info.context))
        return add_classes(
            known,
            candidates,
            below=table.below,
            choose=table.choose,
            count=table.count,
            embed=_embed_definitions([*known, *candidates]) if table.by == "text" else None,
        )
    except RecipeError as error:
        raise _problem(str(error)) from None


def _embed_definitions(categories: Sequence[Category]) -> Callable[[list[Category]], Vectors]:
    """Gives classes as vectors of what they are called and what WordNet says of them."""

    def say(one: Category) -> str:
        return " ".join([one.prompt, *one.synonyms, one.hypernym, one.definition])

    embed = word_vectors([say(one) for one in categories])
    return lambda some: embed([say(one) for one in some])


class PromptsTable(Table):
    use: str
    classes: Categories
    extra: Annotated[list[Category], BeforeValidator(_extra), AfterValidator(_distinct_categories)] = []
    keys: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        return _function_keys(value, SOURCES, "source of prompts", {"use", "classes", "extra"})

    @property
    def categories(self) -> list[Category]:
        """The classes, and those that were added to them."""
        return [*self.classes, *self.extra]

    @property
    def asks(self) -> dict[tuple[str, str], Ask]:
        """The words that are asked for: the key and the axis that they are for ("": the key's only list)."""
        lists = {(key, ""): value for key, value in self.keys.items()}
        lists |= {("axes", axis): value for axis, value in self.keys.get("axes", {}).items()}
        return {place: value for place, value in lists.items() if isinstance(value, Ask)}

    @property
    def word_lists(self) -> dict[str, list[Word]]:
        """The axes whose words are known without asking."""
        axes = self.keys.get("axes", {}).items()
        return {axis: words for axis, words in axes if not isinstance(words, Ask)}

    @property
    def needs_language_model(self) -> bool:
        """Whether something in the table comes from a language model."""
        return self.use == "language" or bool(self.asks)


class LanguageTable(Table):
    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    license: str = ""

    @property
    def language_model(self) -> LanguageModel:
        """The model and what of its sampling is not its own default."""
        sampling = self.model_dump(exclude={"model", "license"}, exclude_none=True)
        return LanguageModel(self.model, {key: value for key, value in sampling.items() if value})


def _cell(value: object) -> object:
    if value == "class" or (isinstance(value, list) and "class" in value):
        return value
    raise _problem(
        f'"class", or ["class", ...] with the axes of the grid, is wanted, got {json.dumps(value)}'
    )


class QuotaTable(Table):
    per: Annotated[Literal["class"] | list[str] | None, BeforeValidator(_cell)] = None
    requests: int | None = Field(default=None, ge=1)
    accepted: int | None = Field(default=None, ge=1)
    max_requests: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_of(self) -> "QuotaTable":
        if (self.requests is None) == (self.accepted is None):
            raise _problem("give either requests, images made, or accepted, images kept")
        if (self.accepted is None) != (self.max_requests is None):
            raise _problem(
                "accepted = N wants max_requests = M, the budget: so many images are made at most, in total"
                if self.accepted
                else "max_requests is the budget of accepted = N; requests = N says already how many are made"
            )
        return self

    @property
    def cell(self) -> list[str]:
        """What makes a cell: "class" and axes; nothing where the quota is of the whole."""
        return [self.per] if isinstance(self.per, str) else self.per or []


class ImagesTable(Table):
    format: Literal["jpg", "webp", "png"] = "jpg"
    shard_size: int = Field(default=1024, ge=1)
    mark: bool = True


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical(value)
    except (TypeError, ValueError):
        raise _problem("strings, numbers, true, false, and lists and tables of them are wanted") from None
    return value


Call = Annotated[dict[str, Any], AfterValidator(_json)]


class LoraTable(Table):
    path: str = Field(min_length=1)
    file: str = ""
    revision: str = ""
    weight: float = 1.0


def _lora(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class UpscalerTable(Table):
    path: str = Field(min_length=1)
    revision: str = ""
    variant: str = ""
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    call: Call = {}


def _scheduler(value: object) -> object:
    """A table of a scheduler's class and settings as the text that a request has."""
    if isinstance(value, dict):
        settings = {key: entry for key, entry in value.items() if key != "use"}
        return f"{value.get('use', '')} {canonical(settings).decode()}"
    return value


class AdapterTable(Table):
    path: str = Field(min_length=1)
    revision: str = ""
    subfolder: str = ""
    file: str
    image_encoder: str
    scale: float = Field(ge=0)


class ModelTable(Table):
    id: Identifier
    path: str = Field(min_length=1)
    revision: str = ""
    variant: str = ""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    scheduler: Annotated[str, BeforeValidator(_scheduler)] = ""
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    negative: str = ""
    width: int = Field(default=0, ge=0)
    height: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=1)
    safety_checker: bool = True
    embedding_cache: bool = False
    vae_slicing: bool = False
    channels_last: bool = False
    compile: bool = False
    call: Call = {}
    loras: list[Annotated[LoraTable, BeforeValidator(_lora)]] = []
    upscaler: UpscalerTable | None = None
    from_: str = Field(default="", alias="from")
    strength: float | None = Field(default=None, gt=0, le=1)
    adapter: AdapterTable | None = None
    text: bool = True
    weight: float = Field(default=1.0, gt=0)
    license: str = ""

    @model_validator(mode="after")
    def _from_images(self) -> "ModelTable":
        ways = [key for key in ("strength", "adapter") if getattr(self, key) is not None]
        if not self.from_ and (ways or not self.text):
            key = (ways or ["text"])[0]
            raise _problem(f'{key}: is for images made from real ones; name these with from = "sources.NAME"')
        if self.from_ and len(ways) != 1:
            raise _problem(
                f"from: {'strength and adapter are both there' if ways else 'how is not said'}; give either "
                "strength = 0.6, the part of each real image that is replaced (img2img), or adapter = "
                "{ path, file, image_encoder, scale } (IP-Adapter)"
            )
        if self.from_ and self.upscaler:
            raise _problem("upscaler: makes images from text alone; remove it, or from")
        return self

    @property
    def source(self) -> str:
        """The name of the source whose real images it starts from, "" for none."""
        return self.from_.removeprefix("sources.")

    @property
    def json_call(self) -> str:
        """What else its pipeline is called with, and its second stage, as a request has it; an empty prompt
        where the request's is not read.
        """
        call = dict(self.call) if self.text else {**self.call, "prompt": ""}
        if self.upscaler:
            second = {"num_inference_steps": self.upscaler.steps, "guidance_scale": self.upscaler.guidance}
            call["upscaler"] = {**self.upscaler.call, **second}
        return canonical(call).decode() if call else ""


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
        return _function_keys(value, ANNOTATORS, "annotator", {"name", "use", "batch_size", "license", "on"})

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
        return _function_keys(value, RULES, "rule", {"use", "subset", "of"})


def _one_repeat(repeat: dict[str, int]) -> dict[str, int]:
    if len(repeat) > 1:
        raise _problem(f"{len(repeat)} columns; one is wanted, such as {{ class = 500 }}")
    return repeat


class ReshardTable(Table):
    split: dict[Identifier, Annotated[float, Field(gt=0)]] = Field(default={"train": 1.0}, min_length=1)
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
