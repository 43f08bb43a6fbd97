"""Quotas of accepted images: exactly so many, the same ones whatever the rounds, restarts and workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, data_digests
from hypothesis import given, settings
from hypothesis import strategies as st

import synthgen
from synthgen import shards
from synthgen.cli import main
from synthgen.data import Category, Request, Word
from synthgen.errors import RecipeError
from synthgen.inspection import verify
from synthgen.planning import Cell, ModelCall, Source, make_requests, next_ask
from synthgen.prompts.templates import cells, templates
from synthgen.selection import Quota, Rule, check_quota, count_cells, select

CLASSES = [Category(k, name, name) for k, name in enumerate(["cat", "owl", "apple"])]
AXES = {"place": [Word("on grass"), Word("at sea")], "style": [Word("cartoon"), Word("photo")]}
KEYS = {"templates": ["a {style} of a {class} {place}"], "axes": AXES, "grid": ["place"]}
CALLS = [
    ModelCall(name, "f", 4, 3.0, "", "", "float32", 0, 0, weight=weight)
    for name, weight in (("m", 3.0), ("n", 1.0))
]
LONG = 400


def sources() -> list[Source]:
    return [Source(templates(CLASSES, seed=0, **KEYS), cells(CLASSES, **KEYS))]  # type: ignore[arg-type]


def pool(requests: list, yields: dict[str, float]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Columns as generating and annotating would make them: scores are a function of the uid."""
    value = np.array([int(r.uid[:8], 16) / 2**32 for r in requests])
    return {
        "uid": np.array([r.uid for r in requests]),
        "class_id": np.array([r.class_id for r in requests]),
        "class_name": np.array([r.class_name for r in requests]),
        "axis_place": np.array([r.axes["place"] for r in requests]),
        "turn": np.array([r.turn for r in requests]),
        "error": np.array(["not finite" if int(r.uid[8:12], 16) < 2000 else "" for r in requests]),
        "score": value - np.array([1 - yields[r.class_name] for r in requests]),
        "other": np.array([int(r.uid[12:16], 16) % 97 for r in requests], dtype=np.float32),
        "hash": np.array([r.uid[16:17] + r.uid[18:19] for r in requests]),
    }


def first_accepted(
    columns: dict[str, np.ndarray],  # type: ignore[type-arg]
    cell: Cell,
    per: list[str],
    accepted: int,
    fraction: float | None,
) -> list[str] | None:
    """What a cell holds in the end, by brute force over one long sequence: None where that is too short."""
    names = {"class": "class_name", "place": "axis_place"}
    rows = [
        row
        for row in np.lexsort((columns["class_id"], columns["turn"])).tolist()
        if all(columns[names[axis]][row] == value for axis, value in zip(per, cell, strict=True))
    ]
    passed: list[int] = []
    for row in rows:
        is_new = columns["hash"][row] not in {columns["hash"][other] for other in passed}
        if columns["error"][row] == "" and columns["score"][row] >= 0 and is_new:
            passed.append(row)
        best = sorted(passed, key=lambda k: (-columns["other"][k], columns["uid"][k]))
        kept = best if fraction is None else best[: int(len(best) * fraction + 0.5)]
        if len(kept) == accepted:
            return sorted(columns["uid"][kept].tolist())
    return None


def rules(fraction: float | None, per: list[str]) -> list[Rule]:
    found = [
        Rule("range", {"column": "score", "minimum": 0.0}),
        Rule("duplicates", {"column": "hash", "best": "", "per": per}),
    ]
    return found + (
        [] if fraction is None else [Rule("top", {"column": "other", "fraction": fraction, "per": per})]
    )


