"""What a recipe asks for, before anything is made: how many, how diverse, how balanced, what to look at."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from synthgen import diversity
from synthgen.checks import check
from synthgen.errors import SynthgenError, UnansweredError
from synthgen.job import Job
from synthgen.prompts import categories
from synthgen.prompts.quality import faults


class Preview(NamedTuple):
    """What `synthgen check` shows. `figures` are those of `diversity.measure`, NaN where not defined."""

    recipe: str
    folder: str
    classes: int
    extra: int
    axes: list[str]
    requests: int
    not_planned: int
    texts: int
    models: dict[str, str]
    figures: dict[str, float]
    names: list[str]
    notes: list[str]
    examples: list[str]


def preview(job: Job, embed: str = "") -> Preview:
    """Checks a recipe against its folder and measures the prompts that it plans.

    Args:
        embed: the name of a `clip` annotation whose text encoder measures diversity; "" counts words.

    Raises:
        SynthgenError: something is wrong with the recipe or the folder; one line says what.
    """
    recipe, unanswered = job.recipe, ""
    try:
        check(job)
        requests = job.requests
    except UnansweredError as error:
        requests, unanswered = [], str(error)
    texts, names = [request.text for request in requests], [request.class_name for request in requests]
    measured = [axis for axis in recipe.axes if axis not in recipe.axes_of_classes]
    axes = {axis: [request.axes.get(axis, "") for request in requests] for axis in measured}
    if len(recipe.models) > 1:
        axes["model"] = [request.model for request in requests]
    models = {}
    for table in recipe.models:
        call = job.models[table.id]
        known = f"fingerprint {call.fingerprint}" if call.fingerprint else "not on this machine yet"
        models[table.id] = ", ".join(filter(None, [table.path, known, call.scheduler, call.dtype]))
    return Preview(
        recipe=str(job.recipe_path),
        folder=str(job.root),
        classes=len(recipe.classes),
        extra=sum(len(table.extra) for table in recipe.prompts),
        axes=recipe.axes,
        requests=len(requests),
        not_planned=len(job.new_requests()) if requests else 0,
        texts=len(set(zip(names, texts, strict=True))),
        models=models,
        figures=diversity.measure(
            texts, names, axes, seed=recipe.seed, embed=_embed(job, embed) if embed else None
        )
        if requests
        else {},
        names=categories.report(recipe.classes),
        notes=[unanswered] if unanswered else _notes(job, texts, names),
        examples=[f"{request.class_name}: {request.text}" for request in requests[:3]],
    )


class Sheet(NamedTuple):
    """The different prompts of a class, and why texts of a language model were rejected: reason -> number."""

    class_name: str
    accepted: list[str]
    rejected: dict[str, int]


def sheets(job: Job) -> list[Sheet]:
    """The prompts of each class: those planned from templates, and all that a language model wrote.

    Raises:
        SynthgenError: the recipe is wrong.
    """
    accepted: dict[str, dict[str, None]] = {category.name: {} for category in job.recipe.classes}
    rejected: dict[str, Counter[str]] = {category.name: Counter() for category in job.recipe.classes}
    try:
        for request in job.requests:
            accepted[request.class_name][request.text] = None
    except UnansweredError:
        pass  # what there is can be shown all the same
    for table in job.recipe.prompts:
        asked_for = table.use == "language" and all(
            question.key in job.texts.answers for question in job.texts.word_questions(table)
        )
        if asked_for:
            for name, judged in job.texts.judged(table, count_tokens=job.count_tokens).items():
                accepted[name] |= {entry.prompt.text: None for entry in judged if not entry.reason}
                rejected[name].update(entry.reason for entry in judged if entry.reason)
    return [Sheet(name, list(own), dict(rejected[name].most_common())) for name, own in accepted.items()]


def _embed(job: Job, name: str) -> diversity.Embed:
    from synthgen.annotators.clip import text_encoder

    known = [table.name for table in job.recipe.annotate if table.use == "clip"]
    table = next((table for table in job.recipe.annotate if table.name == name), None)
    if table is None or table.use != "clip":
        raise SynthgenError(
            f"--embed {name}: no `clip` annotation of this name; there are: {', '.join(known) or 'none'}"
        )
    return text_encoder(device="cpu", model=table.keys["model"], pretrained=table.keys["pretrained"])


def _notes(job: Job, texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """What is odd about prompts of templates, each kind with an example; they are reported, not rejected."""
    by_name = {category.name: category for category in job.recipe.classes}
    for table in job.recipe.prompts:  # words for a class alone may be what names it
        for word in (word for entries in table.word_lists.values() for word in entries):
            if word.only in by_name:
                named = by_name[word.only]
                by_name[word.only] = named._replace(synonyms=(*named.synonyms, word.text))
    some = [(names[row], texts[row]) for row in diversity.sample_of(len(texts), job.recipe.seed)]
    found: dict[str, list[str]] = {}
    for name, text in dict.fromkeys(some):
        reason = faults(text, by_name[name], count_tokens=job.count_tokens)
        if reason:
            found.setdefault(reason, []).append(text)
    return [
        f'{reason}: {len(own)} of {len(some)} prompts, such as "{own[0]}"' for reason, own in found.items()
    ]
