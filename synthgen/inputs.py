"""What decides the bytes of each unit, by the recipe's own keys: the `inputs` of its record."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen import selection, shards, storage, subsets
from synthgen.annotators import ANNOTATORS
from synthgen.data import Word
from synthgen.errors import RecipeError
from synthgen.generators import OPTIONS
from synthgen.recipe import where
from synthgen.tables.curation import AnnotateTable
from synthgen.tables.models import ModelTable

if TYPE_CHECKING:
    from synthgen.job import Job


def plan_inputs(job: "Job") -> dict[str, object]:
    """What decides the requests, by the recipe's own keys."""
    inputs: dict[str, object] = {
        "seed": job.recipe.seed,
        "images.shard_size": job.recipe.images.shard_size,
        "axes": job.recipe.axes,
    }
    for number, prompts in enumerate(job.recipe.prompts):
        inputs |= flat(
            f"prompts.{number}",
            {"use": prompts.use, "classes": prompts.categories, **_plain(prompts.keys)},
        )
        if prompts.needs_language_model:
            inputs[f"prompts.{number}.texts"] = job.texts.digests[number]
    for call in job.models.values():
        inputs |= flat(f"models.{call.id}", call._asdict())
    for table in job.recipe.models:
        inputs[f"models.{table.id}.from"] = table.from_
    return inputs | job.listings | how(job, job.recipe.models) | flat("quota", job.recipe.quota.model_dump())


def how(job: "Job", tables: Sequence[ModelTable]) -> dict[str, object]:
    """What else decides the bytes of images by these models, besides the requests."""
    images = job.recipe.images
    inputs: dict[str, object] = {"images.format": images.format, "images.mark": images.mark}
    if images.mark:
        inputs["name"] = job.recipe.name  # the mark says it
    for table in tables:
        inputs[f"models.{table.id}.batch_size"] = table.batch_size
        for key in ("safety_checker", *OPTIONS):
            inputs[f"models.{table.id}.{key}"] = getattr(table, key)
        inputs[f"models.{table.id}.license"] = table.license  # the key; a card's is pinned by the plan
    return inputs


def pool_inputs(job: "Job", model: str, uids: Sequence[str]) -> dict[str, object]:
    return {
        "plan": shards.digest(list(uids)),
        f"models.{model}.fingerprint": job.models[model].fingerprint,
        **how(job, [job.generators[model].table]),
    }


def annotation_inputs(job: "Job", table: AnnotateTable) -> dict[str, object]:
    inputs = {"use": table.use, "batch_size": table.batch_size, **table.keys}
    if "classes" in ANNOTATORS[table.use].__annotations__:
        # what else is known of them does not reach an annotator, and each record repeats this
        inputs["classes"] = [[one.id, one.name, one.prompt] for one in job.classes]
    if table.keys.get("source"):
        inputs["real"] = job.annotations.references(table)[1]
    inputs |= _on_inputs(job, table)
    read = table.reads | job.recipe.judged_by(table)
    makers = {name: job.recipe.made_by.get(name) for name in read.values()}
    inputs |= {
        f"reads.{name}": shards.digest(annotation_inputs(job, other))[:32]
        for name, maker in makers.items()
        for other in job.recipe.annotate
        if other.name == maker
    }
    return flat(f"annotate.{table.name}", inputs)


def fit_inputs(job: "Job", table: AnnotateTable) -> dict[str, object]:
    """What decides what an annotation is fitted to: its keys, and how large the pool is."""
    requests = shards.planned_requests(job.root) + len(job.requests.new())
    return annotation_inputs(job, table) | {"requests": requests}


def _on_inputs(job: "Job", table: AnnotateTable) -> dict[str, object]:
    """What decides which samples are annotated: rules, or a subset that is there."""
    if not table.on:
        return {}
    rules = job.own_rules(table.on)
    if rules:
        known = [{"use": rule.use, **keys_by_content(job, rule)} for rule in rules]
        return {"on": table.on, "on.rules": known}
    return {"on": table.on, "on.sha256": storage.checksum(job.annotations.subset_of(table))["sha256"]}


def selection_inputs(job: "Job", subset: str) -> dict[str, object]:
    """What decides a subset; of one that was given, what it was made from."""
    if job.is_given(subset):
        inputs: dict[str, object] = subsets.told(job.root, subset)["inputs"]
        return inputs
    rules = [
        {
            "use": rule.use,
            **keys_by_content(job, rule),
            **({} if rule.of == "survivors" else {"of": rule.of}),
        }
        for rule in job.rules_of(subset)
    ]
    planned, quota = shards.planned_requests(job.root), job.quota_of(subset)
    if quota:
        return {"requests": planned, "select": rules, **flat("quota", quota._asdict())}
    return {"requests": planned + len(job.requests.new()), "select": rules}


def keys_by_content(job: "Job", rule: selection.Rule) -> dict[str, object]:
    """The keys of a rule, its files by what they hold: they may lie elsewhere."""
    with where(job.recipe_path, f"select.{rule.number}"):
        files = {key: Path(str(rule.keys[key])) for key in selection.FILES[rule.use]}
        try:
            return rule.keys | {key: storage.checksum(file)["sha256"] for key, file in files.items()}
        except OSError as error:
            raise RecipeError(f"{error.filename}: cannot be read: {error.strerror}") from None


def final_inputs(job: "Job") -> dict[str, object]:
    reshard, inputs = job.recipe.reshard, selection_inputs(job, job.subset)
    if job.quota and subsets.told(job.root, job.subset).get("short") == []:
        inputs.pop("requests")  # a quota that is met is met by the same samples, however many are made
    parts = reshard.split  # their order decides, too
    split = parts if isinstance(parts, str) else [list(one) for one in parts.items()]
    inputs |= flat("reshard", reshard.model_dump() | {"split": split})
    return inputs | {f"reshard.add.{name}": digest for name, digest in job.added.items()}


def _plain(keys: object) -> Any:
    """Keys with the words of axes as texts, as they are in most recipes."""
    if isinstance(keys, dict):
        return {key: _plain(value) for key, value in keys.items()}
    if isinstance(keys, list):
        return [value.text if isinstance(value, Word) and not value.only else value for value in keys]
    return keys


def flat(prefix: str, values: object) -> dict[str, object]:
    """Nested tables as one, keys joined by dots as in the recipe."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: entry for name, value in values.items() for key, entry in flat(f"{prefix}.{name}", value).items()
    }
