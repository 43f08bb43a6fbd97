"""What is asked: shares by design, keys that say everything, growth at the end; and how replies are read."""

import dataclasses
import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.data import Category, LanguageModel, Prompt, Word
from synthgen.errors import RecipeError
from synthgen.prompts.language import judge, language, language_questions, words
from synthgen.prompts.questions import (
    EXAMPLES,
    KINDS,
    RELATIONS,
    TASKS,
    Question,
    make_questions,
    parse,
)

CLASSES = [Category(0, "dog", "dog", definition="a domestic animal"), Category(1, "cup", "cup")]
SPEAKER = LanguageModel("m", {"temperature": 0.7})
PLACES = {"dog": [f"place {k}" for k in range(7)], "cup": ["kitchen", "desk"]}
KEYS: dict[str, dict[str, object]] = {
    "divergen": {"per_call": 4},
    "synthclip": {},
    "synclr": {"backgrounds": PLACES},
    "paraphrase": {
        "prompts": {
            name: [
                Prompt(f"a red {name}, {k}", name, group=f"g{k}", axes={"colour": "red"}) for k in range(300)
            ]
            for name in ("dog", "cup")
        }
    },
    "backgrounds": {},
    "attributes": {},
}


def ask(task: str, count: int = 8, classes: list[Category] = CLASSES, **changed: object) -> list[Question]:
    keys = {"model": "m", "sampling": {"temperature": 0.7}, "seed": 0, **KEYS[task], **changed}
    return make_questions(classes, task=task, count=count, **keys)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_asks_for_its_class_in_json(task: str) -> None:
    questions = ask(task)
    assert {question.class_name for question in questions} == {"dog", "cup"}
    for question in questions:
        assert question.class_name in question.user
        assert [message["role"] for message in question.messages] == ["system", "user"]
        (name, kind), *_ = question.schema["properties"].items()
        assert question.schema["additionalProperties"] is False
        assert f'"{name}"' in question.system
        assert "JSON" in question.system  # or OpenAI refuses json_object
        texts = ["one", "two"] if kind["type"] == "array" else "one"
        assert parse(question, json.dumps({name: texts})).texts == (
            ["one", "two"] if kind["type"] == "array" else ["one"]
        )
    if task != "paraphrase":
        assert any("a domestic animal" in question.user for question in questions) is True


@pytest.mark.parametrize("task", TASKS)
def test_a_class_does_not_depend_on_others(task: str) -> None:
    assert [q.key for q in ask(task) if q.class_name == "cup"] == [
        q.key for q in ask(task, classes=CLASSES[1:])
    ]


@pytest.mark.parametrize("task", ["divergen", "synthclip", "synclr", "paraphrase"])
def test_asking_for_more_only_adds_questions(task: str) -> None:
    few, many = ([q.key for q in ask(task, n) if q.class_name == "dog"] for n in (9, 30))
    assert many[: len(few)] == few
    assert len(many) > len(few)


def test_the_key_says_everything_that_decides_the_reply() -> None:
    question = ask("divergen")[0]
    keys = {question.key}
    for change in (
        {"model": "other"},
        {"sampling": {"temperature": 0.8}},
        {"system": "x"},
        {"user": "x"},
        {"number": 99},
        {"schema": {**question.schema, "required": []}},
    ):
        keys.add(dataclasses.replace(question, **change).key)
    assert len(keys) == 7
    assert dataclasses.replace(question, axes={"a": "b"}).key == question.key
    assert len({q.key for task in TASKS for q in ask(task, 30)}) == sum(len(ask(task, 30)) for task in TASKS)


def test_divergen_counts_in_calls() -> None:
    for count, calls in ((1, 1), (4, 1), (5, 2), (8, 2)):
        questions = ask("divergen", count, CLASSES[:1])
        assert len(questions) == calls
        assert all(q.most_texts == 4 and "exactly 4 prompts" in q.user for q in questions)
    openings = [
        q.user.split('Begin every prompt with "')[1].split(" a single")[0] for q in ask("divergen", 40)
    ]
    assert set(Counter(openings[:10]).values()) == {2}
    assert 'the words "in a white background"' in ask("divergen", background="in a white background")[0].user


