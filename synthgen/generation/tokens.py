"""How much of a prompt a model reads: counted with its real tokenizers, without loading its weights."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from synthgen.errors import ModelError
from synthgen.generation.checkpoints import components, pipeline_class
from synthgen.generation.families import NOTHING, family

UNKNOWN = 100_000
"""No limit; a tokenizer that knows none says a number above this."""


class Reader(NamedTuple):
    """A tokenizer, and how many tokens of a prompt its text encoder reads, special ones included."""

    count: Callable[[str], int]
    limit: int


def token_counter(
    folders: Mapping[str, Path], calls: Mapping[str, Mapping[str, Any]] = NOTHING
) -> Callable[[str], dict[str, tuple[int, int]]]:
    """Gives, for a text, each model's tokens and how many of them it reads.

    Of a model with several tokenizers the one that reads most counts: FLUX and SD3 read 77 tokens with CLIP
    for the mood, and 256 or more with T5. A model without a tokenizer is left out.

    Args:
        folders: local pipeline folders by the models' names.
        calls: what else they are called with; `max_sequence_length` is a limit.

    Raises:
        ModelError: a tokenizer cannot be read.
    """
    readers = {name: _reader(folder, calls.get(name, NOTHING)) for name, folder in folders.items()}

    def count(text: str) -> dict[str, tuple[int, int]]:
        return {name: (reader.count(text), reader.limit) for name, reader in readers.items() if reader}

    return count


def _reader(folder: Path, call: Mapping[str, Any]) -> Reader | None:
    """The tokenizer of a pipeline that reads most; None where it has none that can be loaded."""
    from transformers import AutoTokenizer

    found = []
    for part in sorted(components(folder)):
        if "tokenizer" in part:  # Kandinsky's is its prior's
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder / part)
            except (OSError, ValueError, ImportError) as error:
                raise ModelError(f"{folder / part}: cannot be read: {str(error).splitlines()[0]}") from None
            found.append((min(tokenizer.model_max_length, _call_limit(folder, call)), part, tokenizer))
    if not found:
        return None
    limit, _, tokenizer = max(found, key=lambda entry: entry[:2])
    return Reader(
        functools.cache(lambda text: len(tokenizer(text, truncation=False, verbose=False)["input_ids"])),
        limit,
    )


def _call_limit(folder: Path, call: Mapping[str, Any]) -> int:
    """What the pipeline's call reads at most, whatever its tokenizers say."""
    pipeline, key = pipeline_class(folder), "max_sequence_length"
    parameters = inspect.signature(pipeline.__call__).parameters
    limit = call.get(key, parameters[key].default if key in parameters else None)
    return limit if isinstance(limit, int) else family(pipeline).tokens or UNKNOWN
