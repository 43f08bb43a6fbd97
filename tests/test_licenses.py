"""Terms from cards, here and on a hub that runs in the test, and their way into plan, pool and pages."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SMALL

from synthgen import licenses
from synthgen.cli import main
from synthgen.embedded import pipeline_folder
from synthgen.licenses import concern, folder_license, model_license

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("front", "terms"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: OpenRAIL++", "openrail++"),
        ("license: [mit, cc-by-4.0]", "mit, cc-by-4.0"),
        ("license:\n- mit\n- gpl-3.0", "mit, gpl-3.0"),
        ("license: other\nlicense_name: flux-1-dev-non-commercial-license\nlicense_link: LICENSE.md",
         "flux-1-dev-non-commercial-license"),
        ("license: other\nlicense_link: https://example.org/terms", "https://example.org/terms"),
        ("license: other", "other"),
        ("license:", "unknown"),
        ("tags: [a]", "unknown"),
        ("- a\n- b", "unknown"),
        ("license: [mit", "unknown"),
        ("license: !!python/object/apply:os.system ['touch ran']", "unknown"),
    ],
)  # fmt: skip
def test_the_front_matter_of_a_card(
    front: str, terms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\nlicense: not this\n")
    assert folder_license(tmp_path) == terms
    assert not (tmp_path / "ran").exists()


def test_a_card_without_front_matter_or_that_is_no_text(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert folder_license(tmp_path) == "unknown"
    card.write_text("# A model\n")
    assert folder_license(tmp_path) == "unknown"
    card.write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert folder_license(tmp_path) == "unknown"


@pytest.mark.parametrize(
    ("file", "begin", "terms"),
    [
        ("LICENSE", (ROOT / "LICENSE").read_text(), "apache-2.0"),
        (
            "LICENSE",
            (ROOT / "shards" / "emoji-real" / "heldout-style" / "LICENSE").read_text(),
            "cc-by-sa-4.0",
        ),
        ("LICENSE.txt", "Copyright 2020 A\n\nPermission is hereby granted, free of charge, to "
         "any\nperson obtaining a copy of", "mit"),
        ("LICENCE", "Attribution-NonCommercial 4.0 International\n\n====", "cc-by-nc-4.0"),
        ("LICENSE.md", "Attribution 4.0 International\n", "cc-by-4.0"),
        ("LICENSE.md", "# Terms of ours", "see LICENSE.md"),
    ],
)  # fmt: skip
def test_the_text_of_terms(file: str, begin: str, terms: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(begin)
    (tmp_path / "instances.json").write_text("{}")
    assert folder_license(tmp_path) == terms
    assert folder_license(tmp_path / "instances.json") == terms
    (tmp_path / "README.md").write_text("---\nlicense: zlib\n---\n")
    assert folder_license(tmp_path) == "zlib"


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ("apache-2.0", ""),
        ("mit, cc-by-4.0", ""),
        ("cc-by-sa-4.0", ""),
        ("unknown", "no card tells the terms"),
        ("mit, unknown", "no card tells the terms"),
        ("cc-by-nc-sa-4.0", "not for commercial use"),
        ("apache-2.0, cc-by-nc-4.0", "not for commercial use"),
        ("flux-1-dev-non-commercial-license", "not for commercial use"),
        ("sai-nc-community", "not for commercial use"),
        ("creativeml-openrail-m", "restricts what it may be used for"),
        ("openrail++", "restricts what it may be used for"),
        ("cc-by-nd-4.0", "allows no changed copies"),
        ("stabilityai-ai-community", "has terms to read"),
        ("deepfloyd-if-license", "has terms to read"),
        ("gemma", "has terms to read"),
        ("see LICENSE.md", "has terms to read"),
        ("", "has terms to read"),
    ],
)
def test_what_to_look_out_for(terms: str, said: str) -> None:
    assert concern(terms).startswith(said)
    assert bool(concern(terms)) == bool(said)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for one model's card, and for nothing else."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = self.path in ("/api/models/org/model", f"/api/models/org/model/revision/{COMMIT}")
        told = {"id": "org/model", "sha": COMMIT, "cardData": {"license": "openrail++"}} if known else {}
        body = json.dumps(told).encode()
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which a hub of this test is the hub, with an empty cache."""
    Hub.asked = []
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        yield environment | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
        }
        server.shutdown()
        thread.join()


