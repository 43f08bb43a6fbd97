"""What the pages say is there: commands, keys, rules, scripts, links; and nothing of this machine."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from synthgen import recipe, tables
from synthgen.annotators import ANNOTATORS
from synthgen.arguments import parser
from synthgen.prompts import SOURCES
from synthgen.selection import RULES
from synthgen.tables.keys import Table, keys_model

README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "prompts" / "README.md").read_text()
PAGES = [
    "README.md", "prompts/README.md", "shards/README.md", "shards/emoji-real/README.md",
    "scripts/embedded/README.md", "scripts/embedded/results/results.md",
]  # fmt: skip


def test_the_readme_begins_with_its_two_commands() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.S | re.M)
    assert blocks[:2] == [
        'pip install -e ".[dev]"\nsynthgen run prompts/emoji\n',
        'pip install -e ".[dev]"\npytest\n',
    ]


def test_every_command_is_in_the_readme() -> None:
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    named = set(re.findall(r"[a-z]+", " ".join(re.findall(r"synthgen ([a-z|]+)", README))))
    assert set(commands) <= named  # type: ignore[arg-type]


def test_every_key_is_documented() -> None:
    rooms = [tables, *(vars(tables)[room] for room in ("curation", "keys", "models", "prompts"))]
    every = {
        table
        for room in rooms
        for table in vars(room).values()
        if isinstance(table, type) and issubclass(table, Table) and table is not Table
    }
    assert {"Recipe", "AskTable", "LoraTable", "ReshardTable"} <= {table.__name__ for table in every}
    keys = {field.alias or key for table in every for key, field in table.model_fields.items()} - {"keys"}
    for functions in (SOURCES, ANNOTATORS, RULES):
        for name, function in functions.items():
            keys |= {name, *keys_model(function, name).model_fields}
    missing = {
        key
        for key in keys
        if not any(form in RECIPES for form in (f"`{key}`", f"[{key}]", f"[{key}.", f"{{ {key} ="))
    }
    assert not missing


def test_the_readme_s_recipe_is_valid(recipe_folder: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", README, re.S)
    assert block
    (recipe_folder / "recipe.toml").write_text(block[1])
    recipe.load(recipe_folder / "recipe.toml")


def test_the_three_ways_from_real_images_are_valid(tmp_path: Path) -> None:
    section = RECIPES[RECIPES.index("### From real images") : RECIPES.index("### Models and families")]
    head, *ways = re.findall(r"```toml\n(.*?)```", section, re.S)
    (tmp_path / "recipe.toml").write_text(head + "".join(ways))
    loaded = recipe.load(tmp_path / "recipe.toml").models
    assert [table.id for table in loaded] == ["text", "image", "image_and_label"]
    assert [(bool(table.from_), table.text) for table in loaded] == [
        (False, True),
        (True, False),
        (True, True),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link
    for script in re.findall(r"\bscripts/[\w/]+(?:\.py|\.sbatch|\.md)?", text):
        assert (ROOT / script).exists(), script


def test_the_top_level_holds_what_it_may() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {file.split("/")[0] for file in files if not file.startswith(".")}
    assert top <= {
        "pyproject.toml", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md",
        "synthgen", "prompts", "shards", "tests", "scripts",
    }  # fmt: skip
