"""Stage 2: prompts x models -> requests, in the order in which they are made. Pure: no file, no model."""

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, count
from types import MappingProxyType
from typing import NamedTuple

from synthgen.data import Category, Prompt, Request
from synthgen.errors import RecipeError
from synthgen.shards import digest, make_seed, make_uid

MOST_SKIPPED = 1_000_000
"""So many prompts in a row for cells that are full mean that no others will come."""
GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, less their whole parts, are spread evenly over 0 to 1, however many there are."""


Cells = Mapping[str, Sequence[Mapping[str, str]]]
"""By class, the words by axis of each cell that a quota is cut into; one without words where there is no
grid.
"""


class Source(NamedTuple):
    """Endless prompts, and the classes that they are for."""

    prompts: Iterator[Prompt]
    cells: Cells


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
    strength: float = 0.0


class RealImages(NamedTuple):
    """The real images that a model starts from: their uids by class, and what gives the sha256 of one's
    bytes.
    """

    by_class: Mapping[str, Sequence[str]]
    sha256: Callable[[str], str]


NONE: Mapping[str, RealImages] = MappingProxyType({})
NO_CELLS: Mapping["Cell", int] = MappingProxyType({})

Cell = tuple[str, ...]
"""What a quota counts: the values of "class" and axes, as `per` names them; () is all of it."""


def cells_of(sources: Iterable[Cells], per: Sequence[str]) -> list[Cell]:
    """The cells of a quota, in the order in which the sources name them."""
    every = [cell_of(name, cell, per) for cells in sources for name, own in cells.items() for cell in own]
    return list(dict.fromkeys(every))


def cell_of(class_name: str, axes: Mapping[str, str], per: Sequence[str]) -> Cell:
    """The cell that a prompt of a class, with these words, belongs to."""
    return tuple(class_name if axis == "class" else axes[axis] for axis in per)


def next_ask(accepted: int, *, kept: int, made: int) -> int:
    """How many requests a cell asks for next: what it lacks by the share that was kept so far, which is taken
    for 1 of 2 before anything is known; at most 4 times what it has asked for.
    """
    ask = -(-(accepted - kept) * (made + 2) // (kept + 1)) if kept < accepted else 0
    return min(ask, 4 * made) if made else ask


def make_requests(
    sources: Sequence[Source],
    classes: Sequence[Category],
    models: Sequence[ModelCall],
    *,
    seed: int,
    requests: int | Mapping[Cell, int],
    per: Sequence[str],
    real: Mapping[str, RealImages] = NONE,
    skip: Mapping[Cell, int] = NO_CELLS,
    limit: int | None = None,
) -> list[Request]:
    """The requests of a dataset. The requests of a cell are the first of one endless sequence, which depends
    on no other class and on no number asked for. They are in the order of their turns: the classes take
    turns, within a class the sources and models do, so that any prefix is balanced. The prompts of a group
    go to one model.

    Args:
        sources: where prompts come from; each class is in one of them at least.
        requests: how many, in each cell; one number is for all cells.
        per: what makes a cell: "class" and axes, nothing for all of it.
        real: by a model's id, the real images that it starts from; each class has one at least.
        skip: how many of each cell are not returned, because they are planned already.
        limit: at most so many are returned; None means all.

    Raises:
        RecipeError: a source ended before a class had its number.
    """
    wanted = (
        dict.fromkeys(cells_of([source.cells for source in sources], per), requests)
        if isinstance(requests, int)
        else requests
    )
    total = sum(wanted.values())
    ids = {category.name: category.id for category in classes}
    made, n_filled, skipped = list[Request](), 0, 0
    asked, filled = Counter[tuple[str, ...]](), Counter[Cell]()
    choose, choose_image = _ModelTurns(models, ids), _ImageTurns(real, seed)
    for turn, source, prompt in _interleave(sources, classes):
        if n_filled == total or len(made) == limit:
            return made
        # of a prompt that is not wanted too: a larger quota wants it, and the others keep their models
        model = choose(source, prompt)
        image = choose_image(model.id, prompt) if model.id in real else ""
        negative = prompt.negative or model.negative
        same = (prompt.class_name, prompt.text, negative, model.id)
        replicate, asked[same] = asked[same], asked[same] + 1
        cell = cell_of(prompt.class_name, prompt.axes, per)
        if filled[cell] == wanted.get(cell, 0):
            skipped += 1
            if skipped > MOST_SKIPPED + total:
                raise RecipeError(f"prompts: {n_filled} of {total} requests, then only for full cells")
            continue
        filled[cell], n_filled, skipped = filled[cell] + 1, n_filled + 1, 0
        if filled[cell] <= skip.get(cell, 0):
            continue
        request = _request(
            prompt,
            ids[prompt.class_name],
            model,
            negative,
            seed,
            replicate,
            turn,
            (image, real[model.id].sha256(image)) if image else ("", ""),
        )
        made.append(request)
    if n_filled == total:
        return made
    raise RecipeError(f"prompts: {n_filled} of {total} requests, then the prompts ran out; lower the quota")


class _ModelTurns:
    """Which model makes a prompt: one that the class has not had more of than its weight says; of these the
    one that has made least of the text, then of the source, then with the words, by weight, so that these go
    with no model more than that lets them. Classes begin with different models. A group stays with one.
    """

    def __init__(self, models: Sequence[ModelCall], ids: Mapping[str, int]) -> None:
        self._models, self._ids, self._made = models, ids, Counter[tuple[object, ...]]()
        self._groups: dict[str, int] = {}
        exact = [Fraction(str(model.weight)) for model in models]
        whole = math.lcm(*(weight.denominator for weight in exact))
        self._weights = [int(weight * whole) for weight in exact]
        self._total = sum(self._weights)

    def __call__(self, source: int, prompt: Prompt) -> ModelCall:
        if len(self._models) == 1:
            return self._models[0]
        name, made = prompt.class_name, self._made
        keys: list[list[tuple[object, ...]]] = [
            [(name,)], [(name, prompt.text)], [(name, source)],
            [(name, axis, word) for axis, word in prompt.axes.items()],
        ]  # fmt: skip
        sums = [sum(made[key] for key in level) for level in keys]

        def order(k: int) -> tuple[bool, bool, list[int], int]:
            own = [sum(made[k, key] for key in level) for level in keys]
            due = self._weights[k] * (sums[0] + 1)  # by the time that this one is made, times the total
            surplus = [a * self._total - self._weights[k] * b for a, b in zip(own[1:], sums[1:], strict=True)]
            first = (k - self._first(self._ids[name])) % len(self._models)
            return own[0] * self._total >= due, (own[0] + 1) * self._total > due, surplus, first

        chosen = self._groups.get(prompt.group, -1)
        if chosen < 0:
            chosen = min(range(len(self._models)), key=order)
        if prompt.group:
            self._groups[prompt.group] = chosen
        made.update(key for level in keys for key in level)
        made.update((chosen, key) for level in keys for key in level)
        return self._models[chosen]

    def _first(self, class_id: int) -> int:
        """The model that a class begins with: classes in order of their ids are shared out by weight."""
        at = class_id * GOLDEN % 1 * self._total
        return next(k for k, end in enumerate(accumulate(self._weights)) if at < end)


class _ImageTurns:
    """Which real image a prompt starts from. A model uses a class's in rounds, so that any prefix has each as
    often as the others, to one; each round has an order of its own, so that no image goes with the words that
    come round too. The prompts of a group start from one.
    """

    def __init__(self, real: Mapping[str, RealImages], seed: int) -> None:
        self._real, self._seed = real, seed
        self._rounds, self._left = Counter[tuple[str, str]](), dict[tuple[str, str], list[str]]()
        self._groups: dict[tuple[str, str, str], str] = {}

    def __call__(self, model: str, prompt: Prompt) -> str:
        key = model, prompt.class_name
        if prompt.group and (*key, prompt.group) in self._groups:
            return self._groups[*key, prompt.group]
        if not self._left.get(key):
            begin = f"{self._seed} {self._rounds[key]} "
            self._left[key] = sorted(
                self._real[model].by_class[prompt.class_name],
                key=lambda uid: hashlib.sha256((begin + uid).encode()).digest(),
            )
            self._rounds[key] += 1
        chosen = self._left[key].pop()
        if prompt.group:
            self._groups[*key, prompt.group] = chosen
        return chosen


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
    prompt: Prompt,
    class_id: int,
    model: ModelCall,
    negative: str,
    seed: int,
    replicate: int,
    turn: int,
    image: tuple[str, str],
) -> Request:
    source_uid, source_sha256 = image

    prompt_id = digest([prompt.class_name, prompt.text, negative])[:16]
    what = (prompt.noise,) if prompt.noise else (prompt.class_name, prompt.text, negative, replicate)
    about = {
        "class_name": prompt.class_name,
        "text": prompt.text,
        "negative": negative,
        # all that is made from one real image is on one side of a split
        "group": prompt.group or source_uid[:16] or prompt_id,
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
    if source_uid:
        about |= {"strength": model.strength, "source_uid": source_uid, "source_sha256": source_sha256}
    return Request(
        uid=make_uid(about),
        class_id=class_id,
        prompt_id=prompt_id,
        turn=turn,
        license=model.license,
        template=prompt.template,
        **about,  # type: ignore[arg-type]
    )


def cut_shards(requests: Sequence[Request], shard_size: int) -> list[list[Request]]:
    """Requests in shards of at most `shard_size`, each of one model, the order of a model's requests kept.
    The shards are in the order of their last requests, so that the models take turns here too.
    """
    place = {request.uid: k for k, request in enumerate(requests)}
    shards: list[list[Request]] = []
    for model in dict.fromkeys(request.model for request in requests):
        own = [request for request in requests if request.model == model]
        shards += [own[start : start + shard_size] for start in range(0, len(own), shard_size)]
    return sorted(shards, key=lambda shard: place[shard[-1].uid])
