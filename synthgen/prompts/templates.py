"""Prompts from templates with axes: "a {style} of a {class} {place}".

`allocation` orders what they meet: over any prefix of a class's prompts the counts of two words of an axis
differ by at most one (among the prompts whose template has that axis), and pairs of words repeat as late as
can be. A class's prompts depend on the seed and on that class alone.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product
from typing import Any, NamedTuple, TypeVar

from synthgen.data import Category, Prompt, Word
from synthgen.errors import RecipeError, nearest
from synthgen.prompts.allocation import Design
from synthgen.prompts.categories import matches, words_of_classes
from synthgen.shards import digest
from synthgen.wording import SLOT, fill, plural, slots, wordings

CLASS_SLOTS = ("class", "classes", "synonym", "definition", "hypernym")
"""Slots that a class fills by itself: how templates call it, the plural of that, that or a synonym, ..."""

Entry = TypeVar("Entry")
Never = Mapping[str, str | list[str]]
Rule = dict[str, frozenset[str]]
"""Words, by axis, of which no prompt may have one of each axis at once."""


def templates(
    classes: Sequence[Category],
    *,
    seed: int,
    templates: list[str],
    axes: dict[str, list[Word]] = {},  # noqa: B006
    never: list[dict[str, str | list[str]]] = [],  # noqa: B006
    grid: Sequence[str] = (),
    same_noise: bool = False,
) -> Iterator[Prompt]:
    """Endless prompts, one for each class in turn.

    Args:
        classes: whom to ask for.
        seed: orders templates and words.
        templates: one prompt each, with a slot for the class and slots `{axis}`. "[a|b]" is one of these,
            "[a]" is a or nothing. "a {slot}" becomes "an" before the sound of a vowel.
        axes: the words of each axis.
        never: what may not stand together: {"place": "in the sea", "weather": ["in fog", "in snow"]}; with
            "class", of those classes (a name, or a WordNet noun for all that are a kind of it).
        grid: axes that are crossed: everything else in a prompt is met once with every combination of their
            words, which are one group. "class" among them: the groups hold all classes.
        same_noise: the prompts of a group start from the same noise: they are counterfactuals.

    Raises:
        RecipeError: a template names no class, or has a slot without a list; an axis is in no template; a
            class is left without a word.
    """
    return _Plans(
        classes, seed, templates=templates, axes=axes, never=never, grid=grid, same_noise=same_noise
    ).prompts()


def cells(classes: Sequence[Category], **keys: Any) -> dict[str, list[dict[str, str]]]:
    """The cells of the grid that each class has: words by axis. The keys are those of `templates`."""
    plans = _Plans(classes, 0, **keys)
    return {category.name: plans.plan(category).cells for category in classes}


def gaps(classes: Sequence[Category], **keys: Any) -> list[str]:
    """What the rules of `never` take away from classes, in words: for people who may not have meant that. The
    keys are those of `templates`.
    """
    plans = _Plans(classes, 0, **keys)
    lost: dict[tuple[str, str], list[str]] = {}
    for category in classes if keys.get("never") else ():
        plan = plans.plan(category)
        left = {axis: set(own) for axis, own in plan.words.items()}
        left |= {axis: {cell[axis] for cell in plan.cells} for axis in plans.crossed}
        for axis in plans.words:
            for word in plans.words[axis][category.name]:
                if word not in left[axis]:
                    lost.setdefault((axis, word), []).append(category.name)
        every = [plans.words[axis][category.name] for axis in plans.crossed]
        for words in product(*every):
            cell = dict(zip(plans.crossed, words, strict=True))
            if cell not in plan.cells and all(cell[axis] in left[axis] for axis in cell):
                lost.setdefault(("grid", ", ".join(words)), []).append(category.name)
    return [
        f'never: "{word}" ({axis}) is left out for {len(own)} of {len(classes)} classes, such as "{own[0]}"'
        for (axis, word), own in lost.items()
    ]


def naming_axes(axes: Mapping[str, Sequence[Word]]) -> list[str]:
    """Axes that name the class, as each of their words is for some classes alone."""
    return [axis for axis, entries in axes.items() if all(entry.only for entry in entries)]


class _Plan(NamedTuple):
    """What one class may meet: the words of the axes that are not crossed, rules among them, and the cells of
    the crossed ones.
    """

    words: dict[str, list[str]]
    rules: list[Rule]
    cells: list[dict[str, str]]


class _Plans:
    """The plans of all classes; those without rules share their designs."""

    def __init__(
        self,
        classes: Sequence[Category],
        seed: int,
        *,
        templates: Sequence[str],
        axes: Mapping[str, Sequence[Word]] = {},
        never: Sequence[Never] = (),
        grid: Sequence[str] = (),
        same_noise: bool = False,
    ) -> None:
        self._classes, self._seed, self._axes, self._never = classes, seed, axes, never
        self.crossed, self._same_noise = [axis for axis in grid if axis != "class"], same_noise
        self._is_across = "class" in grid
        self._texts = [text for template in templates for text in wordings(template)]
        self._texts.sort(key=lambda text: sorted(slots(text)))  # alike beside alike, to be put in order
        self._slots = {text: frozenset(slots(text)) for text in self._texts}
        self._names = frozenset(category.name for category in classes)
        self._designs: dict[object, Design] = {}
        self._check(grid)
        self.words = {axis: words_of_classes(entries, classes) for axis, entries in axes.items()}

    def _check(self, grid: Sequence[str]) -> None:
        for text, names in self._slots.items():
            if re.search(r"[{}]", SLOT.sub("", text)):
                raise RecipeError(f'templates: "{text}": a brace without a partner; a slot is {{axis}}')
            if not names & {"class", "classes", "synonym", *naming_axes(self._axes)}:
                raise RecipeError(
                    f'templates: "{text}" has no slot {{class}}; each template must name the class'
                )
            for name in sorted(names - {*CLASS_SLOTS, *self._axes}):
                raise RecipeError(
                    f'templates: "{text}" has a slot {{{name}}} without a list; lists: '
                    f'{", ".join(["class", *self._axes])}. Add axes.{name} = "FILE" or correct the slot'
                )
        for axis, entries in self._axes.items():
            for entry in entries:
                self._check_is_known(f"axes.{axis}", entry.only)
            if not any(axis in names for names in self._slots.values()):
                raise RecipeError(
                    f"axes.{axis}: no template has a slot {{{axis}}}; add it to one or remove the list"
                )
        for axis in grid:
            if axis != "class" and axis not in self._axes:
                raise RecipeError(f'grid: unknown axis "{axis}"{nearest(axis, ["class", *self._axes])}')
            without = next((text for text in self._texts if axis not in self._slots[text]), None)
            if axis != "class" and without is not None:
                raise RecipeError(
                    f'grid: "{axis}" is crossed, but the template "{without}" has no slot for it'
                )
        if self._same_noise and not grid:
            raise RecipeError('same_noise: there are no groups; name the axis that differs, grid = ["place"]')
        if self._is_across:
            self._check_is_alike()
        for number, rule in enumerate(self._never):
            for axis, words in rule.items():
                known = [word.text for word in self._axes.get(axis, ())]
                if axis != "class" and axis not in self._axes:
                    raise RecipeError(
                        f'never.{number}: unknown axis "{axis}"{nearest(axis, ["class", *self._axes])}'
                    )
                for word in _listed(words):
                    if axis == "class":
                        self._check_is_known(f"never.{number}.class", word)
                    elif word not in known:
                        raise RecipeError(
                            f'never.{number}.{axis}: "{word}" is not in the list{nearest(word, known)}'
                        )
            if not rule.keys() - {"class"}:
                raise RecipeError(
                    f"never.{number}: names no axis; leave the class out of the list of classes"
                )

    def _check_is_alike(self) -> None:
        """A grid across classes has groups of all of them, so nothing else may differ by class."""
        for axis, entries in self._axes.items():
            if any(entry.only for entry in entries):
                raise RecipeError(f'grid: "class" is crossed, but axes.{axis} has words for single classes')
        if any("synonym" in names for names in self._slots.values()):
            raise RecipeError(
                'grid: "class" is crossed, but a template has {synonym}, which differs by class'
            )
        if any("class" in rule for rule in self._never):
            raise RecipeError('grid: "class" is crossed, but a rule of `never` is for some classes')

    def _check_is_known(self, where: str, what: str) -> None:
        is_named = what == "" or what.removeprefix("=") in self._names
        if not is_named and not any(matches(one, what) for one in self._classes):
            raise RecipeError(
                f'{where}: "{what}" is no class, and no class is known to be a kind of it'
                f"{nearest(what.removeprefix('='), sorted(self._names))}"
            )

    def plan(self, category: Category) -> _Plan:
        """What a class may meet.

        Raises:
            RecipeError: nothing is left for it.
        """
        words = {axis: list(self.words[axis][category.name]) for axis in self._axes}
        rules = [
            {axis: frozenset(_listed(entry)) for axis, entry in rule.items() if axis != "class"}
            for rule in self._never
            if "class" not in rule or any(matches(category, what) for what in _listed(rule["class"]))
        ]
        rules = _strike(words, rules)
        crossed = [words.pop(axis) for axis in self.crossed]
        cells = [dict(zip(self.crossed, combination, strict=True)) for combination in product(*crossed)]
        inside = [rule for rule in rules if rule.keys() <= set(self.crossed)]
        cells = [cell for cell in cells if not any(_has(rule, cell) for rule in inside)]
        # a row meets every cell, so what one of them forbids is forbidden
        rules = [
            {axis: rule[axis] for axis in rule if axis in words}
            for rule in rules
            if rule not in inside and any(_has(rule, cell) for cell in cells)
        ]
        rules = _strike(words, rules)
        for axis, left in [*words.items(), *zip(self.crossed, crossed, strict=True), ("grid", cells)]:
            if not left:
                how = "take a rule of `never` back" if self._never else "a word without a class is for all"
                raise RecipeError(
                    f'axes.{axis}: no word is left for "{category.name}"; give it one, or {how}'
                )
        if any("synonym" in self._slots[text] for text in self._texts):
            words["synonym"] = list(dict.fromkeys([category.prompt, *category.synonyms]))
        return _Plan(words, rules, cells)

    def prompts(self) -> Iterator[Prompt]:
        """Endless prompts, one for each class in turn; each class is looked at at once."""
        return _in_turn([self._walk(category, self.plan(category)) for category in self._classes])

    def _walk(self, category: Category, plan: _Plan) -> Iterator[Prompt]:
        """The endless prompts of a class."""
        who = "" if self._is_across else category.name
        # small axes first: a round of few rows leaves little choice, so the large ones see to the pairs
        axes = sorted(plan.words, key=lambda axis: len(plan.words[axis]))
        words = [_shuffled(plan.words[axis], self._seed, who, axis) for axis in axes]
        alike: dict[frozenset[str], list[str]] = {}
        for text in self._texts:
            alike.setdefault(self._slots[text], []).append(text)
        texts = [text for group in alike.values() for text in _shuffled(group, self._seed, who, "")]
        cells = _shuffled(plan.cells, self._seed, who, "grid")
        return self._rows(category, self._about(category), texts, axes, words, plan.rules, cells)

    def _rows(
        self,
        category: Category,
        about: dict[str, str],
        texts: Sequence[str],
        axes: Sequence[str],
        words: Sequence[Sequence[str]],
        rules: Sequence[Rule],
        cells: Sequence[dict[str, str]],
    ) -> Iterator[Prompt]:
        who = "" if self._is_across else category.name
        design = self._design(texts, axes, words, rules)
        for number in count():
            try:
                template, *chosen = design.row(number)
            except ValueError as error:
                raise RecipeError(
                    f"axes.{axes[error.args[0] - 1]}: no word may stand beside some others for "
                    f'"{category.name}"; take a rule of `never` back'
                ) from None
            row = {axis: own[k] for axis, own, k in zip(axes, words, chosen, strict=True) if k >= 0}
            group = ""
            if self.crossed or self._is_across:
                group = digest(["grid", who, number, texts[template], row])[:16]
            for cell in cells:
                used = row | cell
                text = fill(texts[template], about | used)
                used = {axis: used[axis] for axis in self._axes if axis in used}
                noise = group * self._same_noise
                yield Prompt(text, category.name, "", group, used, noise, texts[template])

    def _design(
        self, texts: Sequence[str], axes: Sequence[str], words: Sequence[Sequence[str]], rules: Sequence[Rule]
    ) -> Design:
        uses = tuple((True, *(axis in self._slots[text] for axis in axes)) for text in texts)
        sizes = (len(texts), *map(len, words))
        if not rules:
            key = (sizes, uses)
            if key not in self._designs:
                self._designs[key] = Design(sizes, uses, self._seed, None)
            return self._designs[key]
        numbers = [
            {
                axes.index(axis) + 1: {k for k, word in enumerate(words[axes.index(axis)]) if word in entries}
                for axis, entries in rule.items()
            }
            for rule in rules
        ]

        def is_allowed(chosen: dict[int, int]) -> bool:
            return not any(all(chosen.get(axis) in own for axis, own in rule.items()) for rule in numbers)

        return Design(sizes, uses, self._seed, is_allowed)

    def _about(self, category: Category) -> dict[str, str]:
        """What the class itself fills in."""
        wanted = {name for names in self._slots.values() for name in names}
        about = {"class": category.prompt}
        if "classes" in wanted:
            about["classes"] = category.plural or plural(category.prompt)
        for name in sorted(wanted & {"definition", "hypernym"}):
            about[name] = getattr(category, name)
            if not about[name]:
                raise RecipeError(
                    f'templates: {{{name}}} is not known for "{category.name}"; give a .csv of classes with '
                    f"a column {name}, or synset"
                )
        return about


def _in_turn(walks: Sequence[Iterator[Prompt]]) -> Iterator[Prompt]:
    while True:
        for walk in walks:
            yield next(walk)


def _listed(words: str | Sequence[str]) -> Sequence[str]:
    return [words] if isinstance(words, str) else words


def _has(rule: Rule, words: Mapping[str, str]) -> bool:
    """Whether the words fulfil all of the rule that is about their axes."""
    return all(words[axis] in rule[axis] for axis in rule if axis in words)


def _strike(words: dict[str, list[str]], rules: Sequence[Rule]) -> list[Rule]:
    """Takes the words of rules about a single axis out of its list; returns the other rules."""
    for rule in rules:
        if len(rule) == 1:
            ((axis, own),) = rule.items()
            words[axis] = [word for word in words[axis] if word not in own]
    return [rule for rule in rules if len(rule) > 1]


def _shuffled(entries: Sequence[Entry], *parts: str | int) -> list[Entry]:
    """The entries in an order that a hash of the parts decides."""
    bits = hashlib.shake_128("\0".join(map(str, parts)).encode()).digest(8 * len(entries))
    return [entries[k] for k in sorted(range(len(entries)), key=lambda k: bits[8 * k : 8 * k + 8])]
