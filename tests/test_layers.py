"""The rules of imports: cli -> pipeline -> stages -> shards, tars, storage -> data, errors; stages never
meet.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "synthgen"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
STAGES = ("prompts", "planning", "generation", "annotators", "selection", "resharding", "loader", "reporting")
LOW = {
    "data": set(),
    "errors": set(),
    "wording": {"errors"},
    "augmentations": {"errors"},
    "diversity": {"errors"},
    "clustering": set(),
    "embedded": set(),
    "licenses": {"embedded"},
    "marks": {"errors"},
    "tars": {"errors"},
    "uids": set(),
    "arrays": {"errors", "storage"},
    "reinforcement": {"arrays", "augmentations", "errors", "shards", "storage", "uids"},
    "storage": {"errors"},
    "importing": {"errors", "shards", "storage", "tars", "uids"},
    "sources": {"data", "errors", "importing", "storage"},
    "claims": {"errors", "storage"},
    "engine": {"claims", "errors", "storage"},
    "shards": {"claims", "data", "errors", "storage", "uids"},
    "pools": {"errors", "shards", "storage", "uids"},
    "wordnet": {"errors", "shards"},
    "language_models": {"errors"},
    "asking": {"shards", "claims", "errors", "prompts", "storage"},
}
HEAVY_HOMES = {
    "diffusers": ("generation",),
    "open_clip": ("annotators",),
    "accelerate": ("workers", "training"),
    "ray": ("workers",),
    "braceexpand": ("loader",),
    "fsspec": ("loader",),
    "jinja2": ("reporting",),
    "pydantic": ("recipe", "tables"),
    "openai": ("language_models",),
    "datasketch": ("diversity",),
    "inflect": ("prompts", "wording"),
    "py3langid": ("annotators", "prompts"),
    "fasttext": ("annotators",),
    "timm": ("annotators", "training"),
}


def imports(path: Path) -> set[str]:
    """What a module imports, at its top or in a function; not what it imports for types alone."""
    found, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """The part of synthgen that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def rooms_imported(module: str) -> set[str]:
    return {room(name) for name in imports(MODULES[module]) if name.startswith("synthgen.")} - {room(module)}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_lies_below(module: str) -> None:
    own, used = room(module), rooms_imported(module)
    if own in LOW:
        assert used <= LOW[own]
    if own in STAGES:
        assert not used & (set(STAGES) - {own}), "stages never import each other"
        assert not used & {
            "cli",
            "pipeline",
            "opening",
            "stages",
            "engine",
            "checks",
            "preview",
            "job",
            "requests",
            "inputs",
            "annotations",
            "recipe",
            "workers",
        }
    if own == "workers":
        assert used <= {"errors"}
    if own not in (
        "cli",
        "pipeline",
        "opening",
        "stages",
        "checks",
        "preview",
        "job",
        "requests",
        "inputs",
        "annotations",
        "generators",
        "texts",
        "recipe",
        "tables",
        "",
    ):
        assert not used & {"recipe", "tables"} - {own}, "only these see a Recipe"


@pytest.mark.parametrize("library", HEAVY_HOMES)
def test_heavy_libraries_have_one_home(library: str) -> None:
    users = {
        module for module, path in MODULES.items() if any(n.split(".")[0] == library for n in imports(path))
    }
    assert users
    assert {room(module) for module in users} <= set(HEAVY_HOMES[library])


def test_only_storage_opens_files_of_a_run() -> None:
    """`open`, `read_bytes`, `write_text` and the like: elsewhere only what is no run's file."""
    allowed = {
        "synthgen.storage": "a run's files",
        "synthgen.claims": "leases, and what kernels say of processes",
        "synthgen.loader.fetching": "a cache of what lies at URLs",
        "synthgen.recipe": "recipes",
        "synthgen.importing.archives": "other people's archives",
        "synthgen.prompts.lists": "word lists",
        "synthgen.prompts.categories": "class lists that ship",
        "synthgen.cli": "init copies a recipe",
        "synthgen.generation.models": "weights",
        "synthgen.generation.checkpoints": "their configurations",
        "synthgen.generation.memory": "their headers, and what the kernel says of memory",
        "synthgen.selection.lists": "lists of samples to keep or to leave out",
        "synthgen.selection.datacomp": "timm's list of synsets",
        "synthgen.licenses": "cards and licences of models and sources",
        "synthgen.workers.local": "logs of workers, outside the folder",
    }
    names = {
        "open",
        "read_bytes",
        "read_text",
        "write_bytes",
        "write_text",
        "unlink",
        "rename",
        "mkdir",
        "touch",
    }
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and module not in allowed:
                function = node.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                owner = function.value if isinstance(function, ast.Attribute) else None
                if name in names and not (
                    isinstance(owner, ast.Name) and owner.id in ("Image", "storage", "images", "self")
                ):
                    assert ast.unparse(owner or function).startswith(("Image", "_Images")), (
                        f"{module}: {ast.unparse(node)}"
                    )


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import synthgen", True),
        ("import synthgen.cli, synthgen.pipeline", True),
        ("import synthgen.augmentations.recorded, synthgen.reinforcement", True),
        ("import synthgen.training", False),
    ],
)
def test_importing_is_light(code: str, light: bool) -> None:
    """The last case shows that the others can fail."""
    check = f"import sys; {code}; print('torch' in sys.modules or 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(not light)
