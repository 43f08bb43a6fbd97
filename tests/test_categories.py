"""Classes: tables read, lists that ship, names told apart, DiverGen's category diversity; and word lists."""

import re
from collections import Counter
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from synthgen import wordnet
from synthgen.data import Category
from synthgen.errors import RecipeError
from synthgen.prompts import lists
from synthgen.prompts.categories import (
    ambiguous,
    complete,
    extra,
    matches,
    report,
    tell_apart,
)
from synthgen.prompts.lists import read_list, read_table
from synthgen.wording import fill, slots

CRANE = Category(3, "crane", "crane", "n02012849")
MACHINE = Category(7, "crane", "crane", "n03126707")
LISTS = ROOT / "prompts" / "lists"
AXES = {
    "action": "a photo of a {class} {action}",
    "attribute": "a photo of a {attribute} {class}",
    "count": "a photo of {count} {classes}",
    "lens": "a photo of a {class}, {lens}",
    "light": "a photo of a {class}, {light}",
    "medium": "a {medium} of a {class}",
    "place": "a photo of a {class} {place}",
    "relation": "a photo of a {class} {relation}",
    "style": "a picture of a {class}, {style}",
    "viewpoint": "a photo of a {class}, {viewpoint}",
    "weather": "a photo of a {class}, {weather}",
}


@cache
def shipped(name: str) -> list[Category]:
    return read_list(name)


def named(*names: str) -> list[Category]:
    """Classes by the synsets' names."""
    return complete([Category(k, "", "", name) for k, name in enumerate(names)])


def words(name: str) -> list[str]:
    lines = lists.known_words()[name].read_text("ascii").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_csv_of_classes_is_read_as_written() -> None:
    text = (
        "# a comment\n\nid, name, prompt,synset,synonyms,definition,hypernym,plural\n"
        '5,"crane, tall",,n02012849,heron bird|wader,"a bird, tall",bird,cranes\n1,gull,a gull\n'
    )
    assert read_table(text, "birds.csv") == [
        Category(
            5,
            "crane, tall",
            "crane, tall",
            "n02012849",
            ("heron bird", "wader"),
            "a bird, tall",
            "bird",
            "cranes",
        ),
        Category(1, "gull", "a gull"),
    ]
    assert read_table("synset,id\nn02012849,0\n", "x.csv") == [Category(0, "", "", "n02012849")]


def test_a_toml_of_classes_has_the_same_keys() -> None:
    text = (
        '[[classes]]\nid = 5\nname = "crane"\nsynonyms = ["wader", "bird"]\n'
        '[[classes]]\nid = 6\nsynset = "dog.n.01"\nsynonyms = "hound|mutt"\n'
    )
    assert read_table(text, "birds.toml") == [
        Category(5, "crane", "crane", synonyms=("wader", "bird")),
        Category(6, "", "", "dog.n.01", ("hound", "mutt")),
    ]


TABLES = "one array of tables, [[classes]], is wanted, and nothing else"
KNOWN = "Known: definition, hypernym, id, name, plural, prompt, synonyms, synset"


