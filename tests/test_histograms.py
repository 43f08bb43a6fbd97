"""The best part of rows that come in parts: the same rows as the rule `top` keeps of all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.selection import RULES
from synthgen.selection.histograms import Part, is_within, ordered, top_bound
from synthgen.uids import uid_strings

FLOATS = [0.0, -0.0, 1.0, 1.0000001, -1.5, 1e-45, -1e-45, float("inf"), float("-inf"), float("nan"), 0.25]


def parts_of(scores: list[float], cells: list[int], size: int, seed: int) -> list[Part]:
    random = np.random.default_rng(seed)
    uid = np.empty(len(scores), "u8,u8")
    # halves that agree, so that ties are settled by the last digits of uids too
    uid["f0"], uid["f1"] = random.integers(0, 2, len(scores)), random.permutation(len(scores)) * 3 + 2**62
    whole = Part(np.array(scores, np.float32), uid, np.array(cells, np.intp))
    return [Part(*(values[k : k + size] for values in whole)) for k in range(0, max(1, len(scores)), size)]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(FLOATS) | st.floats(width=32), st.integers(0, 2)), max_size=30),
    size=st.integers(1, 7),
    how_many=st.integers(0, 6) | st.floats(0, 1) | st.sampled_from([0.0, 1.0]),
    n_cells=st.sampled_from([1, 3]),
)
def test_parts_give_what_top_keeps_of_all(
    rows: list[tuple[float, int]], size: int, how_many: float, n_cells: int
) -> None:
    keys = {"count": how_many} if isinstance(how_many, int) else {"fraction": how_many}
    parts = parts_of([score for score, _ in rows], [cell % n_cells for _, cell in rows], size, len(rows))
    bound = top_bound(lambda: parts, n_cells=n_cells, **keys)  # type: ignore[arg-type]
    taken = np.concatenate([is_within(part, bound) for part in parts])
    columns = {
        "uid": np.array([uid for part in parts for uid in uid_strings(part.uid)], dtype=object),
        "score": np.concatenate([part.score for part in parts]),
        "cell": np.concatenate([part.cell for part in parts]),
    }
    assert taken.tolist() == RULES["top"](columns, column="score", per="cell", **keys).tolist()


def test_scores_in_order_are_numbers_that_fall() -> None:
    scores = np.array([np.inf, 3e38, 1.0, 1e-45, 0.0, -0.0, -1e-45, -1.0, -np.inf], np.float32)
    numbers = ordered(scores).tolist()
    assert numbers == sorted(numbers)
    assert numbers[4] == numbers[5]
    assert len(set(numbers)) == 8


@pytest.mark.parametrize(("ties", "passes"), [(False, 2), (True, 10)])
def test_two_passes_are_enough_without_ties(ties: bool, passes: int) -> None:
    scores = [0.5] * 100 if ties else (np.arange(100) / 7).tolist()
    parts, calls = parts_of(scores, [0] * 100, 9, 1), []

    def read() -> list[Part]:
        calls.append(1)
        return parts

    bound = top_bound(read, count=31)
    assert sum(int(is_within(part, bound).sum()) for part in parts) == 31
    assert len(calls) <= passes
    assert (len(calls) == 2) == (not ties)
