"""Reinforcement: views and a teacher's probabilities of a real run, the same whoever makes them, and what
reads them for training.
"""

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import timm
import tiny_networks
import torch
from accelerate import Accelerator
from conftest import ROOT, SMALL, data_digests, killed_until_done
from PIL import Image

import synthgen
from synthgen import pipeline, pools, recipe, shards
from synthgen.annotators import ANNOTATORS, CHECKS
from synthgen.augmentations import Recorded
from synthgen.cli import main
from synthgen.data import Category, Sample
from synthgen.embedded import clip_folder
from synthgen.errors import FolderError, ModelError, RecipeError, SynthgenError
from synthgen.loader import open_loader
from synthgen.opening import open_job
from synthgen.pools import read_images
from synthgen.reinforcement import Reinforcement, densify
from synthgen.training import train
from synthgen.wording import fill
from synthgen.workers.place import Place

LABELS = ["dog", "zebra", "cat", "frog"]
VIEWS = """
side = 48
samples = 3
scale = [0.3, 1.0]
erasing = 0.5
"""
TABLES = f"""
[[annotate]]
name = "dr"
use = "reinforce"
batch_size = 7
k = 5
{VIEWS}
[[annotate]]
name = "net"
use = "reinforce"
teacher = "classifier"
model = "net"
on = "basic"
{VIEWS}
[[select]]
subset = "basic"
use = "range"
column = "image_luma"
maximum = 0.7
"""
STEMS = ["00000000", "00000001", "00000002"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji recipe with two teachers: the embedded CLIP, and a tiny timm network that knows three classes
    of it.
    """
    target = Path(shutil.copytree(ROOT / "prompts" / "emoji", tmp_path_factory.mktemp("dr") / "recipe"))
    tiny_networks.timm_classifier(target / "net", LABELS, len(LABELS))
    with (target / "recipe.toml").open("a") as file:
        file.write(TABLES)
    return target


def copy_of(run: Path, target: Path, *without: str) -> Path:
    """A run that has its images and annotations, but these."""
    return Path(shutil.copytree(run, target, ignore=shutil.ignore_patterns(*without, "report")))


def command_line(command: str, folder: Path, root: Path, *more: str) -> list[str]:
    settings = [part for setting in ("name=emoji", *SMALL) for part in ("--set", setting)]
    return [command, str(folder), "-o", str(root), "--workers", "1", *settings, *more]


@pytest.fixture(scope="module")
def made(folder: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy_of(small_run, tmp_path_factory.mktemp("made") / "run")
    assert main(command_line("reinforce", folder, root)) == 0
    return root


def images(root: Path) -> dict[str, torch.Tensor]:
    """The stored images of a pool by uid, (3, height, width), uint8."""
    found = {}
    for stem in STEMS:
        table = shards.read_table(root / "pool" / f"{stem}.parquet")
        for uid, data in zip(table["uid"].to_pylist(), read_images(root, stem, table), strict=True):
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            found[uid] = torch.from_numpy(pixels).permute(2, 0, 1)
    return found


def column(root: Path, folder: str, name: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for stem in STEMS:
        table = pq.read_table(root / folder / f"{stem}.parquet")
        found |= dict(zip(table["uid"].to_pylist(), table[name].to_pylist(), strict=True))
    return found


class Clip:
    """The embedded CLIP by open_clip alone: the preprocessing, and probabilities of all classes by id."""

    def __init__(self) -> None:
        name = f"local-dir:{clip_folder()}"
        self.model, self.preprocess = open_clip.create_model_from_pretrained(name)
        self.model.eval()
        names = (ROOT / "prompts" / "emoji" / "classes.txt").read_text().splitlines()
        tokenize = open_clip.get_tokenizer(name)
        forms = ("a photo of a {class}", "an image of a {class}", "a {class}")
        with torch.inference_mode():
            texts = torch.stack(
                [
                    self.model.encode_text(
                        tokenize([fill(form, {"class": name}) for form in forms]), normalize=True
                    )
                    for name in names
                ]
            ).mean(1)
        self.texts = torch.nn.functional.normalize(texts, dim=1)
        self.ids = np.arange(len(names))

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            cosines = self.model.encode_image(pixels, normalize=True) @ self.texts.T
            return (cosines * self.model.logit_scale.exp()).softmax(1).numpy()


class Timm:
    """The tiny network by timm alone, over the classes that it knows: dog 1, cat 0, frog 3."""

    def __init__(self, folder: Path) -> None:
        self.model = timm.create_model(f"local-dir:{folder / 'net'}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(self.model) | {"crop_pct": 1.0}
        self.preprocess = timm.data.create_transform(**config)
        self.ids = np.array([0, 1, 3])

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model(pixels)[:, [2, 0, 3]].softmax(1).numpy()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["dr", "net"])
def test_a_replayed_view_has_the_probabilities_that_were_stored(name: str, made: Path, folder: Path) -> None:
    teacher = Clip() if name == "dr" else Timm(folder)
    found, k = Reinforcement(made / "annotations" / name), 5 if name == "dr" else 3
    assert found.settings == Recorded(side=48, scale=(0.3, 1.0), erasing=0.5)
    assert (found.n_classes, found.classes[3]) == (48, "frog")
    luma, classes = column(made, "annotations/image", "image_luma"), column(made, "pool", "class_id")
    told = {key: column(made, f"annotations/{name}", f"{name}_{key}") for key in ("confidence", "agreement")}
    mass, n_views = column(made, f"annotations/{name}", f"{name}_mass"), 0
    for uid, image in images(made).items():
        views = found.lookup(uid)
        if name == "net" and luma[uid] > np.float32(0.7):  # type: ignore[operator]
            assert views is None
            assert mass[uid] is told["confidence"][uid] is None
            continue
        assert views is not None
        assert [part.dtype for part in views] == [np.float32, np.float16, np.int32]
        assert (views.params.shape, views.probs.shape, views.ids.shape) == ((3, 13), (3, k), (3, k))
        replayed = [found.settings.apply(image, params) for params in views.params]
        seen = [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in replayed]
        likely = teacher(torch.stack([teacher.preprocess(view) for view in seen]))
        top = np.sort(likely, axis=1)[:, ::-1][:, :k]
        assert views.probs == pytest.approx(top, abs=5e-4)
        place = {number: at for at, number in enumerate(teacher.ids.tolist())}
        of_ids = np.take_along_axis(likely, np.vectorize(place.__getitem__)(views.ids), 1)
        assert views.probs == pytest.approx(of_ids, abs=5e-4)  # each with its own class
        assert mass[uid] == pytest.approx(top.sum(1).mean(), abs=1e-4)
        own = place.get(classes[uid], -1)  # type: ignore[call-overload]
        if own < 0:
            assert told["confidence"][uid] is told["agreement"][uid] is None
        else:
            assert told["confidence"][uid] == pytest.approx(likely[:, own].mean(), abs=1e-4)
            assert told["agreement"][uid] == pytest.approx((likely.argmax(1) == own).mean())
        n_views += 3
    assert n_views == 3 * len(found)
    assert len(found) == 48 if name == "dr" else 5 < len(found) < 43


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["dr", "net"])
def test_what_the_teacher_looks_at_is_the_replayed_view(name: str, made: Path, folder: Path) -> None:
    """The very tensors, to the bit, whatever the random generators were at."""
    loaded = recipe.load(folder / "recipe.toml", list(SMALL))
    table = next(table for table in loaded.annotate if table.name == name)
    annotate = ANNOTATORS["reinforce"](device="cpu", folder=folder, classes=loaded.classes, **table.keys)
    teacher = Clip() if name == "dr" else Timm(folder)
    stored = Reinforcement(made / "annotations" / name)
    checked = 0
    for number, (uid, image) in enumerate(images(made).items()):
        views = stored.lookup(uid)
        if views is None or number % 5:
            continue
        torch.manual_seed(number)
        sample = Sample(uid, None, None, None, image.permute(1, 2, 0).numpy(), b"")
        params, looked_at = annotate.prepare(sample)  # type: ignore[attr-defined]
        assert np.array_equal(params, views.params)
        for drawn, pixels in zip(views.params, looked_at, strict=True):
            view = Image.fromarray(stored.settings.apply(image, drawn).permute(1, 2, 0).numpy())
            assert torch.equal(teacher.preprocess(view), pixels)
            checked += 1
    assert checked > 9


def test_views_are_a_matter_of_seed_and_uid_alone(made: Path) -> None:
    """Not of the teacher, the batch, or how many there are; and no two samples have the same."""
    of_clip, of_net = (Reinforcement(made / "annotations" / name) for name in ("dr", "net"))
    every, both = set(), 0
    keys = {"teacher": "clip", "classes": [Category(0, "cat", "cat")], "device": "cpu", "folder": made}
    views = {"side": 48, "scale": [0.3, 1.0], "erasing": 0.5}
    more = ANNOTATORS["reinforce"](**keys, **views, samples=5)  # type: ignore[arg-type]
    other = ANNOTATORS["reinforce"](**keys, **views, samples=3, seed=1)  # type: ignore[arg-type]
    pictures = images(made)
    for uid in pictures:
        own, theirs = of_clip.lookup(uid), of_net.lookup(uid)
        assert own is not None
        every |= {row.tobytes() for row in own.params}
        if theirs is not None:
            assert np.array_equal(own.params, theirs.params)
            both += 1
    assert both == len(of_net)
    assert len(every) == 3 * 48
    sample = Sample(uid, None, None, None, pictures[uid].permute(1, 2, 0).numpy(), b"")
    assert np.array_equal(more.prepare(sample)[0][:3], own.params)  # type: ignore[attr-defined]
    assert not np.array_equal(other.prepare(sample)[0], own.params)  # type: ignore[attr-defined]


def test_another_place_makes_the_same_bytes(made: Path, folder: Path, tmp_path: Path) -> None:
    """The second of two workers, which begins in the middle."""
    root = copy_of(made, tmp_path / "run", "dr", "net")
    job = open_job(folder, root, settings=list(SMALL), only=["dr", "net"])
    job.place = Place(1, 2)
    pipeline.work(job, ["annotate"])
    assert data_digests(root) == data_digests(made)
    assert synthgen.verify(root) == []


def test_two_processes_make_the_same_bytes(made: Path, folder: Path, tmp_path: Path) -> None:
    root = copy_of(made, tmp_path / "run", "net")
    synthgen.run(folder, root, stages=("annotate",), settings=list(SMALL), workers=2, only=["net"])
    assert data_digests(root) == data_digests(made)


def test_killed_after_each_step(made: Path, folder: Path, tmp_path: Path) -> None:
    root = copy_of(made, tmp_path / "run", "net")
    work = (
        "synthgen.run(sys.argv[1], sys.argv[2], stages=('annotate',), settings=json.loads(sys.argv[3]), "
        "workers=1, only=['net'])"
    )
    imports = "timm, torchvision.transforms.v2, synthgen.pipeline"
    arguments = str(folder), str(root), json.dumps(SMALL)
    assert killed_until_done(work, *arguments, period=4, imports=imports) > 3
    assert data_digests(root) == data_digests(made)


def test_the_command_makes_reinforcements_and_what_they_read(
    folder: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`net` asks for the luma of `image`, and nothing asks for `clip` and `hashes`."""
    root = Path(
        shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("annotations", "final"))
    )
    assert main(command_line("reinforce", folder, root)) == 0
    assert sorted(path.name for path in (root / "annotations").iterdir()) == ["dr", "image", "net"]
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == [f"reinforcement: {root}/annotations/{name}" for name in ("dr", "net")]
    assert main(command_line("annotate", folder, root, "--only", "hashes")) == 0
    assert sorted(path.name for path in (root / "annotations").iterdir()) == ["dr", "hashes", "image", "net"]
    capsys.readouterr()
    assert main(command_line("annotate", folder, root, "--only", "hash")) == 2
    assert (
        f'--only: {folder}/recipe.toml has no annotation "hash"; did you mean "hashes"?'
        in capsys.readouterr().err
    )
    assert main(command_line("run", folder, root, "--only", "dr")) == 2
    assert "--only dr: leaves annotations out, and report may need them" in capsys.readouterr().err


