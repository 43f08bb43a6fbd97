"""`synthgen prompts` and `synthgen check`, as a user meets them: a language model that is asked once, texts
that travel with a recipe, shipped recipes that are balanced.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, make_tiny_llama
from conftest import KEY

from synthgen import recipe
from synthgen.cli import main
from synthgen.diversity import cramers_v
from synthgen.errors import RecipeError
from synthgen.opening import open_job
from synthgen.pipeline import run
from synthgen.pools import PoolColumns
from synthgen.preview import preview
from synthgen.shards import load_plan, read_plan_shard
from synthgen.tables import Recipe
from synthgen.tars import samples

ASKING = """
name = "birds"

[language]
model = "a-model"
temperature = 0.5

[[prompts]]
use = "templates"
classes = ["robin", "wren"]
templates = "a photo.txt"
axes = { place = { ask = "backgrounds", count = 3 } }

[[prompts]]
use = "language"
task = "divergen"
classes = ["robin", "wren"]
count = 6
per_call = 4

[quota]
per = "class"
requests = 8

[[models]]
id = "tiny"
path = "embedded"
steps = 2
guidance = 3.0
"""


def write_like_a_model(request: dict, number: int) -> Answer:  # type: ignore[type-arg]
    """Plausible replies, some of them of no use."""
    asked = request["messages"][-1]["content"]
    bird = "robin" if "robin" in asked else "wren"
    schema = request["response_format"]["json_schema"]["schema"]
    if "words" in schema["properties"]:
        return Answer(json.dumps({"words": ["old garden wall", "mossy branch", "snowy hedge"]}))
    places = ["on a spade", "in ivy", "at a feeder", "under a bench"]
    texts = [f"A photo of a single {bird} {places[k]}, feathers puffed up" for k in range(4)]
    if number >= 4:  # each bird's second reply
        texts = [
            "Here are the prompts:",
            f"Two {bird}s on a branch",
            texts[0].upper(),
            f"A {bird} in fog at dusk",
        ]
    return Answer(json.dumps({"prompts": texts}))


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    """The server of conftest, which answers as a model does."""
    server.script = write_like_a_model
    return server


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    folder = tmp_path / "birds"
    folder.mkdir()
    (folder / "recipe.toml").write_text(ASKING)
    (folder / "a photo.txt").write_text("a photo of a {class} in front of a {place}\n")
    return folder


def planned(root: Path) -> list[tuple[str, str]]:
    rows = [row for shard in load_plan(root) for row in read_plan_shard(shard).to_pylist()]
    return [(row["class_name"], row["text"]) for row in rows]


def test_a_language_model_is_asked_once_and_its_texts_travel(
    server: ChatServer,
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "run"
    command = ["prompts", str(birds), "-o", str(root)]
    assert main(["check", str(birds), "-o", str(root)]) == 0
    assert "2 of 2 questions are not answered; `synthgen prompts RECIPE` asks them" in capsys.readouterr().out
    assert main(["plan", str(birds), "-o", str(root)]) == 2
    assert "questions are not answered" in capsys.readouterr().err

    assert main([*command, "--save", "--concurrency", "1"]) == 0
    said = capsys.readouterr().out
    assert "6 questions asked, 6 answered; 0 were answered before" in said
    assert re.search(r"rejected: .*1 x meta talk", said)
    assert "1 x several objects" in said
    assert len(server.requests) == 6
    assert main(command) == 0
    assert "0 questions asked, 0 answered; 6 were answered before" in capsys.readouterr().out
    assert len(server.requests) == 6

    server.shutdown()
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert main(["plan", str(birds), "-o", str(root)]) == 0
    shared = shutil.copytree(birds, tmp_path / "shared")  # with its texts/
    assert main(["plan", str(shared), "-o", str(tmp_path / "elsewhere")]) == 0
    assert planned(root) == planned(tmp_path / "elsewhere") != []
    texts = dict.fromkeys(planned(root))
    assert ("robin", "a photo of a robin in front of an old garden wall") in texts
    assert any("puffed up" in text for _, text in texts)
    assert not any("Here are" in text or "Two" in text for _, text in texts)
    written = [path for folder in (birds, root) for path in folder.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in written)


def test_a_class_without_a_prompt_is_shown_with_its_rejected_texts(
    server: ChatServer, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_no_use_for_wrens(request: dict, number: int) -> Answer:  # type: ignore[type-arg]
        is_text = "prompts" in request["response_format"]["json_schema"]["schema"]["properties"]
        if is_text and "wren" in request["messages"][-1]["content"]:
            return Answer(json.dumps({"prompts": ["the quick brown fox"]}))
        return write_like_a_model(request, 0)

    server.script = of_no_use_for_wrens
    command = ["prompts", str(birds), "-o", str(tmp_path / "run")]
    assert main([*command, "--limit", "2"]) == 1
    assert len(server.requests) == 2
    assert "2 questions asked, 2 answered" in capsys.readouterr().out
    assert main([*command, "--all"]) == 1
    said = capsys.readouterr()
    assert (
        "wren: 0 prompts; rejected: 2 x no class word\n  rejected (no class word): the quick brown fox"
        in said.out
    )
    assert "  A photo of a single robin in ivy, feathers puffed up" in said.out
    assert 'class "wren": none of its 2 texts is accepted; 2 x no class word; give it synonyms' in said.err
    asked = len(server.requests)
    assert main([*command, "--show"]) == 1
    assert len(server.requests) == asked


def test_counterfactuals_end_to_end(recipe_folder: Path, tmp_path: Path) -> None:
    """From a grid to the report: one noise a group, a whole group on one side of the split."""
    path = recipe_folder / "recipe.toml"
    path.write_text(
        path.read_text().replace("axes = {", 'grid = ["background"]\nsame_noise = true\naxes = {')
    )
    settings = [
        'prompts.0.classes=["cat", "owl"]', 'prompts.0.axes.background=["on grass", "in the snow"]',
        'quota.per=["class", "background"]', "quota.requests=6", "models.0.steps=2",
        "select=[]", "annotate=[]", "reshard.split={ train = 0.5, val = 0.5 }",
    ]  # fmt: skip
    root = run(recipe_folder, tmp_path / "run", settings=settings, workers=1)
    columns = PoolColumns(root, ["00000000"], [])
    wanted = ("group", "seed", "axis_background", "uid")
    rows = list(zip(*(columns[key].tolist() for key in wanted), strict=True))
    groups = {group: [row[1:] for row in rows if row[0] == group] for group, *_ in rows}
    assert len(groups) == 12
    sides = {}
    for split in ("train", "val"):
        for tar in (root / "final" / "main" / split).glob("*.tar"):
            sides |= dict.fromkeys((key for key, _ in samples(tar.read_bytes())), split)
    for members in groups.values():
        seeds, places, uids = zip(*members, strict=True)
        assert len(set(seeds)) == 1
        assert set(places) == {"on grass", "in the snow"}
        assert len({sides[uid] for uid in uids}) == 1
    assert set(sides.values()) == {"train", "val"}
    assert "<h2>Groups</h2>" in (root / "report" / "index.html").read_text()


def test_answers_that_are_gone_are_named(
    server: ChatServer, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    assert main(["prompts", str(birds), "-o", str(root), "--concurrency", "1"]) == 0
    assert main(["plan", str(birds), "-o", str(root)]) == 0
    (answers,) = (root / "texts").iterdir()
    answers.unlink()
    capsys.readouterr()
    assert main(["plan", str(birds), "-o", str(root)]) == 2
    assert f"answers that are not there any more; put texts/{answers.name} back" in capsys.readouterr().err


def test_the_address_is_told_without_what_it_may_hold(
    server: ChatServer,
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("http://", "http://me:hidden@"))
    main(["prompts", str(birds), "-o", str(tmp_path / "run"), "--limit", "1", "--retries", "0"])
    said = capsys.readouterr()
    assert "1 questions to http://127.0.0.1:" in said.err
    assert "hidden" not in said.out + said.err


def test_a_recipe_that_ships_keeps_no_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "synthclip", "--save"]) == 2
    assert "`synthgen init DIR --from synthclip` makes one of yours" in capsys.readouterr().err


def test_prompts_of_templates_are_shown_without_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "emoji", "-o", str(tmp_path / "run"), "--json", "--limit", "96"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["asked"] == 0
    assert {len(sheet["accepted"]) for sheet in shown["classes"]} == {2}


def test_a_server_that_is_not_there_is_one_line(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["prompts", str(birds), "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "OPENAI_BASE_URL" in error
    assert error.count("\n") == 1


def test_a_local_model_of_chance_answers_nothing_and_says_so(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama = make_tiny_llama(tmp_path / "llama")
    settings = ["--set", "language.max_tokens=8", "--retries", "0"]
    assert main(["prompts", str(birds), "-o", str(tmp_path / "run"), "--local", str(llama), *settings]) == 1
    said = capsys.readouterr()
    assert "6 questions asked, 0 answered" in said.out
    assert "without an answer: " in said.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[language]\nmodel", "[languages]\nmodel", 'unknown key "languages"; did you mean "language"?'),
        (
            'task = "divergen"',
            'task = "divergem"',
            "prompts.1.task: input should be 'divergen', 'synthclip', 'synclr' or 'paraphrase', got",
        ),
        (
            'ask = "backgrounds"',
            'ask = "places"',
            "prompts.0.axes.place.ask: input should be 'backgrounds' or ",
        ),
        ("count = 6", 'count = 6\nbackgrounds = ["a b"]', "backgrounds: task divergen has no use for it"),
        ("count = 6", "count = 6\nthin = -1", "prompts.1.thin: -1; 0 or more is wanted"),
        ("count = 6", "count = 6\nleast_words = 90", "prompts.1.least_words: is above most_words"),
        (
            "temperature = 0.5",
            "temperature = -1.0",
            "language.temperature: input should be greater than or equal",
        ),
    ],
)
def test_bad_questions(
    old: str, new: str, message: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = birds / "recipe.toml"
    path.write_text(
        path.read_text().replace('{ ask = "backgrounds", count = 3 }', '["x"]')
        if not old.startswith("ask")
        else path.read_text()
    )
    path.write_text(path.read_text().replace(old, new))
    assert main(["check", str(birds), "-o", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_asks_needs_a_language_model(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = birds / "recipe.toml"
    path.write_text(path.read_text().replace('[language]\nmodel = "a-model"\ntemperature = 0.5\n', ""))
    assert main(["check", str(birds), "-o", str(tmp_path / "run")]) == 2
    assert (
        "prompts.0: asks a language model, and there is none; add a table [language]"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", recipe.shipped_recipes())
def test_shipped_recipes_can_be_checked_offline_and_are_balanced(name: str, tmp_path: Path) -> None:
    job = open_job(name, tmp_path / "run", limit=6000, fetch=False)
    found = preview(job)
    if job.recipe.language:
        assert "questions are not answered" in found.notes[0]
        assert len(job.texts.all_questions()) == 4 * found.classes
        return
    assert found.requests == min(6000, _asked(job.recipe))
    balance = {key: value for key, value in found.figures.items() if key.startswith("cramers_v_")}
    assert all(not value >= 0.05 for value in balance.values())  # NaN: too few to say
    if name in ("waterbirds", "emoji"):
        counts = Counter((request.class_name, *request.axes.values()) for request in job.requests.all())
        assert max(counts.values()) - min(counts.values()) <= 1


def test_all_of_lvis_is_balanced(tmp_path: Path) -> None:
    requests = open_job("lvis", tmp_path / "run", fetch=False).requests.all()
    assert len(requests) == 1453 * 128
    assert cramers_v([(request.class_name, request.model) for request in requests]) < 0.05
    seen = [(one.class_name, one.axes["viewpoint"]) for one in requests if "viewpoint" in one.axes]
    assert cramers_v(seen) < 0.05


def _asked(loaded: Recipe) -> int:
    cells = {"imagenet": 1000, "lvis": 1453, "waterbirds": 8, "emoji": 48}[loaded.name]
    return cells * loaded.quota.requests


@pytest.mark.parametrize(("axis", "requests"), [("style", 48 * 15), ("background", 48 * 70)])
def test_the_emoji_recipe_ties_no_class_to_a_word(axis: str, requests: int, tmp_path: Path) -> None:
    job = open_job("emoji", tmp_path / "run", settings=[f"quota.requests={requests // 48}"])
    assert preview(job).figures[f"cramers_v_{axis}"] < 0.05


def test_figures_can_fail_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "emoji", "-o", str(tmp_path / "run"), "--set", "quota.requests=15"]
    assert main([*command, "--fail-under", "vendi=20", "--fail-over", "cramers_v_style=0.05"]) == 0
    capsys.readouterr()
    assert main([*command, "--fail-under", "vendi=1000", "--json"]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(r"synthgen: vendi is [\d.]+, at least 1000 is wanted\n", said.err)
    assert json.loads(said.out)["figures"]["cramers_v_background"] is None  # 15 of 14 words: too few
    assert main([*command, "--fail-under", "vendy=1"]) == 2
    assert main([*command, "--embed", "clip"]) == 0
    capsys.readouterr()
    assert main([*command, "--embed", "image"]) == 2
    assert (
        capsys.readouterr().err
        == "synthgen: --embed image: no `clip` annotation of this name; there are: clip\n"
    )


def test_extra_classes_follow_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        (recipe.find("imagenet"))
        .read_text()
        .replace(
            'classes = "imagenet-1k"',
            'classes = "birds.csv"\nextra = { from = "imagenet-1k", below = 0.4, count = 5 }',
        )
    )
    (tmp_path / "birds.csv").write_text("id,name,synset\n4,robin,robin.n.02\n7,crane,crane.n.05\n")
    loaded = recipe.load(tmp_path / "recipe.toml")
    assert [category.id for category in loaded.classes] == [4, 7, 8, 9, 10, 11, 12]
    assert loaded.classes[0].hypernym
    by_text = recipe.load(tmp_path / "recipe.toml", ["prompts.0.extra.by=text"])
    assert len(by_text.classes) == 7
    assert by_text.classes != loaded.classes
    assert "crane (lifting device)" not in {category.name for category in loaded.classes}


def test_classes_of_sources(recipe_folder: Path, tmp_path: Path) -> None:
    path = recipe_folder / "recipe.toml"
    path.write_text('sources.real.path = "../real"\n' + path.read_text())
    real = tmp_path / "prompts" / "real"
    (real / "owl").mkdir(parents=True)
    (real / "cat").mkdir()
    settings = ["prompts.0.classes=sources.real"]
    assert [one.name for one in recipe.load(path, settings).classes] == ["cat", "owl"]
    (real / "classes.txt").write_text("wren\nrobin\n")
    assert [one.name for one in recipe.load(path, settings).classes] == ["wren", "robin"]
    coco = {"categories": [{"id": 3, "name": "stop_sign"}, {"id": 1, "name": "cat"}]}
    (real / "instances.json").write_text(json.dumps(coco))
    loaded = recipe.load(path, [*settings, "sources.real.path=../real/instances.json"])
    assert [(one.id, one.name, one.prompt) for one in loaded.classes] == [
        (1, "cat", "cat"),
        (3, "stop_sign", "stop sign"),
    ]
    lvis = [
        {
            "id": 2,
            "name": "stop_sign",
            "synset": "stop_sign.n.01",
            "def": "a sign",
            "synonyms": ["stop_sign"],
        },
        {"id": 7, "name": "crane", "synset": "crane.n.04", "def": "lifts", "synonyms": ["crane", "hoist"]},
    ]
    (real / "instances.json").write_text(json.dumps({"categories": lvis}))
    loaded = recipe.load(path, [*settings, "sources.real.path=../real/instances.json"])
    assert [(one.synset, one.definition, one.synonyms) for one in loaded.classes] == [
        ("", "a sign", ()),
        ("n03126707", "lifts", ("hoist",)),
    ]
    (real / "instances.json").write_text('{"categories": [{"id": 1e400, "name": "x"}]}')
    with pytest.raises(RecipeError, match="no COCO or LVIS file: TypeError id inf"):
        recipe.load(path, [*settings, "sources.real.path=../real/instances.json"])
    with pytest.raises(RecipeError, match='unknown source "reel"; did you mean "real"'):
        recipe.load(path, ["prompts.0.classes=sources.reel"])
