"""Why a text is no prompt for its class: each reason, what must not be one, and slow references."""

import random
import time
from collections import Counter

import pytest

from synthgen.data import Category
from synthgen.prompts.quality import balance, clean, duplicates, faults, is_foreign, normalised, review


def category(name: str, **more: object) -> Category:
    return Category(0, name, name, **more)  # type: ignore[arg-type]


DOG = category("dog", synonyms=("hound",), plural="doggies")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A dog on a lawn", ""),
        ("A DOG's bowl", ""),
        ("A dog\u2019s bowl", ""),
        ("Dogs on a lawn", ""),
        ("A hound on a lawn", ""),
        ("Some doggies on a lawn", ""),
        ("A dogma on a lawn", "no class word"),
        ("A hotdog on a lawn", "no class word"),
        ("A cat on a lawn", "no class word"),
        ("1. A dog on a lawn", "bullet"),
        ("2) A dog on a lawn", "bullet"),
        ("- A dog on a lawn", "bullet"),
        ("* A dog on a lawn", "bullet"),
        ("\u2022 A dog on a lawn", "bullet"),
        ("# A dog", "bullet"),
        ("3D render of a dog", ""),
        ("2.5D drawing of a dog", ""),
        ("1950s photo of a dog", ""),
        ("Sure! A dog on a lawn", "meta talk"),
        ("Here are five captions of a dog", "meta talk"),
        ("Here's a dog on a lawn", "meta talk"),
        ("As an AI, I see a dog", "meta talk"),
        ("I cannot draw a dog", "meta talk"),
        ("I can\u2019t draw a dog", "meta talk"),
        ("Prompt: a dog on a lawn", "meta talk"),
        ("Caption 3: a dog on a lawn", "meta talk"),
        ("The caption describes a dog", "meta talk"),
        ("A sure-footed dog on a ridge", ""),
        ("A dog near a sign with the text: keep out", ""),
        ("A dog " + "on a lawn " * 9 + "and here are its toys", ""),
        ("\u0421\u043e\u0431\u0430\u043a\u0430 dog", "other language"),
        ("\u4e00\u53ea\u72d7 dog", "other language"),
        ("Una foto de un perro negro corriendo por la playa, dog", "other language"),
        ("Ein Foto von einem Hund auf einer Wiese im Sommer, dog", "other language"),
        ("A dog in front of a caf\u00e9 in M\u00fcnchen", ""),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    assert faults(text, DOG) == reason


@pytest.mark.parametrize(
    ("name", "text", "is_several"),
    [
        ("dog", "Dogs on a lawn", True),
        ("dog", "A group of golden retriever dog", True),
        ("dog", "A pair of dog on a lawn", True),
        ("dog", "Two big dog on a lawn", True),
        ("dog", "A dog on a lawn", False),
        ("dog", "A dog with two floppy ears", False),
        ("dog", "Two lamps beside a dog", False),
        ("dog", "A couple of cushions and a dog", False),
        ("dog", "A 3 year old dog", False),
        ("dog", "A two-toned dog", False),
        ("knife", "Knives on a board", True),
        ("cactus", "Cacti in a desert", True),
        ("cactus", "Cactuses in a desert", True),
        ("mouse", "Mice in a barn", True),
        ("sheep", "A sheep in snow", False),
        ("sheep", "Three woolly sheep in snow", True),
        ("sheep", "A flock of sheep in snow", True),
        ("scissors", "A pair of scissors on a desk", False),
        ("scissors", "Two pairs of scissors on a desk", True),
        ("jeans", "Blue jeans on a line", False),
        ("jeans", "Several jeans on a line", True),
        ("teddy bear", "A teddy-bear on a bed", False),
        ("teddy bear", "Teddy bears on a bed", True),
        ("bus", "A bus at a stop", False),
        ("bus", "Buses at a stop", True),
        ("person", "People in a park", True),
    ],
)
def test_several_objects(name: str, text: str, is_several: bool) -> None:
    assert faults(text, category(name)) == ""
    assert faults(text, category(name), one_object=True) == ("several objects" if is_several else "")