def test_a_recipe_without_one_is_told_what_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reinforce", "emoji", "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert (
        'no annotation has use = "reinforce"; add [[annotate]] with name = "dr", use = "reinforce"' in error
    )
    assert error.count("\n") == 1


def test_the_record_says_how_views_are_replayed(made: Path, tmp_path: Path) -> None:
    """A loader has that folder alone, under any name."""
    moved = Path(shutil.copytree(made / "annotations" / "dr", tmp_path / "teacher"))
    record = json.loads((moved / "00000001_stats.json").read_text())
    assert record["augmentation"] == Recorded(side=48, scale=(0.3, 1.0), erasing=0.5).settings()
    assert record["augmentation_digest"] == Recorded(side=48, scale=(0.3, 1.0), erasing=0.5).digest
    here, there = Reinforcement(made / "annotations" / "dr"), Reinforcement(moved)
    assert (there.settings, there.classes, there.name) == (here.settings, here.classes, "dr")
    record["augmentation"]["form"] = 0
    (moved / "00000000_stats.json").write_text(json.dumps(record))
    with pytest.raises(FolderError, match=r"of form 0 .*; this version replays form 1"):
        Reinforcement(moved)
    with pytest.raises(FolderError, match="is an annotation of clip; one of reinforce is wanted, which"):
        Reinforcement(made / "annotations" / "clip")
    with pytest.raises(FolderError, match="no annotation is there; a folder such as"):
        Reinforcement(made / "annotations" / "none")


