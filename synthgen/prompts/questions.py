"""What to ask a language model for: one function for each way of asking. Pure: knows of no server, file or
clock.

A question's `key` is a hash of everything that decides its reply, so an answer is found again wherever it
lies, and asking for more texts of a class only adds questions at its end.
"""

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from synthgen.data import Category, Prompt
from synthgen.errors import RecipeError, nearest
from synthgen.shards import digest, make_seed

RELATIONS = (
    "in", "on", "next to", "behind", "in front of", "over", "under", "above", "below", "besides",
)  # fmt: skip
"""SynCLR's ten."""
KINDS = {"caption": 44, "relation": 11, "background": 45}
"""Per cent of a class's questions. *Source*: SynCLR (arXiv 2312.17742), which draws them at random."""
OPENINGS = ("A photo of", "An image of", "A real photo of", "A close-up photo of", "An illustration of")
"""How DiverGen's prompts begin; the questions of a class take turns."""
THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One request to a language model.

    Attributes:
        number: place among the questions of its class and task.
        schema: JSON schema of the reply: an object with one key, a text or a list of texts.
        most_texts: texts that are taken from one reply.
        axes: what the texts of the reply have on each axis; `group` likewise.
        model: its name, never a path or an address.
        sampling: temperature, top_p, max_tokens, presence_penalty, frequency_penalty, where they are set.
    """

    class_name: str
    task: str
    number: int
    system: str
    user: str
    schema: dict[str, Any]
    most_texts: int = 1
    axes: dict[str, str] = field(default_factory=dict)
    group: str = ""
    model: str = ""
    sampling: dict[str, float] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, as chat APIs and chat templates take it."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]

    @functools.cached_property
    def key(self) -> str:
        """64 hex digits over what decides the reply."""
        return digest([self.model, self.sampling, self.messages, self.schema, self.number])


class Parsed(NamedTuple):
    """What a reply holds: texts, or the reason why there are none."""

    texts: list[str]
    error: str = ""


def make_questions(
    categories: Sequence[Category],
    *,
    task: str,
    model: str,
    sampling: Mapping[str, float],
    seed: int,
    count: int,
    **keys: object,
) -> list[Question]:
    """All questions of a task, class by class.

    Args:
        task: a name in `TASKS`.
        model: the model's name; part of each question's key.
        sampling: part of each question's key; see `Question`.
        seed: chooses examples and orders words.
        count: texts (or words) wanted of each class.
        keys: what else the task's function takes.

    Raises:
        RecipeError: an unknown task or key, a missing one, or a class without what the task needs.
    """
    if task not in TASKS:
        raise RecipeError(f'task: unknown task "{task}"{nearest(task, list(TASKS))}')
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(TASKS[task]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("seed", "count")
    }
    for name in keys:
        if name not in parameters:
            raise RecipeError(
                f"{name}: task {task} has no such key; it has: {', '.join(parameters) or 'none'}"
            )
    for name, parameter in parameters.items():
        if name not in keys and parameter.default is inspect.Parameter.empty:
            raise RecipeError(f"{name}: missing; task {task} needs it")
    drafts = TASKS[task](categories, seed=seed, count=count, **keys)
    return [dataclasses.replace(draft, model=model, sampling=dict(sampling)) for draft in drafts]


def parse(question: Question, raw: str) -> Parsed:
    """The texts of a reply: of its first JSON object, whatever stands around it; never an exception.

    Of a list that is longer than asked for, the first texts are taken.
    """
    reply = THOUGHT.sub("", raw)
    start = reply.find("{")
    if start < 0:
        return Parsed([], "no JSON object" if reply.strip() else "an empty reply")
    try:
        value, _ = json.JSONDecoder().raw_decode(reply, start)
    except (ValueError, RecursionError):
        return Parsed([], "JSON that is cut off or broken")
    (name, kind), *_ = question.schema["properties"].items()
    if list(value) != [name]:
        return Parsed([], f"JSON with other keys than {name}")
    texts = value[name] if kind["type"] == "array" else [value[name]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return Parsed(
            [], f"JSON in which {name} is no {'list of texts' if kind['type'] == 'array' else 'text'}"
        )
    texts = [" ".join(text.split()) for text in texts]
    if not texts or not all(texts):
        return Parsed([], f"JSON in which {name} is empty")
    if not all(text.isprintable() for text in texts):
        return Parsed([], "a text with characters that cannot be printed")
    return Parsed(texts[: question.most_texts])


def divergen(
    categories: Sequence[Category], *, seed: int, count: int, per_call: int = 16, background: str = ""
) -> Iterator[Question]:
    """Many prompts in one reply, each for one object, as unlike each other as can be.

    Args:
        per_call: prompts asked for at once; the last question of a class asks for as many as the others.
        background: words that end every prompt, such as "in a white background"; "" leaves it open.

    Source: DiverGen (CVPR 2024, arXiv 2405.10185), prompt diversity; the instruction is our own.
    """
    ending = (
        f'End every prompt with the words "{background}"; nothing else is in the background.'
        if background
        else "Let the place, the light and the point of view differ from prompt to prompt."
    )
    for category in categories:
        for number in range(-(-count // per_call)):
            opening = _turn(OPENINGS, number, seed, category.name)
            user = (
                f"Write exactly {per_call} prompts for a text-to-image model. "
                f"Each shows exactly one {_described(category)}.\n"
                f'- Begin every prompt with "{opening} a single {category.prompt}" or a form of it that is '
                "correct English.\n"
                "- Make the prompts as different from each other as you can. First think of the attributes "
                f"in which one {category.prompt} differs from another (for food: colour, brand, size, "
                "freshness, packaging; for an animal: breed, age, coat, pose), then vary them.\n"
                "- Only what a camera sees: no story, no sound, no name of an artist.\n"
                "- One object only: no second one, no group, no people.\n"
                f"- {ending}\n"
                "- One sentence of 8 to 30 words each, in English."
            )
            yield _question(category, "divergen", number, user, "prompts", per_call)


def synthclip(categories: Sequence[Category], *, seed: int, count: int) -> Iterator[Question]:
    """One caption of at most 15 words around the concept; `count` questions for each.

    Source: SynthCLIP (arXiv 2402.01832), caption generation; the instruction is our own.
    """
    del seed
    for category in categories:
        user = (
            f"Describe, as the caption of a photograph, a scene in which {_described(category)} is to be "
            f'seen. The caption contains the words "{category.prompt}". It is one English sentence of at '
            "most 15 words and says only what is visible."
        )
        for number in range(count):
            yield _question(category, "synthclip", number, user, "caption")


def synclr(
    categories: Sequence[Category], *, seed: int, count: int, backgrounds: Mapping[str, Sequence[str]]
) -> Iterator[Question]:
    """Captions of three kinds: of the class, with a relation to something else, in a background.

    Over any prefix of a class the kinds differ from `KINDS` by at most one, and so do relations, and
    backgrounds, from each other.

    Args:
        backgrounds: words for each class by name; a random place for each is worse in the paper (73.7 to
            75.3).

    Source: SynCLR (arXiv 2312.17742), section 3.1; examples and instruction are our own.

    Raises:
        RecipeError: a class has no backgrounds.
    """
    for category in categories:
        if not backgrounds.get(category.name):
            raise RecipeError(
                f'backgrounds: none for class "{category.name}"; task synclr needs some for each class'
            )
        used = dict.fromkeys(KINDS, 0)
        for number in range(count):
            kind = _kinds()[number % len(_kinds())]
            place, axes = used[kind], dict[str, str]()
            used[kind] += 1
            if kind == "relation":
                axes = {kind: _turn(RELATIONS, place, seed, category.name, kind)}
            elif kind == "background":
                axes = {kind: _turn(backgrounds[category.name], place, seed, category.name, kind)}
            examples = [entry for entry in EXAMPLES[kind] if category.prompt not in entry[0]]
            examples.sort(key=lambda entry: make_seed(seed, category.name, number, *entry))
            given = " | ".join([category.prompt, *axes.values()])
            meaning = f" ({category.prompt}: {category.definition})" if category.definition else ""
            user = "\n".join(
                [
                    f"Write the caption of a photograph from {ASKED[kind]}.",
                    *[f"{words} => {caption}" for words, caption in examples[:3]],
                    f"Now the caption from: {given}{meaning}. It contains the words "
                    f'"{category.prompt}"; it is one English sentence of at most 25 words.',
                ]
            )
            yield dataclasses.replace(_question(category, "synclr", number, user, "caption"), axes=axes)


def paraphrase(
    categories: Sequence[Category], *, seed: int, count: int, prompts: Mapping[str, Sequence[Prompt]]
) -> Iterator[Question]:
    """Other words for prompts whose attributes were chosen outside of the model; they keep their axes.

    Args:
        prompts: of each class by name; the first `count` are asked for.
    """
    del seed
    for category in categories:
        for number, prompt in enumerate(prompts[category.name][:count]):
            kept = "".join(f"\n- {axis}: {word}" for axis, word in prompt.axes.items())
            user = (
                "Say this prompt for a text-to-image model in other words.\n"
                f"Prompt: {prompt.text}\n"
                f'Keep the object ("{category.prompt}", by this word)'
                + (f" and all of these:{kept}\n" if kept else " and every attribute.\n")
                + "Add no other object and no attribute that contradicts it. One English sentence of at "
                "most 40 words."
            )
            question = _question(category, "paraphrase", number, user, "text")
            yield dataclasses.replace(question, axes=prompt.axes, group=prompt.group)


def backgrounds(categories: Sequence[Category], *, seed: int, count: int) -> Iterator[Question]:
    """`count` places in which a class is at home, as the words of an axis."""
    del seed
    for category in categories:
        user = (
            f"List exactly {count} different places or surroundings in which {_described(category)} may "
            'well be photographed. Each is one to five English words that fit after "in front of", without '
            f"an article, without {category.prompt} itself, and without another thing that would be the "
            "main object."
        )
        yield _question(category, "backgrounds", 0, user, "words", count)


def attributes(categories: Sequence[Category], *, seed: int, count: int) -> Iterator[Question]:
    """`count` visible attributes proper to a class, as the words of an axis."""
    del seed
    for category in categories:
        user = (
            f"List exactly {count} different visible attributes in which one {_described(category)} may "
            "differ from another: colour, material, size, shape, age, condition, kind, or what else is "
            f'proper to it. Each is one to three English words that fit before "{category.prompt}", without '
            f"an article and without {category.prompt} itself."
        )
        yield _question(category, "attributes", 0, user, "words", count)


TASKS: dict[str, Callable[..., Iterator[Question]]] = {
    "divergen": divergen,
    "synthclip": synthclip,
    "synclr": synclr,
    "paraphrase": paraphrase,
    "backgrounds": backgrounds,
    "attributes": attributes,
}
WORD_TASKS = ("backgrounds", "attributes")
"""Tasks whose replies are words for an axis; those of all others are prompts."""

ASKED = {
    "caption": "one concept",
    "relation": "a concept and the relation in which it stands to something that you choose",
    "background": "a concept and the surroundings that it is in",
}
EXAMPLES = {
    "caption": (
        ("lighthouse", "A white lighthouse with a red lantern room stands out against a stormy sky."),
        ("teapot", "A dented copper teapot catches the light of a late afternoon."),
        ("heron", "A grey heron balances on one leg, its neck drawn in against the cold."),
        ("tram", "An old yellow tram climbs a steep street between tiled houses."),
        ("pear", "A ripe pear with a brown spot lies cut open, juice on the blade."),
        ("violin", "A violin with worn varnish rests in its open case."),
        ("beetle", "A green beetle with metallic wings, seen from very close."),
        ("windmill", "A wooden windmill turns its sails slowly under high clouds."),
    ),
    "relation": (
        ("kettle | on", "A whistling kettle on a blackened iron stove."),
        ("fox | behind", "A young fox behind a garden fence, only its ears and eyes to be seen."),
        ("bicycle | next to", "A rusty bicycle leans next to a blue barn door."),
        ("drone | above", "A small drone hovers above a field of rapeseed."),
        ("lantern | in", "A paper lantern glows in the bare branches of a plum tree."),
        ("cat | under", "A striped cat naps under a market stall full of oranges."),
        ("statue | in front of", "A marble statue in front of a wall covered with ivy."),
        ("bridge | over", "A narrow stone bridge over a mountain stream in spring."),
    ),
    "background": (
        ("tractor | vineyard", "A red tractor moves along the rows of a vineyard in autumn."),
        ("owl | snowy forest", "An owl looks back over its shoulder in a silent snowy forest."),
        ("guitar | subway platform", "A scratched guitar stands in its case on an empty subway platform."),
        ("crab | tidal flat", "A crab lifts its claws on a shining tidal flat at low water."),
        ("sofa | rooftop", "A sagging green sofa on a rooftop with laundry lines and antennas."),
        ("kite | desert", "A bright kite tugs at its line over the dunes of a desert."),
        ("clock | railway hall", "A round clock hangs high up in an echoing railway hall."),
        ("goat | mountain pass", "A goat with curved horns blocks the road of a mountain pass."),
    ),
}
"""Three of a kind, chosen by hash, go with each question of `synclr`."""


def _question(
    category: Category, task: str, number: int, user: str, name: str, most_texts: int = 0
) -> Question:
    """A question whose reply is `{name: text}`, or `{name: [texts]}` where `most_texts` is given."""
    text: dict[str, object] = {"type": "string"}
    if most_texts:
        form, kind = "[...]", {"type": "array", "items": text, "minItems": 1, "maxItems": most_texts}
    else:
        form, kind = '"..."', text
    schema = {
        "type": "object",
        "properties": {name: kind},
        "required": [name],
        "additionalProperties": False,
    }
    system = (
        "You write for text-to-image models. Answer with one JSON object of the form "
        f'{{"{name}": {form}}} and with nothing before or after it.'
    )
    return Question(category.name, task, number, system, user, schema, max(1, most_texts))


def _described(category: Category) -> str:
    return f"{category.prompt} ({category.definition})" if category.definition else category.prompt


def _turn(values: Sequence[str], place: int, *parts: str | int) -> str:
    """The value at a place of endless rounds: each round has every value once, in an order of its own."""
    number, within = divmod(place, len(values))
    return _round(tuple(values), number, parts)[within]


@functools.lru_cache(maxsize=64)
def _round(values: tuple[str, ...], number: int, parts: tuple[str | int, ...]) -> list[str]:
    return sorted(values, key=lambda value: make_seed(*parts, number, value))


@functools.cache
def _kinds() -> tuple[str, ...]:
    """The order of SynCLR's kinds, to be repeated: always the one that is furthest behind its share."""
    total, order = sum(KINDS.values()), list[str]()
    for place in range(1, total + 1):
        order.append(max(KINDS, key=lambda kind: KINDS[kind] * place - order.count(kind) * total))
    return tuple(order)