@settings(max_examples=40, deadline=None)
@given(
    accepted=st.integers(1, 7),
    yields=st.tuples(*[st.floats(0.15, 1.0)] * 3),
    fraction=st.sampled_from([None, 1.0, 0.7, 0.34]),
    per=st.sampled_from([["class"], ["class", "place"], []]),
    pilot=st.integers(0, 4),
)
def test_rounds_end_with_the_first_that_pass(
    accepted: int, yields: tuple[float, ...], fraction: float | None, per: list[str], pilot: int
) -> None:
    """Against a brute-force look at one long sequence; a pilot of fewer changes nothing."""
    by_class = dict(zip(["cat", "owl", "apple"], yields, strict=True))
    crossed = [name for name in per if name != "class"]
    every = list(dict.fromkeys(
        (c.name, *([cell["place"]] if crossed else [])) if per else ()
        for c in CLASSES for cell in cells(CLASSES, **KEYS)[c.name]  # type: ignore[arg-type]
    ))  # fmt: skip
    planned, columns = list[Request](), pool([], by_class)
    for target in ([pilot] if 0 < pilot < accepted else []) + [accepted]:
        while True:
            chosen = select(columns, rules(fraction, per), Quota(target, per))
            counts, kept_counts = count_cells(columns, chosen.kept, per)
            asks = {cell: next_ask(target, kept=kept_counts[cell], made=counts[cell]) for cell in every}
            if not any(asks.values()):
                break
            assert all(ask <= 4 * counts[cell] for cell, ask in asks.items() if counts[cell])
            wanted = {cell: counts[cell] + ask for cell, ask in asks.items()}
            made = make_requests(sources(), CLASSES, CALLS, seed=0, requests=wanted, per=per, skip=counts)
            everything = make_requests(sources(), CLASSES, CALLS, seed=0, requests=wanted, per=per)
            planned += made
            assert {request.uid for request in planned} == {request.uid for request in everything}
            columns = pool(planned, by_class)
    assert set(kept_counts.values()) == {accepted}
    long = pool(make_requests(sources(), CLASSES, CALLS, seed=0, requests=LONG, per=per), by_class)
    expected = [first_accepted(long, cell, per, accepted, fraction) for cell in every]
    assert None not in expected
    assert sorted(columns["uid"][chosen.kept].tolist()) == sorted(
        uid for own in expected for uid in own or []
    )


def test_the_next_ask_goes_by_the_share_that_was_kept() -> None:
    assert next_ask(8, kept=0, made=0) == 16  # 1 of 2, before anything is known
    assert next_ask(8, kept=8, made=9) == next_ask(8, kept=9, made=9) == 0
    assert next_ask(8, kept=4, made=8) == 4 * 10 // 5
    assert next_ask(8, kept=0, made=16) == 4 * 16  # 8 / (1/18) is more than 4 times what was asked for


def test_a_budget_goes_to_the_earliest_turns() -> None:
    wanted = {("cat",): 20, ("owl",): 3, ("apple",): 3}
    keys = {"templates": ["a {style} of a {class} {place}"], "axes": AXES}
    plain = Source(templates(CLASSES, seed=0, **keys), {c.name: [{}] for c in CLASSES})  # type: ignore[arg-type]
    made = make_requests([plain], CLASSES, CALLS, seed=0, requests=wanted, per=["class"], limit=12)
    assert Counter(r.class_name for r in made) == {"cat": 6, "owl": 3, "apple": 3}
    assert [r.turn for r in made] == sorted(r.turn for r in made)


def test_models_go_by_weight_in_each_class() -> None:
    classes = [Category(k, f"c{k}", f"c{k}") for k in range(40)]
    texts = Source(
        templates(
            classes, seed=0, templates=["a {class} {place}", "the {class}"], axes={"place": AXES["place"]}
        ),
        {c.name: [{}] for c in classes},
    )
    made = make_requests([texts], classes, CALLS, seed=0, requests=12, per=["class"])
    for end in (1, 5, 40, 44, 80, 100, 333, 480):
        for own in classes:
            mine = [r.model for r in made[:end] if r.class_name == own.name]
            assert abs(mine.count("m") - 0.75 * len(mine)) < 1
    assert Counter(r.model for r in made[:160]) == {"m": 120, "n": 40}
    for end in (8, 20, 40):  # not all classes begin with the same one
        assert abs([r.model for r in made[:end]].count("m") - 0.75 * end) <= 2


