"""Every shipped recipe is valid; each bad one gives its exact message, exit status 2, and changes nothing."""

import shutil
from pathlib import Path

import pytest

from synthgen import recipe
from synthgen.cli import main
from synthgen.data import Word
from synthgen.errors import RecipeError
from synthgen.inputs import keys_by_content
from synthgen.job import Job
from synthgen.selection import RULES

SHIPPED = recipe.shipped_recipes()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name: str) -> None:
    assert recipe.load(SHIPPED[name] / "recipe.toml").name == name


def test_emoji_resolves_its_word_lists() -> None:
    loaded = recipe.load(recipe.find("emoji"))
    assert [category.name for category in loaded.classes[:2]] == ["cat", "dog"]
    assert loaded.axes == ["style", "background"]
    assert Word("on grass") in loaded.prompts[0].keys["axes"]["background"]


BAD = {
    "unknown key": (
        ("steps = 12", "step = 12"),
        'models.0: unknown key "step"; did you mean "steps"? Known: adapter, batch_size, ',
    ),
    "unknown table": (
        ("[quota]", "[quotas]"),
        'unknown key "quotas"; did you mean "quota"? Known: annotate, classes, images, language, max_failed, '
        "models, name, prompts, quota, reshard, seed, select, sources",
    ),
    "unknown rule": (
        ('use = "top"', 'use = "topp"'),
        'select.2: use: unknown rule "topp"; did you mean "top"? Known: ' + ", ".join(sorted(RULES)),
    ),
    "unknown key of a rule": (
        ("fraction = 0.8", "fractoin = 0.8"),
        'select.2: unknown key "fractoin"; did you mean "fraction"? Known: column, count, fraction, of, per, '
        "subset, use",
    ),
    "wrong type": (
        ("steps = 12", 'steps = "12"'),
        'models.0.steps: input should be a valid integer, got "12"',
    ),
    "out of range": (
        ("guidance = 3.0", "guidance = -1.0"),
        "models.0.guidance: input should be greater than or equal to 0, got -1.0",
    ),
    "not one of": (
        ('format = "webp"', 'format = "gif"'),
        "images.format: input should be 'jpg', 'webp' or 'png', got \"gif\"",
    ),
    "missing key": (("steps = 12\n", ""), 'models.0: missing key "steps"'),
    "missing use": (
        ('use = "image"\n', ""),
        'annotate.1: missing key "use"; known annotators: aesthetic, ',
    ),
    "missing word list": (
        ('"styles.txt"', '"style.txt"'),
        'prompts.0.axes.style: no file "style.txt" in {folder}; did you mean "styles.txt"?',
    ),
    "unknown column": (
        ('"clip_margin"', '"clip_margn"'),
        'select.0.column: unknown column "clip_margn"; did you mean "clip_margin"? Known: ',
    ),
    "text where numbers are wanted": (
        ('"clip_similarity"', '"text"'),
        'select.2.column: "text" holds text; a column of numbers is wanted',
    ),
    "shard size": (
        ("shard_size = 64\n\n[[models", "shard_size = 60\n\n[[models"),
        "images.shard_size: 60 is no multiple of models.0.batch_size = 16; choose 64",
    ),
    "a width alone": (
        ("steps = 12", "steps = 12\nwidth = 96"),
        "models.0: width = 96, height = 0; give both, or neither",
    ),
    "a fraction above 1": (
        ("fraction = 0.8", "fraction = 8.0"),
        "select.2: top: fraction = 8.0; 0 to 1 is allowed",
    ),
    "no bound": (
        ("minimum = 0.0", ""),
        "select.0: range: neither minimum nor maximum is given; give one of them",
    ),
    "not finite": (
        ("minimum = 0.0", "minimum = inf"),
        "select.0.minimum: input should be a finite number, got Infinity",
    ),
    "a column of the plan": (
        ('"clip_margin"', '"width"'),
        'select.0.column: unknown column "width"; did you mean "image_width"? Known: ',
    ),
    "an axis with a taken name": (
        ("style = ", "class = "),
        'axes.class: "class" means something else already; choose another name',
    ),
    "a clip template": (
        (
            'model = "embedded"               # or "V',
            'templates = ["a {thing}"]\nmodel = "embedded"  # or "V',
        ),
        'annotate.clip: templates: "a {thing}": one slot {class} and no other is wanted',
    ),
    "splits": (
        ("train = 0.9", "train = 0.8"),
        "reshard.split: the parts add up to 0.9; 1.0 is wanted",
    ),
    "two annotators of one name": (
        ('name = "image"', 'name = "clip"'),
        'annotate: name "clip" is there twice; each needs its own',
    ),
    "an axis name for a grid": (
        ('templates = "templates.txt"', 'templates = "templates.txt"\ngrid = "background"'),
        'prompts.0.grid: a list of axes is wanted, such as ["background"]',
    ),
    "an axis crossed twice": (
        ('templates = "templates.txt"', 'templates = "templates.txt"\ngrid = ["style", "style"]'),
        'prompts.0.grid: ["style", "style"]: each axis may be there once',
    ),
    "a quota of what is not crossed": (
        ('per = "class"', 'per = ["class", "background"]'),
        'quota.per: ["class", "background"], but prompts.0.grid crosses []; a quota a cell is of "class" and '
        "all of these",
    ),
    "a quota of something else": (
        ('per = "class"', 'per = "klass"'),
        'quota.per: "class", or ["class", ...] with the axes of the grid, is wanted, got "klass"',
    ),
    "rules that are none": (
        ('templates = "templates.txt"', 'templates = "templates.txt"\nnever = ["at sea"]'),
        "prompts.0.never: a list of tables is wanted, such as never = "
        '[{ place = "at sea", weather = "in snow" }]',
    ),
    "a class list for an axis": (
        ('style = "styles.txt"', 'style = "imagenet-1k"'),
        'prompts.0.axes.style: no file "imagenet-1k" in {folder}; give a file, or the list itself, or a list '
        "that ships. Known: action, attribute, clip-80, ",
    ),
    "not TOML": (("seed = 0", "seed = "), "not valid TOML: Invalid value (at line 4, column 8)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes(
    case: str, recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old, new), message = BAD[case]
    path = recipe_folder / "recipe.toml"
    text = path.read_text()
    assert text.count(old) >= 1, "the shipped recipe has changed: adapt the case"
    path.write_text(text.replace(old, new, 1))
    assert main(["run", str(recipe_folder), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    expected = f"synthgen: {path}: {message}".replace("{folder}", str(recipe_folder))
    assert error == expected + "\n" or (expected.endswith((": ", ", ")) and error.startswith(expected))
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


LISTS = {
    "classes.txt": ("", "prompts.0.classes: no classes; put one a line"),
    "styles.txt": ("# nothing\n", "prompts.0.axes.style: the list is empty; at least one entry is wanted"),
    "backgrounds.txt": (
        "on grass\non snow\non grass\n",
        'prompts.0.axes.background: "on grass" is there twice; each entry may be there once',
    ),
    "classes.txt ": (
        "cat\n\x07\n",
        'prompts.0.classes: class 1 is called "\\u0007"; a name on one line is wanted',
    ),
    "templates.txt ": (
        "a {class}\na {class}\n",
        'prompts.0.templates: "a {class}" is there twice; each entry may be there once',
    ),
    "templates.txt": (
        "a {style} of a {class} {background} at {time}\n",
        'prompts.0: templates: "a {style} of a {class} {background} at {time}" has a slot {time} '
        "without a list; lists: "
        'class, style, background. Add axes.time = "FILE" or correct the slot',
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_bad_word_lists(
    name: str, recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = LISTS[name]
    (recipe_folder / name.strip()).write_text(content)
    assert main(["run", str(recipe_folder), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"synthgen: {recipe_folder / 'recipe.toml'}: {message}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {style} {background}", "has no slot {class}; each template must name the class"),
        (
            "a {class} {style}",
            "axes.background: no template has a slot {background}; add it to one or remove the list",
        ),
    ],
)
def test_templates_use_every_list(
    template: str, message: str, recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe_folder / "templates.txt").write_text(template + "\n")
    assert main(["run", str(recipe_folder), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", ["nobody", "./missing", "a/b/c"])
def test_no_such_model(
    path: str, recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["run", str(recipe_folder), "-o", str(tmp_path / "out"), "--set", f"models.0.path={path}"]) == 2
    )
    assert capsys.readouterr().err == (
        f'synthgen: {recipe_folder / "recipe.toml"}: models.tiny: path = "{path}": no such model; '
        f'"embedded", a folder '
        f"(looked for {recipe_folder / path}), or a hub id ORG/NAME is wanted\n"
    )
    assert not (tmp_path / "out").exists()


def test_no_such_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "emojy"]) == 2
    assert capsys.readouterr().err == (
        'synthgen: "emojy": no such recipe; did you mean "emoji"? Known: emoji, imagenet, lvis, synthclip, '
        "waterbirds. A folder with a recipe.toml, a .toml file, or one of these names is wanted\n"
    )


def test_set_overrides_by_number_and_by_id() -> None:
    path = recipe.find("emoji")
    loaded = recipe.load(
        path, ["models.tiny.steps=3", "models.0.dtype=bfloat16", "reshard.split={ all = 1.0 }"]
    )
    assert (loaded.models[0].steps, loaded.models[0].dtype, loaded.reshard.split) == (
        3,
        "bfloat16",
        {"all": 1.0},
    )


@pytest.mark.parametrize(
    "setting", ["models.9.steps=1", "nothing", "=1", "models=1", "seed.x.y=1", "prompts.0.templates.0.x=1"]
)
def test_bad_set(setting: str) -> None:
    with pytest.raises(RecipeError):
        recipe.load(recipe.find("emoji"), [setting])


def test_words_of_a_table_that_is_not_closed(recipe_folder: Path) -> None:
    (recipe_folder / "words.csv").write_text('word,class\n"on grass,cat\nat sea,\n')
    with pytest.raises(
        RecipeError, match=r'prompts\.0\.axes\.style: "words\.csv": no table: unexpected end of data'
    ):
        recipe.load(recipe_folder / "recipe.toml", ["prompts.0.axes.style=words.csv"])


def test_class_ids_from_a_table(recipe_folder: Path) -> None:
    (recipe_folder / "classes.csv").write_text("id,name,prompt\n7,cat,tabby cat\n3,owl,\n")
    loaded = recipe.load(recipe_folder / "recipe.toml", ["prompts.0.classes=classes.csv"])
    assert [tuple(category)[:3] for category in loaded.classes] == [
        (3, "owl", "owl"),
        (7, "cat", "tabby cat"),
    ]


@pytest.mark.parametrize(
    "table",
    [
        "name\ncat\n",
        "id,name\nx,cat\n",
        "id,name\n1,cat\n1,dog\n",
        "id,name\n1,cat\n2,cat\n",
        "id,name\n",
        "name,id\ncat\n",
        "a,b\n1,2,3\n",
        "id,name\n3000000000,cat\n",
        "id,name\n1,\n",
        'id,name\n0,"dog\n1,cat\n',
    ],
)
def test_bad_class_tables(table: str, recipe_folder: Path) -> None:
    (recipe_folder / "classes.csv").write_text(table)
    with pytest.raises(RecipeError, match=r"prompts\.0\.classes"):
        recipe.load(recipe_folder / "recipe.toml", ["prompts.0.classes=classes.csv"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            'use = "top"\ncolumn = "clip_img"\ncount = 1',
            'column: unknown column "clip_img"',
        ),
        (
            'use = "duplicates"\nfeatures = "clip_imgs"\nepsilon = 0.1',
            'features: unknown features "clip_imgs"; did',
        ),
        (
            'use = "duplicates"\ncolumn = "clip_margin"\ndistance = 4',
            ": duplicates: distance compares bits, and",
        ),
        (
            'use = "top"\ncolumn = "clip_margin"\ncount = 1\nper = "clip_margin"',
            'per: "clip_margin" holds fractions',
        ),
        (
            'use = "top"\ncolumn = "clip_margin"\ncount = 1\nper = ["class", "where"]',
            'per.1: unknown class, model, axis or column "where"',
        ),
        (
            'use = "datacomp_basic"',
            'language: unknown column "language_code"',
        ),
        (
            'use = "datacomp_basic"\nlanguage = "turn"',
            'language: "turn" holds numbers; a column of text is wanted',
        ),
        (
            'use = "datacomp_clip_score"\ncolumn = "text"\nfraction = 0.3',
            'column: "text" holds text; a column of',
        ),
        (
            'use = "decontaminate"\nannotation = "eval"\ndistance = 4',
            'distance: unknown column "eval_phash_distance"',
        ),
        (
            'use = "decontaminate"\nannotation = "eval"',
            ": decontaminate: neither similarity nor distance is given",
        ),
        (
            'use = "listed"\nfile = "nowhere.txt"',
            ": listed.file: nowhere.txt: cannot be read: ",
        ),
        (
            'use = "not_listed"\nfile = "uids.txt"',
            ': not_listed.file: uids.txt: "no uid" is no uid; 32 of',
        ),
        (
            'use = "listed"\nfile = "table.csv"\ncolumn = "text"',
            ': listed.file: table.csv: has no column "text"',
        ),
        (
            'use = "listed"\nfile = "recipe.toml"',
            ": listed.file: recipe.toml: a .txt, .csv, .parquet or .npy file",
        ),
        (
            'use = "datacomp_image_based"\nfile = "c.npz"\nfeatures = "clip_img"\nlanguage = "text"',
            "cannot be read",
        ),
        (
            'use = "balance"\ntarget = 0',
            ": balance: target = 0; 1 or more is allowed",
        ),
        (
            'use = "adaptive_bar"\ncolumn = "clip_margin"\nbar = 0.2',
            'missing key "tolerance"',
        ),
    ],
)
def test_what_rules_lack_is_said_at_once(recipe_folder: Path, rule: str, message: str) -> None:
    (recipe_folder / "uids.txt").write_text(f"{0:032x}\nno uid\n")
    (recipe_folder / "table.csv").write_text("url,label\na,b\n")
    text = (recipe_folder / "recipe.toml").read_text()
    (recipe_folder / "recipe.toml").write_text(f'{text}\n[[select]]\nsubset = "other"\n{rule}\n')
    with pytest.raises(RecipeError) as caught:
        recipe.load(recipe_folder / "recipe.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "select.3" in str(caught.value)


def test_a_list_is_found_beside_the_recipe_and_known_by_its_content(recipe_folder: Path) -> None:
    text = (recipe_folder / "recipe.toml").read_text()
    (recipe_folder / "recipe.toml").write_text(f'{text}\n[[select]]\nuse = "not_listed"\nfile = "out.txt"\n')
    (recipe_folder / "out.txt").write_text(f"{1:032x}\n")
    loaded = recipe.load(recipe_folder / "recipe.toml")
    assert loaded.resolved()["select"][3]["keys"]["file"] == "out.txt"  # type: ignore[index,call-overload]
    job = Job(recipe_folder / "recipe.toml", loaded, recipe_folder / "run")
    before = keys_by_content(job, job.rules_of("main")[3])
    assert job.rules_of("main")[3].label == "not_listed uid file=out.txt"
    moved = shutil.copytree(recipe_folder, recipe_folder.parent / "moved")
    elsewhere = Job(moved / "recipe.toml", loaded, recipe_folder / "run")
    assert keys_by_content(elsewhere, elsewhere.rules_of("main")[3]) == before
    (moved / "out.txt").write_text(f"{2:032x}\n")
    assert keys_by_content(elsewhere, elsewhere.rules_of("main")[3]) != before
