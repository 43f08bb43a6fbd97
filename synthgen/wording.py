"""Templates: "a [large |]{style} of a {class}", for prompts and for plain label captions."""

import functools
import re
import unicodedata
from collections.abc import Mapping

from synthgen.errors import RecipeError

SLOT = re.compile(r"\{([^{}]*)\}")
ARTICLE = re.compile(r"\b([Aa])n? \{([^{}]*)\}")
LITERAL = re.compile(r"(?:^|(?<= ))(a)n? (\w[\w-]*)|(?:^)(A)n? (\w[\w-]*)")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
VOWEL = re.compile(r"(?i:[aeiou]|8|1[18](?:th)?\b|hour|honest|honou?r|heir|x-)|[FHLMNRSX][A-Z]*\d*\b")
NO_VOWEL = re.compile(
    r"(?i:eu|ewe|one\b|once\b|uni(?![nmd])|uk|u-|u[bcfhjkqrst][aeiou]|us[aeb]\b|url\b|nasa\b|lego\b)"
)
MOST_WORDINGS = 1000


def slots(template: str) -> list[str]:
    """The names of a template's slots, in order."""
    return SLOT.findall(template)


def wordings(template: str) -> list[str]:
    """Every wording of a template: "[a|b]" is one of these, "[a]" is a or nothing.

    Raises:
        RecipeError: a bracket has no partner, or there are more than 1,000 wordings.
    """
    found = [template]
    while any(CHOICE.search(text) for text in found):
        found = [wording for text in found for wording in _choices(text)]
        if len(found) > MOST_WORDINGS:
            raise RecipeError(
                f'"{template[:60]}..." has more than {MOST_WORDINGS} wordings; use an axis for some'
            )
    if any("[" in text or "]" in text for text in found):
        raise RecipeError(f'"{template}": a bracket without a partner; [a|b] is one of a and b')
    found = [" ".join(text.split()) for text in found]
    if len(found) > 1:  # the word after "a" may have been chosen
        found = [LITERAL.sub(_article, text) for text in found]
    return list(dict.fromkeys(found))


def _choices(text: str) -> list[str]:
    """The text with each option of its first innermost bracket."""
    choice = CHOICE.search(text)
    if choice is None:
        return [text]
    options = choice[1].split("|") if "|" in choice[1] else [choice[1], ""]
    return [text[: choice.start()] + option + text[choice.end() :] for option in options]


def _article(match: re.Match[str]) -> str:
    letter, word = (part for part in match.groups() if part)
    return f"{letter}{'n' if _has_vowel(word) else ''} {word}"


def _has_vowel(text: str) -> bool:
    """Whether a text begins with the sound of a vowel, quotation marks and accents aside."""
    text = unicodedata.normalize("NFD", text.lstrip("'\"\u2018\u201c"))
    return bool(VOWEL.match(text)) and not NO_VOWEL.match(text)


def fill(template: str, words: Mapping[str, str]) -> str:
    """The template with a word in each slot. "a {slot}" becomes "an" before the sound of a vowel, and the
    reverse.
    """

    def article(match: re.Match[str]) -> str:
        letter, slot = match.groups()
        return f"{letter}{'n' if _has_vowel(words[slot]) else ''} {{{slot}}}"

    return SLOT.sub(lambda match: words[match[1]], ARTICLE.sub(article, template))


@functools.cache
def plural(noun: str) -> str:
    """The plural of an English noun or noun phrase; of "sunglasses" that itself."""
    import inflect  # takes a second

    engine = inflect.engine()
    singular = engine.singular_noun(noun)
    if not singular or re.search(r"([aiu]s|lens)$", noun):  # it takes "bus" for a plural
        singular = noun
    return engine.plural_noun(singular)