def ask(environment: dict[str, str], *arguments: object, **more: object) -> str:
    """What `model_license` says in a process of its own: huggingface_hub reads its environment once."""
    code = (
        "from pathlib import Path; from synthgen.licenses import model_license; "
        f"print(model_license(*{arguments!r}, folder=Path(), **{more!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import PosixPath; {code}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def cached(environment: dict[str, str], commit: str, card: str = "") -> Path:
    """A model's snapshot in the cache, with or without its card."""
    model = Path(environment["HF_HOME"]) / "hub" / "models--org--model"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    if card:
        (snapshot / "README.md").write_text(card)
    return snapshot


def test_the_hub_is_asked_for_the_card_of_the_commit(hub: dict[str, str]) -> None:
    """And the cache stays: had it learnt of a newer commit, what it holds could not be found offline."""
    assert ask(hub, "org/model") == "openrail++"
    snapshot = cached(hub, COMMIT)
    assert ask(hub, "org/model", here=snapshot) == "openrail++"
    assert Hub.asked[-1] == f"/api/models/org/model/revision/{COMMIT}"
    assert ask(hub, "org/model", here=snapshot, fetch=False) == "unknown"
    assert ask(hub | {"HF_HUB_OFFLINE": "1"}, "org/model", here=snapshot) == "unknown"
    files = [path for path in Path(hub["HF_HOME"]).rglob("*") if path.is_file()]
    assert files == [snapshot.parents[1] / "refs" / "main"]


def test_a_hub_that_is_out_of_reach_or_knows_nothing(hub: dict[str, str]) -> None:
    assert ask(hub, "org/other") == "unknown"
    assert ask(hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "org/model") == "unknown"
    n = len(Hub.asked)
    assert ask(hub, "nowhere/to/be") == ask(hub, "gpt-9") == ask(hub, "~/none") == "unknown"
    assert len(Hub.asked) == n, "these are no names of the hub's"


def test_a_card_in_the_cache_needs_no_hub(hub: dict[str, str]) -> None:
    snapshot = cached(hub, COMMIT, "---\nlicense: mit\n---\n")
    assert ask(hub | {"HF_HUB_OFFLINE": "1"}, "org/model") == "mit"
    assert ask(hub, "org/model", here=snapshot) == "mit"
    assert not Hub.asked


def test_folders_and_the_embedded_models(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert model_license("model", folder=tmp_path) == "unknown"
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert (
        model_license("model", folder=tmp_path)
        == model_license(str(tmp_path / "model"), folder=ROOT)
        == "mit"
    )
    assert model_license("embedded", folder=tmp_path) == "apache-2.0, mit, cc-by-4.0"
    assert concern(model_license("embedded", folder=tmp_path)) == ""


def settings(*more: str) -> list[str]:
    return [part for setting in (*SMALL, *more) for part in ("--set", setting)]


def licences(root: Path, table: str = "plan/000-000") -> set[str]:
    return set(pq.read_table(root / f"{table}.parquet")["license"].to_pylist())


def test_what_the_card_said_is_pinned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A card that changes, and a copy without one, change nothing; the recipe's own word is part of it."""
    model, copy, root = tmp_path / "model", tmp_path / "copy", tmp_path / "run"
    shutil.copytree(pipeline_folder(), model)
    shutil.copytree(pipeline_folder(), copy)
    (model / "README.md").write_text("---\nlicense: zlib\n---\n")
    here = f"models.0.path={model}"
    assert (
        main(["generate", "emoji", "-o", str(root), *settings(here), "--limit", "20", "--workers", "1"]) == 0
    )
    assert licences(root) == licences(root, "pool/00000000") == {"zlib"}
    record = json.loads((root / "plan" / "000-000_stats.json").read_text())
    assert record["models"]["tiny"]["license"] == "zlib"
    for path, card in ((model, "license: mit"), (model, ""), (copy, "")):
        (path / "README.md").write_text(f"---\n{card}\n---\n")
        limit = ["--limit", "25" if card else "30" if path == model else "35"]
        assert main(["plan", "emoji", "-o", str(root), *settings(f"models.0.path={path}"), *limit]) == 0
    parts = sorted(path.stem for path in (root / "plan").glob("*.parquet"))
    assert len(parts) == 4
    assert [licences(root, f"plan/{part}") for part in parts] == [{"zlib"}] * 4
    capsys.readouterr()
    assert main(["plan", "emoji", "-o", str(root), *settings(here, "models.0.license=mit")]) == 2
    assert 'made with models.tiny.license = "", now it would be "mit"' in capsys.readouterr().err


def test_the_recipe_s_own_word_counts_more_than_a_card(tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert main(["plan", "emoji", "-o", str(root), *settings("models.0.license=our terms")]) == 0
    assert licences(root) == {"our terms"}


def test_no_card_is_no_error(tmp_path: Path) -> None:
    shutil.copytree(pipeline_folder(), tmp_path / "model")
    root = tmp_path / "run"
    assert main(["plan", "emoji", "-o", str(root), *settings(f"models.0.path={tmp_path / 'model'}")]) == 0
    assert licences(root) == {"unknown"}


def test_provenance_card_and_report_tell_them(emoji_run: Path) -> None:
    from synthgen import tars

    terms = "apache-2.0, mit, cc-by-4.0"
    for path in emoji_run.glob("pool/*.tar"):
        for _, members in tars.samples(path.read_bytes()):
            assert json.loads(members["json"])["license"] == terms
    card = (emoji_run / "final" / "main" / "README.md").read_text()
    assert f"| tiny | embedded | a476744e7803532fbd3b5b3e4d9451f7 | {terms} |" in card
    assert "DigitalSourceType" in card
    assert f"<td>{terms}</td>" in (emoji_run / "report" / "index.html").read_text()


def test_check_lists_all_and_warns(
    recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(recipe_folder / "recipe.toml", "a") as recipe:
        recipe.write(f"""
[language]
model = "some-server-model"
[sources.real]
path = "{ROOT / "shards" / "emoji-real" / "heldout-style"}"
[sources.mine]
path = "mine"
license = "cc-by-nc-4.0"
[[models]]
id = "big"
path = "org/model"
steps = 1
guidance = 0.0
[[annotate]]
name = "clip2"
use = "clip"
model = "ViT-B-32"
pretrained = "openai"
[[annotate]]
name = "clip3"
use = "clip"
model = "hf-hub:org/clip"
license = "mit"
""")
    assert main(["check", str(recipe_folder), "--licenses", "--json"]) == 0
    printed = capsys.readouterr()
    found = {one["key"]: (one["path"], one["license"]) for one in json.loads(printed.out)}
    embedded = "apache-2.0, mit, cc-by-4.0"
    assert found == {
        "models.tiny": ("embedded", embedded),
        "models.big": ("org/model", "unknown"),
        "language": ("some-server-model", "unknown"),
        "sources.real": (str(ROOT / "shards" / "emoji-real" / "heldout-style"), "cc-by-sa-4.0"),
        "sources.mine": ("mine", "cc-by-nc-4.0"),
        "annotate.clip": ("embedded", embedded),
        "annotate.clip2": ("timm/vit_base_patch32_clip_224.openai", "unknown"),
        "annotate.clip3": ("org/clip", "mit"),
    }
    warned = [line.split(": ")[1] for line in printed.err.splitlines()]
    assert warned == ["models.big", "language", "sources.mine", "annotate.clip2"]
    assert "sources.mine: cc-by-nc-4.0: not for commercial use" in printed.err
    assert main(["check", str(recipe_folder), "--licenses"]) == 0
    assert "\nsources.mine    mine " in capsys.readouterr().out


def test_check_asks_the_hub_for_cards_only(hub: dict[str, str], recipe_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "synthgen", "check", str(recipe_folder), "--licenses", "--json"),
            *("--set", "models.0.path=org/model", "-o", str(tmp_path / "run")),
        ],
        env=hub,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)[0]["license"] == "openrail++"
    assert "models.tiny: openrail++: restricts what it may be used for" in done.stderr
    assert {path for path in Hub.asked if "/org/" in path} == {"/api/models/org/model"}
    assert not (tmp_path / "run").exists()


def test_free_terms_are_spelt_as_the_hub_spells_them() -> None:
    assert all(name == name.lower() and " " not in name for name in licenses.FREE)
    assert not [name for name in licenses.FREE if "-nc" in name or "rail" in name or "-nd" in name]