def test_lookup_is_by_uid_in_another_process_too(made: Path) -> None:
    opened = Reinforcement(made / "annotations" / "dr")
    uids = list(images(made))
    before = opened.lookup(uids[0])
    again = pickle.loads(pickle.dumps(opened))
    assert len(pickle.dumps(opened)) < 10_000  # no table goes along
    for uid in [uids[0], f"{uids[0]}-1", uids[0].upper()]:
        views = again.lookup(uid)
        assert all(np.array_equal(one, other) for one, other in zip(views, before, strict=True))
    assert [opened.lookup(key) for key in ("0" * 32, "a picture", "", uids[0][:20])] == [None] * 4
    own = {uid: opened.lookup(uid).params.tobytes() for uid in reversed(uids)}
    for stem in STEMS:
        table = pq.read_table(made / "annotations" / "dr" / f"{stem}.parquet")
        params = np.load(made / "annotations" / "dr" / f"{stem}.npz")["dr_params"]
        for uid, row in zip(table["uid"].to_pylist(), params, strict=True):
            assert own[uid] == row.tobytes()


def test_rows_that_are_not_annotated_have_nothing_in_tables(made: Path) -> None:
    """NaN, and -1 where numbers are whole; each table keeps its type."""
    for stem in STEMS:
        confident = pq.read_table(made / "annotations" / "net" / f"{stem}.parquet")["net_mass"]
        skipped = confident.is_null().to_numpy()
        tables = np.load(made / "annotations" / "net" / f"{stem}.npz")
        assert {name: table.dtype for name, table in tables.items()} == {
            "net_params": np.float32, "net_probs": np.float16, "net_ids": np.int32
        }  # fmt: skip
        assert np.isnan(tables["net_params"]).all((1, 2)).tolist() == skipped.tolist()
        assert np.isnan(tables["net_probs"]).any((1, 2)).tolist() == skipped.tolist()
        assert (tables["net_ids"] == -1).all((1, 2)).tolist() == skipped.tolist()
        assert not (tables["net_ids"][~skipped] == -1).any()


