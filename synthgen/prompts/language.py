"""Prompts from a language model: questions out of a recipe's keys, and prompts out of the stored answers.
Never asks anything: `synthgen.asking` does, and both get their questions from here.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from synthgen.data import Category, LanguageModel, Prompt, Word
from synthgen.diversity import farthest_points, normalised, word_vectors
from synthgen.errors import RecipeError, UnansweredError
from synthgen.prompts import quality
from synthgen.prompts.categories import words_of_classes
from synthgen.prompts.questions import WORD_TASKS, Question, make_questions, parse
from synthgen.prompts.templates import templates as fill_templates

NO_LINES: list[str] = []
NO_WORDS: list[Word] = []
NO_AXES: dict[str, list[Word]] = {}
DEFAULT_PER_CALL = 16
AXES_OF_TASKS = {"synclr": ("relation", "background")}
"""Axes that a task's prompts have by themselves."""


class Judged(NamedTuple):
    """A text of an answer as a prompt, with the reason why it is rejected; "" accepts it. A reply without
    texts is one with the text "".
    """

    prompt: Prompt
    reason: str
    key: str


def language_questions(
    classes: Sequence[Category],
    *,
    seed: int,
    language_model: LanguageModel,
    task: str,
    count: int,
    per_call: int = DEFAULT_PER_CALL,
    background: str = "",
    backgrounds: list[Word] = NO_WORDS,
    templates: list[str] = NO_LINES,
    axes: dict[str, list[Word]] = NO_AXES,
) -> list[Question]:
    """What has to be asked for `language` with the same keys; see there.

    Raises:
        RecipeError: a key is wrong, or is none of the task's.
    """
    if task in WORD_TASKS:
        keys = dict[str, object]()
    elif task == "divergen":
        keys = {"per_call": per_call, "background": background}
    elif task == "synclr":
        keys = {"backgrounds": words_of_classes(backgrounds, classes)}
    elif task == "paraphrase":
        keys = {"prompts": _filled(classes, seed, count, templates, axes)}
    else:
        keys = {}
    given: dict[str, object] = {
        "background": background,
        "backgrounds": backgrounds,
        "templates": templates,
        "axes": axes,
    }
    own = {*keys, *(("templates", "axes") if task == "paraphrase" else ())}
    if per_call != DEFAULT_PER_CALL:
        given["per_call"] = per_call
    for name, value in given.items():
        if value and name not in own:
            raise RecipeError(
                f"{name}: task {task} has no use for it; remove the key, or choose another task"
            )
    if count < 1 or per_call < 1:
        raise RecipeError(f"count is {count} and per_call {per_call}; both have to be 1 or more")
    name, sampling = language_model
    return make_questions(classes, task=task, model=name, sampling=sampling, seed=seed, count=count, **keys)


def _filled(
    classes: Sequence[Category], seed: int, count: int, templates: list[str], axes: dict[str, list[Word]]
) -> dict[str, list[Prompt]]:
    """The first prompts of each class from templates."""
    if not templates:
        raise RecipeError("templates: missing; task paraphrase says filled templates in other words")
    prompts: dict[str, list[Prompt]] = {category.name: [] for category in classes}
    endless = fill_templates(classes, seed=seed, templates=templates, axes=axes)
    for prompt in itertools.islice(endless, count * len(classes)):
        prompts[prompt.class_name].append(prompt)
    return prompts


