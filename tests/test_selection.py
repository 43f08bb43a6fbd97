"""Rules three ways: by hand with ties, NaN, empty and one; properties; a slow independent reference."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.errors import RecipeError
from synthgen.selection import RULES, Rule, columns_read, select, verdict_names
from synthgen.selection.funnel import left_by_value

Columns = dict[str, npt.NDArray[np.generic]]
NAN = float("nan")


def columns(score: list[float], classes: str = "", **more: npt.NDArray[np.generic]) -> Columns:
    n = len(score)
    return {
        "uid": np.array([f"{k:032x}" for k in range(n)], dtype="U32"),
        "class_name": np.array(list(classes) or ["a"] * n, dtype="U8"),
        "error": np.array([""] * n, dtype="U8"),
        "score": np.array(score, dtype=np.float32),
        **more,
    }


def kept(mask: npt.NDArray[np.bool_]) -> list[int]:
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"minimum": 0.29}, [1, 2, 4]),
        ({"maximum": 0.29}, [0, 1]),
        ({"minimum": 0.29, "maximum": 0.29}, [1]),
        ({"minimum": 2.0}, []),
    ],
)
def test_range_includes_its_bounds_in_float32_and_never_nan(
    bounds: dict[str, float], expected: list[int]
) -> None:
    given_columns = columns([0.1, 0.29, 0.3, NAN, 1.0])
    assert kept(RULES["range"](given_columns, column="score", **bounds)) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"count": 2}, [1, 3]),
        ({"count": 3}, [0, 1, 3]),  # 0 and 2 tie: the smaller uid
        ({"count": 9}, [0, 1, 2, 3]),  # NaN is never kept
        ({"count": 0}, []),
        ({"fraction": 1.0}, [0, 1, 2, 3]),
        ({"fraction": 0.0}, []),
        ({"fraction": 0.5}, [0, 1, 3]),  # 2.5 of 5 is 3
        ({"fraction": 0.3}, [1, 3]),  # 1.5 is 2
    ],
)
def test_top_keeps_exactly_its_count(keys: dict[str, float], expected: list[int]) -> None:
    assert kept(RULES["top"](columns([0.5, 0.9, 0.5, 0.7, NAN]), column="score", **keys)) == expected


def test_top_works_within_each_class() -> None:
    given_columns = columns([1, 2, 3, 4, 5, 6], "aaabbb")
    assert kept(RULES["top"](given_columns, column="score", count=1)) == [2, 5]
    assert kept(RULES["top"](given_columns, column="score", count=1, per=[])) == [5]


@pytest.mark.parametrize("rule", ["top", "sample"])
@pytest.mark.parametrize("keys", [{}, {"count": 1, "fraction": 0.5}, {"fraction": 1.5}, {"count": -1}])
def test_one_of_fraction_and_count(rule: str, keys: dict[str, float]) -> None:
    column = {"column": "score"} if rule == "top" else {}
    with pytest.raises(RecipeError, match=rule):
        RULES[rule](columns([1.0]), **column, **keys)


def test_duplicates_keep_the_best_of_a_value() -> None:
    text = np.array(["x", "y", "x", "", "y"])
    given_columns = columns([0.1, 0.5, 0.9, 1.0, 0.5], text=text)
    assert kept(RULES["duplicates"](given_columns, column="text")) == [0, 1]
    assert kept(RULES["duplicates"](given_columns, column="text", best="score")) == [1, 2]


def test_duplicates_look_within_the_cell_or_the_whole_pool() -> None:
    given_columns = columns([1, 1, 2], "aab")
    assert kept(RULES["duplicates"](given_columns, column="score")) == [0, 2]
    given_columns["score"] = np.array([1, 2, 1], dtype=np.float32)
    assert kept(RULES["duplicates"](given_columns, column="score")) == [0, 1, 2]
    assert kept(RULES["duplicates"](given_columns, column="score", per=[])) == [0, 1]


def test_sample_is_a_matter_of_the_uid_alone() -> None:
    one = columns([0] * 20)
    mask = RULES["sample"](one, count=7)
    order = np.random.default_rng(0).permutation(20)
    shuffled = {name: values[order] for name, values in one.items()}
    assert sorted(shuffled["uid"][RULES["sample"](shuffled, count=7)]) == sorted(one["uid"][mask])
    assert kept(RULES["sample"](one, count=7, seed=1)) != kept(mask)


@pytest.mark.parametrize("rule", ["duplicates", "range", "sample", "top"])
def test_an_empty_pool_and_one_row(rule: str) -> None:
    keys: dict[str, object] = {"range": {"minimum": 0.0}, "top": {"count": 1}, "sample": {"count": 1}}.get(
        rule, {}
    )
    keys = keys | ({} if rule == "sample" else {"column": "score"})
    assert RULES[rule](columns([]), **keys).shape == (0,)
    assert kept(RULES[rule](columns([0.5]), **keys)) == [0]


scores = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, NAN]), st.sampled_from("abc")), max_size=40)


@given(scores, st.integers(0, 5) | st.floats(0, 1))
def test_top_agrees_with_a_slow_reference(rows: list[tuple[float, str]], how_many: float) -> None:
    given_columns = columns([score for score, _ in rows], "".join(name for _, name in rows))
    keys = {"count": how_many} if isinstance(how_many, int) else {"fraction": how_many}
    cells = defaultdict(list)
    for k, (score, name) in enumerate(rows):
        cells[name].append((-score if score == score else float("inf"), k))
    expected = []
    for members in cells.values():
        n = how_many if isinstance(how_many, int) else int(len(members) * how_many + 0.5)
        expected += [k for score, k in sorted(members)[:n] if score != float("inf")]
    assert kept(RULES["top"](given_columns, column="score", **keys)) == sorted(expected)


@given(scores)
def test_every_row_has_one_verdict_and_the_funnel_adds_up(rows: list[tuple[float, str]]) -> None:
    given_columns = columns([score for score, _ in rows], "".join(name for _, name in rows))
    given_columns["error"] = np.array(["black" if k % 5 == 4 else "" for k in range(len(rows))], dtype="U8")
    rules = [
        Rule("range", {"column": "score", "minimum": 0.25}),
        Rule("top", {"column": "score", "fraction": 0.5}),
    ]
    chosen = select(given_columns, rules)
    assert (chosen.kept == (chosen.verdict == -1)).all()
    assert not chosen.kept[given_columns["error"] != ""].any()
    assert [stage.before for stage in chosen.funnel[1:]] == [stage.after for stage in chosen.funnel[:-1]]
    assert chosen.funnel[-1].after == chosen.kept.sum()
    for number, stage in enumerate(chosen.funnel[1:]):
        assert stage.before - stage.after == (chosen.verdict == number).sum()
    names = pa.chunked_array([pa.array(given_columns["class_name"].tolist(), pa.string())])
    left = left_by_value(names, chosen.verdict, chosen.steps)
    for name, counts in left.items():
        own = chosen.verdict[given_columns["class_name"] == name]
        alive = [len(own), *((np.isin(own, codes)).sum() for codes in ([-1, 0, 1], [-1, 1], [-1]))]
        assert counts == alive
    totals = np.sum([[0] * 4, *left.values()], axis=0).tolist()
    assert totals == [len(rows), *(stage.after for stage in chosen.funnel)]


def test_columns_read_names_what_a_rule_needs() -> None:
    rule = Rule("duplicates", {"column": "clip_margin", "per": ["class", "background"], "best": ""})
    assert columns_read(rule) == {
        "column": "clip_margin",
        "per.0": "class_name",
        "per.1": "axis_background",
    }


@given(scores)
def test_of_the_pool_judges_as_if_a_rule_stood_alone(rows: list[tuple[float, str]]) -> None:
    given_columns = columns([score for score, _ in rows], "".join(name for _, name in rows))
    given_columns["error"] = np.array(["black" if k % 5 == 4 else "" for k in range(len(rows))], dtype="U8")
    half = {"column": "score", "fraction": 0.5}
    rules = [Rule("sample", {"count": 2}), Rule("top", half, of="pool", number=7)]
    chosen = select(given_columns, rules)
    alone = [select(given_columns, [rule._replace(of="survivors")]) for rule in rules]
    assert (chosen.kept == (alone[0].kept & alone[1].kept)).all()
    first = np.where(alone[0].verdict == 0, 0, np.where(alone[1].verdict == 0, 1, alone[0].verdict))
    assert (chosen.verdict == first).all()
    assert verdict_names(rules) == {
        -1: "kept",
        -2: "failed",
        -3: "quota",
        0: "select.0 sample count=2",
        1: "select.7 top score fraction=0.5 of=pool",
    }


def test_a_uid_that_is_there_twice_is_refused() -> None:
    given_columns = columns([1, 2, 3, 4])
    given_columns["uid"][2] = given_columns["uid"][0]
    with pytest.raises(RecipeError, match=f"uid {0:032x} is in the pool 2 times, and 0 others are there"):
        select(given_columns, [])
    given_columns["uid"][2] = f"{0:016x}{2**64 - 1:016x}"  # only half of it is another's
    assert select(given_columns, []).kept.all()


def test_a_cell_is_made_of_any_column_of_texts_or_whole_numbers() -> None:
    given_columns = columns([1, 2, 3, 4], clusters_id=np.array([0, 1, 0, 1], np.int32))
    assert kept(RULES["top"](given_columns, column="score", count=1, per="clusters_id")) == [2, 3]
    given_columns["axis_clusters_id"] = np.array(list("xxyz"), dtype=object)
    with pytest.raises(RecipeError, match='"clusters_id" is a column and an axis; write "axis_clusters_id"'):
        RULES["top"](given_columns, column="score", count=1, per="clusters_id")
    assert kept(RULES["top"](given_columns, column="score", count=1, per="axis_clusters_id")) == [1, 2, 3]
    with pytest.raises(RecipeError, match='"score" holds fractions'):
        RULES["top"](
            given_columns | {"score": given_columns["score"] / 8}, column="score", count=1, per="score"
        )


def test_whole_numbers_that_are_missing_are_not_kept() -> None:
    hashes = np.ma.array([7, 7, 0, 2**63], np.uint64, mask=[False, False, True, False])
    clusters = np.array([0, np.nan, 1, 1])
    given_columns = columns([1, 2, 3, 4], hash=hashes, cluster=clusters)
    assert kept(select(given_columns, [Rule("duplicates", {"column": "hash", "per": []})]).kept) == [0, 3]
    top = Rule("top", {"column": "score", "count": 2, "per": "cluster"})
    assert kept(select(given_columns, [top]).kept) == [0, 2, 3]


def test_whole_numbers_that_are_missing_are_nan_to_what_compares() -> None:
    """Of 64 bits, they come masked: they count in a fraction, and are the least of a duplicate's `best`."""
    votes = np.ma.array([4, 3, 0, 0], np.int64, mask=[False, False, True, True])
    given_columns = columns([1, 1, 2, 3], votes=votes)
    top = Rule("top", {"column": "votes", "fraction": 0.5, "per": []})
    assert kept(select(given_columns, [top]).kept) == [0, 1]
    assert kept(select(given_columns, [Rule("range", {"column": "votes", "minimum": 0})]).kept) == [0, 1]
    best = Rule("duplicates", {"column": "score", "best": "votes", "per": []})
    assert kept(select(given_columns, [best]).kept) == [0, 2, 3]


