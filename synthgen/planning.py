"""Stage 2: prompts x models -> requests, in the order in which they are made. Pure: no file, no model."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from synthgen.data import Category, Prompt, Request
from synthgen.errors import RecipeError
from synthgen.shards import digest, make_seed, make_uid


class Source(NamedTuple):
    """Endless prompts, and the classes that they are for: name -> into how many cells its quota is cut (1, or
    the combinations of a grid)."""

    prompts: Iterator[Prompt]
    cells: Mapping[str, int]


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
    per: Sequence[str],
    limit: int | None = None,
) -> list[Request]:
    """The requests of a dataset. Any prefix is balanced: the classes take turns, within a class the sources
    and models do. The prompts of a group go to one model.

    Args:
        sources: where prompts come from; each class is in one of them at least.
        requests: how many, in each cell.
        per: what makes a cell: "class" and axes, nothing for all of it.
        limit: at most so many in total; None means all.

    Raises:
        RecipeError: a source ended before a class had its number.
    """
    cells = {name: number for source in sources for name, number in source.cells.items()}
    total = requests * sum(cells.values()) if per else requests
    total = total if limit is None else min(total, limit)
    ids = {category.name: category.id for category in classes}
    made: list[Request] = []
    turns, asked, filled = Counter[str](), Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    groups, met, full = dict[str, ModelCall](), set[tuple[str, str]](), 0
    prompts = _interleave(sources, classes)
    while len(made) < total:
        prompt = next(prompts, None)
        if prompt is None:
            raise RecipeError(
                f"prompts: {len(made)} of {total} requests, then the prompts ran out; lower quota.requests"
            )
        if per:
            cell = tuple(prompt.class_name if axis == "class" else prompt.axes[axis] for axis in per)
            full = full + 1 if filled[cell] == requests else 0
            if full > total:
                raise RecipeError(f"prompts: {len(made)} of {total} requests, then all were for full cells")
            if full:
                continue
            filled[cell] += 1
        model = groups.get(prompt.group) or models[turns[prompt.class_name] % len(models)]
        if prompt.group and len(models) > 1:
            groups[prompt.group] = model
            turns[prompt.class_name] += (prompt.class_name, prompt.group) not in met
            met.add((prompt.class_name, prompt.group))
        else:
            turns[prompt.class_name] += 1
        negative = prompt.negative or model.negative
        same = (prompt.class_name, prompt.text, negative, model.id)
        made.append(_request(prompt, ids[prompt.class_name], model, negative, seed, asked[same]))
        asked[same] += 1
    return made


def _interleave(sources: Sequence[Source], classes: Sequence[Category]) -> Iterator[Prompt]:
    """One prompt for each class in turn, round after round; a class's prompts come from its sources in
    turn.
    """
    waiting = [{name: deque[Prompt]() for name in source.cells} for source in sources]
    own = {
        category.name: [k for k, s in enumerate(sources) if category.name in s.cells] for category in classes
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
    prompt_id = digest([prompt.class_name, prompt.text, negative])[:16]
    what = (prompt.noise,) if prompt.noise else (prompt.class_name, prompt.text, negative, replicate)
    about = {
        "class_name": prompt.class_name,
        "text": prompt.text,
        "negative": negative,
        "group": prompt.group or prompt_id,
        "axes": prompt.axes,
        "model": model.id,
        "fingerprint": model.fingerprint,
        "seed": make_seed(seed, model.id, *what),
        "replicate": replicate,
        "steps": model.steps,
        "guidance": model.guidance,
        "scheduler": model.scheduler,
        "dtype": model.dtype,
        "width": model.width,
        "height": model.height,
    }
    return Request(uid=make_uid(about), class_id=class_id, prompt_id=prompt_id, **about)  # type: ignore[arg-type]


def cut_shards(requests: Sequence[Request], shard_size: int) -> list[list[Request]]:
    """Requests in shards of at most `shard_size`, each of one model, the order of a model's requests kept."""
    shards: list[list[Request]] = []
    for model in dict.fromkeys(request.model for request in requests):
        own = [request for request in requests if request.model == model]
        shards += [own[start : start + shard_size] for start in range(0, len(own), shard_size)]
    return shards
