"""Named subsets: several of a recipe, combined ones, and files of uids that others wrote."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import data_digests
from hypothesis import given
from hypothesis import strategies as st

from synthgen import subsets
from synthgen.cli import main
from synthgen.combining import combine
from synthgen.errors import FolderError, RecipeError
from synthgen.inspection import status, verify
from synthgen.selection.expressions import Expression, Operation, parse, spell
from synthgen.selection.expressions import combine as evaluate
from synthgen.uids import rows_of, sort_uids, uid_array, uid_strings

NAMES = ["a", "b", "c", "my list.npy"]
TWO = ["--set", "quota.requests=2"]
expressions = st.recursive(
    st.sampled_from(NAMES),
    lambda inner: st.builds(Operation, st.sampled_from(["and", "or", "minus"]), inner, inner),
    max_leaves=6,
)
counters = st.lists(st.integers(0, 9), max_size=12).map(Counter)


def slow(expression: Expression, given: dict[str, Counter[int]]) -> Counter[int]:
    """The same by plain counting."""
    if isinstance(expression, str):
        return given[expression]
    left, right = slow(expression.left, given), slow(expression.right, given)
    if expression.operator == "or":
        return left | right
    if expression.operator == "and":
        return Counter({uid: max(left[uid], right[uid]) for uid in left if uid in right})
    return Counter({uid: number for uid, number in left.items() if uid not in right})


@given(expressions, st.tuples(*[counters] * len(NAMES)), st.sets(st.integers(0, 9)))
def test_combining_agrees_with_plain_counting(
    expression: Expression, holds: tuple[Counter[int], ...], failed: set[int]
) -> None:
    given_counts = {
        name: Counter({uid: n for uid, n in own.items() if uid not in failed})
        for name, own in zip(NAMES, holds, strict=True)
    }
    arrays = {name: np.array([own[uid] for uid in range(10)]) for name, own in given_counts.items()}
    written = np.array([uid not in failed for uid in range(10)])
    verdict, words, copies = evaluate(expression, arrays, written)
    expected = slow(expression, given_counts)
    assert dict(enumerate(copies.tolist())) == {uid: expected[uid] for uid in range(10)}
    for uid, code in enumerate(verdict.tolist()):
        assert (code == -1) == (copies[uid] > 0)
        assert (code == -2) == (uid in failed)
        if code >= 0:  # the reason is true of the sample
            is_in = words[code].startswith("in ")
            reason = parse(words[code].removeprefix("not ").removeprefix("in "))
            assert (slow(reason, given_counts)[uid] > 0) == is_in


@given(expressions)
def test_the_spelling_of_an_expression_is_read_as_that_expression(expression: Expression) -> None:
    assert parse(spell(expression)) == expression


def test_a_path_is_spelt_by_its_name_and_the_reasons_say_which() -> None:
    expression = parse("(strict or /home/me/old.npy)and sharp minus 'my lists/bad ones.npy'")
    assert spell(expression) == "(strict or old.npy) and sharp minus 'bad ones.npy'"
    names = ["strict", "/home/me/old.npy", "sharp", "my lists/bad ones.npy"]
    holds = dict(zip(names, np.array([[1, 0, 0, 1], [0, 2, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]), strict=True))
    verdict, words, copies = evaluate(expression, holds, np.ones(4, bool))
    assert [words.get(code, "kept") for code in verdict.tolist()] == [
        "in 'bad ones.npy'",
        "kept",
        "not in strict or old.npy",
        "not in sharp",
    ]
    assert copies.tolist() == [0, 2, 0, 0]  # no filter undoes oversampling


EXAMPLE = 'such as "strict and not_nsfw minus takedown.npy"'
WRONG = {
    "": f"is empty; names of subsets are wanted, {EXAMPLE}",
    "  ": f"is empty; names of subsets are wanted, {EXAMPLE}",
    "()": f'(): a subset is missing before ")", {EXAMPLE}',
    "(a": "(a: 1 parentheses are opened, 0 closed",
    "a)": "a): 0 parentheses are opened, 1 closed",
    "a) and (b": f"a) and (b: a parenthesis is closed that is not open; {EXAMPLE}",
    "a b": f'a b: "b" stands where and, or, or minus is wanted, {EXAMPLE}',
    "a (b)": f'a (b): "(" stands where and, or, or minus is wanted, {EXAMPLE}',
    "a minus": f"a minus: a subset is missing at the end, {EXAMPLE}",
    "and a": f'and a: a subset is missing before "and", {EXAMPLE}',
    "a or b minus c": "a or b minus c: `or` beside `minus`; say by parentheses which goes first, such as "
    "(a or b) minus c",
    "a and b or c": "a and b or c: `or` beside `and`; say by parentheses which goes first, such as "
    "(a or b) minus c",
    "'a": "'a: No closing quotation; quote a path as in 'my lists/a.npy'",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_expression_is_one_clear_line(text: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse(text)
    assert str(error.value) == f"expression: {WRONG[text]}"


def uids(number: int, *, seed: int = 0) -> list[str]:
    """Hex uids of which many share a half."""
    rng = random.Random(seed)
    halves = [f"{rng.getrandbits(64):016x}" for _ in range(4)] + ["0" * 16, "f" * 16]
    every = [high + low for high in halves for low in halves]
    rng.shuffle(every)
    return every[:number]


def test_rows_of_uids() -> None:
    pool, wanted = uids(20), uids(36)
    rows = rows_of(uid_array(wanted + wanted[:3]), uid_array(pool)).tolist()
    assert rows == [pool.index(uid) if uid in pool else -1 for uid in wanted + wanted[:3]]
    assert rows_of(uid_array([]), uid_array(pool)).tolist() == []
    assert rows_of(uid_array(pool), uid_array([])).tolist() == [-1] * 20
    assert uid_strings(sort_uids(uid_array(wanted))) == sorted(wanted)


def test_files_of_uids_are_recognised(tmp_path: Path) -> None:
    array = uid_array(uids(7))  # in no order
    np.save(tmp_path / "a.npy", array)
    raw = np.memmap(tmp_path / "raw", dtype="u8,u8", mode="w+", shape=(7,))
    raw[:] = array
    raw.flush()
    for name in ("a.npy", "raw"):
        assert (subsets.read_array(tmp_path / name) == array).all()


def test_other_files_are_one_clear_line(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(4))
    np.save(tmp_path / "square.npy", uid_array(uids(4)).reshape(2, 2))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut").write_bytes(b"0123456789")
    (tmp_path / "folder").mkdir()
    wanted = "a one-dimensional array of dtype u8,u8 (upper and lower half of each uid) is wanted"
    for name, what in {
        "numbers.npy": "has dtype int64 and shape (4,)",
        "square.npy": "has dtype [('f0', '<u8'), ('f1', '<u8')] and shape (2, 2)",
        "objects.npy": "cannot be read (Object arrays cannot be loaded when allow_pickle=False)",
        "cut": "is no .npy, and 10 bytes are no multiple of 16",
        "folder": "is a folder",
        "gone.npy": "is not there",
    }.items():
        with pytest.raises(FolderError) as error:
            subsets.read_array(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {what}; {wanted}"


def pool_rows(run: Path) -> list[dict[str, object]]:
    return [row for path in sorted(run.glob("pool/*.parquet")) for row in pq.read_table(path).to_pylist()]


def held(run: Path, name: str) -> list[str]:
    """The uids of a subset."""
    return uid_strings(np.load(run / "subsets" / f"{name}.npy", allow_pickle=False))


def test_what_is_left_of_each_class_model_and_template(emoji_run: Path) -> None:
    told = subsets.told(emoji_run, "main")
    verdicts = pq.read_table(emoji_run / "subsets" / "main.parquet").to_pylist()
    assert [row["uid"] for row in verdicts] == [row["uid"] for row in pool_rows(emoji_run)]
    rejected = ["failed", *(f"select.{k} {stage['rule']}" for k, stage in enumerate(told["funnel"][1:]))]
    for what, column in {"class": "class_name", "model": "model", "template": "template"}.items():
        found = Counter(
            (row[column], said["verdict"]) for row, said in zip(pool_rows(emoji_run), verdicts, strict=True)
        )
        names = {name for name, _ in found}
        assert set(told["left"][what]) == names
        for name, left in told["left"][what].items():
            expected = [sum(number for (own, _), number in found.items() if own == name)]
            for verdict in rejected:
                expected.append(expected[-1] - found[name, verdict])
            assert left == expected
            assert expected[-1] == found[name, "kept"]
    assert set(told["left"]["template"]) == {
        "a {style} of a {class} {background}",
        "a {class} {background}, {style}",
    }


def test_a_combined_subset_is_made_verified_shown_and_handed_on(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pool twice over without what another's file takes down, in DataComp's own form."""
    main_uids = held(run_copy, "main")
    rejected = [str(row["uid"]) for row in pool_rows(run_copy) if row["uid"] not in main_uids]
    some = rejected[:1] + main_uids[:7]
    np.save(tmp_path / "half.npy", uid_array(main_uids[5:50]))
    twice = uid_array([*some, *reversed(some), *main_uids[:3]])
    np.save(tmp_path / "twice.npy", twice)
    stray = ["0" * 32, "f" * 32]
    uid_array([main_uids[0], *stray, stray[0]]).tofile(tmp_path / "takedown")
    arguments = ["combine", str(run_copy), "clean"]
    before = data_digests(run_copy)
    expression = (
        f"({tmp_path / 'twice.npy'} or {tmp_path / 'half.npy'}) and main minus {tmp_path / 'takedown'}"
    )
    assert main([*arguments, expression]) == 0
    assert {path: digest for path, digest in data_digests(run_copy).items() if "clean" not in path} == before
    spelt = "(twice.npy or half.npy) and main minus takedown"
    wanted = Counter(uid_strings(twice)) | Counter(main_uids[5:50])
    wanted = Counter({uid: n for uid, n in wanted.items() if uid in main_uids and uid != main_uids[0]})
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"subset clean: {len(wanted)} of 96 kept, {wanted.total()} with repeats ({spelt})",
        f"  {96 - 51} not in twice.npy or half.npy",
        "  1 not in main",
        "  1 in takedown",
    ]
    assert err == (
        f"synthgen: {tmp_path / 'takedown'}: 2 of 3 uids are no written samples of the pool, "
        f"first {'0' * 32}\n"
    )
    assert held(run_copy, "clean") == sorted(wanted.elements())
    told = subsets.told(run_copy, "clean")
    assert (told["kept"], told["copies"]) == (len(wanted), wanted.total())
    assert told["inputs"]["expression"] == spelt
    assert [name for name, _ in told["inputs"]["operands"]] == [
        "twice.npy",
        "half.npy",
        "main.npy",
        "takedown",
    ]
    assert status(run_copy)["combined"] == {"clean": spelt}
    made = data_digests(run_copy)
    assert main([*arguments, expression]) == 0
    assert data_digests(run_copy) == made

    assert main(["reshard", "emoji", "-o", str(run_copy), *TWO, "--subset", "clean"]) == 0
    assert f"subset clean: {len(wanted)} kept, {wanted.total()} with repeats" in capsys.readouterr().out
    assert verify(run_copy) == []
    assert main(["report", str(run_copy), "--subset", "clean"]) == 0
    page = (run_copy / "report" / "index.html").read_text()
    assert f"combined: {spelt}" in page
    assert f"<b>{wanted.total()}</b>with repeats" in page
    assert main(["show", str(run_copy), main_uids[0]]) == 0
    assert "subset clean            in takedown" in capsys.readouterr().out
    # rules are asked of no subset that was given
    assert main(["run", "emoji", "-o", str(run_copy), *TWO, "--subset", "clean", "--workers", "1"]) == 0
    assert held(run_copy, "clean") == sorted(wanted.elements())

    assert main([*arguments, "main and pool"]) == 0  # a view, made anew; what was handed on is not
    assert main(["reshard", "emoji", "-o", str(run_copy), *TWO, "--subset", "clean"]) == 2
    assert 'was made with expression = "(twice.npy or half.npy)' in capsys.readouterr().err
    assert main(["reshard", "emoji", "-o", str(run_copy), *TWO, "--subset", "clean", "--replace"]) == 0
    assert verify(run_copy) == []


