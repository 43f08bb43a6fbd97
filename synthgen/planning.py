"""Stage 2: prompts x models -> requests, in the order in which they are made. Pure: no file, no model."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from synthgen.data import Category, Prompt, Request
from synthgen.errors import RecipeError
from synthgen.shards import digest, make_seed, make_uid

MOST_SKIPPED = 1_000_000
"""So many prompts in a row for cells that are full mean that no others will come."""


class Source(NamedTuple):
    """Endless prompts, and the classes that they are for: name -> the cells that its quota is cut into, each
    its words by axis (one without words where there is no grid).
    """

    prompts: Iterator[Prompt]
    cells: Mapping[str, Sequence[Mapping[str, str]]]


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
    call: str = ""
    license: str = ""
    weight: float = 1.0


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
    cells = {
        (name, *sorted(cell.items()))
        for source in sources
        for name, own in source.cells.items()
        for cell in own
    }
    total = requests * len(cells) if per else requests
    total = total if limit is None else min(total, limit)
    ids = {category.name: category.id for category in classes}
    made: list[Request] = []
    asked, filled, skipped = Counter[tuple[str, ...]](), Counter[tuple[str, ...]](), 0
    choose = _ModelTurns(models)
    for turn, source, prompt in _interleave(sources, classes):
        # of a prompt that is not wanted too: a larger quota wants it, and the others keep their models
        model = choose(source, prompt)
        if per:
            cell = tuple(prompt.class_name if axis == "class" else prompt.axes[axis] for axis in per)
            if filled[cell] == requests:
                skipped += 1
                if skipped > MOST_SKIPPED + total:
                    raise RecipeError(f"prompts: {len(made)} of {total} requests, then only for full cells")
                continue
            filled[cell], skipped = filled[cell] + 1, 0
        negative = prompt.negative or model.negative
        same = (prompt.class_name, prompt.text, negative, model.id)
        made.append(_request(prompt, ids[prompt.class_name], model, negative, seed, asked[same], turn))
        asked[same] += 1
        if len(made) == total:
            return made
    raise RecipeError(
        f"prompts: {len(made)} of {total} requests, then the prompts ran out; lower quota.requests"
    )


class _ModelTurns:
    """Which model makes a prompt: the one that has made least of the class; of equal ones the one that has
    made least of the text, then of the source, then with the words, so that these go with no model more than
    that lets them. A group stays with one.
    """

    def __init__(self, models: Sequence[ModelCall]) -> None:
        self._models, self._made = models, Counter[tuple[object, ...]]()
        self._groups: dict[str, ModelCall] = {}

    def __call__(self, source: int, prompt: Prompt) -> ModelCall:
        if len(self._models) == 1:
            return self._models[0]
        name, made = prompt.class_name, self._made
        keys: list[list[tuple[object, ...]]] = [
            [(name,)], [(name, prompt.text)], [(name, source)],
            [(name, axis, word) for axis, word in prompt.axes.items()],
        ]  # fmt: skip
        model = self._groups.get(prompt.group) or min(
            self._models, key=lambda one: [sum(made[one.id, key] for key in level) for level in keys]
        )
        if prompt.group:
            self._groups[prompt.group] = model
        made.update((model.id, key) for level in keys for key in level)
        return model


def _interleave(sources: Sequence[Source], classes: Sequence[Category]) -> Iterator[tuple[int, int, Prompt]]:
    """One prompt for each class in turn, with the number of the turn and of its source; a class's prompts
    come from its sources in turn.
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
            yield turn, chosen, queue.popleft()


def _request(
    prompt: Prompt, class_id: int, model: ModelCall, negative: str, seed: int, replicate: int, turn: int
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
        "call": model.call,
        "width": model.width,
        "height": model.height,
    }
    return Request(
        uid=make_uid(about),
        class_id=class_id,
        prompt_id=prompt_id,
        turn=turn,
        license=model.license,
        **about,  # type: ignore[arg-type]
    )


def cut_shards(requests: Sequence[Request], shard_size: int) -> list[list[Request]]:
    """Requests in shards of at most `shard_size`, each of one model, the order of a model's requests kept."""
    shards: list[list[Request]] = []
    for model in dict.fromkeys(request.model for request in requests):
        own = [request for request in requests if request.model == model]
        shards += [own[start : start + shard_size] for start in range(0, len(own), shard_size)]
    return shards