@pytest.mark.parametrize(
    ("rule", "per", "message"),
    [
        (Rule("top", {"column": "s", "fraction": 0.5, "per": []}), ["class"], "reaches over the cells"),
        (
            Rule("duplicates", {"column": "s", "best": "", "per": "model"}),
            ["class"],
            "reaches over the cells",
        ),
        (
            Rule("top", {"column": "s", "count": 3, "per": "class"}),
            ["class"],
            "keeps less than quota.accepted",
        ),
        (Rule("top", {"column": "s", "fraction": 0.0, "per": "class"}), [], "keeps less than quota.accepted"),
        (
            Rule("top", {"column": "s", "fraction": 0.5, "per": "class"}, of="pool", number=3),
            ["class"],
            r"select\.3\.of: \"pool\"; with quota.accepted",
        ),
    ],
)
def test_rules_that_no_quota_can_be_exact_with(rule: Rule, per: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_quota([rule], Quota(5, per))


def test_a_rule_that_compares_stands_last() -> None:
    order = [Rule("top", {"column": "s", "fraction": 0.5, "per": "class"}), Rule("range", {"column": "s"})]
    with pytest.raises(RecipeError, match=r"select\.1: range judges a sample by itself, and stands after"):
        check_quota(order, Quota(5, ["class"]))
    check_quota(order[::-1], Quota(5, ["class"]))
    # the greatest of a value may come late, so this one compares too
    best = Rule("duplicates", {"column": "h", "best": "s", "per": "class"})
    with pytest.raises(RecipeError, match="stands after"):
        check_quota([best, Rule("range", {"column": "s"})], Quota(5, ["class"]))


NEAR = Rule("duplicates", {"column": "phash", "distance": 3, "per": "class"})
SEMANTIC = Rule(
    "duplicates", {"features": "img", "epsilon": 0.1, "clusters": 0, "order": "first", "per": "class"}
)
TOP = Rule("top", {"column": "other", "fraction": 0.5, "per": "class"})


def best(rule: Rule) -> Rule:
    return rule._replace(keys=rule.keys | {"best": "other"})


@pytest.mark.parametrize(
    "chosen_by",
    [
        [NEAR],
        [SEMANTIC],
        [NEAR, SEMANTIC, TOP],
        [best(NEAR)],
        [best(SEMANTIC), TOP],
        [Rule("adaptive_bar", {"column": "other", "bar": 8.0, "tolerance": 2.0, "per": "class"}), TOP],
        [Rule("balance", {"target": 4, "per": "class", "seed": 0}), TOP],
    ],
    ids=lambda rules: " ".join(rule.use for rule in rules),
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_quota_is_met_by_the_least_of_the_sequence(chosen_by: list[Rule], seed: int) -> None:
    """Exactly, with rules that look for likeness too; and more samples, asked for later, change nothing."""
    random, n, accepted = np.random.default_rng(seed), 40, 3
    vectors = random.normal(size=(8, 4))[random.integers(0, 8, n)] + 0.1 * random.normal(size=(n, 4))
    whole = {
        "uid": np.array([f"{k:032x}" for k in random.permutation(n)], dtype=object),
        "turn": np.arange(n, dtype=np.int32),
        "class_name": np.array(["cat", "owl"], dtype=object)[random.integers(0, 2, n)],
        "error": np.array([""] * n, dtype=object),
        "other": random.integers(0, 10, n).astype(np.float32),
        "phash": random.integers(0, 12, n).astype(np.uint64),
        "img": vectors.astype(np.float16),
    }
    check_quota(chosen_by, Quota(accepted, ["class"]))

    def least(name: str, made: int) -> set[str]:
        """By trying every beginning of a class's sequence."""
        own = np.flatnonzero(whole["class_name"][:made] == name)
        for k in range(len(own) + 1):
            part = {key: values[own[:k]] for key, values in whole.items()}
            left = part["uid"][select(part, chosen_by).kept].tolist()
            if len(left) == accepted:
                break
        return set(left)

    for made in (10, 25, n):
        columns = {key: values[:made] for key, values in whole.items()}
        kept_now = select(columns, chosen_by, Quota(accepted, ["class"])).kept
        for name in ("cat", "owl"):
            found = set(columns["uid"][kept_now & (columns["class_name"] == name)].tolist())
            assert found == least(name, made)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([best(NEAR), TOP], ""),
        (
            [TOP, best(NEAR)],
            r"select\.1: duplicates can keep more of fewer samples; .* put it before select\.0",
        ),
        ([SEMANTIC._replace(keys=SEMANTIC.keys | {"clusters": None})], "give clusters = 0"),
        ([SEMANTIC._replace(keys=SEMANTIC.keys | {"order": "hard"})], "leave `order` out"),
        ([Rule("datacomp_clip_score", {"column": "s", "fraction": 0.3})], "use top"),
        ([Rule("datacomp_clip_score", {"column": "s", "threshold": 0.3})], ""),
        ([Rule("balance", {"target": 4, "per": "class"})], "keeps less than quota.accepted = 5"),
    ],
)
def test_likeness_and_quotas(order: list[Rule], message: str) -> None:
    if not message:
        check_quota(order, Quota(5, ["class"]))
        return
    with pytest.raises(RecipeError, match=message):
        check_quota(order, Quota(5, ["class"]))