@pytest.mark.parametrize("how", ["smooth", "zeros"])
@pytest.mark.parametrize("k", [1, 4, 6])
def test_dense_probabilities_sum_to_one(how: str, k: int) -> None:
    random = np.random.default_rng(k)
    whole = random.dirichlet(np.full(6, 0.4), (5, 3))
    ids = np.argsort(-whole, axis=-1)[..., :k]
    probs = np.take_along_axis(whole, ids, -1).astype(np.float16)
    dense = densify(probs, ids.astype(np.int32), 6, how)  # type: ignore[arg-type]
    assert dense.dtype == np.float32
    assert dense.shape == (5, 3, 6)
    assert dense.sum(-1) == pytest.approx(np.ones((5, 3)), abs=1e-6)
    for at in np.ndindex(5, 3):  # slowly
        given = probs[at].astype(np.float64)
        if how == "zeros":
            logits = np.log(given) + 7.0
            own, rest = np.exp(logits) / np.exp(logits).sum(), 0.0
        else:
            rest = max(0.0, 1 - given.sum()) / (6 - k) if k < 6 else 0.0
            own = given / (given.sum() + rest * (6 - k))
        expected = np.full(6, rest)
        expected[ids[at]] = own
        assert dense[at] == pytest.approx(expected, abs=5e-4)