def test_wrong_operands_and_names(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "other.npy", uid_array(uids(5)))
    np.save(run_copy / "subsets" / "theirs.npy", uid_array(held(run_copy, "main")[::-1][:9]))
    before = data_digests(run_copy)
    kept = len(held(run_copy, "main"))
    other = tmp_path / "other.npy"
    for name, expression, said in (
        (
            "x",
            "mian",
            f'{run_copy}: no subset "mian"; did you mean "main"? Known: main, pool, theirs; the path of a '
            "file ends in .npy or has a slash",
        ),
        (
            "x",
            f"main and {other}",
            f"expression: main and {other}: nothing is left of the 96 samples of the pool; main has {kept}, "
            f"{other} has 0",
        ),
        ("x", "x minus main", 'expression: is made of "x" itself; give the new subset another name'),
        (
            "pool",
            "main",
            '"pool": letters, digits, - and _ are allowed in a subset\'s name, and not "pool" alone',
        ),
        (
            "main",
            "theirs",
            f"{run_copy}: subset main is what the recipe's rules choose; give the new subset another name, "
            "or add --replace to put it in that one's place",
        ),
        (
            "theirs",
            "main",
            f"{run_copy / 'subsets' / 'theirs.npy'}: was not made by synthgen, and stays; "
            f"`synthgen combine {run_copy} NEW theirs` makes a subset NEW of it",
        ),
    ):
        assert main(["combine", str(run_copy), name, expression]) == 2
        assert capsys.readouterr().err == f"synthgen: {said}\n"
    assert main(["combine", str(run_copy), "theirs", "main", "--replace"]) == 2
    # nor do rules write over what is not ours
    assert main(["select", "emoji", "-o", str(run_copy), *TWO, "--subset", "theirs"]) == 2
    assert "was not made by synthgen" in capsys.readouterr().err
    assert data_digests(run_copy) == before
    assert main(["combine", str(run_copy), "main", "theirs", "--replace"]) == 0
    assert held(run_copy, "main") == sorted(held(run_copy, "theirs"))