def test_samples_asked_for_later_change_no_cosine() -> None:
    """Of products of other shapes the last bits differ, and with them what is above one of these cosines."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 64)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit[:9] @ unit[:9].T

    def first(n: int, limit: float) -> list[int]:
        some = columns([0.0] * n, img=unit[:n])
        return kept(RULES["duplicates"](some, features="img", epsilon=1 - limit, clusters=0))

    for limit in cosines[np.tri(9, k=-1, dtype=bool)].tolist():
        every = first(300, limit)
        for n in (9, 10, 13, 50, 299):
            assert first(n, limit) == [row for row in every if row < n]


def test_near_duplicates_of_a_chain_are_judged_by_dropped_ones_too() -> None:
    hashes = np.array([0b0, 0b1, 0b11, 0b11111], np.uint64)
    given_columns = columns([0, 1, 2, 3], hash=hashes)
    assert kept(RULES["duplicates"](given_columns, column="hash", distance=1)) == [0, 3]
    assert kept(RULES["duplicates"](given_columns, column="hash", distance=1, best="score")) == [2, 3]
    assert kept(RULES["duplicates"](given_columns, column="hash", distance=3)) == [0]


@pytest.mark.parametrize("distance", [1, 4, 10, 16])
def test_near_duplicates_find_every_pair(distance: int) -> None:
    """On many hashes in crowded groups, so that bands of all kinds are used."""
    random = np.random.default_rng(distance)
    near = random.integers(0, 2**63, 40, dtype=np.uint64)[random.integers(0, 40, 600)]
    for _ in range(distance // 2 + 1):
        near ^= np.uint64(1) << random.integers(0, 64, 600, dtype=np.uint64)
    given_columns = columns([0.0] * 600, "ab" * 300, hash=near)
    mask = RULES["duplicates"](given_columns, column="hash", distance=distance)
    far = np.bitwise_count(near[:, None] ^ near[None, :]) > distance
    other = np.arange(600)[:, None] % 2 != np.arange(600)[None, :] % 2
    assert (mask == (far | other | ~np.tri(600, k=-1, dtype=bool)).all(axis=1)).all()
    assert 0 < mask.sum() < 600


def test_semantic_duplicates_within_clusters() -> None:
    """Clusters lose only pairs that k-means parts, and no one is dropped who would not be among all pairs."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(20, 32))
    vectors = centres[random.integers(0, 20, 800)] + 0.3 * random.normal(size=(800, 32))
    vectors[400:] = vectors[:400] + 0.01 * random.normal(size=(400, 32))
    given_columns = columns([0.0] * 800, img=vectors.astype(np.float16))
    exact = RULES["duplicates"](given_columns, features="img", epsilon=0.01, clusters=0)
    clustered = RULES["duplicates"](given_columns, features="img", epsilon=0.01, clusters=20)
    assert kept(exact) == list(range(400))
    assert set(kept(exact)) <= set(kept(clustered))
    assert clustered.sum() <= 404
    hard = RULES["duplicates"](given_columns, features="img", epsilon=0.01, clusters=20, order="hard")
    assert 400 <= hard.sum() <= 404
    assert kept(hard) != kept(clustered)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give either column or features"),
        ({"column": "score", "features": "img"}, "give either column or features"),
        ({"features": "img"}, "features want epsilon"),
        ({"features": "img", "epsilon": 0.0}, "epsilon = 0.0; between 0 and 2"),
        ({"column": "score", "epsilon": 0.1}, "epsilon is for features"),
        ({"column": "score", "distance": 4}, '"score" holds float32; a column of whole numbers of 64 bits'),
        ({"column": "score", "distance": 17}, "distance = 17; 0 to 16"),
        ({"features": "score", "epsilon": 0.1}, '"score" is a column; features are wanted'),
        ({"features": "img", "epsilon": 0.1, "best": "score", "order": "hard"}, "either best or order"),
    ],
)
def test_keys_of_duplicates_that_do_not_go_together(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RULES["duplicates"](columns([0.5], img=np.ones((1, 3), np.float16)), **keys)
