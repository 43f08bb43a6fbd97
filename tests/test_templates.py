"""Templates and axes: grammar, slots of classes, rules, grids, counterfactuals."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.data import Category, Prompt, Word
from synthgen.diversity import cramers_v
from synthgen.errors import RecipeError
from synthgen.prompts.templates import cells, gaps, templates
from synthgen.wording import fill, plural, wordings

CAT = Category(0, "cat", "cat", "n02121620", ("true cat",), "feline mammal", "feline", "")
OWL = Category(1, "owl", "owl", "n01621127", (), "nocturnal bird of prey", "bird of prey", "")
FISH = Category(2, "fish", "fish")
CLASSES = [CAT, OWL, FISH]
PLACES = ["on grass", "at sea", "in snow", "in a barn"]
LIGHTS = ["at dawn", "at noon", "by night"]


def words(*texts: str) -> list[Word]:
    return [Word(text) for text in texts]


AXES = {"place": words(*PLACES), "light": words(*LIGHTS)}


def first(n: int, classes: list[Category] = CLASSES, **keys) -> list[Prompt]:  # type: ignore[no-untyped-def]
    keys = {"seed": 0, "templates": ["a {class} {place}, {light}"], "axes": AXES} | keys
    return list(itertools.islice(templates(classes, **keys), n))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {class}", ["a {class}"]),
        ("a [large|small] {class}", ["a large {class}", "a small {class}"]),
        ("a [large] {class}", ["a large {class}", "a {class}"]),
        (
            "a {class}[, {light}[ and {place}]]",
            ["a {class}, {light} and {place}", "a {class}", "a {class}, {light}"],
        ),
        ("[a|b] [c|d]", ["a c", "a d", "b c", "b d"]),
        ("[a|a]", ["a"]),
    ],
)
def test_brackets_are_choices(template: str, expected: list[str]) -> None:
    assert sorted(wordings(template)) == sorted(expected)


@pytest.mark.parametrize("template", ["a [b", "a b]", "[" * 3 + "a" + "]" * 2])
def test_a_bracket_without_a_partner_is_an_error(template: str) -> None:
    with pytest.raises(RecipeError, match="a bracket without a partner"):
        wordings(template)


def test_articles_follow_what_was_chosen() -> None:
    assert wordings("a [red] apple") == ["a red apple", "an apple"]
    assert wordings("a [red|] [|unripe] apple") == [
        "a red apple", "a red unripe apple", "an apple", "an unripe apple",
    ]  # fmt: skip
    assert wordings("a [|old ]{class}") == ["a {class}", "an old {class}"]
    assert wordings("a origami {class}.") == ["a origami {class}."]  # as it was written


def test_too_many_wordings_are_an_error() -> None:
    with pytest.raises(RecipeError, match="more than 1000 wordings"):
        wordings("[a|b]" * 12)


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("owl", "an"),
        ("cat", "a"),
        ("umbrella", "an"),
        ("unicycle", "a"),
        ("hourglass", "an"),
        ("ukulele", "a"),
        ("European robin", "a"),
        ("one-armed bandit", "a"),
        ("house", "a"),
        ("8-bit sprite", "an"),
        ("unicorn", "a"),
        ("uninhabited island", "an"),
        ("urchin", "an"),
        ("ewe", "a"),
        ("11th hour", "an"),
        ("SUV", "an"),
        ("USB stick", "a"),
        ("MP3 player", "an"),
        ("x-ray", "an"),
        ("unidentified bird", "an"),
        ("\u00e9clair", "an"),
        ('"old" cat', "an"),
        ("Ukrainian egg", "a"),
        ("u-boat", "a"),
        ("URL", "a"),
        ("3d render", "a"),
    ],
)
def test_articles_follow_the_sound(word: str, article: str) -> None:
    assert fill("a {x} and an {x}", {"x": word}) == f"{article} {word} and {article} {word}"


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cat", "cats"),
        ("wolf", "wolves"),
        ("school bus", "school buses"),
        ("sunglasses", "sunglasses"),
        ("goldfish", "goldfish"),
        ("lens", "lenses"),
        ("jeans", "jeans"),
        ("octopus", "octopuses"),
        ("glass", "glasses"),
    ],
)
def test_plurals(noun: str, expected: str) -> None:
    assert plural(noun) == expected


def test_a_class_fills_its_own_slots() -> None:
    texts = [
        prompt.text
        for prompt in first(3, [CAT], templates=["{classes}: a {class}, {definition}, a {hypernym}"], axes={})
    ]
    assert texts == ["cats: a cat, feline mammal, a feline"] * 3
    texts = [prompt.text for prompt in first(4, [CAT], templates=["a {synonym}"], axes={})]
    assert Counter(texts) == {"a cat": 2, "a true cat": 2}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5), st.integers(1, 60))
def test_each_class_meets_each_word_equally_often(seed: int, n: int, m: int, asked: int) -> None:
    axes = {"place": words(*"abcde"[:n]), "light": words(*"vwxyz"[:m])}
    made = first(3 * asked, seed=seed, axes=axes)
    for category in CLASSES:
        own = [prompt.axes for prompt in made if prompt.class_name == category.name]
        for axis, entries in axes.items():
            counts = Counter({word.text: 0 for word in entries})
            for chosen in own:
                counts[chosen[axis]] += 1
                assert max(counts.values()) - min(counts.values()) <= 1


def test_no_class_is_tied_to_a_word() -> None:
    made = first(3 * 40)
    for axis in AXES:
        assert cramers_v([(prompt.class_name, prompt.axes[axis]) for prompt in made]) < 0.05


def test_a_class_s_prompts_do_not_depend_on_other_classes() -> None:
    alone = first(20, [OWL])
    assert [prompt for prompt in first(60) if prompt.class_name == "owl"] == alone
    assert first(60, seed=1) != first(60)


def test_classes_meet_different_words_first() -> None:
    many = [Category(k, f"class {k}", f"class {k}") for k in range(60)]
    assert {prompt.axes["place"] for prompt in first(60, many)} == set(PLACES)


def test_words_for_some_classes() -> None:
    axes = {"place": [Word("on grass"), Word("at sea", "fish"), Word("in a tree", "bird")]}
    met = {
        name: {
            prompt.axes["place"]
            for prompt in first(30, axes=axes, templates=["a {class} {place}"])
            if prompt.class_name == name
        }
        for name in ("cat", "owl", "fish")
    }
    assert met == {"cat": {"on grass"}, "owl": {"on grass", "in a tree"}, "fish": {"on grass", "at sea"}}


def test_what_may_never_stand_together() -> None:
    never = [
        {"place": ["at sea", "in snow"], "light": "at noon"},
        {"class": "bird", "place": "at sea"},
        {"class": "fish", "light": "at dawn", "place": "in a barn"},
    ]
    made = first(300, never=never)
    met = {(prompt.class_name, prompt.axes["place"], prompt.axes["light"]) for prompt in made}
    assert not any(place in ("at sea", "in snow") and light == "at noon" for _, place, light in met)
    assert not any(name == "owl" and place == "at sea" for name, place, _ in met)
    assert ("fish", "in a barn", "at dawn") not in met
    assert ("cat", "in a barn", "at dawn") in met
    for category in CLASSES:
        own = [prompt.axes for prompt in made if prompt.class_name == category.name]
        for axis in AXES:
            counts = Counter(chosen[axis] for chosen in own)
            assert max(counts.values()) - min(counts.values()) <= 1


def test_a_grid_crosses_its_axes_with_all_else() -> None:
    made = first(2 * 4 * 3, grid=["place"])
    for category in CLASSES:
        own = [prompt for prompt in made if prompt.class_name == category.name]
        for group in {prompt.group for prompt in own}:
            members = [prompt for prompt in own if prompt.group == group]
            assert {member.axes["place"] for member in members} == set(PLACES)
            assert len({member.axes["light"] for member in members}) == 1
        assert len({prompt.group for prompt in own}) == 2
    assert not any(prompt.noise for prompt in made)
    found = cells(CLASSES, templates=["a {class} {place} {light}"], axes=AXES, grid=["place"])
    assert {name: len(own) for name, own in found.items()} == {
        "cat": 4,
        "owl": 4,
        "fish": 4,
    }


def test_counterfactuals_share_their_noise() -> None:
    made = first(24, grid=["place"], same_noise=True)
    assert all(prompt.noise == prompt.group != "" for prompt in made)
    across = first(24, grid=["class", "place"], same_noise=True)
    groups = Counter(prompt.noise for prompt in across)
    assert set(groups.values()) == {len(CLASSES) * len(PLACES)}
    assert {prompt.class_name for prompt in across if prompt.noise == across[0].noise} == {
        "cat",
        "owl",
        "fish",
    }


def test_a_grid_leaves_out_what_may_not_be() -> None:
    never = [{"place": "at sea", "light": "at noon"}, {"class": "owl", "place": "in snow"}]
    keys = {"templates": ["a {class} {place} {light}"], "axes": AXES, "grid": ["place"], "never": never}
    found = {name: len(own) for name, own in cells(CLASSES, **keys).items()}
    assert found == {"cat": 4, "owl": 3, "fish": 4}
    assert gaps(CLASSES, **keys) == [
        'never: "at noon" (light) is left out for 3 of 3 classes, such as "cat"',
        'never: "in snow" (place) is left out for 1 of 3 classes, such as "owl"',
    ]
    made = first(200, **keys)
    # at sea is in every group, so no group is at noon
    assert {prompt.axes["light"] for prompt in made} == {"at dawn", "by night"}


BAD = {
    "no class": (
        {"templates": ["a {place} {light}"]},
        "has no slot {class}; each template must name the class",
    ),
    "brace": ({"templates": ["a {class} {place} {light"]}, "a brace without a partner; a slot is {axis}"),
    "class-wise words in a grid of classes": (
        {"axes": {**AXES, "light": [Word("at dawn", "cat"), Word("at noon")]}, "grid": ["class", "place"]},
        'grid: "class" is crossed, but axes.light has words for single classes',
    ),
    "no list": (
        {"templates": ["a {class} {when}"]},
        "has a slot {when} without a list; lists: class, place, light",
    ),
    "no slot": ({"templates": ["a {class} {place}"]}, "axes.light: no template has a slot {light}"),
    "grid": (
        {"grid": ["plac"]},
        'grid: unknown axis "plac"; did you mean "place"? Known: class, light, place',
    ),
    "noise": (
        {"same_noise": True},
        'same_noise: there are no groups; name the axis that differs, grid = ["place"]',
    ),
    "rule": ({"never": [{"plac": "at sea"}]}, 'never.0: unknown axis "plac"; did you mean "place"?'),
    "rule's word": (
        {"never": [{"place": "at see"}]},
        'never.0.place: "at see" is not in the list; did you mean "at sea"?',
    ),
    "rule's class": (
        {"never": [{"class": "brid", "place": "at sea"}]},
        'never.0.class: "brid" is no class, and no class is known to be a kind of it',
    ),
    "word's class": (
        {"axes": {**AXES, "place": [Word("at sea", "fsh")]}},
        'axes.place: "fsh" is no class, and no class is known to be a kind of it; did you mean "fish"?',
    ),
    "nothing left": (
        {"never": [{"class": "owl", "place": PLACES}]},
        'axes.place: no word is left for "owl"; give it one, or take a rule of `never` back',
    ),
    "no axis": ({"never": [{"class": "owl"}]}, "never.0: names no axis"),
    "definition": (
        {"templates": ["a {class}, {definition} {place} {light}"]},
        'templates: {definition} is not known for "fish"; give a .csv of classes with ',
    ),
    "crossed and missing": (
        {"templates": ["a {class} {place} {light}", "a {class} {light}"], "grid": ["place"]},
        'grid: "place" is crossed, but the template "a {class} {light}" has no slot for it',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys(case: str) -> None:
    keys, message = BAD[case]
    with pytest.raises(RecipeError) as error:
        first(1, **keys)
    assert message in str(error.value)