def test_an_operand_of_fewer_requests_is_chosen_anew_first(run_copy: Path) -> None:
    path = run_copy / "subsets" / "main.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "requested": 95}))
    with pytest.raises(FolderError, match="subset main was chosen from 95 of 96 requests; select again"):
        combine(run_copy, "x", "pool minus main")


STRICT = """
[[select]]
use = "range"
subset = "strict"
column = "clip_margin"
minimum = 0.2

[[select]]
use = "top"
subset = "best"
of = "pool"
column = "clip_similarity"
count = 1
"""


def test_select_makes_every_named_subset_and_run_hands_on_one(
    run_copy: Path, recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held(run_copy, "main")
    (run_copy / "subsets" / "main.json").unlink()
    with open(recipe_folder / "recipe.toml", "a") as file:
        file.write(STRICT)
    made = ["emoji", *TWO]
    command = [str(recipe_folder), "-o", str(run_copy), *made[1:]]
    assert main(["select", *command, "--subset", "best"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["subset best: 48 kept"]
    assert subsets.names(run_copy) == ["best", "main"]
    assert main(["run", *command, "--workers", "1"]) == 0
    rows = {
        row["uid"]: row
        for path in sorted(run_copy.glob("annotations/clip/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }
    strict = sorted(uid for uid, row in rows.items() if row["clip_margin"] >= np.float32(0.2))
    assert held(run_copy, "strict") == strict
    assert held(run_copy, "main") == before
    assert [path.name for path in (run_copy / "final").iterdir()] == ["main"]
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("subset ")] == [
        f"subset main: {len(before)} kept",
        f"subset strict: {len(strict)} kept",
        "subset best: 48 kept",
    ]
    assert set(pq.read_table(run_copy / "subsets" / "strict.parquet")["verdict"].to_pylist()) == {
        "kept",
        "select.3 range clip_margin minimum=0.2",
    }
    assert main(["combine", str(run_copy), "best", "main"]) == 2
    assert "subset best is what the recipe's rules choose" in capsys.readouterr().err
    shutil.rmtree(run_copy / "subsets")
    assert main(["select", *command]) == 0
    assert subsets.names(run_copy) == ["best", "main", "strict"]


def test_a_quota_is_about_the_subset_that_is_asked_for(run_copy: Path, recipe_folder: Path) -> None:
    """Another named subset is chosen from everything, unless it was asked for itself."""
    path = recipe_folder / "recipe.toml"
    quota = 'per = "class"\naccepted = 1\nmax_requests = 400\n\n'
    text = re.sub(r"(?<=\[quota\]\n).*?\n\n", quota, path.read_text(), flags=re.S)
    shutil.rmtree(run_copy / "final")
    path.write_text(text + STRICT)
    command = [str(recipe_folder), "-o", str(run_copy)]
    rows = {row["uid"]: row["class_name"] for row in pool_rows(run_copy)}

    def of_class(name: str) -> list[int]:
        return sorted(set(Counter(rows[uid] for uid in held(run_copy, name)).values()))

    main(["select", *command])
    assert (of_class("main"), of_class("strict")) == ([1], [1, 2])
    everything = held(run_copy, "strict")
    assert [stage["rule"].split()[0] for stage in subsets.told(run_copy, "strict")["funnel"]] == [
        "generated",
        "range",
    ]
    main(["select", *command, "--subset", "strict"])
    assert of_class("strict") == [1]
    assert set(held(run_copy, "strict")) < set(everything)
    main(["select", *command])
    assert of_class("strict") == [1]
    # of a subset that was given nothing is asked for: no cell of it is short
    np.save(run_copy / "few.npy", uid_array(held(run_copy, "main")[:3]))
    assert main(["combine", str(run_copy), "few", str(run_copy / "few.npy")]) == 0
    assert main(["run", *command, "--subset", "few", "--workers", "1"]) == 0
    assert len(held(run_copy, "few")) == 3
    assert len(pool_rows(run_copy)) == 96


def test_rules_read_features_of_a_pool(run_copy: Path) -> None:
    """Of a pool on disk, whose columns and features lie in other files."""
    rules = '[{ use = "duplicates", features = "clip_img", epsilon = 1.5, per = "class" }]'
    settings = [*TWO, "--set", f"select={rules}", "--subset", "alone"]
    assert main(["select", "emoji", "-o", str(run_copy), *settings]) == 0
    assert status(run_copy)["subsets"]["alone"] == 48
