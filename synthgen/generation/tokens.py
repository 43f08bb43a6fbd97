"""How much of a prompt a model reads: counted with its real tokenizers, without loading its weights."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthgen.errors import ModelError
from synthgen.generation.checkpoints import components, pipeline_class
from synthgen.generation.families import NOTHING, family

UNKNOWN = 100_000
"""No limit; a tokenizer that knows none says a number above this."""
AT_ONCE = 10_000
"""So many texts are read at once: tokens take more memory than texts."""


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


class Lost(NamedTuple):
    """The texts of which a tokenizer loses the end: the text, its tokens, and what is lost, as it decodes."""

    tokenizer: str
    limit: int
    texts: list[tuple[str, int, str]]


def lost_ends(folder: Path, texts: Sequence[str], call: Mapping[str, Any] = NOTHING) -> list[Lost]:
    """What each tokenizer of a pipeline loses of the ends of different texts.

    Where there are several, as in FLUX and SD3, what one loses another may still read.

    Args:
        call: the recipe's own arguments of the pipeline's call.

    Raises:
        ModelError: a tokenizer cannot be read.
    """
    return [
        Lost(part, limit, _ends(tokenizer, limit, texts))
        for limit, part, tokenizer in _tokenizers(folder, call)
    ]


def _ends(tokenizer: Any, limit: int, texts: Sequence[str]) -> list[tuple[str, int, str]]:
    found, most = list[tuple[str, int, str]](), limit - tokenizer.num_special_tokens_to_add()
    # of ASCII a token is a character at least; some tokenizers put one before the first
    long = [text for text in texts if len(text) >= most or not text.isascii()]
    for start in range(0, len(long), AT_ONCE):
        some = long[start : start + AT_ONCE]
        read = tokenizer(some, truncation=False, verbose=False, add_special_tokens=False)["input_ids"]
        for text, tokens in zip(some, read, strict=True):
            if len(tokens) > most:
                found.append((text, len(tokens) + limit - most, tokenizer.decode(tokens[most:]).strip()))
    return found


def _reader(folder: Path, call: Mapping[str, Any]) -> Reader | None:
    """The tokenizer of a pipeline that reads most; None where it has none that can be loaded."""
    found = _tokenizers(folder, call)
    if not found:
        return None
    limit, _, tokenizer = max(found, key=lambda entry: entry[:2])
    return Reader(
        functools.cache(lambda text: len(tokenizer(text, truncation=False, verbose=False)["input_ids"])),
        limit,
    )


def _tokenizers(folder: Path, call: Mapping[str, Any]) -> list[tuple[int, str, Any]]:
    """The tokenizers of a pipeline, with what is read of their tokens and their names."""
    from transformers import AutoTokenizer

    found = []
    for part in sorted(components(folder)):
        if "tokenizer" in part:  # Kandinsky's is its prior's
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    folder / part, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError, ImportError) as error:
                raise ModelError(f"{folder / part}: cannot be read: {str(error).splitlines()[0]}") from None
            found.append((min(tokenizer.model_max_length, _call_limit(folder, call)), part, tokenizer))
    return found


def _call_limit(folder: Path, call: Mapping[str, Any]) -> int:
    """What the pipeline's call reads at most, whatever its tokenizers say."""
    pipeline, key = pipeline_class(folder), "max_sequence_length"
    parameters = inspect.signature(pipeline.__call__).parameters
    limit = call.get(key, parameters[key].default if key in parameters else None)
    return limit if isinstance(limit, int) else family(pipeline).tokens or UNKNOWN
