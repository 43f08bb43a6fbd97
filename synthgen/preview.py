"""What a recipe asks for, before anything is made: how many, how diverse, how balanced, what to look at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synthgen import costs, diversity, licenses, shards, storage
from synthgen.annotators import ORIGINS
from synthgen.checks import check, final_part, planned_and_new
from synthgen.data import Request
from synthgen.errors import ModelError, RecipeError, SynthgenError, UnansweredError
from synthgen.job import Job
from synthgen.prompts import categories
from synthgen.prompts.quality import faults
from synthgen.prompts.templates import gaps
from synthgen.tables.models import ModelTable


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
    groups: str
    models: dict[str, str]
    figures: dict[str, float]
    names: list[str]
    ambiguous: dict[str, str]
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
    if embed and recipe.curates:
        raise RecipeError(f"--embed {embed}: measures prompts, and {job.recipe_path} has none")
    try:
        check(job)
        requests = job.requests.all()
    except UnansweredError as error:
        requests, unanswered = [], str(error)
    texts, names = [request.text for request in requests], [request.class_name for request in requests]
    axes = {axis: [request.axes.get(axis, "") for request in requests] for axis in recipe.measured_axes}
    if len(recipe.models) > 1:
        axes["model"] = [request.model for request in requests]
    models = {}
    for table in recipe.models:
        call = job.models[table.id]
        known = f"fingerprint {call.fingerprint}" if call.fingerprint else "not on this machine yet"
        way = f"strength {call.strength:g}" if call.strength else "IP-Adapter"
        real = len(job.real_images[table.source].images) if table.from_ else 0
        images = f"from {real} real images of {table.source} ({way})" if real else ""
        models[table.id] = ", ".join(filter(None, [table.path, known, call.scheduler, call.dtype, images]))
    return Preview(
        recipe=str(job.recipe_path),
        folder=str(job.root),
        classes=len(job.classes),
        extra=sum(len(table.extra) for table in recipe.prompts),
        axes=recipe.axes,
        requests=shards.planned_requests(job.root) if recipe.curates else len(requests),
        not_planned=len(job.requests.new()) if requests else 0,
        texts=len(set(zip(names, texts, strict=True))),
        groups=_groups(job, requests) if requests else "",
        models=models,
        figures=diversity.measure(
            texts, names, axes, seed=recipe.seed, embed=_embed(job, embed) if embed else None
        )
        if requests
        else {},
        names=categories.report(job.classes),
        ambiguous=categories.ambiguous(job.classes),
        notes=[unanswered] if unanswered else [*_gaps(job), *_notes(job, texts, names), *_memory(job)],
        examples=[f"{request.class_name}: {request.text}" for request in requests[:3]],
    )


def cost(job: Job) -> costs.Cost:
    """What a recipe asks for and what is left of it to make, and what that costs; nothing is written.

    Raises:
        SynthgenError: something is wrong with the recipe or the folder; one line says what.
    """
    check(job)
    per, cells, requests = job.recipe.quota.cell or ["class"], dict[str, Counter[str]](), job.requests.all()
    for request in requests:
        words = {**request.axes, "class": request.class_name}
        cells.setdefault(" | ".join(words[axis] for axis in per), Counter())[request.model] += 1
    planned, made = planned_and_new(job), costs.measure(job.root)
    models = [
        _model_cost(
            job, table, requests, planned.get(table.id, costs.Planned(0, 0)), cells, made.get(table.id)
        )
        for table in job.recipe.models
    ]
    total = sum(model.requests for model in models)
    part, most = final_part(job, total), job.recipe.quota.max_requests or 0
    return costs.Cost(
        recipe=str(job.recipe_path),
        folder=str(job.root),
        image_format=job.recipe.images.format,
        per=per,
        requests=total,
        left=sum(model.left for model in models),
        budget=min(job.limit or most, most),
        pool_bytes=sum(model.left * model.bytes_per_image for model in models),
        final_bytes=part * sum(model.requests * model.bytes_per_image for model in models),
        final_part=part,
        free_bytes=storage.free_bytes(job.root),
        utilisation=costs.UTILISATION,
        models=models,
        cells={name: dict(by_model) for name, by_model in cells.items()},
    )


def _model_cost(
    job: Job,
    table: ModelTable,
    requests: Sequence[Request],
    planned: costs.Planned,
    cells: Mapping[str, Mapping[str, int]],
    made: costs.Made | None,
) -> costs.ModelCost:
    from synthgen.generation.flops import count_flops
    from synthgen.generation.tokens import Lost, lost_ends

    own = [request for request in requests if request.model == table.id]
    texts = list(dict.fromkeys(request.text for request in own))
    flops, lost, unknown, hours = None, list[Lost](), "", None
    width, height = job.generators[table.id].image_size()
    try:
        folder = job.generators[table.id].locate()
    except ModelError as error:
        unknown = str(error) if job.fetch else "not on this machine; its FLOPs are known when it is"
    else:
        if own:
            lost = lost_ends(folder, texts, table.call)
            try:
                second = job.generators[table.id].locate_upscaler()
                flops = count_flops(folder, own[0], safety_checker=table.safety_checker, upscaler=second)
            except ModelError as error:
                unknown = str(error)
    if flops:
        width, height = flops.width, flops.height
        prompts_left = len(texts) * planned.left / planned.requests
        hours = costs.gpu_hours(flops.image * planned.left + flops.prompt * prompts_left, table.dtype)
    return costs.ModelCost(
        model=table.id,
        path=table.path,
        dtype=table.dtype,
        requests=planned.requests,
        left=planned.left,
        prompts=len(texts),
        cells=costs.count_cells(cells, table.id),
        width=width,
        height=height,
        is_guessed=not flops and not table.width,
        flops_per_image=flops.image if flops else None,
        flops_per_prompt=flops.prompt if flops else None,
        unknown=unknown,
        gpu_hours=hours,
        bytes_per_image=costs.sample_bytes(job.recipe.images.format, width, height, made),
        made=made,
        lost=lost,
    )


class Sheet(NamedTuple):
    """The different prompts of a class, and texts of a language model that were rejected: reason -> texts."""

    class_name: str
    accepted: list[str]
    rejected: dict[str, list[str]]


def sheets(job: Job) -> tuple[list[Sheet], str]:
    """The prompts of each class, those planned and all that a language model wrote; and what keeps them from
    being planned, "" if nothing does.

    Raises:
        SynthgenError: the recipe is wrong, and nothing can be shown.
    """
    accepted: dict[str, dict[str, None]] = {category.name: {} for category in job.recipe.classes}
    rejected: dict[str, dict[str, list[str]]] = {category.name: {} for category in job.recipe.classes}
    problem = ""
    try:
        for request in job.requests.all():
            accepted[request.class_name][request.text] = None
    except RecipeError as error:
        if not job.recipe.language:
            raise
        problem = str(error)
    for table in job.recipe.prompts:
        words = job.texts.word_questions(table)
        if table.use == "language" and all(question.key in job.texts.answers for question in words):
            for name, judged in job.texts.judged(table, count_tokens=job.count_tokens).items():
                for entry in judged:
                    if entry.reason:
                        rejected[name].setdefault(entry.reason, []).append(entry.prompt.text)
                    else:
                        accepted[name][entry.prompt.text] = None
    return [Sheet(name, list(own), rejected[name]) for name, own in accepted.items()], problem


class Terms(NamedTuple):
    """The licence of a model or source that a recipe names, by its key, and what to look out for in it ("" is
    nothing).
    """

    key: str
    path: str
    license: str
    concern: str


def terms(job: Job) -> list[Terms]:
    """The licences of all models and sources of a recipe: those that it tells itself, else those of their
    cards, for which the hub is asked.
    """
    recipe, folder = job.recipe, job.recipe_path.parent
    found = []
    for model in recipe.models:
        told = job.models[model.id].license
        if told == licenses.UNKNOWN and model.id not in job.pinned():
            told = job.generators[model.id].card_license(fetch=True)
        found.append((f"models.{model.id}", model.path, told))
    if recipe.language:
        name = recipe.language.model
        told = recipe.language.license or licenses.model_license(name, folder=folder)
        found.append(("language", name, told))
    for name, source in recipe.sources.items():
        told = source.license or licenses.folder_license(folder / source.path)
        found.append((f"sources.{name}", source.path, told))
    for table in recipe.annotate:
        origin = ORIGINS[table.use](**table.keys) if table.use in ORIGINS else None
        if origin is not None:
            told = table.license or (licenses.model_license(origin, folder=folder) if origin else "unknown")
            path = origin or f"{table.keys['model']} {table.keys['pretrained']}"
            found.append((f"annotate.{table.name}", path, told))
    return [Terms(key, path, told, licenses.concern(told)) for key, path, told in found]


def _embed(job: Job, name: str) -> diversity.Embed:
    from synthgen.annotators.clip import text_encoder

    known = [table.name for table in job.recipe.annotate if table.use == "clip"]
    table = next((table for table in job.recipe.annotate if table.name == name), None)
    if table is None or table.use != "clip":
        raise SynthgenError(
            f"--embed {name}: no `clip` annotation of this name; there are: {', '.join(known) or 'none'}"
        )
    return text_encoder(device="cpu", model=table.keys["model"], pretrained=table.keys["pretrained"])


def _groups(job: Job, requests: Sequence[Request]) -> str:
    """How many groups of a grid there are, and of how many prompts; "" without a grid."""
    crossed = dict.fromkeys(axis for table in job.recipe.prompts for axis in table.keys.get("grid", ()))
    if not crossed:
        return ""
    sizes = Counter(Counter(request.group for request in requests).values())
    counts = " and ".join(f"{number} of {size}" for size, number in sorted(sizes.items(), reverse=True)[:3])
    same = all(table.keys.get("same_noise", False) for table in job.recipe.prompts)
    return f"{counts} prompts (grid: {', '.join(crossed)}){', each from one noise' if same else ''}"


def _gaps(job: Job) -> list[str]:
    """What rules take away, and requests that can only repeat a prompt."""
    found = []
    for table in job.recipe.prompts:
        if table.use == "templates":
            found += gaps(table.categories, **job.texts.source_keys(table))
    return found


def _memory(job: Job) -> list[str]:
    """Which of the models that are here do not fit on this device, or may not."""
    found = []
    for table in job.recipe.models:
        try:
            job.generators[table.id].locate()
        except ModelError:
            continue
        try:
            found.append(job.generators[table.id].doubt(job.device))
        except ModelError as error:
            found.append(str(error))
    return [line for line in found if line]


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
    different = dict.fromkeys(some)
    for name, text in different:
        reason = faults(text, by_name[name], count_tokens=job.count_tokens)
        if reason:
            found.setdefault(reason, []).append(text)
    return [
        f'{reason}: {len(own)} of {len(different)} prompts, such as "{own[0]}"'
        for reason, own in found.items()
    ]