def overrides(accepted: int, budget: int = 200) -> list[str]:
    """Three classes of the emoji recipe, drawn so badly that about half of them pass."""
    return [
        f'quota={{ per = "class", accepted = {accepted}, max_requests = {budget} }}',
        'prompts.0.classes=["cat", "owl", "apple"]',
        "models.0.steps=1",
        "models.0.batch_size=4",
        "images.shard_size=8",
        "select.0.minimum=0.1",
        "select.2.fraction=0.6",
    ]


def finals(root: Path) -> dict[str, str]:
    return {name: digest for name, digest in data_digests(root).items() if name.startswith("final/")}


def kept(root: Path) -> Counter[str]:
    table = shards.read_table(root / "subsets" / "main.parquet")
    names = {
        row["uid"]: row["class_name"]
        for stem in shards.records(root / "pool")
        for row in shards.read_table(root / "pool" / f"{stem}.parquet", ["uid", "class_name"]).to_pylist()
    }
    return Counter(names[row["uid"]] for row in table.to_pylist() if row["kept"])


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthgen.run("emoji", tmp_path_factory.mktemp("q") / "run", settings=overrides(5), workers=1)


def test_a_quota_is_met_exactly_in_rounds(at_once: Path) -> None:
    assert kept(at_once) == {"cat": 5, "owl": 5, "apple": 5}
    assert len(shards.records(at_once / "plan")) > 1
    assert verify(at_once) == []
    funnel = json.loads((at_once / "subsets" / "main.json").read_text())
    assert funnel["short"] == []
    assert [stage["rule"].split()[0] for stage in funnel["funnel"]] == [
        "generated", "range", "duplicates", "quota", "top",
    ]  # fmt: skip
    verdicts = Counter(shards.read_table(at_once / "subsets" / "main.parquet")["verdict"].to_pylist())
    assert verdicts.total() == shards.planned_requests(at_once)