def judge(
    questions: Sequence[Question],
    answers: Mapping[str, str],
    classes: Sequence[Category],
    *,
    seed: int,
    count: int,
    one_object: bool | None = None,
    least_words: int = 1,
    most_words: int = 60,
    balance: int = 0,
    thin: int = 0,
    count_tokens: quality.CountTokens | None = None,
) -> dict[str, list[Judged]]:
    """Every text of the answers with its verdict, by class, in the order of the questions.

    `language` and `synthgen prompts` both go by this. Questions without an answer are passed over.

    Args:
        answers: raw replies by the key of their question.
        one_object: whether several objects are a reason against a text; None: to questions of divergen.
        count: of what is accepted, so many are kept for each class; the reason of the others is "more than
            count".
        balance: how many texts of a concept are kept, roughly (`quality.balance`; the classes are the
            concepts); the reason is "balance". 0 keeps all.
        thin: of those, so many of each class are kept that are the least like each other (farthest points of
            their words and pairs of words); the reason of the others is "less diverse". 0 keeps all.
    """
    judged: dict[str, list[Judged]] = {category.name: [] for category in classes}
    drafts: dict[str, list[tuple[Question, str, str]]] = {category.name: [] for category in classes}
    for question in questions:
        if question.key in answers:
            parsed = parse(question, answers[question.key])
            texts = parsed.texts or [""]
            drafts[question.class_name] += [
                (question, text, parsed.error or _lost(question, text)) for text in texts
            ]
    for category in classes:
        found = drafts[category.name]
        verdicts = iter(
            quality.review(
                {category.name: [text for _, text, error in found if not error]},
                [category],
                one_object=any(q.task == "divergen" for q, *_ in found) if one_object is None else one_object,
                least_words=least_words,
                most_words=most_words,
                count_tokens=count_tokens,
            )
        )
        for question, draft, error in found:
            text, _, reason = quality.Verdict(draft, "", error) if error else next(verdicts)
            prompt = Prompt(text, category.name, group=question.group, axes=question.axes)
            judged[category.name].append(Judged(prompt, reason, question.key))
    if balance:
        judged = _balanced(judged, [quality.forms_of(category) for category in classes], balance, seed)
    judged = {name: _first(entries, count) for name, entries in judged.items()}
    return {name: _thinned(entries, thin) for name, entries in judged.items()} if thin else judged


def _lost(question: Question, text: str) -> str:
    """The reason against a paraphrase that no longer says a word of an axis, which its label would go on to
    say: none of the word's stems is in it (the first four letters of what has as many).
    """
    if question.task != "paraphrase":
        return ""
    said = {word[:4] for word in normalised(text).split()}
    for axis, word in question.axes.items():
        stems = {part[:4] for part in normalised(word).split() if len(part) > 3}
        if stems and not stems & said:
            return f"lost {axis}"
    return ""


def _balanced(
    judged: Mapping[str, Sequence[Judged]], concepts: Sequence[Collection[str]], threshold: int, seed: int
) -> dict[str, list[Judged]]:
    """The entries, of which a balanced part stays accepted, and at least the first of each class."""
    texts = [entry.prompt.text for entries in judged.values() for entry in entries if not entry.reason]
    kept = iter(quality.balance(texts, concepts, threshold=threshold, seed=seed))
    found = {}
    for name, entries in judged.items():
        good = [place for place, entry in enumerate(entries) if not entry.reason]
        drawn = {place for place in good if next(kept)} or set(good[:1])
        found[name] = [
            entry if entry.reason or place in drawn else entry._replace(reason="balance")
            for place, entry in enumerate(entries)
        ]
    return found


def _first(entries: Sequence[Judged], count: int) -> list[Judged]:
    """The entries, of which no more than `count` stay accepted."""
    accepted = itertools.accumulate(not entry.reason for entry in entries)
    return [
        entry._replace(reason="more than count") if not entry.reason and number > count else entry
        for entry, number in zip(entries, accepted, strict=True)
    ]


def _thinned(entries: Sequence[Judged], most: int) -> list[Judged]:
    """The entries, of which only the `most` most diverse stay accepted."""
    places = [place for place, entry in enumerate(entries) if not entry.reason]
    texts = [entries[place].prompt.text for place in places]
    kept = {places[k] for k in farthest_points(word_vectors(texts)(texts), most)}
    return [
        entry if entry.reason or place in kept else entry._replace(reason="less diverse")
        for place, entry in enumerate(entries)
    ]


