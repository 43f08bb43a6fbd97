"""WordNet: NLTK's names, senses and distances by hand; a slow independent reference; the paper's numbers."""

import functools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import wordnet
from synthgen.errors import RecipeError
from synthgen.prompts.lists import read_list
from synthgen.shards import make_seed

DOG, CAT, ROBIN = "n02084071", "n02121620", "n01558993"


@functools.cache
def ids() -> list[str]:
    return [f"n{offset:08d}" for offset in wordnet._nouns().offsets.tolist()]


def synsets(name: str) -> list[str]:
    return [category.synset for category in read_list(name) if category.synset]


def places(**limits: bool | int) -> st.SearchStrategy[list[int]]:
    """Rows from all of WordNet, and from a narrow part of it, so that paths of all lengths occur."""
    return st.lists(st.integers(0, len(ids()) - 1) | st.integers(9000, 9100), **limits)


def steps_up(name: str) -> dict[str, int]:
    """Breadth first, one synset at a time, by nothing but `find`."""
    found, front = {name: 0}, [name]
    while front:
        front = [above for below in front for above in wordnet.find(below).hypernyms if above not in found]
        level = max(found.values()) + 1
        found |= dict.fromkeys(front, level)
    return found


def distance(one: str, other: str) -> int:
    here, there = steps_up(one), steps_up(other)
    return min(here[above] + there[above] for above in here.keys() & there.keys())


def test_a_synset_is_found_by_id_and_by_any_of_its_words() -> None:
    dog = wordnet.find(DOG)
    assert dog == wordnet.find("dog.n.01") == wordnet.find("Canis_familiaris.n.01")
    assert dog.name == "dog.n.01"
    assert dog.lemmas == ("dog", "domestic dog", "Canis familiaris")
    assert dog.hypernyms == ("n02083346", "n01317541")
    assert dog.definition == (
        "a member of the genus Canis (probably descended from the common wolf) that has been domesticated by "
        "man since prehistoric times; occurs in many breeds"
    )


def test_names_and_definitions_as_nltk_has_them() -> None:
    """A name has the synset's first word and the number of its sense; examples are no definition."""
    assert wordnet.find("dog.n.02").name == "frump.n.01"
    assert wordnet.find("crane.n.04").lemmas[0] == "crane"
    assert wordnet.find("spray_can.n.01") == wordnet.find("aerosol.n.02")
    assert wordnet.find("workplace.n.01").definition == "a place where work is done"
    assert all('; "' not in text for text in wordnet._nouns().table["definition"].to_pylist())


def test_senses_are_in_wordnets_order() -> None:
    assert [synset.name for synset in wordnet.senses("dog")] == [
        "dog.n.01", "frump.n.01", "dog.n.03", "cad.n.01", "frank.n.02", "pawl.n.01", "andiron.n.01",
    ]  # fmt: skip
    assert wordnet.senses("Domestic dog") == [wordnet.find(DOG)]
    assert wordnet.senses("no such word") == []
    assert len(wordnet.senses("ra")) == len({synset.id for synset in wordnet.senses("ra")})


def test_ancestors_have_their_least_distance_and_lead_to_entity() -> None:
    assert list(wordnet.ancestors(DOG).items())[:4] == [
        (DOG, 0), ("n01317541", 1), ("n02083346", 1), ("n00015388", 2),
    ]  # fmt: skip
    assert wordnet.ancestors(DOG) == steps_up(DOG)
    assert list(wordnet.ancestors(DOG))[-1] == wordnet.find("entity.n.01").id
    everest = wordnet.senses("Mount Everest")[0]  # an instance, not a kind
    assert wordnet.is_a(everest.id, "mountain peak")


