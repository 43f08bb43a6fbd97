import itertools
from collections import Counter

import pytest

from synthgen.data import Category, Prompt, Word
from synthgen.errors import RecipeError
from synthgen.planning import ModelCall, Source, cut_shards, make_requests
from synthgen.prompts.templates import cells, templates
from synthgen.wording import fill

CLASSES = [Category(0, "cat", "cat"), Category(1, "owl", "owl"), Category(2, "apple", "apple")]
PLACES = ["on grass", "at sea", "in snow"]
AXES = {"style": [Word("cartoon"), Word("photo")], "place": [Word(place) for place in PLACES]}


def call(name: str, fingerprint: str = "f") -> ModelCall:
    return ModelCall(name, fingerprint, 4, 3.0, "", "DDIMScheduler", "float32", 0, 0)


def source(classes: list[Category] = CLASSES, seed: int = 0) -> Source:
    texts = ["a {style} of a {class} {place}", "a {class} {place}"]
    return Source(
        templates(classes, seed=seed, templates=texts, axes=AXES),
        {category.name: [{}] for category in classes},
    )


def requests(
    n: int, *, models: tuple[str, ...] = ("m",), classes: list[Category] = CLASSES, seed: int = 0, **keys
):  # type: ignore[no-untyped-def]
    calls = [call(name) for name in models]
    return make_requests(
        [source(classes, seed)], classes, calls, seed=seed, requests=n, per=["class"], **keys
    )


def test_any_prefix_is_balanced() -> None:
    made = requests(13, models=("m", "n"))
    for end in range(1, len(made) + 1):
        for key in (lambda r: r.class_name, lambda r: r.model):
            counts = Counter(map(key, made[:end]))
            assert max(counts.values()) - min(counts.values()) <= 3 // len(counts) * 3 or len(counts) == 1
    by_class_and_model = Counter((r.class_name, r.model) for r in made)
    assert set(by_class_and_model.values()) == {6, 7}


def test_each_class_meets_each_word_equally_often() -> None:
    made = requests(30)
    for category in CLASSES:
        own = [r for r in made if r.class_name == category.name]
        for end in range(1, len(own)):
            places = Counter(r.axes["place"] for r in own[:end])
            assert max(places.values()) - min(places[word] for word in PLACES) <= 1
            styles = Counter(r.axes["style"] for r in own[:end] if "style" in r.axes)
            assert (
                not styles or max(styles.values()) - min(styles[word] for word in ["cartoon", "photo"]) <= 1
            )


def test_a_class_is_asked_the_same_whatever_the_others_are() -> None:
    alone = [r.uid for r in requests(9, classes=CLASSES[1:2])]
    assert [r.uid for r in requests(9) if r.class_name == "owl"] == alone


def test_more_requests_begin_with_the_fewer() -> None:
    assert [r.uid for r in requests(5)] == [r.uid for r in requests(8)][:15]
    assert [r.uid for r in requests(8, limit=7)] == [r.uid for r in requests(8)][:7]


def test_uids_and_seeds_are_distinct_and_repeatable() -> None:
    made = requests(200, models=("m", "n"))
    assert len({r.uid for r in made}) == len({r.seed for r in made}) == 600
    assert all(0 <= r.seed < 2**63 and len(r.uid) == 32 for r in made)
    assert [r.uid for r in requests(200, models=("m", "n"))] == [r.uid for r in made]
    assert not {r.seed for r in requests(200, seed=1)} & {r.seed for r in made}


def test_the_same_prompt_again_is_a_replicate_with_another_seed() -> None:
    made = requests(30)
    seen: Counter[tuple[str, str]] = Counter()
    for request in made:
        assert request.replicate == seen[request.class_name, request.text]
        seen[request.class_name, request.text] += 1
    assert max(seen.values()) > 1


def test_a_uid_is_known_by_the_weights() -> None:
    one, other = ([source()], CLASSES), {"seed": 0, "requests": 1, "per": ["class"]}
    made = [make_requests(*one, [call("m", print_)], **other)[0] for print_ in ("f", "f", "g")]  # type: ignore[arg-type]
    # the first source is spent by the first call: these are the three classes' first prompts
    assert len({r.uid for r in made}) == 3
    again = make_requests([source()], CLASSES, [call("m", "g")], seed=0, requests=1, per=["class"])
    assert (
        again[0].uid
        != make_requests([source()], CLASSES, [call("m")], seed=0, requests=1, per=["class"])[0].uid
    )
    assert (
        again[0].seed
        == make_requests([source()], CLASSES, [call("m")], seed=0, requests=1, per=["class"])[0].seed
    )


