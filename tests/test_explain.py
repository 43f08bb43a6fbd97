"""What `select --explain` says is what the rules did: ranks, bars, turns, which other sample."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from conftest import data_digests
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import subsets
from synthgen.cli import main
from synthgen.selection import Quota, Rule, select
from synthgen.selection.explaining import Look, explain

Columns = dict[str, npt.NDArray[np.generic]]
NAN = float("nan")
RULES = [
    Rule("range", {"column": "score", "minimum": 0.25, "maximum": None}),
    Rule("duplicates", {"column": "hash", "best": "", "per": "class"}),
    Rule("top", {"column": "other", "fraction": 0.5, "count": None, "per": "class"}),
    Rule("sample", {"fraction": None, "count": 2, "per": "class", "seed": 3}),
]
rows = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 0.5, NAN]),
        st.sampled_from("abc"),
        st.sampled_from("xyz"),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=30,
)


def columns(given_rows: list[tuple[float, str, str, int]]) -> Columns:
    return {
        "uid": np.array([f"{k * 7919 % 1000:032x}" for k in range(len(given_rows))]),
        "class_name": np.array([name for _, name, _, _ in given_rows]),
        "class_id": np.array(["abc".index(name) for _, name, _, _ in given_rows]),
        "turn": np.arange(len(given_rows)) // 3,
        "error": np.array(["black" if k % 7 == 6 else "" for k in range(len(given_rows))], dtype="U8"),
        "score": np.array([score for score, *_ in given_rows], dtype=np.float32),
        "hash": np.array([value for _, _, value, _ in given_rows]),
        "other": np.array([number for *_, number in given_rows], dtype=np.float32),
    }


@settings(deadline=None)
@given(rows, st.sampled_from([None, Quota(2, ["class"]), Quota(3, [])]))
def test_what_is_said_agrees_with_the_verdict(
    given_rows: list[tuple[float, str, str, int]], quota: Quota | None
) -> None:
    """A rank within the number that is kept, a turn within the number that is needed, and nothing else,
    passes.
    """
    given_columns = columns(given_rows)
    rules = [*RULES[:2], RULES[3]] if quota and quota.per else RULES[:2] if quota else RULES
    chosen = select(given_columns, rules, quota)
    for row, code in enumerate(chosen.verdict.tolist()):
        looks = explain(given_columns, row, chosen, rules, quota)
        assert [look.rule.removeprefix(f"select.{k - 1} ") for k, look in enumerate(looks)][:3] == [
            label for _, label in chosen.steps
        ][:3]
        place = next((k for k, (step, _) in enumerate(chosen.steps) if step == code), len(looks))
        said = [look.verdict for look in looks]
        assert said == [
            "passed" if k < place else "rejected" if k == place else "not reached" for k in range(len(looks))
        ]
        for look in looks[: place + 1]:
            numbers = re.search(r"(?:rank|number) (\d+) of (\d+) .*the first (\d+) are", look.saw)
            if numbers:
                rank, number, kept = map(int, numbers.groups())
                assert 1 <= rank <= number >= kept
                assert (rank <= kept) == (look.verdict == "passed")
            if "duplicates" in look.rule:
                assert ("this one was asked for first" in look.saw or "no other" in look.saw) == (
                    look.verdict == "passed"
                )
            if "range" in look.rule:
                assert ("is missing" in look.saw or "= 0;" in look.saw) == (look.verdict == "rejected")


OTHERS = [
    Rule("adaptive_bar", {"column": "score", "bar": 0.5, "tolerance": 0.25, "per": "class"}),
    Rule("balance", {"target": 2, "per": "class", "seed": 1}),
    Rule("datacomp_clip_score", {"column": "other", "threshold": None, "fraction": 0.4}),
    Rule("duplicates", {"column": "bits", "distance": 1, "best": "other", "per": "class", "features": ""}),
    Rule(
        "duplicates", {"column": "", "features": "img", "epsilon": 0.1, "best": "", "per": [], "clusters": 0}
    ),
    Rule("decontaminate", {"annotation": "eval", "similarity": 0.4, "distance": 1}),
]


@settings(deadline=None)
@given(rows, st.sampled_from(OTHERS))
def test_what_other_rules_compared_decides_as_they_did(
    given_rows: list[tuple[float, str, str, int]], rule: Rule
) -> None:
    given_columns = columns(given_rows)
    angle = np.array([number for *_, number in given_rows]) / 3.0
    given_columns["img"] = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
    given_columns["bits"] = 2 ** np.array([number for *_, number in given_rows], np.uint64)
    given_columns["bits"][given_columns["hash"] == "x"] |= np.uint64(1)
    given_columns["eval_max"] = given_columns["score"]
    given_columns["eval_phash_distance"] = given_columns["other"]
    uid = given_columns["uid"].tolist()
    chosen = select(given_columns, [rule])
    for row in np.flatnonzero(given_columns["error"] == "").tolist():
        look = explain(given_columns, row, chosen, [rule], None)[1]
        said = look.saw
        if bar := re.search(r"score = ([-\d.e]+); at least ([-\d.e]+) is", said):
            passes = float(bar[1]) >= float(bar[2])
        elif drew := re.search(r"drew ([\d.e-]+), and less than ([\d.e-]+) is", said):
            passes = float(drew[1]) < float(drew[2])
        elif rank := re.search(r"rank (\d+) of .* the first (\d+), and", said):
            tied = np.sort(given_columns["other"][given_columns["error"] == ""])[::-1][int(rank[2]) - 1]
            passes = int(rank[1]) <= int(rank[2]) or given_columns["other"][row] == tied
        elif near := re.search(r"(\d+) bits from (\w+), .* more than 1 are", said):
            both = given_columns["bits"][[row, uid.index(near[2])]]
            assert int(near[1]) == int(both[0] ^ both[1]).bit_count()
            passes = int(near[1]) > 1
        elif cosine := re.search(r"cosine ([-\d.e]+) with (\w+), .* at most 0.9 is", said):
            other = uid.index(cosine[2])
            assert abs(np.cos(angle[row] - angle[other]) - float(cosine[1])) < 2e-3
            passes = float(cosine[1]) <= 0.9
        elif rule.use == "decontaminate":
            passes = "missing" not in said and bool(
                given_columns["score"][row] < 0.4 and given_columns["other"][row] > 1
            )
            assert "; less than 0.4 is wanted; eval_phash_distance = " in said
        else:
            passes = "missing" not in said and ("the first of" in said or "this one is" in said)
        assert (look.verdict == "passed") == passes, said


def test_each_rule_says_what_it_compared() -> None:
    given_columns = columns(
        [(0.5, "a", "x", 1), (0.5, "a", "x", 3), (0.5, "a", "y", 3), (0.125, "a", "z", 0)]
    )
    uid = given_columns["uid"].tolist()
    rules = [
        RULES[0],
        Rule("duplicates", {"column": "hash", "best": "other", "per": []}),
        RULES[2]._replace(of="pool", number=5),
    ]
    chosen = select(given_columns, rules)
    names = [
        "generated",
        "select.0 range score minimum=0.25",
        "select.1 duplicates hash best=other per=[]",
        "select.5 top other fraction=0.5 per=class of=pool",
    ]
    bar = "at least 0.25 is wanted"

    def looks(row: int, *saw: str, rejected: int | None = None) -> list[Look]:
        last = len(names) if rejected is None else rejected
        verdicts = ["passed" if k < last else "rejected" if k == last else "not reached" for k in range(4)]
        said = [*saw, *[""] * (4 - len(saw))]
        return [Look(*look) for look in zip(names, said, verdicts, strict=True)]

    def found(row: int) -> list[Look]:
        return explain(given_columns, row, chosen, rules, None)

    image = "there is an image"
    same = "hash = x; 2 of all have it, of which"
    assert found(3) == looks(3, image, f"score = 0.125; {bar}", rejected=1)
    assert found(0) == looks(
        0, image, f"score = 0.5; {bar}", f"{same} {uid[1]} is the greatest in other", rejected=2
    )
    # of the pool: ranked among all four, ties by uid
    first, second = (2, 1) if uid[2] < uid[1] else (1, 2)
    ranked = "other = 3; rank {} of 4 of class_name a; the first 2 are kept"
    for row, rank in ((first, 1), (second, 2)):
        duplicate = (
            f"{same} this one is the greatest in other" if row == 1 else "hash = y; no other of all has it"
        )
        assert found(row) == looks(row, image, f"score = 0.5; {bar}", duplicate, ranked.format(rank))


def test_the_funnel_is_printed_with_what_loses_most(
    emoji_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["select", "emoji", "-o", str(emoji_run), "--set", "quota.requests=2", "--explain"]
    before = data_digests(emoji_run)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    told = subsets.told(emoji_run, "main")
    assert lines[0] == f"subset main: {told['kept']} of 96 kept"
    for line, stage in zip(lines[2:], told["funnel"], strict=False):
        numbers = [stage["before"], stage["before"] - stage["after"], stage["after"]]
        share = f"{100 * stage['after'] / 96:.0f}%"
        assert line.split()[-4:] == [*map(str, numbers), share]
        assert line.startswith(stage["rule"])
    assert "class, least kept of 48:" in lines
    assert "template, least kept of 2:" in lines
    assert not any(line.startswith("model") for line in lines)  # there is one
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shares = [one["kept"] / one["requested"] for one in found["groups"]["class"]]
    assert shares == sorted(shares)
    for groups in found["groups"].values():
        for one in groups:
            assert one["requested"] - one["kept"] == sum(one["rejected"].values())
    assert data_digests(emoji_run) == before


def test_a_sample_is_explained_by_the_beginning_of_its_uid(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = ["--set", "quota.requests=2", "--set", "select.0.minimum=0.3"]
    command = ["select", "emoji", "-o", str(run_copy), *strict, "--subset", "strict", "--explain"]
    assert main(command) == 0  # it selects first where that is not done
    capsys.readouterr()
    by_verdict = defaultdict(list)
    for row in pq.read_table(run_copy / "subsets" / "strict.parquet").to_pylist():
        by_verdict[row["verdict"]].append(row["uid"])
    assert len(by_verdict) > 1
    for verdict, uids in by_verdict.items():
        assert main([*command, uids[0][:12]]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{uids[0]}: {verdict}"
        verdicts = Counter(line.split("  ")[0] for line in lines if not line.startswith("  "))
        assert verdicts["rejected"] == (verdict != "kept")
        assert any(line.startswith("  template") for line in lines)
    assert main([*command, uids[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["uid"] == uids[0]
    assert next(look["rule"] for look in found["looks"]) == "generated"
    assert main([*command, "none"]) == 2
    assert capsys.readouterr().err == f"synthgen: {run_copy}: none is no uid of the pool\n"
    shortest = Counter(uid[0] for own in by_verdict.values() for uid in own).most_common(1)[0][0]
    assert main([*command, shortest]) == 2
    assert f"{run_copy}: {shortest} is the beginning of " in capsys.readouterr().err
    assert main(["combine", str(run_copy), "weak", "pool minus strict"]) == 0
    capsys.readouterr()
    uid = by_verdict["kept"][0]
    assert main([*command[:-2], "weak", "--explain", uid]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "rejected     pool minus strict: in strict"
