"""Which texts of a language model are prompts for their class, and why the others are not. Pure: knows of no
model; what counts tokens is given.

A text is judged by itself, then against the accepted ones of its class that stand before it, so more texts at
the end change no verdict.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from synthgen.data import Category
from synthgen.diversity import duplicates, normalised
from synthgen.shards import make_seed

CountTokens = Callable[[str], Mapping[str, tuple[int, int]]]
"""Of a text: for each model that shall read it, its tokens and how many the model reads."""

META = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|okay|ok|great|understood)\s*[,.:!]"
    r"|^\W*(?:output|answer|description|example|note|text|result)s?(?: \d+)?\s*:"
    r"|^\W*(?:\w+ ){0,3}(?:prompt|caption)s?(?: \d+)?\s*:"
    r"|^\W*here(?: are| is|'s)\b|\b(?:this|the|your|following) (?:prompt|caption)s?\b"
    r"|\b(?:as an ai|language model|i cannot|i can't|i can not|i'm sorry|i am sorry|i apologi[sz]e|i'm unable"
    r"|i am unable|i hope this|let me know|happy to help|rewritten|paraphrased?|json)\b",
    re.IGNORECASE,
)
META_LETTERS = 80
BULLET = re.compile(r"^(?:[-*\u2022\u2023\u25e6\u2013\u2014#>]+|\(?\d+[.):]|\(?[a-z]\))\s")
QUOTES = {
    '"': '"',
    "'": "'",
    "`": "`",
    "\u201c": "\u201d",
    "\u2018": "\u2019",
    "\u00ab": "\u00bb",
    "\u201e": "\u201c",
}
OTHER_SCRIPT = re.compile(r"[^\W\d_A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
LANGUAGE_GAP = 50.0
"""How much likelier another language has to be than English, as a difference of logarithms.

