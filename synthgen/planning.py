"""Stage 2: prompts x models -> requests, in the order in which they are made. Pure: no file, no model."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

from synthgen.data import Category, Prompt, Request
from synthgen.errors import RecipeError
from synthgen.shards import digest, make_seed, make_uid


class Source(NamedTuple):
    """Endless prompts, and the names of the classes that they are for."""

    prompts: Iterator[Prompt]
    class_names: frozenset[str]


class ModelCall(NamedTuple):
    """How one model is asked: what of it is part of a request's identity."""

    id: str
    fingerprint: str
    steps: int
    guidance: float
    negative: str
    scheduler: str
    dtype: str
    width: int
    height: int


def make_requests(
    sources: Sequence[Source],
    classes: Sequence[Category],
    models: Sequence[ModelCall],
    *,
    seed: int,
    requests: int,
    per_class: bool,
    limit: int | None = None,
) -> list[Request]:
    """The requests of a dataset. Any prefix is balanced: the classes take turns, within a class the sources
    and models do.

    Args:
        sources: where prompts come from; each class is in one of them at least.
        requests: how many, for each class or (`per_class=False`) in total.
        limit: at most so many in total; None means all.

    Raises:
        RecipeError: a source ended before a class had its number.
    """
    total = requests * len(classes) if per_class else requests
    total = total if limit is None else min(total, limit)
    ids = {category.name: category.id for category in classes}
    made: list[Request] = []
    turns, asked = Counter[str](), Counter[tuple[str, ...]]()
    for prompt in islice(_interleave(sources, classes), total):
        model = models[turns[prompt.class_name] % len(models)]
        turns[prompt.class_name] += 1
        negative = prompt.negative or model.negative
        same = (prompt.class_name, prompt.text, negative, model.id)
        made.append(_request(prompt, ids[prompt.class_name], model, negative, seed, asked[same]))
        asked[same] += 1
    if len(made) < total:
        raise RecipeError(
            f"prompts: {len(made)} of {total} requests, then the prompts ran out; lower quota.requests"
        )
    return made


def _interleave(sources: Sequence[Source], classes: Sequence[Category]) -> Iterator[Prompt]:
    """One prompt for each class in turn, round after round; a class's prompts come from its sources in
    turn.
    """
    waiting = [{name: deque[Prompt]() for name in source.class_names} for source in sources]
    own = {
        category.name: [k for k, s in enumerate(sources) if category.name in s.class_names]
        for category in classes
    }
    for turn in count():
        for category in classes:
            chosen = own[category.name][turn % len(own[category.name])]
            queue = waiting[chosen][category.name]
            while not queue:
                prompt = next(sources[chosen].prompts, None)
                if prompt is None:
                    return
                if prompt.class_name not in waiting[chosen]:
                    raise RecipeError(
                        f'prompts.{chosen}: a prompt for "{prompt.class_name}", which is no class of it'
                    )
                waiting[chosen][prompt.class_name].append(prompt)
            yield queue.popleft()


def _request(
    prompt: Prompt, class_id: int, model: ModelCall, negative: str, seed: int, replicate: int
) -> Request:
    about = {
        "class_name": prompt.class_name,
        "text": prompt.text,
        "negative": negative,
        "group": prompt.group,
        "axes": prompt.axes,
        "model": model.id,
        "fingerprint": model.fingerprint,
        "seed": make_seed(seed, model.id, prompt.class_name, prompt.text, negative, replicate),
        "replicate": replicate,
        "steps": model.steps,
        "guidance": model.guidance,
        "scheduler": model.scheduler,
        "dtype": model.dtype,
        "width": model.width,
        "height": model.height,
    }
    return Request(
        uid=make_uid(about),
        class_id=class_id,
        prompt_id=digest([prompt.class_name, prompt.text, negative])[:16],
        **about,  # type: ignore[arg-type]
    )


def cut_shards(requests: Sequence[Request], shard_size: int) -> list[list[Request]]:
    """Requests in shards of at most `shard_size`, each of one model, the order of a model's requests kept."""
    shards: list[list[Request]] = []
    for model in dict.fromkeys(request.model for request in requests):
        own = [request for request in requests if request.model == model]
        shards += [own[start : start + shard_size] for start in range(0, len(own), shard_size)]
    return shards