@pytest.mark.parametrize(
    "name", ["crane_(bird)", "t-shirt", "ice cream", "747", "jack-o'-lantern", "C++ [sic]"]
)
def test_odd_names_are_found(name: str) -> None:
    plain = name.replace("_(bird)", "")
    for text in (f"A {plain} at noon", f"a {plain.upper()}, at noon", f"A {plain.replace(' ', '-')} at noon"):
        assert faults(text, category(name)) == ""


def test_length_in_words_and_tokens() -> None:
    def count_tokens(text: str) -> dict[str, tuple[int, int]]:
        return {"wide": (len(text), 77), "narrow": (len(text), 20)}

    assert faults("A dog", DOG, least_words=3) == "length"
    assert faults("A dog on a lawn", DOG, most_words=4) == "length"
    assert faults("A dog on a lawn", DOG, least_words=5, most_words=5) == ""
    assert faults("A dog on a lawn", DOG, count_tokens=count_tokens) == ""
    assert faults("A dog on a lawn in June", DOG, count_tokens=count_tokens) == "too long for narrow"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ('"A dog"', "A dog"),
        ("\u201cA  dog\u201d", "A dog"),
        ("'\"A dog.\"'", "A dog."),
        (" A\n dog ", "A dog"),
        ('"Dog" beside "Cat"', '"Dog" beside "Cat"'),
        ('"', '"'),
        ("", ""),
    ],
)
def test_quotes_are_no_part_of_a_text(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_plain_english_is_english() -> None:
    """20,000 prompts of 3 to 20 words with the odd names of ImageNet's classes: none is taken for foreign."""
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    ways = [*random.Random(0).sample(OPENAI_IMAGENET_TEMPLATES, 16)]
    ends = [
        "",
        " beside a frozen fjord",
        " at a Parisian caf\u00e9",
        " on a linen tablecloth, 85mm lens, golden hour",
    ]
    wrong = [
        text
        for name in IMAGENET_CLASSNAMES
        for k, way in enumerate(ways)
        if is_foreign(text := way(name).rstrip(".") + ends[k % 4])
    ]
    assert wrong == []
    sentences = [
        "Una fotografia di un gatto nero seduto sul davanzale della finestra",
        "Une photo d'un chien noir dans un champ de lavande au soleil",
        "Een foto van een hond op het strand bij zonsondergang",
        "Uma foto de um gato dormindo em cima de um sofa azul perto da janela",
    ]
    assert all(is_foreign(sentence) for sentence in sentences)


def test_the_first_of_duplicates_is_kept() -> None:
    long = "A brown dog with a red collar sleeps on the old stone steps of a house by the sea"
    texts = [
        long,
        "a brown DOG, with a red collar, sleeps on the old stone steps of a house by the sea!",
        long.replace("sea", "river"),
        "A dog",
        "a dog.",
        "A dog sits",
        "The cat",
        long + " in June",
    ]
    verdicts = review({"dog": texts}, [DOG])
    assert [verdict.reason for verdict in verdicts] == [
        "",
        "exact duplicate",
        "near duplicate",
        "",
        "exact duplicate",
        "",
        "no class word",
        "near duplicate",
    ]
    for end in range(len(texts)):  # more texts change no verdict
        assert review({"dog": texts[:end]}, [DOG]) == verdicts[:end]


def test_classes_are_judged_by_themselves() -> None:
    cup = category("cup")
    texts = {"cup": ["A cup beside a dog"], "dog": ["A cup beside a dog"]}
    assert [verdict.reason for verdict in review(texts, [DOG, cup])] == ["", ""]
    assert [verdict.class_name for verdict in review(texts, [DOG, cup])] == ["dog", "cup"]
    assert review({}, [DOG]) == []


def near_duplicates(texts: list[str]) -> list[str]:
    """The slow reference: every pair."""
    kept, reasons = list[set[tuple[str, ...]]](), list[str]()
    for text in texts:
        words = normalised(text).split()
        own = {tuple(words[k : k + 5]) for k in range(max(1, len(words) - 4))}
        is_near = any(10 * len(own & other) >= 7 * len(own | other) for other in kept)
        reasons.append("near duplicate" if is_near else "")
        if not is_near:
            kept.append(own)
    return reasons


def test_near_duplicates_are_those_of_a_slow_reference() -> None:
    draw, words = random.Random(0), [f"w{k}" for k in range(40)]
    texts = list[str]()
    while len(texts) < 1500:
        base = draw.choices(words, k=draw.randint(3, 30))
        for _ in range(draw.randint(1, 4)):
            changed = list(base)
            for place in draw.sample(range(len(base)), draw.choice([0, 1, 1, 2])):
                changed[place] = draw.choice(words)
            texts.append(" ".join([*changed, *draw.choices(words, k=draw.choice([0, 0, 1]))]))
    wanted = near_duplicates(texts)
    found = ["near duplicate" if reason else "" for reason in duplicates(texts)]
    wrong = sum(one != other for one, other in zip(found, wanted, strict=True))
    assert wanted.count("near duplicate") > 100
    assert wrong <= 3  # at a similarity of exactly 0.7 one pair in a hundred is not looked at


def test_balance_keeps_what_is_rare_and_thins_what_is_not() -> None:
    texts = [f"A dog of kind {k}" for k in range(2000)] + [f"A cup of kind {k}" for k in range(30)]
    texts += ["A tree"]
    kept = balance(texts, [["dog"], ["Cup"], ["hot dog"]], threshold=200, seed=0)
    assert 150 < sum(kept[:2000]) < 250
    assert all(kept[2000:2030])
    assert not kept[2030]
    order = random.Random(0).sample(range(len(texts)), len(texts))
    shuffled = balance([texts[k] for k in order], [["dog"], ["Cup"], ["hot dog"]], threshold=200, seed=0)
    assert shuffled == [kept[k] for k in order]
    assert balance(["Three cups", "a mug"], [["cup", "cups", "mug"]], threshold=2, seed=0) == [True, True]
    assert balance(texts, [["dog"], ["cup"]], threshold=200, seed=1) != kept


def test_balance_finds_concepts_as_whole_words() -> None:
    """Against " concept " in " text ", the slow way; below the threshold all of them are kept."""
    draw, words = random.Random(0), ["hot", "dog", "cat", "ice", "cream", "sun", "flower"]
    concepts = ["hot dog", "dog", "Ice-Cream", "cream sun flower", "flower hot", "", "cat cat"]
    texts = [" ".join(draw.choices(words, k=4)) for _ in range(300)]
    wanted = [any(f" {normalised(c)} " in f" {text} " for c in concepts if c) for text in texts]
    assert balance(texts, [[c] for c in concepts], threshold=10**6, seed=0) == wanted
    assert 20 < sum(wanted) < 280


def test_balance_of_thousands_of_concepts_is_quick() -> None:
    concepts = [f"thing{k} part{k % 7}" for k in range(20_000)]
    texts = [f"a thing{k} part{k % 7} beside thing{k + 1}" for k in range(20_000)]
    begun = time.monotonic()
    assert sum(balance(texts, [[c] for c in concepts], threshold=1, seed=0)) == 20_000
    assert time.monotonic() - begun < 10


def test_many_texts_are_judged_quickly() -> None:
    """10,000 texts of one class: a tenth of the time that 100,000 may take."""
    draw = random.Random(0)
    words = [f"{first}{second}" for first in "abcdefghij" for second in ("ar", "el", "in", "op", "un")]
    texts = [f"A dog {' '.join(draw.choices(words, k=12))} in a white background" for _ in range(10_000)]
    begun = time.monotonic()
    reasons = Counter(verdict.reason for verdict in review({"dog": texts}, [DOG], one_object=True))
    assert time.monotonic() - begun < 20
    assert reasons.total() == 10_000
    assert reasons[""] > 9_900