Measured with py3langid 0.4: at most 30 on 91,000 English prompts of 3 to 20 words (the names of ImageNet's
classes in CLIP's 80 templates and in our own), from 95 on for whole sentences in ten languages. Its plain
answer is wrong for one in eight of those prompts, mostly of fewer than 8 words.
"""
NUMBER = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d{1,3}|several|many|multiple|various"
    r"|numerous|few|both|countless)"
)
GATHERING = (
    r"(?:groups?|flocks?|herds?|packs?|bunch(?:es)?|rows?|piles?|stacks?|heaps?|clusters?|collections?"
    r"|crowds?|famil(?:y|ies)|trio|duo|couple|swarms?|litters?|schools?|assortments?|arrays?|dozens?"
    r"|hundreds|thousands|variety|lineup|pairs|sets)"
)
PAIR = r"(?:pair|set)"
NO_GAP = (
    r"(?:a|an|the|of|and|or|with|without|in|on|at|by|to|for|from|as|is|are|its|his|her|their|next|beside|near"
    r"|behind|under|over|above|below|between|against|like|years?|months?|weeks?|days?|old|inch(?:es)?|met(?:er|re)s?"
    r"|feet|foot|cm|mm|tones?|colou?rs?|legs?|wheels?|doors?|pieces?|parts?|minutes?|hours?)"
)
"""Words that end what a number word may belong to: "two lamps beside a dog" is one dog."""


class Verdict(NamedTuple):
    """A text, stripped of its quotes, with the reason why it is rejected; "" accepts it."""

    text: str
    class_name: str
    reason: str


class _Words(NamedTuple):
    """How a class is found in a text."""

    any: re.Pattern[str]
    several: re.Pattern[str]
    forms: frozenset[str]


def clean(text: str) -> str:
    """A text on one line, without the quotation marks around it."""
    text = " ".join(text.split())
    while len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def faults(
    text: str,
    category: Category,
    *,
    one_object: bool = False,
    least_words: int = 1,
    most_words: int = 60,
    count_tokens: CountTokens | None = None,
) -> str:
    """The first reason against a text by itself, or "".

    Args:
        text: one line; see `clean`.
        one_object: whether the plural of the class, or words such as "two" and "a group of" before it, are
            a reason.
        least_words: fewer words are a reason, and so are more than `most_words`.
        count_tokens: None asks no model.
    """
    if BULLET.match(text):
        return "bullet"
    if META.search(text[:META_LETTERS].replace("\u2019", "'")):
        return "meta talk"
    if is_foreign(text):
        return "other language"
    words, plain = _words(category), text.replace("\u2019", "'")
    if not words.any.search(plain):
        return "no class word"
    if one_object and words.several.search(plain):
        return "several objects"
    if not least_words <= len(text.split()) <= most_words:
        return "length"
    for model, (tokens, limit) in (count_tokens(text) if count_tokens else {}).items():
        if tokens > limit:
            return f"too long for {model}"
    return ""


def review(
    texts: Mapping[str, Sequence[str]],
    categories: Sequence[Category],
    *,
    one_object: bool = False,
    least_words: int = 1,
    most_words: int = 60,
    count_tokens: CountTokens | None = None,
) -> list[Verdict]:
    """The verdict on each text, in the order of the categories and of their texts.

    Of texts that are equal but for case, space and punctuation ("exact duplicate"), and of those that share
    70 % of their 5-word shingles ("near duplicate"; of shorter texts the whole is one shingle), the first of
    the class is kept. The other reasons are those of `faults`.

    Args:
        texts: those of each class by name; a class without any may be left out.
    """
    verdicts = list[Verdict]()
    for category in categories:
        cleaned = [clean(text) for text in texts.get(category.name, ())]
        reasons = [
            faults(
                text,
                category,
                one_object=one_object,
                least_words=least_words,
                most_words=most_words,
                count_tokens=count_tokens,
            )
            for text in cleaned
        ]
        good = [place for place, reason in enumerate(reasons) if not reason]
        for place, reason in zip(good, duplicates([cleaned[place] for place in good]), strict=True):
            reasons[place] = reason
        verdicts += [
            Verdict(text, category.name, reason) for text, reason in zip(cleaned, reasons, strict=True)
        ]
    return verdicts


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English: letters of another script, or words that another
    language explains far better (`LANGUAGE_GAP`).
    """
    if OTHER_SCRIPT.search(text):
        return True
    from py3langid.langid import classify, rank

    if classify(text)[0] == "en":
        return False
    scores = dict(rank(text))
    return bool(max(scores.values()) - scores["en"] > LANGUAGE_GAP)


def balance(
    texts: Sequence[str], concepts: Sequence[Collection[str]], *, threshold: int, seed: int
) -> list[bool]:
    """Which texts are kept so that no concept has many more than `threshold`.

    A concept is all its forms, singular, plural and synonyms; a text has it where one of these is in its
    normalised words. With c texts of a concept, each is drawn with probability threshold / max(c, threshold),
    by a hash of seed, text and concept; a text is kept if one of its concepts draws it. A text without a
    concept is not kept. The order of texts does not matter.

    Source: MetaCLIP (arXiv 2309.16671), Algorithm 1, as SynthCLIP uses it; there the draws are of a global
    generator.
    """
    of_form: dict[str, list[int]] = {}
    for number, forms in enumerate(concepts):
        for form in {normalised(form) for form in forms} - {""}:
            of_form.setdefault(form, []).append(number)
    longest: dict[str, int] = {}
    for form in of_form:
        words = form.split()
        longest[words[0]] = max(longest.get(words[0], 0), len(words))
    found = [_concepts(normalised(text).split(), of_form, longest) for text in texts]
    counts = Counter(concept for entry in found for concept in entry)
    names = [min(forms, default="") for forms in concepts]
    return [
        any(
            counts[concept] <= threshold
            or make_seed(seed, text, names[concept]) / 2**63 < threshold / counts[concept]
            for concept in entry
        )
        for text, entry in zip(texts, found, strict=True)
    ]


def _concepts(words: list[str], of_form: Mapping[str, list[int]], longest: Mapping[str, int]) -> list[int]:
    found = {
        concept
        for start, word in enumerate(words)
        for length in range(1, longest.get(word, 0) + 1)
        for concept in of_form.get(" ".join(words[start : start + length]), ())
    }
    return sorted(found)


@functools.lru_cache(maxsize=4096)
def _words(category: Category) -> _Words:
    """The patterns of a class; inflect takes milliseconds for each."""
    names = {_plain(name) for name in (category.prompt, category.name, *category.synonyms)} - {""}
    plurals = {category.plural.replace("_", " ")} - {""}
    alone = set[str]()  # names that are plural by themselves: "scissors", "jeans"
    for name in names:
        forms = _plurals(name)
        plurals |= forms
        if name.endswith("s") and forms & {name, f"{name}s"}:
            alone.add(name)
    one, more = _pattern(names | plurals), _pattern(plurals - names) if plurals - names else r"(?!)"
    number = _after(rf"(?:{NUMBER}|{GATHERING}\s+of)", one)
    if alone:  # "a pair of scissors" is one object, and so is "scissors"
        several = number if names == alone else f"{number}|{more}"
    else:
        several = f"{number}|{_after(rf'{PAIR} of', one)}|{more}"
    called = frozenset(names | plurals)
    return _Words(re.compile(one, re.IGNORECASE), re.compile(several, re.IGNORECASE), called)


def forms_of(category: Category) -> frozenset[str]:
    """What a class may be called in a text: its names and synonyms, and their plurals."""
    return _words(category).forms


def _after(before: str, word: str) -> str:
    """A pattern: the word, after another and at most three that go with it."""
    return rf"(?<![\w-]){before}(?:\s+(?!{NO_GAP}\b)[\w-]+){{0,3}}\s+{word}"


def _plain(name: str) -> str:
    """A name as texts have it: no underscores, no "(animal)" after it."""
    return " ".join(re.sub(r"[_ ]*\([^)]*\)", "", name).replace("_", " ").split())


def _pattern(names: set[str]) -> str:
    """Any of the names as whole words; space, hyphen and nothing between their parts are the same."""
    parts = [
        r"[\s_-]*".join(re.escape(part) for part in re.split(r"[\s-]+", name) if part)
        for name in sorted(names, key=lambda name: (-len(name), name))
    ]
    return rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)"


@functools.cache
def _inflections() -> list[Any]:
    import inflect

    modern, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    return [modern, classical]


def _plurals(name: str) -> set[str]:
    """The modern and the classical plural: "cactuses", "cacti"."""
    return {str(engine.plural_noun(name)) for engine in _inflections()}