def words(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, list[str]]:
    """The words that the answers to a task such as `backgrounds` hold, for each class by name, each once.

    Raises:
        RecipeError: a question is not answered, or its reply holds no words.
    """
    _require_answers(questions, answers)
    found: dict[str, list[str]] = {}
    for question in questions:
        parsed = parse(question, answers[question.key])
        if parsed.error:
            raise RecipeError(f'class "{question.class_name}": the {question.task} are {parsed.error}')
        once = dict[str, str]()
        for word in filter(normalised, parsed.texts):
            once.setdefault(normalised(word), quality.clean(word))
        found.setdefault(question.class_name, []).extend(once.values())
    return found


def language(
    classes: Sequence[Category],
    *,
    seed: int,
    language_model: LanguageModel,
    task: Literal["divergen", "synthclip", "synclr", "paraphrase"],
    count: int,
    answers: Mapping[str, str],
    per_call: int = DEFAULT_PER_CALL,
    background: str = "",
    backgrounds: list[Word] = NO_WORDS,
    templates: list[str] = NO_LINES,
    axes: dict[str, list[Word]] = NO_AXES,
    one_object: bool | None = None,
    least_words: int = 1,
    most_words: int = 60,
    balance: int = 0,
    thin: int = 0,
    max_unanswered: float = 0.0,
    count_tokens: quality.CountTokens | None = None,
) -> Iterator[Prompt]:
    """Endless prompts, one for each class in turn: the accepted texts of a class in the order of their
    questions, again and again.

    Args:
        classes: whom to ask for.
        seed: chooses examples, orders words, draws for `balance`.
        language_model: who was asked.
        task: how to ask; see `questions`.
        count: texts of each class, at most.
        answers: raw replies by the key of their question (`asking.read_answers`).
        per_call: divergen: prompts in one reply.
        background: divergen: words that end every prompt.
        backgrounds: synclr: words for the classes.
        templates: paraphrase: the prompts that are said in other words, filled as the source `templates`
            fills them; with `axes`, which the prompts keep.
        one_object: reject texts with several objects of the class; None does so for divergen.
        least_words: of a text; and `most_words`.
        balance: see `judge`; so is `thin`.
        max_unanswered: the part of the questions that may stay without an answer, 0 to 1.
        count_tokens: None does not look at the length in tokens.

    Raises:
        RecipeError: a key is wrong, questions are not answered, or a class has no accepted text.
    """
    questions = language_questions(
        classes,
        seed=seed,
        language_model=language_model,
        task=task,
        count=count,
        per_call=per_call,
        background=background,
        backgrounds=backgrounds,
        templates=templates,
        axes=axes,
    )
    _require_answers(questions, answers, max_unanswered)
    judged = judge(
        questions,
        answers,
        classes,
        seed=seed,
        count=count,
        one_object=one_object,
        least_words=least_words,
        most_words=most_words,
        balance=balance,
        thin=thin,
        count_tokens=count_tokens,
    )
    accepted = {
        name: [entry.prompt for entry in entries if not entry.reason] for name, entries in judged.items()
    }
    for name, prompts in accepted.items():
        if not prompts:
            reasons = Counter(entry.reason for entry in judged[name]).most_common(1)
            raise RecipeError(
                f'class "{name}": none of its {len(judged[name])} texts is accepted'
                + "".join(f"; {times} x {reason}" for reason, times in reasons)
                + "; give it synonyms, or raise count; `synthgen prompts RECIPE --all` shows them"
            )
    return _turns(accepted)


def _require_answers(questions: Sequence[Question], answers: Mapping[str, str], most: float = 0.0) -> None:
    missing = sum(question.key not in answers for question in questions)
    if missing > most * len(questions):
        raise UnansweredError(
            f"{missing} of {len(questions)} questions are not answered; `synthgen prompts RECIPE` asks them"
        )


def _turns(accepted: Mapping[str, Sequence[Prompt]]) -> Iterator[Prompt]:
    for number in itertools.count():
        for prompts in accepted.values():
            yield prompts[number % len(prompts)]