@pytest.mark.parametrize(
    ("where", "text", "message"),
    [
        ("c.csv", "id,name,sysnet\n", f'"c.csv": unknown column "sysnet"; did you mean "synset"? {KNOWN}'),
        (
            "c.csv",
            "id,prompt\n1,a\n",
            '"c.csv" has columns id, prompt; id and name (or synset) are needed, the others of id, name, '
            "prompt, synset, synonyms, definition, hypernym, plural optional",
        ),
        (
            "c.csv",
            "id,name\n1,crane, tall\n",
            '"c.csv": class 1 has more values than columns; a value with a comma stands in "quotes"',
        ),
        ("c.csv", "id,name\nx,crane\n", '"c.csv": id "x"; a whole number below 2**31 is wanted'),
        ("c.csv", "id,name\n2147483648,a", '"c.csv": id "2147483648"; a whole number below 2**31 is wanted'),
        ("c.csv", "id,name,synset\n4,,\n", '"c.csv": class 4 has no name'),
        ("c.toml", "classes = 5", f'"c.toml": {TABLES}'),
        ("c.toml", "a = 1\n[[classes]]\nid = 1", f'"c.toml": {TABLES}'),
        ("c.toml", "[[classes]]\nid = true", '"c.toml": class 1: id = True; a whole number is wanted'),
        ("c.toml", "[[classes]]\nname = 1", '"c.toml": class 1: name = 1; text is wanted'),
        (
            "c.toml",
            '[[classes]]\nlabel = "a"',
            f'"c.toml": class 1: unknown key "label". {KNOWN}',
        ),
        ("c.toml", "classes = ", '"c.toml": not valid TOML: Invalid value (at end of document)'),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line(where: str, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_table(text, where)
    assert str(raised.value) == message


def test_lists_that_ship() -> None:
    assert list(lists.known_lists()) == ["imagenet-1k", "imagenet-21k", "lvis-v1"]
    small, large, lvis = (shipped(name) for name in ("imagenet-1k", "imagenet-21k", "lvis-v1"))
    assert [len(small), len(large), len(lvis)] == [1000, 21841, 1203]
    assert [category.id for category in small] == list(range(1000))
    assert [category.id for category in large] == list(range(21841))
    assert [category.id for category in lvis] == list(range(1, 1204))
    only_small = {category.synset for category in small} - {category.synset for category in large}
    assert only_small == {"n04399382"}  # the teddy bear: the Fall 2011 release lacks it
    for classes in (small, large, lvis):
        assert len({category.name for category in classes}) == len(classes)
        assert len({category.prompt for category in classes}) == len(classes)
        assert all(category.prompt and category.name.isprintable() for category in classes)
    assert (small[134].name, small[517].name) == ("crane bird", "construction crane")
    assert small[0][1:5] == ("tench", "tench", "n01440764", ("Tinca tinca",))
    assert lvis[0][:5] == (1, "aerosol can", "aerosol can", "n02682922", ("spray can",))
    assert [category.name for category in lvis if not category.synset] == ["stop sign"]
    assert {one.name: one.prompt for one in lvis}["iron (for clothing)"] == "iron for clothing"
    with pytest.raises(RecipeError) as raised:
        read_list("imagenet-1")
    assert str(raised.value) == (
        'unknown list of classes "imagenet-1"; did you mean "imagenet-1k"? '
        "Known: imagenet-1k, imagenet-21k, lvis-v1"
    )


def test_complete_fills_what_is_missing_and_nothing_else() -> None:
    given = Category(2, "my dog", "a photo of Rex", "dog.n.01", ("Rex",), "", "pet")
    assert complete([given, Category(3, "crane", "crane")]) == [
        given._replace(synset="n02084071", definition=wordnet.find("dog.n.01").definition),
        Category(3, "crane", "crane"),
    ]
    assert named("dog.n.01")[0][:5] == (
        0, "dog", "dog", "n02084071", ("domestic dog", "Canis familiaris"),
    )  # fmt: skip
    assert named("crane.n.04")[0].hypernym == "lifting device"
    with pytest.raises(RecipeError) as raised:
        complete([Category(4, "rex", "rex", "dog.n.09")])
    assert str(raised.value) == (
        'class 4 "rex": unknown synset "dog.n.09": as a noun "dog" has dog.n.01 to dog.n.07'
    )


def test_the_cranes_are_told_apart() -> None:
    """In ImageNet-21k the bird and the machine have one name."""
    both = tell_apart([CRANE, MACHINE])
    assert both[0] == CRANE
    assert both[1][:4] == (7, "crane (lifting device)", "crane, a kind of lifting device", "n03126707")
    assert tell_apart(both) == both
    assert tell_apart([CRANE, MACHINE._replace(prompt="a tower crane")])[1].prompt == "a tower crane"
    large = {category.name: category for category in shipped("imagenet-21k")}
    assert large["crane"].synset == CRANE.synset
    assert large["crane (lifting device)"].synset == MACHINE.synset


def test_the_same_class_twice_and_a_class_without_synset_keep_their_name() -> None:
    twice = [CRANE, CRANE._replace(id=4), Category(5, "crane", "crane")]
    assert tell_apart(twice) == twice
    machines = tell_apart([CRANE, MACHINE, MACHINE._replace(id=9)])
    assert [category.name for category in machines[1:]] == ["crane (lifting device)"] * 2


def test_where_the_hypernym_tells_nothing_the_synset_does() -> None:
    """Two costumes are clothing; a name that is taken is not taken again."""
    costumes = [Category(k, "costume", "costume", f"costume.n.{k + 1:02d}") for k in range(4)]
    assert [category.name for category in tell_apart(costumes)] == [
        "costume", "costume (attire)", "costume (costume.n.03)", "costume (costume.n.04)",
    ]  # fmt: skip
    taken = [CRANE, Category(4, "crane (lifting device)", "x"), MACHINE]
    assert tell_apart(taken)[2][1:3] == ("crane (crane.n.04)", "crane, lifts and moves heavy objects")


def test_the_two_drumsticks_of_lists_that_meet() -> None:
    """A known class keeps its name; what is added later is told apart from it."""
    food = complete([Category(400, "drumstick", "drumstick", "drumstick.n.01")])
    stick = [one for one in shipped("imagenet-1k") if one.name == "drumstick"]
    assert [one.name for one in extra(food, stick)] == ["drumstick (stick)"]
    assert report([*food, *extra(food, stick)]) == [
        'class 401 "drumstick (stick)", a kind of stick, is not class 400 "drumstick", a kind of helping'
    ]


def test_report_says_which_names_may_mean_several_things() -> None:
    classes = [Category(3, "crane", "crane"), Category(4, "stop sign", "stop sign"), MACHINE]
    assert ambiguous(classes) == {
        "crane": 'crane.n.01 "United States writer" or crane.n.02 "United States poet", or 3 more'
    }
    assert report(classes) == []
    assert report([Category(4, "orchid", "orchid", "dog.n.01")]) == [
        'class 4 "orchid" has the synset dog.n.01, "a member of the genus Canis that has been domesticated '
        'by man since prehistoric times"; is that meant?'
    ]


def test_extra_classes_of_imagenet_for_lvis() -> None:
    """The paper's 566; its first 250 are animals to the last, the farthest 250 are not."""
    known, candidates = shipped("lvis-v1"), shipped("imagenet-1k")
    everything = extra(known, candidates, below=0.4)
    assert len(everything) == 566
    assert [category.id for category in everything] == list(range(1204, 1770))
    first = extra(known, candidates, below=0.4, choose="first", count=250)
    assert first == everything[:250]
    farthest = extra(known, candidates, below=0.4, choose="farthest", count=250)
    animals = [sum(matches(one, "animal") for one in chosen) for chosen in (everything, first, farthest)]
    assert animals == [298, 250, 121]
    assert extra(known, candidates, below=0.4, choose="farthest", count=40) == farthest[:40]
    names = [category.name for category in [*known, *everything]]
    assert len(set(names)) == len(names)


def test_known_classes_are_not_added_again() -> None:
    known = named("dog.n.01", "crane.n.05")
    candidates = [
        *named("dog.n.01", "cat.n.01", "cat.n.01", "crane.n.04"),
        Category(8, "dog", "dog"),
        Category(9, "emu", "emu"),
    ]
    assert [category[:2] for category in extra(known, candidates)] == [
        (2, "cat"), (3, "crane (lifting device)"), (4, "emu"),
    ]  # fmt: skip


def test_extra_by_embeddings() -> None:
    """Directions in a plane; no synset is needed, and equal distances do not follow the order given."""
    angles = {"a": 0, "b": 10, "c": 90, "d": 170, "e": -90}

    def embed(some: list[Category]) -> npt.NDArray[np.float32]:
        radians = np.deg2rad([angles[one.name] for one in some])
        return 3 * np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)

    def chosen(order: str, count: int) -> list[str]:
        candidates = [Category(k, name, name) for k, name in enumerate(order)]
        added = extra([Category(0, "a", "a")], candidates, choose="farthest", count=count, embed=embed)
        return [category.name for category in added]

    assert chosen("abcde", 4)[0] == "d"
    assert set(chosen("bcde", 3)) == {"c", "d", "e"}
    assert chosen("bcde", 4) == chosen("edcb", 4)
    assert chosen("bcde", 2) == chosen("bcde", 4)[:2]


@pytest.mark.parametrize(
    ("known", "candidates", "keys", "message"),
    [
        (
            [*named("dog.n.01"), Category(5, "crane", "crane"), Category(6, "bats", "bats")],
            named("cat.n.01"),
            {"below": 0.4},
            'the known class 5 "crane" has no synset to be compared by (2 classes have none); give a .csv '
            "with a column synset (WordNet 3.0), such as n02084071 or dog.n.01",
        ),
        (
            [Category(5, "stop sign", "stop sign")],
            named("cat.n.01"),
            {"choose": "farthest", "count": 1},
            'the known class 5 "stop sign" has no synset to be compared by; give a .csv with a column synset '
            "(WordNet 3.0), such as n02084071 or dog.n.01",
        ),
        (
            named("dog.n.01"),
            [*named("cat.n.01"), Category(5, "stop sign", "stop sign")],
            {"below": 0.4},
            'the candidate 5 "stop sign" has no synset to be compared by; give a .csv with a column synset '
            "(WordNet 3.0), such as n02084071 or dog.n.01",
        ),
        (
            named("dog.n.01"),
            named("cat.n.01"),
            {"below": 1.5},
            "below = 1.5; a path similarity above 0 and up to 1 is wanted, such as 0.4 (they are 1, 1/2, "
            "1/3, ...)",
        ),
        (
            named("dog.n.01"),
            named("cat.n.01"),
            {"choose": "first"},
            'choose = "first": the count is missing; "first" and "farthest" need one, "all" none',
        ),
        (
            named("dog.n.01"),
            named("cat.n.01"),
            {"count": 3},
            'choose = "all": all takes no count; "first" and "farthest" need one, "all" none',
        ),
        (
            named("dog.n.01"),
            named("cat.n.01", "wolf.n.01"),
            {"below": 0.3, "choose": "first", "count": 2},
            "count: 1 of 2 candidates are left below = 0.3, 2 are wanted",
        ),
        (
            named("dog.n.01"),
            named("dog.n.01"),
            {},
            "classes: 0 of 1 candidates are left; name another list",
        ),
        (
            named("dog.n.01"),
            named("cat.n.01"),
            {"below": 0.1},
            "classes: 0 of 1 candidates are left below = 0.1; raise it, or name another list",
        ),
    ],
)  # fmt: skip
def test_extra_that_cannot_be_is_one_line(
    known: list[Category], candidates: list[Category], keys: dict, message: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        extra(known, candidates, **keys)
    assert str(raised.value) == message


def test_a_class_matches_its_name_and_what_it_is_a_kind_of() -> None:
    robin = named("robin.n.02")[0]
    assert all(matches(robin, what) for what in ("robin", "thrush", "bird", "animal.n.01", "n00015388"))
    assert not any(matches(robin, what) for what in ("mammal", "brid", ""))
    plain = Category(0, "Rex", "Rex", hypernym="dog")
    assert matches(plain, "Rex")
    assert matches(plain, "dog")
    assert not matches(plain, "animal")


def test_word_lists_fit_their_templates() -> None:
    assert set(lists.known_words()) == {*AXES, "clip-80"}
    for axis, template in AXES.items():
        entries, head = words(axis), (LISTS / f"{axis}.txt").read_text("ascii").splitlines()[0]
        assert head.startswith("# ")
        assert f'"{template}' in head or "{place}, {" + axis in head, "the first line shows a template"
        assert 12 <= len(entries) <= 40
        assert len({entry.lower() for entry in entries}) == len(entries)
        for entry in entries:
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 '-]*[a-z0-9]", entry), entry
            text = fill(template, {axis: entry, "class": "owl", "classes": "owls"})
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou8]|  ", text), text


def test_relations_are_the_ten_of_synclr_twice_each() -> None:
    ten = ["in front of", "next to", "in", "on", "behind", "over", "under", "above", "below", "beside"]
    found = Counter(next(one for one in ten if entry.startswith(f"{one} ")) for entry in words("relation"))
    assert found == dict.fromkeys(ten, 2)


def test_clips_templates_are_the_published_80() -> None:
    open_clip = pytest.importorskip("open_clip")
    templates = words("clip-80")
    assert templates == [template("{class}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(set(templates)) == 80
    assert all(slots(template) == ["class"] for template in templates)
