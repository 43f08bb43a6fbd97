"""The designed order: counts that differ by at most one over any prefix, pairs that repeat late."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.prompts.allocation import Design

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def rows_of(sizes: list[int], uses: list[list[bool]], n: int, seed: int = 0) -> list[list[int]]:
    design = Design([len(uses), *sizes], [[True, *own] for own in uses], seed, None)
    return [design.row(number) for number in range(n)]


def worst_difference(rows: list[list[int]], axis: int, size: int) -> int:
    """Over all prefixes, the greatest difference between the counts of two words."""
    counts, worst = Counter(dict.fromkeys(range(size), 0)), 0
    for row in rows:
        if row[axis] >= 0:
            counts[row[axis]] += 1
        worst = max(worst, max(counts.values()) - min(counts.values()))
    return worst


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_over_any_prefix_counts_differ_by_at_most_one(sizes: list[int], data: st.DataObject) -> None:
    """Among the rows whose template has the axis, whatever the templates have."""
    own = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))
    uses = data.draw(st.lists(own, min_size=1, max_size=5))
    uses[0] = [True] * len(sizes)
    rows = rows_of(sizes, uses, 60, seed=data.draw(st.integers(0, 99)))
    for axis, size in enumerate([len(uses), *sizes]):
        assert worst_difference(rows, axis, size) <= 1
    for template, *words in rows:
        assert [word >= 0 for word in words] == uses[template]


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(0, 99), st.integers(1, 40))
def test_a_row_does_not_depend_on_how_far_one_looks(sizes: list[int], seed: int, n: int) -> None:
    assert rows_of(sizes, [[True] * len(sizes)], 50, seed)[:n] == rows_of(
        sizes, [[True] * len(sizes)], n, seed
    )


@pytest.mark.parametrize("sizes", [[3, 14], [14, 14], [4, 4], [2, 2], [7, 20]])
def test_two_axes_meet_in_every_pair_before_one_repeats(sizes: list[int]) -> None:
    n = sizes[0] * sizes[1]
    assert len({tuple(row) for row in rows_of(sizes, [[True, True]], n)}) == n


def test_pairs_come_before_triples() -> None:
    """Of all pairs of words, far more are met than by chance (63 %), as soon as they could all be."""
    sizes = [10, 10, 12, 16, 20]
    rows = rows_of(sizes, [[True] * 5] * 4, 320)
    for one, other in combinations(range(1, 6), 2):
        n = sizes[one - 1] * sizes[other - 1]
        assert len({(row[one], row[other]) for row in rows[:n]}) / n > 0.8
    assert len({tuple(row[1:]) for row in rows}) == len(rows)


def test_what_may_not_stand_together_does_not_and_counts_still_level() -> None:
    def is_allowed(words: dict[int, int]) -> bool:
        return not (
            (words.get(1) in (1, 2) and words.get(2) == 3) or (words.get(2) == 0 and words.get(3) == 1)
        )

    sizes = [5, 6, 10]
    design = Design([1, *sizes], [[True] * 4], 0, is_allowed)
    rows = [design.row(number) for number in range(300)]
    assert all(is_allowed(dict(enumerate(row))) for row in rows)
    assert all(worst_difference(rows, axis + 1, size) <= 1 for axis, size in enumerate(sizes))


def test_rules_that_no_round_fits_are_kept_and_levelled_later() -> None:
    """Word 0 of the second axis goes with nothing but word 0 of the first: a third of the rows."""
    design = Design([1, 3, 2], [[True] * 3], 0, lambda words: words.get(2) != 0 or words.get(1) == 0)
    rows = [design.row(number) for number in range(90)]
    assert all(row[2] != 0 or row[1] == 0 for row in rows)
    assert Counter(row[1] for row in rows) == {0: 30, 1: 30, 2: 30}
    assert Counter(row[2] for row in rows) == {0: 30, 1: 60}


def test_a_word_that_may_stand_nowhere_is_an_error_that_names_the_axis() -> None:
    design = Design([1, 2, 2], [[True] * 3], 0, lambda words: words.get(1) != 1 or 2 not in words)
    with pytest.raises(ValueError, match="2"):
        [design.row(number) for number in range(4)]
