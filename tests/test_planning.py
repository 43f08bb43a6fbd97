import itertools
from collections import Counter

import pytest

from synthgen.data import Category, Prompt, Word
from synthgen.errors import RecipeError
from synthgen.planning import ModelCall, RealImages, Source, cut_shards, make_requests
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


def real(n: int = 5, classes: list[Category] = CLASSES, bytes_: str = "") -> dict[str, RealImages]:
    """The real images that the model "m" starts from, n of each class."""
    by_class = {one.name: [f"{one.id}{k:031d}" for k in range(n)] for one in classes}
    return {"m": RealImages(by_class, lambda uid: f"{bytes_}{uid}" * 2)}


def test_any_prefix_uses_the_real_images_evenly() -> None:
    made = requests(17, models=("m", "n"), real=real())
    for category in CLASSES:
        own = [r for r in made if r.class_name == category.name and r.model == "m"]
        assert len({r.source_uid for r in own}) == 5
        for end in range(1, len(own)):
            counts = Counter(r.source_uid for r in own[:end])
            assert max(counts.values()) - min(counts[uid] for uid in real()["m"].by_class[category.name]) <= 1
    assert {r.source_uid for r in made if r.model == "n"} == {""}
    assert all(r.source_sha256 == r.source_uid * 2 for r in made)


def test_a_real_image_meets_different_words() -> None:
    """As many images as words: in one order round after round each image would have its own."""
    own = [r for r in requests(120, real=real(2)) if r.class_name == "owl" and "style" in r.axes]
    assert len({(r.source_uid, r.axes["style"]) for r in own}) == 4
    orders = [
        tuple(r.source_uid for r in requests(6, real=real(6), seed=s) if r.class_id == 1) for s in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_real_images_depend_on_no_other_class_and_no_number() -> None:
    whole = [(r.uid, r.source_uid) for r in requests(9, real=real())]
    owls = requests(9, classes=CLASSES[1:2], real=real())
    assert [(r.uid, r.source_uid) for r in owls] == [pair for pair in whole if pair[1][0] == "1"]
    assert [(r.uid, r.source_uid) for r in requests(4, real=real())] == whole[:12]


def test_bytes_and_strength_are_known_by_the_uid_and_no_seed() -> None:
    def made(strength: float = 0.5, **more: str) -> dict[str, int]:
        models = [call("m")._replace(strength=strength)]
        found = make_requests(
            [source()], CLASSES, models, seed=0, requests=3, per=["class"], real=real(**more)
        )
        assert {r.strength for r in found} == {strength}
        return {r.uid: r.seed for r in found}

    plain, other, changed = made(), made(0.7), made(bytes_="x")
    assert not plain.keys() & other.keys()
    assert not plain.keys() & changed.keys()
    assert [*plain.values()] == [*other.values()] == [*changed.values()]


def test_what_is_made_from_one_real_image_is_a_group() -> None:
    made = requests(12, real=real())
    assert all(r.group == r.source_uid[:16] for r in made)
    assert all(r.group == r.prompt_id for r in requests(12))


def test_a_group_of_prompts_starts_from_one_real_image() -> None:
    keys = {"templates": ["a {style} of a {class} {place}"], "axes": AXES, "grid": ["place"]}
    crossed = Source(templates(CLASSES, seed=0, **keys), cells(CLASSES, **keys))  # type: ignore[arg-type]
    made = make_requests(
        [crossed], CLASSES, [call("m")], seed=0, requests=4, per=["class", "place"], real=real(7)
    )
    groups = {r.group for r in made}
    assert len(groups) == 12
    images = {(r.group, r.class_name, r.source_uid) for r in made}
    assert len(images) == 12
    assert len({source_uid for _, _, source_uid in images}) == 12


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