def test_synclr_keeps_its_shares_over_every_prefix() -> None:
    questions = ask("synclr", 250, CLASSES[:1])
    kinds, relations, places = Counter[str](), Counter[str](), Counter[str]()
    for number, question in enumerate(questions, 1):
        kind = next(iter(question.axes), "caption")
        kinds[kind] += 1
        relations.update([question.axes["relation"]] if kind == "relation" else [])
        places.update([question.axes["background"]] if kind == "background" else [])
        assert all(abs(kinds[k] - number * share / 100) < 1 for k, share in KINDS.items())
        for seen, values in ((relations, RELATIONS), (places, PLACES["dog"])):
            assert max(seen[value] for value in values) - min(seen[value] for value in values) <= 1
        for word in question.axes.values():
            assert f"dog | {word}" in question.user
        examples = [line for line in question.user.splitlines() if " => " in line]
        assert len(set(examples)) == 3
        assert {tuple(line.split(" => ")) for line in examples} <= set(EXAMPLES[kind])
    assert len({q.user for q in questions[:20]}) == 20


def test_synclr_shows_a_class_no_example_of_itself() -> None:
    owl = Category(0, "owl", "owl")
    for question in ask("synclr", 60, [owl], backgrounds={"owl": ["barn"]}):
        assert not any(line.startswith("owl") for line in question.user.splitlines())


def test_synclr_is_quick_for_many_classes() -> None:
    classes = [Category(k, f"thing {k}", f"thing {k}") for k in range(50)]
    assert len(ask("synclr", 200, classes, backgrounds={c.name: PLACES["dog"] for c in classes})) == 10_000


