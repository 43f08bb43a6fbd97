"""Stage 1, what to ask for: sources of prompts. Knows nothing of models, shards or the recipe's file.

A source is `(classes, *, seed, **keys) -> Iterator[Prompt]`: for each class an endless sequence that depends
on the seed and on that class alone, the classes taking turns.
"""

from collections.abc import Callable, Iterator

from synthgen.data import Prompt
from synthgen.prompts.language import language
from synthgen.prompts.templates import templates

SOURCES: dict[str, Callable[..., Iterator[Prompt]]] = {"language": language, "templates": templates}