def test_is_a_takes_words_in_any_sense_and_synsets() -> None:
    assert wordnet.is_a(ROBIN, "bird")
    assert wordnet.is_a(ROBIN, "bird.n.01")
    assert not wordnet.is_a(ROBIN, "bird.n.02")  # its meat
    assert wordnet.is_a(ROBIN, ROBIN)
    assert not wordnet.is_a(ROBIN, "dog")
    assert not wordnet.is_a(ROBIN, "no such word")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "n99999999",
            'unknown synset "n99999999": no noun of WordNet 3.0 has this id; ids of 3.1 are others',
        ),
        ("dog.n.08", 'unknown synset "dog.n.08": as a noun "dog" has dog.n.01 to dog.n.07'),
        ("robot.n.00", 'unknown synset "robot.n.00": as a noun "robot" has robot.n.01 alone'),
        (
            "dog",
            '"dog" is no synset; an id of WordNet 3.0 such as "n02084071", or a name such as "dog.n.01" is '
            "wanted",
        ),
        (
            "stop_sign.n.01",
            'unknown synset "stop_sign.n.01": WordNet 3.0 has no noun "stop_sign"; did you mean "star_sign"? '
            "117798 are known, among them star_sign, storm_signal, topspin, slop_basin, stops, opsin",
        ),
    ],
)
def test_an_unknown_synset_is_one_line(name: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        wordnet.find(name)
    assert str(raised.value) == message


def test_imagenet_against_lvis_is_as_the_paper_has_it() -> None:
    """DiverGen keeps 566 of the 1,000 classes at 0.4."""
    similarity = wordnet.greatest_similarity(synsets("imagenet-1k"), synsets("lvis-v1"))
    assert Counter(np.round(1 / similarity).astype(int).tolist()) == {
        1: 247, 2: 187, 3: 239, 4: 160, 5: 116, 6: 32, 7: 15, 8: 3, 9: 1,
    }  # fmt: skip
    assert (similarity < 0.4).sum() == 566


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_greatest_similarity_is_that_of_the_slow_reference(data: st.DataObject) -> None:
    candidates, known = ([ids()[k] for k in data.draw(places(min_size=1, max_size=4))] for _ in range(2))
    slow = [max(1 / (1 + distance(one, other)) for other in known) for one in candidates]
    assert wordnet.greatest_similarity(candidates, known).tolist() == slow


def test_greatest_similarity_of_nothing_and_to_nothing() -> None:
    assert wordnet.greatest_similarity([], [DOG]).tolist() == []
    assert wordnet.greatest_similarity([DOG, CAT], []).tolist() == [0, 0]
    assert wordnet.greatest_similarity([DOG, CAT], [DOG]).tolist() == [1, 1 / 5]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_farthest_is_that_of_the_slow_reference(data: st.DataObject) -> None:
    candidates, known = ([ids()[k] for k in data.draw(places(max_size=7, unique=True))] for _ in range(2))
    chosen: list[int] = []
    while len(chosen) < len(candidates):
        there = [*known, *(candidates[place] for place in chosen)]
        free = [place for place in range(len(candidates)) if place not in chosen]
        chosen.append(
            min(
                free,
                key=lambda place: (
                    -min((distance(candidates[place], one) for one in there), default=0),
                    make_seed(candidates[place]),
                ),
            )
        )
    for count in (0, 1, len(candidates) // 2, len(candidates)):
        assert wordnet.farthest(candidates, known, count) == chosen[:count]


def test_farthest_does_not_depend_on_the_order_of_candidates() -> None:
    candidates = synsets("imagenet-1k")
    ahead = [candidates[place] for place in wordnet.farthest(candidates, [DOG], 50)]
    candidates.reverse()
    assert [candidates[place] for place in wordnet.farthest(candidates, [DOG], 50)] == ahead


def test_the_data_is_what_the_script_makes_of_wordnet(tmp_path: Path) -> None:
    """On a small WordNet: licence, words in two cases, instances, examples, attributions."""
    folder = tmp_path
    (folder / "index.noun").write_text(
        "  1 This is the licence  \nentity n 1 1 ~ 1 1 00000100  \nra n 2 1 @ 2 0 00000200 00000300  \n"
        "sun_god n 1 1 @ 1 0 00000200  \n"
    )
    (folder / "data.noun").write_text(
        "  1 This is the licence  \n  2  \n"
        '00000100 03 n 01 entity 0 001 ~ 00000200 n 0000 | that which is; "it is"- Someone  \n'
        '00000200 18 n 03 Ra 0 RA 0 sun_god 0 001 @i 00000100 n 0000 | a god (e.g., "the sun"); of Egypt  \n'
        '00000300 18 n 01 Ra 0 001 @ 00000100 n 0000 | a metal: "radium"  \n'
    )
    (folder / "index.verb").write_text("  1 licence\nrun v 2 0 2 1 00000700 00000800  \n")
    (folder / "index.adj").write_text("big a 1 0 1 1 00000900  \n")
    (folder / "index.adv").write_text("")
    for name, forms in {"noun": "men man\n", "verb": "ran run\nran ran\n", "adj": "", "adv": ""}.items():
        (folder / f"{name}.exc").write_text(forms)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import pathlib, wordnet; "
        f"wordnet.TARGET = pathlib.Path({str(folder)!r}); wordnet.main(wordnet.TARGET)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert pq.read_table(folder / "wordnet-3.0-nouns.parquet").to_pylist() == [
        {"offset": 100, "lemmas": ["entity"], "senses": [1], "hypernyms": [], "definition": "that which is"},
        {
            "offset": 200, "lemmas": ["Ra", "RA", "sun_god"], "senses": [1, 1, 1], "hypernyms": [100],
            "definition": 'a god (e.g., "the sun"); of Egypt',
        },
        {"offset": 300, "lemmas": ["Ra"], "senses": [2], "hypernyms": [100], "definition": "a metal"},
    ]  # fmt: skip
    assert (folder / "wordnet-3.0-LICENSE.txt").read_text() == "This is the licence\n"
    rows = pq.read_table(folder / "wordnet-3.0-first-senses.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("n", "men", None, ["man"]), ("v", "run", 700, []),
        ("v", "ran", None, ["ran"]), ("a", "big", 900, []),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "offset"),
    [  # as NLTK 3.10 says of WordNet 3.0; it agreed on 4,387,685 words and forms
        ("dog", 2084071), ("Dogs", 2084071), ("geese", 1855672), ("women", 10787470), ("men", 8212347),
        ("wolves", 2114100), ("boxes", 2883344), ("churches", 8082602), ("rocked", 1875313),
        ("entwined", 1672032), ("unhappiest", 1149494), ("quickly", 85811), ("ate", 9557289),
        ("passionate", 1725713), ("glasses", 4272054), ("axes", 2764044), ("dog,", None), ("", None),
        ("thxxx", None), ("better", 5143558),
    ],
)  # fmt: skip
def test_what_a_word_means_first(word: str, offset: int | None) -> None:
    assert wordnet.first_offset(word) == offset