def test_a_pilot_grows_into_the_same_files(at_once: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    synthgen.run("emoji", root, settings=overrides(2), workers=1)
    assert kept(root) == {"cat": 2, "owl": 2, "apple": 2}
    with pytest.raises(synthgen.SynthgenError, match=r"quota\.accepted = 2, now it would be 5; add --subset"):
        synthgen.run("emoji", root, settings=overrides(5), workers=1)
    synthgen.run("emoji", root, settings=overrides(5), workers=1, replace=True)
    assert finals(root) == finals(at_once)
    before = data_digests(root)
    synthgen.run("emoji", root, settings=overrides(5), workers=1)
    assert data_digests(root) == before


def test_subsets_share_the_pool_and_a_met_one_stays_met(at_once: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(at_once, tmp_path / "run"))
    planned = shards.planned_requests(root)
    strict = [*overrides(5, planned + 8), "select.0.minimum=0.25"]
    synthgen.run("emoji", root, settings=strict, workers=1, subset="strict")
    assert shards.planned_requests(root) == planned + 8
    synthgen.run("emoji", root, settings=overrides(5, planned + 8), workers=1)
    assert {k: v for k, v in finals(root).items() if "/main/" in k} == finals(at_once)
    assert verify(root) == []


def test_a_raised_budget_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    """Also where the run before was killed while it wrote final/."""
    root = tmp_path / "run"
    synthgen.run("emoji", root, settings=overrides(5, 15), workers=1)
    (root / "final" / "main" / "_stats.json").unlink()
    with pytest.raises(synthgen.SynthgenError, match=r"chosen from 15 requests, and quota\.accepted asks"):
        synthgen.run("emoji", root, settings=overrides(5, 40), workers=1)
    assert shards.planned_requests(root) == 15


def test_three_workers_and_a_kill_between_rounds(at_once: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    command = [sys.executable, "-m", "synthgen", "run", "emoji", "-o", str(root), "--workers", "3"]
    command += [part for setting in overrides(5) for part in ("--set", setting)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(shards.records(root / "plan")) < 2 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (root / "final").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    everything, undisturbed = data_digests(root), data_digests(at_once)
    assert everything == undisturbed  # rounds are the same, so the pool is too
    assert verify(root) == []


def test_a_cell_that_never_accepts_is_named_with_its_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a class that the judge takes for another, nothing passes."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    text = (ROOT / "prompts/emoji/recipe.toml").read_text()
    for name in ("templates.txt", "styles.txt", "backgrounds.txt"):
        (folder / name).write_text((ROOT / "prompts/emoji" / name).read_text())
    (folder / "classes.csv").write_text("id,name,prompt\n0,cat,\n1,owl,\n2,ghost,carrot\n3,carrot,\n")
    (folder / "recipe.toml").write_text(text.replace("classes.txt", "classes.csv"))
    settings = [*overrides(2, 40)[:1], *overrides(2)[2:5], "select.0.column=clip_label_similarity"]
    settings += ["select.0.minimum=0.99"]
    arguments = ["run", str(folder), "-o", str(tmp_path / "run"), "--workers", "1"]
    arguments += [part for setting in settings for part in ("--set", setting)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "accepted images missing: 8, in cells: 4, after 40 requests" in said
    assert "(the budget, max_requests); accepted = 2" in said
    assert "ghost" in said
    assert "clip_label_similarity" in said
    assert "by select.0 range clip_label_similarity minimum=0.99" in said
    assert shards.planned_requests(tmp_path / "run") == 40
    assert main([*arguments, "--set", "quota.max_requests=60"]) == 2
    assert "quota.accepted asks for more now; add --subset NEW" in capsys.readouterr().err


def test_a_limit_is_a_look_before_paying(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "emoji", "-o", str(tmp_path / "run"), "--workers", "1", "--limit", "4"]
    assert main(arguments + [part for setting in overrides(5) for part in ("--set", setting)]) == 0
    assert "after 4 requests (max_requests = 200)" in capsys.readouterr().err
    assert shards.planned_requests(tmp_path / "run") == 4
    assert verify(tmp_path / "run") == []
