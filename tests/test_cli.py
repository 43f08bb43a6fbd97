"""Commands as users type them: what they print, how they fail, and that nothing is lost when they do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import data_digests

import synthgen
from synthgen import inspection
from synthgen.arguments import parser
from synthgen.cli import main

ARGUMENTS = ["--set", "quota.requests=2", "--workers", "1"]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail with 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("synthgen: ")
    assert error.count("\n") == 1
    return error.removeprefix("synthgen: ").rstrip("\n")


def test_a_foreign_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert error_of(["run", "emoji", "-o", str(tmp_path)], capsys) == (
        f"{tmp_path}: is not empty and was not made by synthgen; choose another folder with -o DIR"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert error_of(["run", "emoji", "-o", str(tmp_path / "file" / "run")], capsys) == (
        f"{tmp_path / 'file' / 'run'}: cannot write there (Not a directory); choose another folder "
        f"with -o DIR"
    )
    assert error_of(["run", "emoji", "-o", str(tmp_path / "file")], capsys) == (
        f"{tmp_path / 'file'}: is a file; a folder is wanted"
    )
    assert error_of(["run", "emoji", "-o", "/proc/synthgen"], capsys).startswith(
        "/proc/synthgen: cannot write there ("
    )


CHANGED = {
    "models.0.steps=13": "plan/000-000 was made with models.tiny.steps = 12, now it would be 13",
    "seed=1": "plan/000-000 was made with seed = 0, now it would be 1",
    "quota.requests=1": "plan/000-000 was made with quota.requests = 2, now it would be 1",
    'prompts.0.classes=["cat", "dog"]': "plan/000-000 was made with prompts.0.classes = 48 entries, "
    "now it would be 2 entries",
    'prompts.0.axes.style=["ink"]': (
        'plan/000-000 was made with prompts.0.axes.style = [0] "3d render", now it would be [0] "ink"'
    ),
    "images.shard_size=32": "plan/000-000 was made with images.shard_size = 64, now it would be 32",
    "images.format=png": 'plan/000-000 was made with images.format = "webp", now it would be "png"',
    "models.0.batch_size=8": "plan/000-000 was made with models.tiny.batch_size = 16, now it would be 8",
    "annotate.image.near_constant=0.5": (
        "annotations/image/00000000 was made with annotate.image.near_constant = 0.01, now it would be 0.5"
    ),
}


@pytest.mark.parametrize("setting", CHANGED)
def test_a_changed_recipe_in_the_same_folder(
    setting: str, emoji_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = data_digests(emoji_run)
    given = ["--set", setting] if setting.startswith("quota") else [*ARGUMENTS[:2], "--set", setting]
    error = error_of(["run", "emoji", "-o", str(emoji_run), *given], capsys)
    assert error.startswith(f"{emoji_run}/{CHANGED[setting]}; ")
    assert data_digests(emoji_run) == before
    assert len(list((emoji_run / "recipes").iterdir())) == 1


@pytest.mark.parametrize("subset", ["..", "", "a/b", "/tmp"])
def test_a_subset_is_no_path(subset: str, emoji_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = data_digests(emoji_run)
    arguments = ["reshard", "emoji", "-o", str(emoji_run), "--subset", subset, "--replace", *ARGUMENTS]
    assert error_of(arguments, capsys) == f'--subset "{subset}": letters, digits, - and _ are allowed'
    assert data_digests(emoji_run) == before


def test_what_a_start_cut_short_leaves_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / ".work" / "tmp").mkdir(parents=True)
    (tmp_path / "run" / ".probe-1").touch()
    assert synthgen.run("emoji", tmp_path / "run", stages=("plan",), limit=4)


def test_a_folder_called_recipes_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "soup.json").write_text("{}")
    assert "was not made by synthgen" in error_of(["run", "emoji", "-o", str(tmp_path)], capsys)


def test_classes_keep_their_ids(recipe_folder: Path, tmp_path: Path) -> None:
    """The order of lines is the label: turned round, it is another dataset, though the images are the
    same.
    """
    classes = recipe_folder / "classes.txt"
    classes.write_text("cat\ndog\n")
    run = synthgen.run(recipe_folder, tmp_path / "run", stages=("plan",))
    classes.write_text("dog\ncat\n")
    with pytest.raises(synthgen.SynthgenError, match=r"prompts\.0\.classes = \[0\] \[0\] 0|classes = \[0\]"):
        synthgen.run(recipe_folder, run, stages=("plan",))
    classes.write_text("cat\ndog\npig\n")
    synthgen.run(recipe_folder, run, stages=("plan",))
    assert synthgen.status(run)["requests"] == 18


def test_axes_stay(recipe_folder: Path, tmp_path: Path) -> None:
    run = synthgen.run(recipe_folder, tmp_path / "run", stages=("plan",), limit=4)
    path = recipe_folder / "recipe.toml"
    more = (
        '[[prompts]]\nuse = "templates"\nclasses = "more.csv"\ntemplates = ["a {class} '
        '{time}"]\naxes = { time = ["at noon"] }\n'
    )
    path.write_text(path.read_text() + more)
    (recipe_folder / "more.csv").write_text("id,name\n90,comet\n")
    with pytest.raises(synthgen.SynthgenError, match="made with axes = 2 entries, now it would be 3 entries"):
        synthgen.run(recipe_folder, run, stages=("plan",), limit=4)


def test_a_selection_that_fails_removes_nothing(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = data_digests(run_copy)
    bad = ["--replace", "--set", "select.2.fraction=8.0"]
    assert "fraction = 8.0" in error_of(["run", "emoji", "-o", str(run_copy), *ARGUMENTS, *bad], capsys)
    assert data_digests(run_copy) == before


def test_recipe_and_run_mixed_up(
    emoji_run: Path, recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(["run", str(emoji_run)], capsys) == (
        f"{emoji_run}: is the folder of a run; `run` takes the recipe: synthgen run RECIPE -o {emoji_run}"
    )
    for command in ("status", "verify", "report"):
        assert "is a recipe; the folder of a run is wanted" in error_of([command, str(recipe_folder)], capsys)
        assert "is no folder of a run" in error_of([command, str(recipe_folder.parent)], capsys)


def test_stages_in_the_wrong_order(
    recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    assert error_of(["select", str(recipe_folder), "-o", str(root)], capsys) == (
        f"{root}: `plan` is not finished (1 left, first plan/000-000), and `select` needs it; "
        f"`synthgen plan {recipe_folder} -o {root}` goes on with it"
    )
    assert not root.exists()
    assert main(["plan", str(recipe_folder), "-o", str(root)]) == 0
    assert "`generate` is not finished (5 left" in error_of(
        ["annotate", str(recipe_folder), "-o", str(root)], capsys
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "emoji", "--limit", "0"],
        ["run", "emoji", "--limit", "x"],
        ["fly"],
        ["run", "emoji", "--workers", "0"],
        ["run", "emoji", "--stages", "plan,generat"],
    ],
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_bad_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(["run", "emoji", "--share", "2/2"], capsys).startswith(
        "--share 2/2: k/n with k from 0 to n - 1"
    )


def test_check_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "emoji", "-o", str(tmp_path / "run"), "--limit", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("recipe.toml: valid")
    assert f"requests: 16 (16 not planned yet), in {tmp_path / 'run'}" in lines
    assert not (tmp_path / "run").exists()


def test_status_and_verify(emoji_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(emoji_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["written"], found["failed"]) == (96, 96, 0)
    assert found["stages"] == {
        stage: {"done": 2, "total": 2, "claimed": 0, "stale": 0, "given_up": 0}
        for stage in ("generate", "annotate clip", "annotate image", "annotate hashes")
    }
    assert sum(found["final"]["main"].values()) == found["subsets"]["main"]
    assert main(["status", str(emoji_run)]) == 0
    assert "generate: 2 of 2 shards" in capsys.readouterr().out
    assert main(["verify", str(emoji_run)]) == 0
    assert "everything is as its record says" in capsys.readouterr().out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


DAMAGE = {
    "a bit of a tar": (lambda run: flip(run / "pool" / "00000000.tar"), "pool/00000000.tar: "),
    "a cut tar": (
        lambda run: (run / "pool" / "00000000.tar").write_bytes(
            (run / "pool" / "00000000.tar").read_bytes()[:-20480]
        ),
        "pool/00000000.tar: ",
    ),
    "a missing annotation": (
        lambda run: (run / "annotations" / "clip" / "00000000.npz").unlink(),
        "annotations/clip/00000000.npz: missing",
    ),
    "a bit of parquet": (
        lambda run: flip(run / "annotations" / "image" / "00000000.parquet"),
        "annotations/image/",
    ),
    "a final tar": (
        lambda run: flip(run / "final" / "main" / "train" / "00000000.tar"),
        "final/main/train/00000000.tar",
    ),
    "a subset": (
        lambda run: flip(run / "subsets" / "main.npy"),
        "uids are not written samples of the pool",
    ),
    "images that are not those that were annotated": (
        lambda run: (run / "annotations" / "clip" / "00000000_stats.json").write_text(
            (run / "annotations" / "clip" / "00000000_stats.json")
            .read_text()
            .replace('"pool": {', '"pool": {"x": 1, ')
        ),
        "annotations/clip/00000000: was made from other images than the pool holds",
    ),
    "a record": (
        lambda run: (run / "pool" / "00000000_stats.json").write_text("{"),
        "pool/00000000_stats.json: ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_verify_finds_damage(case: str, run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGE[case]
    damage(run_copy)
    assert main(["verify", str(run_copy)]) == 1
    assert message in capsys.readouterr().out


def test_report_is_made_anew(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run_copy / "report" / "index.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(run_copy)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_bytes() == before
    assert "no subset strict; known: main" in error_of(
        ["report", str(run_copy), "--subset", "strict"], capsys
    )


def test_the_report_escapes_what_it_shows(recipe_folder: Path, tmp_path: Path) -> None:
    (recipe_folder / "styles.txt").write_text("<script>alert(1)</script>\n")
    run = synthgen.run(recipe_folder, tmp_path / "run", settings=["models.0.steps=1"], limit=2, workers=1)
    page = (run / "report" / "index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_subset_of_a_smaller_plan_has_no_report(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["quota.requests=3"]
    synthgen.run("emoji", run_copy, stages=("plan",), settings=settings, replace=True)
    assert error_of(["report", str(run_copy)], capsys) == (
        f"{run_copy}: subset main was chosen from 96 of 144 requests; select again"
    )


def test_init_copies_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "birds"
    assert main(["init", str(target), "--from", "emoji"]) == 0
    assert f"synthgen check {target}" in capsys.readouterr().out
    assert 'name = "birds"' in (target / "recipe.toml").read_text()
    assert main(["check", str(target), "-o", str(tmp_path / "run")]) == 0
    assert "is there already" in error_of(["init", str(target)], capsys)
    assert "no such recipe" in error_of(["init", str(tmp_path / "new"), "--from", "emojy"], capsys)


def test_every_command_has_help_that_ends_in_an_example() -> None:
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert set(commands) == {
        "annotate",
        "check",
        "combine",
        "doctor",
        "export",
        "generate",
        "import",
        "init",
        "plan",
        "prompts",
        "reinforce",
        "report",
        "reshard",
        "run",
        "select",
        "show",
        "status",
        "verify",
    }
    for name, command in commands.items():  # type: ignore[union-attr]
        assert command.format_help().rstrip().splitlines()[-1].startswith(f"example: synthgen {name} ")


def test_stages_with_a_gap_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(["run", "emoji", "-o", str(tmp_path / "run"), "--stages", "plan,annotate"], capsys)
    assert error == (
        "--stages plan,annotate: leaves some out; stages that follow each other are wanted, of "
        "plan,generate,annotate,select,reshard,report"
    )
    assert not (tmp_path / "run").exists()


def test_status_reads_a_record_once(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "WORTH_KEEPING", 1)
    first = inspection.status(run_copy)
    read = inspection.shards.read_record

    def not_of_the_pool(folder: Path, stem: str) -> object:
        assert folder.name != "pool"
        return read(folder, stem)

    monkeypatch.setattr(inspection.shards, "read_record", not_of_the_pool)
    assert inspection.status(run_copy) == first


def test_status_while_a_worker_works_and_after_it_died(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from synthgen import claims\n"
        "claims.BEAT_SECONDS = 0.01\n"
        "with claims.claim(Path(sys.argv[1]), 'pool/00000000') as claim:\n"
        "    claim.progress(0); time.sleep(0.5); claim.progress(16); time.sleep(0.2)\n"
        "    print(flush=True); time.sleep(60)\n"
    )
    for path in run_copy.glob("pool/*_stats.json"):
        path.unlink()
    worker = subprocess.Popen([sys.executable, "-c", code, str(run_copy)], stdout=subprocess.PIPE)
    assert worker.stdout
    worker.stdout.readline()
    assert main(["status", str(run_copy)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"96 requested, 0 written, 0 failed, \d\d\.\d images/s, 0:00:0\d left\n", said)
    assert "generate: 0 of 2 shards, 1 in work\n" in said
    assert re.search(rf"pool/00000000: in work: process {worker.pid} on \S+, 16 samples done\n", said)
    assert re.search(r"workers seen: 1 on \S+\n", said)
    worker.kill()
    worker.communicate()
    assert main(["status", str(run_copy)]) == 0
    said = capsys.readouterr().out
    assert "images/s" not in said
    assert "generate: 0 of 2 shards, 1 left unfinished\n" in said
    assert f"pool/00000000: left unfinished by process {worker.pid} on " in said
