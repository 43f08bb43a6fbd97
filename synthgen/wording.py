"""Filling templates: "a {style} of a {class} {background}", for prompts and for plain label captions."""

import re

SLOT = re.compile(r"\{([^{}]*)\}")
ARTICLE = re.compile(r"\b([Aa])n? \{([^{}]*)\}")


def slots(template: str) -> list[str]:
    """The names of a template's slots, in order."""
    return SLOT.findall(template)


def fill(template: str, words: dict[str, str]) -> str:
    """The template with a word in each slot. "a {slot}" becomes "an" before a, e, i, o or u, and the
    reverse.
    """

    def article(match: re.Match[str]) -> str:
        letter, slot = match.groups()
        return f"{letter}{'n' if words[slot][:1].lower() in set('aeiou') else ''} {{{slot}}}"

    return SLOT.sub(lambda match: words[match[1]], ARTICLE.sub(article, template))