def test_stored_probabilities_sum_to_one(made: Path) -> None:
    opened = Reinforcement(made / "annotations" / "dr")
    for uid in images(made):
        views = opened.lookup(uid)
        assert views is not None
        for how in ("smooth", "zeros"):
            dense = densify(views.probs, views.ids, opened.n_classes, how)  # type: ignore[arg-type]
            assert dense.sum(1) == pytest.approx(np.ones(3), abs=1e-6)
            assert (dense.argmax(1) == views.ids[:, 0]).all()
            assert ((dense > 0).sum(1) == (48 if how == "smooth" else 5)).all()
    with pytest.raises(SynthgenError, match='how: "even"; smooth or zeros is wanted'):
        densify(views.probs, views.ids, 48, "even")  # type: ignore[arg-type]
    with pytest.raises(SynthgenError, match=r"ids: from .* to 4[0-9]; 0 to n_classes - 1 = 3 are"):
        densify(views.probs, views.ids * 0 + 41, 4)


def test_tables_are_no_features(made: Path, folder: Path, tmp_path: Path) -> None:
    """What reads features refuses them in one line, or passes them over."""
    columns = pools.PoolColumns(made, STEMS, ["clip", "dr"])
    assert columns["dr_mass"].shape == (48,)
    with pytest.raises(KeyError, match="dr_probs"):
        _ = columns["dr_probs"]
    text = (folder / "recipe.toml").read_text()
    rule = '[[select]]\nuse = "duplicates"\nfeatures = "dr_params"\nepsilon = 0.1\n'
    shutil.copytree(folder, tmp_path / "recipe")
    (tmp_path / "recipe" / "recipe.toml").write_text(text + rule)
    with pytest.raises(RecipeError, match='unknown features "dr_params"') as told:
        recipe.load(tmp_path / "recipe" / "recipe.toml")
    assert "Known: clip_img, clip_txt" in str(told.value)
    root = Path(shutil.copytree(made, tmp_path / "run"))
    with pytest.raises(
        FolderError, match=r"dr_probs is float16 of shape \(20, 3, 5\); plain rows of float16"
    ):
        synthgen.run(
            folder,
            root,
            stages=("select", "reshard"),
            settings=[*SMALL, 'reshard.members=["dr_probs"]', "name=emoji"],
            subset="more",
            workers=1,
        )
    done = synthgen.to_datacomp(made, tmp_path / "out")
    assert done.rows == 48
    with pytest.raises(SynthgenError, match='there is no "dr_probs"'):
        synthgen.to_datacomp(made, tmp_path / "out", features=["dedup=dr_probs"])