def test_paraphrases_keep_axes_and_group() -> None:
    question = ask("paraphrase")[3]
    assert question.axes == {"colour": "red"}
    assert question.group == "g3"
    assert "a red dog, 3" in question.user
    assert "colour: red" in question.user


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "divergent"}, 'unknown task "divergent"; did you mean "divergen"'),
        ({"task": "synthclip", "per_call": 3}, "per_call: task synthclip has no such key"),
        ({"task": "synclr"}, "backgrounds: missing; task synclr needs it"),
        ({"task": "synclr", "backgrounds": {"dog": ["lawn"]}}, 'backgrounds: none for class "cup"'),
    ],
)
def test_wrong_keys_are_named(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_questions(CLASSES, model="m", sampling={}, seed=0, count=1, **keys)


MANY, ONE = ask("divergen")[0], ask("synthclip")[0]


@pytest.mark.parametrize(
    ("question", "raw", "texts", "error"),
    [
        (ONE, '{"caption": "A dog"}', ["A dog"], ""),
        (ONE, '```json\n{"caption": "A dog"}\n```', ["A dog"], ""),
        (ONE, 'Sure!\n{"caption": "A {dog}\\n  sits"} Enjoy {it}.', ["A {dog} sits"], ""),
        (ONE, '<think>{"caption": "no"}</think>\n{"caption": "A dog"}', ["A dog"], ""),
        (MANY, '{"prompts": ["a", "b"]}', ["a", "b"], ""),
        (MANY, json.dumps({"prompts": list("abcdef")}), list("abcd"), ""),
        (ONE, "", [], "an empty reply"),
        (ONE, "A dog", [], "no JSON object"),
        (ONE, '["A dog"]', [], "no JSON object"),
        (ONE, '{"caption": "A do', [], "JSON that is cut off or broken"),
        (ONE, "{'caption': 'A dog'}", [], "JSON that is cut off or broken"),
        (ONE, '{"a":' * 100_000, [], "JSON that is cut off or broken"),
        (ONE, '{"text": "A dog"}', [], "JSON with other keys than caption"),
        (ONE, '{"caption": "A dog", "why": ""}', [], "JSON with other keys than caption"),
        (ONE, '{"caption": ["A dog"]}', [], "JSON in which caption is no text"),
        (MANY, '{"prompts": "A dog"}', [], "JSON in which prompts is no list of texts"),
        (MANY, '{"prompts": ["A dog", 3]}', [], "JSON in which prompts is no list of texts"),
        (MANY, '{"prompts": []}', [], "JSON in which prompts is empty"),
        (MANY, '{"prompts": ["A dog", "  "]}', [], "JSON in which prompts is empty"),
        (ONE, '{"caption": "\\ud800 dog"}', [], "a text with characters that cannot be printed"),
        (ONE, '{"caption": "dog \\u0000"}', [], "a text with characters that cannot be printed"),
    ],
)
def test_replies_are_read_strictly(question: Question, raw: str, texts: list[str], error: str) -> None:
    assert parse(question, raw) == (texts, error)


@given(st.text() | st.text(alphabet='{}[]":,\\ caption').map(lambda text: '{"caption": ' + text))
def test_no_reply_is_an_exception(raw: str) -> None:
    texts, error = parse(ONE, raw)
    assert bool(texts) != bool(error)


def reply_to(question: Question, texts: list[str]) -> str:
    (name, kind), *_ = question.schema["properties"].items()
    return json.dumps({name: texts if kind["type"] == "array" else texts[0]})


SOURCE = {"seed": 0, "task": "divergen", "language_model": SPEAKER, "count": 6, "per_call": 4}


def source_answers() -> dict[str, str]:
    questions = language_questions(CLASSES, **SOURCE)
    ways = iter(
        f"A {colour} {{}} {place} at {hour}"
        for colour, place, hour in itertools.product(
            ("red", "pale", "tiny"), ("on a lawn", "by the sea", "in a shop"), ("dawn", "noon")
        )
    )
    return {q.key: reply_to(q, [next(ways).format(q.class_name) for _ in range(4)]) for q in questions}


def test_the_source_takes_turns_and_cycles_in_the_order_of_questions() -> None:
    answers = source_answers()
    shuffled = dict(random.Random(1).sample(sorted(answers.items()), len(answers)))
    first, second = (
        list(itertools.islice(language(CLASSES, **SOURCE, answers=found), 24))
        for found in (answers, shuffled)
    )
    assert first == second
    assert [prompt.class_name for prompt in first[:4]] == ["dog", "cup", "dog", "cup"]
    dogs = [prompt.text for prompt in first if prompt.class_name == "dog"]
    assert len(set(dogs)) == 6
    assert dogs[6:] == dogs[:6]
    alone = language(CLASSES[:1], **SOURCE, answers=answers)
    assert [next(alone).text for _ in range(12)] == dogs


def test_the_source_says_what_is_missing() -> None:
    answers = source_answers()
    answers.popitem()
    with pytest.raises(
        RecipeError, match="1 of 4 questions are not answered; `synthgen prompts RECIPE` asks"
    ):
        language(CLASSES, **SOURCE, answers=answers)
    assert next(language(CLASSES, **SOURCE, answers=answers, max_unanswered=0.25)).class_name == "dog"
    answers = {key: raw.replace(" cup ", " mug ") for key, raw in source_answers().items()}
    with pytest.raises(RecipeError, match='class "cup": none of its 8 texts is accepted; 8 x no class word'):
        language(CLASSES, **SOURCE, answers=answers)
    with pytest.raises(RecipeError, match="background: task synthclip has no use for it"):
        language_questions(
            CLASSES, seed=0, task="synthclip", language_model=SPEAKER, count=1, background="white"
        )


def test_rejected_texts_are_seen_with_their_reason() -> None:
    questions = language_questions(CLASSES[:1], **SOURCE)
    answers = {
        questions[0].key: reply_to(questions[0], ["A dog runs", "Two dogs run", "a DOG runs!", "A cat runs"]),
        questions[1].key: "nonsense",
    }
    judged = judge(questions, answers, CLASSES[:1], seed=0, count=6, one_object=True)
    assert [(entry.prompt.text, entry.reason) for entry in judged["dog"]] == [
        ("A dog runs", ""),
        ("Two dogs run", "several objects"),
        ("a DOG runs!", "exact duplicate"),
        ("A cat runs", "no class word"),
        ("", "no JSON object"),
    ]
    assert judge(questions[1:], {}, CLASSES, seed=0, count=6) == {"dog": [], "cup": []}


def test_paraphrased_templates_keep_their_axes() -> None:
    keys = {
        "seed": 0,
        "task": "paraphrase",
        "language_model": SPEAKER,
        "count": 3,
        "templates": ["a {colour} {class}"],
        "axes": {"colour": [Word("red"), Word("blue"), Word("green")]},
    }
    questions = language_questions(CLASSES, **keys)
    answers = {
        q.key: reply_to(q, [f"Here stands one {q.class_name}, all {q.axes['colour']}"]) for q in questions
    }
    prompts = list(itertools.islice(language(CLASSES, **keys, answers=answers), 6))
    assert all(prompt.axes["colour"] in prompt.text for prompt in prompts)
    assert Counter(prompt.axes["colour"] for prompt in prompts) == {"red": 2, "blue": 2, "green": 2}


def test_a_paraphrase_that_loses_its_light_is_rejected() -> None:
    keys = {
        "seed": 0,
        "task": "paraphrase",
        "language_model": SPEAKER,
        "count": 2,
        "templates": ["a {class} {light}"],
        "axes": {"light": [Word("in soft daylight"), Word("by night")]},
    }
    questions = language_questions(CLASSES[:1], **keys)
    texts = {"in soft daylight": "A dog bathed in softest light", "by night": "A dog on a lawn"}
    answers = {q.key: reply_to(q, [texts[q.axes["light"]]]) for q in questions}
    judged = judge(questions, answers, CLASSES[:1], seed=0, count=2)["dog"]
    assert {entry.prompt.text: entry.reason for entry in judged} == {
        "A dog bathed in softest light": "",
        "A dog on a lawn": "lost light",
    }


def test_balance_is_a_reason() -> None:
    keys = {"seed": 0, "task": "synthclip", "language_model": SPEAKER, "count": 200}
    questions = language_questions(CLASSES, **keys)
    answers = {
        q.key: reply_to(q, [f"A {q.class_name} of kind {k}"])
        for k, q in enumerate(questions)
        if q.class_name == "dog" or q.number < 5
    }
    judged = judge(questions, answers, CLASSES, seed=0, count=200, balance=20)
    reasons = Counter(entry.reason for entry in judged["dog"])
    assert set(reasons) == {"", "balance"}
    assert 8 < reasons[""] < 36
    assert [entry.reason for entry in judged["cup"]] == [""] * 5


def test_thinning_keeps_the_least_alike() -> None:
    keys = {"seed": 0, "task": "synthclip", "language_model": SPEAKER, "count": 4}
    questions = language_questions(CLASSES[:1], **keys)
    texts = [
        "A dog on a lawn",
        "A dog on a green lawn",
        "One dog beside the sea at night",
        "A dog on a wet lawn",
    ]
    answers = {q.key: reply_to(q, [text]) for q, text in zip(questions, texts, strict=True)}
    judged = judge(questions, answers, CLASSES[:1], seed=0, count=4, thin=2)["dog"]
    assert [entry.reason for entry in judged] == ["", "less diverse", "", "less diverse"]


def test_words_become_an_axis() -> None:
    questions = ask("backgrounds", 3)
    answers = {q.key: reply_to(q, ["city park", "Beach", "city  park"]) for q in questions}
    assert words(questions, answers) == {"dog": ["city park", "Beach"], "cup": ["city park", "Beach"]}
    with pytest.raises(RecipeError, match="2 of 2 questions are not answered"):
        words(questions, {})