def test_a_source_that_ends_is_an_error() -> None:
    short = Source(iter([Prompt("a cat", "cat")]), {"cat": [{}]})
    with pytest.raises(RecipeError, match="1 of 2 requests, then the prompts ran out"):
        make_requests([short], CLASSES[:1], [call("m")], seed=0, requests=2, per=["class"])


def test_shards_hold_one_model_and_all_requests() -> None:
    made = requests(7, models=("m", "n"))
    cut = cut_shards(made, 4)
    assert all(len(shard) <= 4 and len({r.model for r in shard}) == 1 for shard in cut)
    assert sorted(r.uid for shard in cut for r in shard) == sorted(r.uid for r in made)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {style} of a {class}", "an oil painting of a cat"),
        ("A {class}, {style}", "A cat, oil painting"),
        ("an {class}", "a cat"),
        ("the {class}", "the cat"),
    ],
)
def test_articles_agree(template: str, expected: str) -> None:
    assert fill(template, {"class": "cat", "style": "oil painting"}) == expected


def test_no_prompt_goes_with_a_model() -> None:
    """Two sources and two models take turns; so do two models and a source that begins again after 4."""
    one, two = (
        Source(templates(CLASSES, seed=0, templates=[text], axes={}), {c.name: [{}] for c in CLASSES})
        for text in ("a {class}", "the {class}")
    )
    calls = [call("m"), call("n")]
    made = make_requests([one, two], CLASSES, calls, seed=0, requests=12, per=["class"])
    assert set(Counter((r.class_name, r.text, r.model) for r in made).values()) == {3}
    texts = itertools.cycle([Prompt(f"cat {k}", "cat") for k in range(4)])
    made = make_requests(
        [Source(texts, {"cat": [{}]})], CLASSES[:1], calls, seed=0, requests=16, per=["class"]
    )
    assert set(Counter((r.text, r.model) for r in made).values()) == {2}
    for end in range(1, 17):
        assert abs(2 * sum(r.model == "m" for r in made[:end]) - end) <= 1


def test_a_group_stays_with_one_model() -> None:
    keys = {"templates": ["a {class} {place} {style}"], "axes": AXES, "grid": ["place"], "same_noise": True}
    crossed = Source(templates(CLASSES, seed=0, **keys), cells(CLASSES, **keys))  # type: ignore[arg-type]
    per = ["class", "place"]
    made = make_requests([crossed], CLASSES, [call("m"), call("n")], seed=0, requests=4, per=per)
    assert len(made) == 4 * 3 * 3
    assert set(Counter((r.class_name, r.axes["place"]) for r in made).values()) == {4}
    groups = {r.group: {(s.model, s.seed) for s in made if s.group == r.group} for r in made}
    assert {len(group) for group in groups.values()} == {1}
    assert len({seed for group in groups.values() for _, seed in group}) == 12
    assert set(Counter((r.class_name, r.model) for r in made).values()) == {6}


def test_a_quota_counts_the_cells_of_all_sources() -> None:
    def crossed(places: list[str]) -> Source:
        keys = {
            "templates": ["a {class} {place}"],
            "axes": {"place": [Word(p) for p in places]},
            "grid": ["place"],
        }
        return Source(templates(CLASSES, seed=0, **keys), cells(CLASSES, **keys))  # type: ignore[arg-type]

    sources = [crossed(["on grass", "at sea"]), crossed(["at sea", "in snow"])]
    made = make_requests(sources, CLASSES, [call("m")], seed=0, requests=4, per=["class", "place"])
    assert set(Counter((r.class_name, r.axes["place"]) for r in made).values()) == {4}
    assert len(made) == 4 * 3 * 3


def test_a_larger_quota_keeps_what_is_planned_of_crossed_sources_and_models() -> None:
    def crossed(texts: list[str], places: list[str]) -> Source:
        axes = {"place": [Word(place) for place in places]}
        keys = {"templates": texts, "axes": axes, "grid": ["place"]}
        return Source(templates(CLASSES, seed=0, **keys), cells(CLASSES, **keys))  # type: ignore[arg-type]

    def planned(n: int) -> set[str]:
        sources = [
            crossed(["a {class} {place}"], PLACES),
            crossed(["the {class} {place}", "one {class} {place}"], [*PLACES, "in fog", "at dusk"]),
        ]
        calls = [call("m"), call("n"), call("o")]
        per = ["class", "place"]
        return {r.uid for r in make_requests(sources, CLASSES, calls, seed=0, requests=n, per=per)}

    assert planned(5) < planned(9)