def test_columns_can_choose(made: Path, folder: Path, tmp_path: Path) -> None:
    """What the teacher says of a sample is a score like any other."""
    root = Path(shutil.copytree(made, tmp_path / "run"))
    rule = [{"use": "range", "column": "dr_agreement", "minimum": 0.5}]
    copy = Path(shutil.copytree(folder, tmp_path / "recipe"))
    text = (copy / "recipe.toml").read_text() + '\n[[select]]\nsubset = "sure"\nuse = "range"\n'
    (copy / "recipe.toml").write_text(text + f'column = "{rule[0]["column"]}"\nminimum = 0.5\n')
    synthgen.run(copy, root, stages=("select",), settings=[*SMALL], subset="sure", workers=1)
    agreed = column(made, "annotations/dr", "dr_agreement")
    assert synthgen.status(root)["subsets"]["sure"] == sum(value >= 0.5 for value in agreed.values())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"samples": 0}, RecipeError, "samples: 0; 1 or more is wanted"),
        ({"k": 0}, RecipeError, "k: 0; 1 or more is wanted"),
        ({"scale": [0.5]}, RecipeError, "scale: [0.5]; the least and the greatest, in (0, 1], are wanted"),
        ({"magnitude": 40}, RecipeError, "magnitude: 40; 0 to 30 is wanted"),
        ({"classes": []}, RecipeError, "classes: the pool has none, and a teacher says something of classes"),
        ({"labels": ["cat"]}, RecipeError, 'labels: is for teacher = "classifier"; teacher = "clip" has no'),
        ({"templates": ["a {claas}"]}, RecipeError, 'templates: "a {claas}": one slot {class} and no other'),
        ({"model": "ViT-B-31"}, RecipeError, 'model: unknown "ViT-B-31"; did you mean "ViT-B-32"?'),
        (
            {"teacher": "classifier"},
            RecipeError,
            "model: says no classifier; a folder or hub id of timm or transformers is wanted",
        ),
        (
            {"teacher": "classifier", "model": "net", "pretrained": "openai"},
            RecipeError,
            'pretrained: is for teacher = "clip"; teacher = "classifier" has no such key',
        ),
        (
            {"teacher": "classifier", "model": "net", "labels": ["x", "y", "z", "w"]},
            RecipeError,
            "labels: none of the classes (cat, dog, fox) is one of the model's 4 (x, y, z, w)",
        ),
        (
            {"teacher": "classifier", "model": "bert"},
            ModelError,
            "bert: is a BertModel, which is none that classifies images",
        ),
    ],
)
def test_wrong_keys_are_told_before_there_are_images(
    keys: dict[str, object], error: type[Exception], message: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "net", tmp_path / "net")
    tiny_networks.bert(tmp_path / "bert")
    classes = [Category(k, name, name) for k, name in enumerate(("cat", "dog", "fox"))]
    table = next(table for table in recipe.load(folder / "recipe.toml").annotate if table.name == "dr")
    with pytest.raises(error) as told:
        CHECKS["reinforce"](**{"folder": tmp_path, "classes": classes, **table.keys, **keys})
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_the_recipe_says_where_a_key_is_wrong(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "recipe")) / "recipe.toml"
    for old, new, message in (
        ('teacher = "classifier"', 'teacher = "resnet"', "annotate.4.teacher: "),
        ("k = 5", "top = 5", 'annotate.3: unknown key "top"'),
        ("k = 5", "k = 5.5", "annotate.3.k: "),
    ):
        copy.write_text((folder / "recipe.toml").read_text().replace(old, new))
        with pytest.raises(RecipeError) as told:
            recipe.load(copy)
        assert str(told.value).startswith(f"{copy}: {message}")


def test_another_setting_on_the_same_folder_is_an_error(made: Path, folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "run"))
    for setting in ("annotate.dr.samples=4", "annotate.dr.side=64", "annotate.dr.seed=1"):
        key = setting.partition("=")[0]
        with pytest.raises(FolderError, match=rf"was made with {key} = .*give the annotation another name"):
            synthgen.run(
                folder, root, stages=("annotate",), settings=[*SMALL, setting], workers=1, only=["dr"]
            )


