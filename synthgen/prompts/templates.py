"""Prompts from templates with axes: "a {style} of a {class} {background}".

Each class walks through the templates, and through the words of each axis, in rounds: a round is every value
once, in an order of its own. So over any prefix of a class's prompts the counts of two values of an axis
differ by at most one (among the prompts whose template has that axis), and no class is tied to a word.
"""

from collections.abc import Iterator, Sequence

from synthgen.data import Category, Prompt
from synthgen.errors import RecipeError
from synthgen.shards import make_seed
from synthgen.wording import fill, slots


def templates(
    classes: Sequence[Category], *, seed: int, templates: list[str], axes: dict[str, list[str]]
) -> Iterator[Prompt]:
    """Endless prompts, one for each class in turn.

    Args:
        classes: whom to ask for; `{class}` in a template becomes the category's `prompt`.
        seed: orders templates and words.
        templates: one prompt each, with slots `{class}` (required) and `{axis}`. "a {slot}" becomes "an"
            before a word that begins with a, e, i, o or u.
        axes: the words of each axis.

    Raises:
        RecipeError: a template has no `{class}`, or a slot without a list, or an axis is in no template.
    """
    slot_names = [slots(template) for template in templates]
    for template, names in zip(templates, slot_names, strict=True):
        if "class" not in names:
            raise RecipeError(
                f'templates: "{template}" has no slot {{class}}; each template must name the class'
            )
        for name in names:
            if name != "class" and name not in axes:
                known = ", ".join(["class", *axes])
                raise RecipeError(
                    f'templates: "{template}" has a slot {{{name}}} without a list; lists: {known}. '
                    f'Add axes.{name} = "FILE" or correct the slot'
                )
    for axis in axes:
        if all(axis not in names for names in slot_names):
            raise RecipeError(
                f"axes.{axis}: no template has a slot {{{axis}}}; add it to one or remove the list"
            )
    return _turns(classes, seed, templates, slot_names, axes)


def _turns(
    classes: Sequence[Category],
    seed: int,
    templates: list[str],
    slot_names: list[list[str]],
    axes: dict[str, list[str]],
) -> Iterator[Prompt]:
    texts = {category.name: _rounds(len(templates), seed, category.name, "") for category in classes}
    words = {
        (category.name, axis): _rounds(len(values), seed, category.name, axis)
        for category in classes
        for axis, values in axes.items()
    }
    while True:
        for category in classes:
            chosen = next(texts[category.name])
            used = {
                axis: axes[axis][next(words[category.name, axis])]
                for axis in axes
                if axis in slot_names[chosen]
            }
            yield Prompt(
                fill(templates[chosen], {**used, "class": category.prompt}), category.name, axes=used
            )


def _rounds(count: int, seed: int, class_name: str, axis: str) -> Iterator[int]:
    """Endless numbers below `count`: round after round of all of them, each round in its own order."""
    number = 0
    while True:
        yield from sorted(range(count), key=lambda value: make_seed(seed, class_name, axis, number, value))
        number += 1
