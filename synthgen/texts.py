"""What a recipe asks of its language model, and what that has answered. Sees the Recipe; asks nothing
itself.
"""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen import asking, shards
from synthgen.data import Ask, LanguageModel, Word
from synthgen.errors import RecipeError
from synthgen.prompts.language import Judged, judge, language_questions, words
from synthgen.prompts.questions import Question
from synthgen.tables import Recipe
from synthgen.tables.prompts import PromptsTable


class Texts:
    """The questions of a recipe, and the answers that lie in its folder and in the run's.

    Args:
        folders: where `texts/` may be; of two answers the first counts.
    """

    def __init__(self, recipe: Recipe, folders: Sequence[Path]) -> None:
        self._recipe, self._folders = recipe, folders

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        """Who is asked.

        Raises:
            RecipeError: the recipe has no table [language].
        """
        if self._recipe.language is None:
            raise RecipeError("asks no language model: there is no table [language]")
        return self._recipe.language.language_model

    @property
    def stem(self) -> str:
        """The name of the file with this model's answers."""
        return shards.digest(list(self.language_model))[:32]

    @property
    def files(self) -> list[Path]:
        """Where answers may be."""
        return [folder / shards.TEXTS / f"{self.stem}.jsonl" for folder in self._folders]

    @functools.cached_property
    def answers(self) -> dict[str, str]:
        """The replies so far, by the key of their question."""
        return asking.read_answers(self.files)

    def all_questions(self) -> list[Question]:
        """The questions of all tables, as far as they are known: each class's first, each class's second,
        ..., so that the first ones are of all classes.
        """
        tables = [table for table in self._recipe.prompts if table.needs_language_model]
        found = [question for table in tables for question in self.questions(table)]
        return sorted(found, key=lambda question: question.number)

    def questions(self, table: PromptsTable) -> list[Question]:
        """What has to be asked for a table, as far as it is known: first for words, then, with these, for
        texts.
        """
        found = self.word_questions(table)
        if table.use != "language" or any(question.key not in self.answers for question in found):
            return found
        return found + self._text_questions(table)

    def word_questions(self, table: PromptsTable) -> list[Question]:
        """What has to be asked for the words of a table."""
        return [question for ask in table.asks.values() for question in self._ask_words(table, ask)]

    def judged(self, table: PromptsTable, **given: Any) -> dict[str, list[Judged]]:
        """Every text of a table's answers with the reason why it is rejected, by class."""
        own = inspect.signature(judge).parameters
        keys = {key: value for key, value in {**self.source_keys(table), **given}.items() if key in own}
        keys |= {"answers": self.answers, "seed": self._recipe.seed}
        return judge(self._text_questions(table), classes=table.categories, **keys)

    @functools.cached_property
    def digests(self) -> list[str]:
        """For each table a hash of its answers, "" where it asks nothing."""
        return [
            shards.digest([[one.key, self.answers.get(one.key)] for one in self.questions(table)])
            if table.needs_language_model
            else ""
            for table in self._recipe.prompts
        ]

    def source_keys(self, table: PromptsTable) -> dict[str, Any]:
        """The keys of a source of prompts as it takes them, with the words that were asked for.

        Raises:
            UnansweredError: they have not been.
        """
        keys = dict(table.keys)
        for (key, axis), ask in table.asks.items():
            found = words(self._ask_words(table, ask), self.answers)
            entries = [Word(text, f"={name}") for name, own in found.items() for text in own]
            keys[key] = {**keys[key], axis: entries} if axis else entries
        if table.use == "language":
            keys |= {"language_model": self.language_model, "answers": self.answers}
        return keys

    def _text_questions(self, table: PromptsTable) -> list[Question]:
        own = inspect.signature(language_questions).parameters
        keys = {key: value for key, value in self.source_keys(table).items() if key in own}
        return language_questions(table.categories, seed=self._recipe.seed, **keys)

    def _ask_words(self, table: PromptsTable, ask: Ask) -> list[Question]:
        return language_questions(
            table.categories,
            seed=self._recipe.seed,
            language_model=self.language_model,
            task=ask.task,
            count=ask.number,
        )