@pytest.mark.parametrize("soft", ["smooth", "zeros"])
def test_a_loader_replays_views_with_what_was_said_of_them(made: Path, soft: str) -> None:
    folder, stored = made / "annotations" / "dr", images(made)
    views, fields = Reinforcement(folder), ("image", "probabilities", "uid", "class_id")

    def epochs(workers: int) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        loader = open_loader(
            made, batch_size=10, fields=fields, transform=lambda image: image, shuffle=True, soft=soft,
            reinforcement=folder, workers=workers,
        )  # fmt: skip
        return [
            {uid: (image, dense) for batch in loader for image, dense, uid, _ in zip(*batch, strict=True)}
            for _ in range(2)
        ]

    first, second = epochs(workers=0)
    assert len(first) == len(second) == 48
    for uid, (image, dense) in first.items():
        found = views.lookup(uid)
        replays = [views.settings.apply(stored[uid], own) for own in found.params]
        place = next(k for k, replay in enumerate(replays) if torch.equal(replay, image))
        assert torch.equal(dense, torch.from_numpy(densify(found.probs[place], found.ids[place], 48, soft)))
        assert dense.sum() == pytest.approx(1, abs=1e-5)
    assert any(not torch.equal(first[uid][0], second[uid][0]) for uid in first), "another view, another time"
    for own, other in zip(epochs(workers=1), (first, second), strict=True):
        assert all(torch.equal(own[uid][k], other[uid][k]) for uid in other for k in (0, 1))


def test_a_sample_without_views_is_skipped_and_labels_stand_in_for_a_source_without(made: Path) -> None:
    real = ROOT / "shards" / "emoji-real" / "validation"
    lacking = open_loader(real, batch_size=100, reinforcement=made / "annotations" / "dr")
    assert list(lacking) == []
    assert {one.reason for one in lacking.skipped} == {f"no views of it in {made / 'annotations' / 'dr'}"}
    mixed = open_loader(
        {"real": real, "made": made}, batch_size=64, fields=("probabilities", "class_id", "source"),
        reinforcement={"made": made / "annotations" / "dr"}, shuffle=True,
    )  # fmt: skip
    for dense, labels, source in mixed:
        assert dense.sum(1).allclose(torch.ones(len(dense)))
        assert (dense[source == 0].argmax(1) == labels[source == 0]).all()
        assert set(dense[source == 0].unique().tolist()) == {0.0, 1.0}
    assert mixed.counts == {"real": 480, "made": 48}
    with pytest.raises(FolderError, match="no annotation is there"):
        open_loader(made, batch_size=2, reinforcement=made / "annotations" / "none")


@pytest.mark.usefixtures("one_thread")
def test_a_training_takes_the_teacher_s_probabilities(made: Path, tmp_path: Path) -> None:
    """Or the labels of the same views; and it goes on only with what it was begun with."""
    keys: dict[str, Any] = {"steps": 3, "batch_size": 8, "lr": 1e-3, "side": 48, "augment": "none"}
    alone, folders = Accelerator(cpu=True), {"made": made / "annotations" / "dr"}

    def weights(output: Path | None = None, **more: object) -> torch.Tensor:
        on = {"reinforcement": folders, **keys, **more}
        network = train({"made": made}, accelerator=alone, output=output, **on).network
        return torch.cat([weight.detach().flatten() for weight in network.parameters()])

    soft = weights(tmp_path / "run")
    assert torch.equal(soft, weights())
    others = [weights(soft_labels=False), weights(soft="zeros"), weights(reinforcement=None)]
    assert not any(torch.equal(soft, other) for other in others)
    assert torch.equal(soft, weights(tmp_path / "run"))
    with pytest.raises(FolderError, match="was trained with soft_labels = True, and now it is False"):
        weights(tmp_path / "run", soft_labels=False)
    with pytest.raises(FolderError, match="was trained with soft = None, and now it is zeros"):
        weights(tmp_path / "run", soft="zeros")
    with pytest.raises(FolderError, match="mix: a reinforcement's views are not mixed"):
        weights(mix="mixup")
