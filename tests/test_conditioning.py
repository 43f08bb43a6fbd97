"""Images from real images, by the real classes: img2img of each family, IP-Adapter, and a dataset of them."""

import hashlib
import io
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
from conftest import ROOT, data_digests
from PIL import Image
from test_generation import REQUEST

import synthgen
from synthgen import recipe, sources, tars
from synthgen.data import Request
from synthgen.embedded import pipeline_folder
from synthgen.errors import ModelError, RecipeError, SynthgenError
from synthgen.generation import checkpoints, conditioning, locating, models
from synthgen.generation.sampling import Sampled, picture, sample
from synthgen.inspection import verify
from synthgen.opening import open_job
from synthgen.preview import terms
from synthgen.resharding import split_of

EMOJI = ROOT / "shards" / "emoji-real" / "train"
CHANGING = ("sd1", "lcm", "sdxl", "sd3", "flux", "qwen-image", "z-image", "kandinsky22", "if1")
WITHOUT_NEGATIVE = ("lcm", "flux")
SIZED = ("sd1", "lcm", "sdxl", "sd3", "if1")
"""Whose own size is small, since the checkpoint says it."""
TEXTS = ("a cat", "a photo of a red dog on green grass at the sea, with an owl", "an owl", "a blue dog")
SHAPES = ((80, 64), (64, 64), (50, 100), (64, 70))

Pixels = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def real() -> conditioning.ReadImage:
    """Gives one of four pictures by a request's uid of it, or None for "damaged"."""
    drawn = np.random.default_rng(0)
    pictures = [drawn.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    return lambda request: None if request.source_uid == "damaged" else pictures[int(request.source_uid)]


def asked(**more: Any) -> list[Request]:
    """Four requests that differ in text, seed and real image."""
    plain = replace(REQUEST, **{"width": 64, "height": 64, "steps": 4, "strength": 0.5, **more})
    return [replace(plain, text=text, seed=k, source_uid=str(k)) for k, text in enumerate(TEXTS)]


def images(made: list[Sampled]) -> list[Pixels]:
    return [each.image for each in made]


@pytest.mark.parametrize("name", CHANGING)
def test_a_row_is_its_request_s_whatever_its_neighbours(
    name: str, tiny_model: Callable[[str], Path], real: conditioning.ReadImage
) -> None:
    from_text = models.load(tiny_model(name), device="cpu", dtype="float32")
    pipeline = conditioning.changing(from_text, checkpoints.own_size(tiny_model(name)))
    parts = from_text.components
    assert all(parts[part] is what for part, what in pipeline.components.items() if part in parts)
    whole = images(sample(pipeline, asked(), batch_size=4, real=real))
    turned = images(sample(pipeline, asked()[::-1], batch_size=4, real=real))[::-1]
    padded = images(sample(pipeline, [asked()[0], asked()[3]], batch_size=4, real=real))
    assert all(map(np.array_equal, whole, turned))
    assert all(map(np.array_equal, padded, [whole[0], whole[3]]))
    assert len({image.tobytes() for image in whole}) == 4
    assert {image.shape for image in whole} == {(64, 64, 3)}
    other = sample(pipeline, [replace(asked()[0], source_uid="1")], batch_size=4, real=real)
    assert not np.array_equal(other[0].image, whole[0])
    if name not in WITHOUT_NEGATIVE:
        guided = [replace(each, negative=each.text[::-1]) for each in asked()]
        whole = images(sample(pipeline, guided, batch_size=4, real=real))
        turned = images(sample(pipeline, guided[::-1], batch_size=4, real=real))[::-1]
        assert all(map(np.array_equal, whole, turned))
    if name in SIZED:
        plain = replace(asked()[0], width=0, height=0)
        (own,) = sample(pipeline, [plain], batch_size=1, real=real)
        (same,) = sample(from_text, [replace(plain, source_uid="", strength=0.0)], batch_size=1)
        assert own.image.shape == same.image.shape


def test_a_real_image_is_cut_to_the_model_s_own_size(tiny_model: Callable[[str], Path]) -> None:
    """Also of those that say it nowhere but in the code of their call."""
    plain, photo = asked(width=0, height=0)[:1], np.zeros((50, 70, 3), np.uint8)
    for name, size in {"z-image": (1024, 1024), "kandinsky22": (512, 512), "sd1": (64, 64)}.items():
        pipeline = models.load(tiny_model(name), device="cpu", dtype="float32", changes=True)
        (image,) = conditioning.image_arguments(pipeline, plain, [photo])["image"]
        assert image.size == size


def test_no_mark_is_put_into_the_pixels(tiny_model: Callable[[str], Path]) -> None:
    pipeline = models.load(tiny_model("sdxl"), device="cpu", dtype="float32")
    assert conditioning.changing(pipeline, (64, 64)).watermark is None


@pytest.mark.parametrize("name", ["pixart", "flux2", "sana", "aura-flow"])
def test_a_family_that_changes_no_images_is_refused(name: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(
        ModelError, match=r"strength: diffusers changes no image with .*; it does with Flux, IF"
    ):
        checkpoints.check(tiny_model(name), strength=0.5, steps=4)


@pytest.mark.parametrize(
    ("strength", "steps", "least"), [(0.3, 3, 4), (0.1, 9, 10), (0.29, 3, 4), (0.07, 14, 15), (1.0, 1, 0)]
)
def test_a_step_is_run_at_least(strength: float, steps: int, least: int) -> None:
    if not least:
        checkpoints.check(pipeline_folder(), strength=strength, steps=steps)
        return
    with pytest.raises(ModelError, match=f"steps = {steps}: with strength = {strength}.*; {least} or more"):
        checkpoints.check(pipeline_folder(), strength=strength, steps=steps)
    checkpoints.check(pipeline_folder(), strength=strength, steps=least)


def test_arguments_are_those_of_the_pipeline_that_is_called(tiny_model: Callable[[str], Path]) -> None:
    checkpoints.check(tiny_model("sdxl"), strength=0.5, steps=4, call={"aesthetic_score": 7.0})
    with pytest.raises(ModelError, match=r'Img2ImgPipeline takes no "guidance_rescale"'):
        checkpoints.check(tiny_model("sd1"), strength=0.5, steps=4, call={"guidance_rescale": 0.7})
    with pytest.raises(ModelError, match="is decided by the key `from` of the recipe"):
        checkpoints.check(tiny_model("sd1"), call={"ip_adapter_image": "a.png"})


def test_little_strength_keeps_the_real_image() -> None:
    pipeline = conditioning.changing(models.load(pipeline_folder(), device="cpu", dtype="float32"), (64, 64))
    found = sources.list_images(EMOJI, "real")[:4]
    pictures = [sources.decode(sources.read(image)) for image in found]

    def differences(strength: float) -> Pixels:
        rows = [
            replace(asked(strength=strength, steps=10)[k], text=f"a {image.class_name}")
            for k, image in enumerate(found)
        ]
        made = sample(pipeline, rows, batch_size=4, real=lambda row: pictures[int(row.source_uid)])
        levels = [picture(each).image for each in made]
        return np.array([np.abs(a.astype(float) - b).mean() for a, b in zip(levels, pictures, strict=True)])

    little, half, much, all_of_it = map(differences, (0.1, 0.4, 0.7, 1.0))
    assert little.mean() < half.mean() < much.mean() < all_of_it.mean()
    assert little.max() < 16  # what the autoencoder alone takes from it, and one step
    assert all_of_it.min() > 20


def test_a_real_image_covers_the_picture_by_its_middle() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 11:29] = 255
    assert np.array_equal(conditioning.cover(Image.fromarray(wide), (20, 20)), np.full((20, 20, 3), 255))
    same = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(conditioning.cover(Image.fromarray(same), (8, 8)), same)


def test_a_damaged_real_image_is_a_failed_row(
    tiny_model: Callable[[str], Path], real: conditioning.ReadImage
) -> None:
    pipeline = conditioning.changing(models.load(tiny_model("sd1"), device="cpu", dtype="float32"), (64, 64))
    first, second, *_ = asked()
    made = sample(pipeline, [first, replace(second, source_uid="damaged")], batch_size=2, real=real)
    whole = sample(pipeline, [first, second], batch_size=2, real=real)
    assert np.array_equal(made[0].image, whole[0].image)
    assert [picture(each).error for each in made] == ["", "real image"]
    assert picture(made[1]).image is None


# --- IP-Adapter ---

PARTS = {"subfolder": "models", "file": "ip-adapter.safetensors", "image_encoder": "models/image_encoder"}


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tiny_models.ip_adapter(folder, tiny_model("sd1"))
    return folder


def adapter(folder: Path, scale: float = 0.8) -> locating.Adapter:
    return locating.locate_adapter(str(folder), folder=folder, scale=scale, **PARTS)


def test_an_adapter_looks_at_one_real_image_a_call(
    adapter_folder: Path, tiny_model: Callable[[str], Path], real: conditioning.ReadImage
) -> None:
    def load(scale: float) -> Any:
        return models.load(
            tiny_model("sd1"), device="cpu", dtype="float32", adapter=adapter(adapter_folder, scale)
        )

    four = asked(strength=0.0)
    pipeline = load(0.8)
    whole = images(sample(pipeline, four, batch_size=4, real=real))
    turned = images(sample(pipeline, four[::-1], batch_size=4, real=real))[::-1]
    alone = images(sample(pipeline, [four[2]], batch_size=1, real=real))
    assert all(map(np.array_equal, whole, turned))
    assert np.array_equal(alone[0], whole[2])
    (other,) = images(sample(pipeline, [replace(four[2], source_uid="1")], batch_size=4, real=real))
    assert np.abs(other - alone[0]).max() > 1 / 255
    with pytest.raises(
        ModelError, match="batch_size = 4: StableDiffusionPipeline is given one prompt a call"
    ):
        sample(pipeline, four, batch_size=4, real=real, halve=False)
    (unseen,) = images(sample(load(0.0), [four[2]], batch_size=1, real=real))
    plain = models.load(tiny_model("sd1"), device="cpu", dtype="float32")
    (none,) = images(sample(plain, [replace(four[2], source_uid="")], batch_size=1))
    assert np.abs(unseen - none).max() < 1e-5
    assert np.abs(alone[0] - none).max() > 1 / 255


@pytest.mark.parametrize("name", ["sd2", "sdxl", "lcm"])
def test_families_that_take_adapters(
    name: str, tmp_path: Path, tiny_model: Callable[[str], Path], real: conditioning.ReadImage
) -> None:
    tiny_models.ip_adapter(tmp_path, tiny_model(name))
    own = adapter(tmp_path)
    pipeline = models.load(tiny_model(name), device="cpu", dtype="bfloat16", adapter=own)
    one, other = (
        images(sample(pipeline, [replace(asked(strength=0.0)[0], source_uid=uid)], batch_size=1, real=real))[
            0
        ]
        for uid in "01"
    )
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() > 1 / 255


def test_an_adapter_is_known_by_its_weights_and_scale(
    adapter_folder: Path, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    copy = Path(shutil.copytree(adapter_folder, tmp_path / "copy"))

    def prints(*some: locating.Adapter | None) -> list[str]:
        return [models.fingerprint(tiny_model("sd1"), adapter=one) for one in some]

    one, same, stronger, none = prints(adapter(adapter_folder), adapter(copy), adapter(copy, 1.0), None)
    assert one == same
    config = copy / "models" / "image_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_eps": 0.1}))
    assert len({one, stronger, none, *prints(adapter(copy))}) == 4


def test_what_is_no_adapter(adapter_folder: Path, tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    def locate(path: str = str(adapter_folder), **more: str) -> locating.Adapter:
        return locating.locate_adapter(path, folder=tmp_path, scale=1.0, fetch=False, **{**PARTS, **more})

    with pytest.raises(ModelError, match=r"ip-adapter.bin: not .safetensors; others are not loaded"):
        locate(file="ip-adapter.bin")
    with pytest.raises(ModelError, match=r"models/other.safetensors: no such file; say subfolder, file and"):
        locate(file="other.safetensors")
    with pytest.raises(ModelError, match=r"/image_encoder/config.json: no such file"):
        locate(image_encoder="image_encoder")
    with pytest.raises(ModelError, match=r'path = "nowhere": no such folder; a folder \(looked for '):
        locate("nowhere")
    with pytest.raises(ModelError, match=r'path = "nobody/nothing": cannot be had'):
        locate("nobody/nothing")
    copy = Path(shutil.copytree(adapter_folder, tmp_path / "copy"))
    (copy / "models" / "image_encoder" / "model.safetensors").rename(copy / "model.bin")
    with pytest.raises(ModelError, match=r"image_encoder: no .safetensors weights there"):
        locate(str(copy))
    for name, reason in {
        "flux": "FluxPipeline takes none",
        "sdxl": "does not fit StableDiffusionXLPipeline",
    }.items():
        with pytest.raises(ModelError, match=f"adapter: .*{reason}"):
            models.load(tiny_model(name), device="cpu", dtype="float32", adapter=adapter(adapter_folder))


# --- a dataset ---

RECIPE = """
name = "from-real"

[sources.real]
path = "real"

[[prompts]]
use = "templates"
classes = ["cat", "dog"]
templates = ["a {style} of a {class}"]
axes = { style = ["cartoon", "photo", "3d render"] }

[quota]
per = "class"
requests = 2

[images]
format = "png"
shard_size = 4

[[models]]
id = "tiny"
path = "embedded"
dtype = "float32"
steps = 3
guidance = 3.0
batch_size = 4
from = "sources.real"
strength = 0.6

[reshard]
split = { train = 0.5, val = 0.5 }
"""


@pytest.fixture
def from_real(tmp_path: Path) -> Path:
    """The folder of a recipe, with three real images a class as a folder a class."""
    folder = tmp_path / "recipe"
    for image in sources.list_images(EMOJI, "real"):
        own = folder / "real" / image.class_name
        if image.class_name in ("cat", "dog") and len(list(own.glob("*"))) < 3:
            own.mkdir(parents=True, exist_ok=True)
            (own / f"{image.uid}.jpg").write_bytes(sources.read(image))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def rows_of(run: Path, folder: str = "pool") -> list[dict[str, Any]]:
    return pa.concat_tables(map(pq.read_table, sorted((run / folder).glob("*.parquet")))).to_pylist()


def test_a_dataset_from_real_images(from_real: Path, tmp_path: Path) -> None:
    run = synthgen.run(from_real, tmp_path / "run", workers=1)
    first = data_digests(run / "pool")
    grown = synthgen.run(from_real, run, settings=["quota.requests=4"], workers=1, replace=True)
    assert verify(grown) == []
    assert first.items() <= data_digests(run / "pool").items()
    at_once = synthgen.run(from_real, tmp_path / "once", settings=["quota.requests=4"], workers=1)

    rows, planned = rows_of(run), rows_of(run, "plan")
    assert {row["uid"]: row["sha256"] for row in rows} == {r["uid"]: r["sha256"] for r in rows_of(at_once)}
    assert data_digests(run / "final") == data_digests(at_once / "final")
    assert {row["strength"] for row in rows} == {0.6}
    assert "source_sha256" not in rows[0]
    uses = Counter((row["class_name"], row["source_uid"]) for row in rows)
    assert sorted(uses.values()) == [1, 1, 1, 1, 2, 2]
    photos = {file.stem: file for file in from_real.glob("real/*/*.jpg")}
    for row in planned:
        photo = photos[row["source_uid"]]
        assert photo.parent.name == row["class_name"]
        assert row["source_sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
        assert row["group"] == row["source_uid"][:16]

    splits = dict[str, str]()
    for path in sorted(run.glob("final/main/*/*.tar")):
        for key, members in tars.samples(path.read_bytes()):
            about = json.loads(members["json"])
            assert about["uid"] == key
            assert splits.setdefault(about["source_uid"], path.parent.name) == path.parent.name
            assert split_of(about["group"], {"train": 0.5, "val": 0.5}) == path.parent.name
            made = np.asarray(Image.open(io.BytesIO(members["png"]))).astype(float)
            real = np.asarray(Image.open(photos[about["source_uid"]])).astype(float)
            assert 2 < np.abs(made - real).mean() < 70
    assert set(splits) == set(photos)


def test_a_source_that_has_changed_is_named(from_real: Path, tmp_path: Path) -> None:
    run = synthgen.run(from_real, tmp_path / "run", stages=["plan"], workers=1)
    cats = sorted((from_real / "real" / "cat").glob("*"))

    def refused(**more: Any) -> str:
        with pytest.raises(SynthgenError) as caught:
            synthgen.run(from_real, run, workers=1, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for cat in cats:  # a byte of each, none more or less
        data = bytearray(cat.read_bytes())
        data[-3] ^= 1
        cat.write_bytes(data)
    sources._sha256.cache_clear()
    assert "sources.real: cat/" in (said := refused())
    assert "has other bytes, though images are planned from it; put it back, or use another" in said
    assert "sources.real: cat/" in refused(settings=["quota.requests=4"])
    cats[0].unlink()
    assert "was made with sources.real.cat = " in (said := refused())
    assert "; put the real images back, or use another folder with -o DIR" in said
    for cat in cats[1:]:
        cat.unlink()
    assert "sources.real: " in (said := refused())
    assert 'no image of the class "cat"; add some, or take it out' in said


def test_a_class_and_its_images_can_be_added(from_real: Path, tmp_path: Path) -> None:
    def planned() -> list[tuple[str, str]]:
        run = synthgen.run(from_real, tmp_path / "run", stages=["plan"], workers=1)
        return [(row["class_name"], row["uid"]) for row in rows_of(run, "plan")]

    first = planned()
    (from_real / "real" / "owl").mkdir()
    shutil.copy(next(from_real.glob("real/cat/*")), from_real / "real" / "owl" / "1.jpg")
    recipe_file = from_real / "recipe.toml"
    recipe_file.write_text(recipe_file.read_text().replace('["cat", "dog"]', '["cat", "dog", "owl"]'))
    assert planned()[:4] == first
    assert Counter(name for name, _ in planned()) == {"cat": 2, "dog": 2, "owl": 2}
    (from_real / "real" / "cat" / "another.png").write_bytes(b"a new one changes the order")
    with pytest.raises(SynthgenError, match=r"was made with sources\.real\.cat = "):
        planned()


def test_an_empty_prompt_is_what_the_pipeline_reads(from_real: Path, tmp_path: Path) -> None:
    """The real image alone: its class and seed being the same, the prompt changes nothing."""
    settings = ["quota.requests=1", "models.0.text=false", "reshard.split={ train = 1.0 }"]
    (row, *_) = rows_of(synthgen.run(from_real, tmp_path / "run", settings=settings, workers=1))
    assert row["call"] == '{"prompt":""}'
    assert row["text"].startswith("a ")
    pipeline = conditioning.changing(models.load(pipeline_folder(), device="cpu", dtype="float32"), (64, 64))
    pixels = sources.decode(
        (from_real / "real" / row["class_name"] / f"{row['source_uid']}.jpg").read_bytes()
    )

    def made(**more: Any) -> Pixels:
        request = replace(asked(steps=3, width=0, height=0)[0], **more)
        return sample(pipeline, [request], batch_size=1, real=lambda _: pixels)[0].image

    assert np.array_equal(made(call=row["call"]), made(call=row["call"], text="a blue dog"))
    assert np.array_equal(made(call=row["call"]), made(text=""))
    assert not np.array_equal(made(), made(text="a blue dog"))


def test_a_dataset_by_an_adapter(
    from_real: Path, tmp_path: Path, adapter_folder: Path, tiny_model: Callable[[str], Path]
) -> None:
    text = (from_real / "recipe.toml").read_text()
    parts = ", ".join(f'{key} = "{value}"' for key, value in PARTS.items())
    line = f'adapter = {{ path = "{adapter_folder}", {parts}, scale = 0.6 }}'
    text = text.replace("strength = 0.6", line).replace('"embedded"', f'"{tiny_model("sd1")}"')
    (from_real / "recipe.toml").write_text(text)
    rows = rows_of(synthgen.run(from_real, tmp_path / "run", workers=1))
    assert {row["error"] for row in rows} == {None}
    assert {row["strength"] for row in rows} == {0.0}
    assert len({row["source_uid"] for row in rows}) == 4
    with pytest.raises(SynthgenError, match=r"models\.tiny\.fingerprint"):
        synthgen.run(from_real, tmp_path / "run", settings=["models.0.adapter.scale=0.7"], workers=1)


def test_full_strength_is_told(from_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "synthgen"):
        settings = ["models.0.strength=1.0"]
        synthgen.run(from_real, tmp_path / "run", stages=["plan"], settings=settings, workers=1)
    told = [record.getMessage() for record in caplog.records if "strength" in record.getMessage()]
    assert told == ["models.tiny: strength = 1: nothing of the real images is left"]


BAD = {
    "how is not said": (
        ("strength = 0.6\n", ""),
        "models.0: from: how is not said; give either strength = 0.6, the part of each real image that is",
    ),
    "both ways": (
        (
            "strength = 0.6",
            'strength = 0.6\nadapter = { path = "a", file = "b", image_encoder = "c", scale = 1.0 }',
        ),
        "models.0: from: strength and adapter are both there; give either",
    ),
    "from nothing": (
        ('from = "sources.real"\n', ""),
        "models.0: strength: is for images made from real ones; name these with from",
    ),
    "no text from nothing": (
        ('from = "sources.real"\nstrength = 0.6', "text = false"),
        "models.0: text: is for images made from real ones; name these with from",
    ),
    "unknown source": (
        ('from = "sources.real"', 'from = "sources.reel"'),
        'models.0.from: unknown source "sources.reel"; did you mean "sources.real"? Known: sources.real',
    ),
    "a second stage": (
        ("strength = 0.6", 'strength = 0.6\nupscaler = { path = "a", steps = 1, guidance = 1.0 }'),
        "models.0: upscaler: makes images from text alone; remove it, or from",
    ),
    "no strength": (
        ("strength = 0.6", "strength = 0.0"),
        "models.0.strength: input should be greater than 0, got 0.0",
    ),
    "an adapter without its weights": (
        ("strength = 0.6", 'adapter = { path = "a", image_encoder = "c", scale = 1.0 }'),
        'models.0.adapter: missing key "file"',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_is_refused_with_one_line(name: str, from_real: Path) -> None:
    (old, new), expected = BAD[name]
    path = from_real / "recipe.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            "models.0.strength=0.3",
            r"models\.tiny: steps = 3: with strength = 0.3 not one of them is run; 4 or",
        ),
        ("sources.real.path=nowhere", r"sources\.real: .*nowhere: is not there"),
        ('prompts.0.classes=["cat", "owl"]', r'sources\.real: .*: no image of the class "owl"; add some'),
    ],
)
def test_what_planning_finds(setting: str, expected: str, from_real: Path, tmp_path: Path) -> None:
    with pytest.raises(SynthgenError, match=expected) as caught:
        synthgen.run(from_real, tmp_path / "run", settings=[setting], workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_imagenet_s_folders_go_by_their_synsets(from_real: Path, tmp_path: Path) -> None:
    (from_real / "classes.csv").write_text("id,name,synset\n0,cat,cat.n.01\n1,dog,dog.n.01\n")
    (from_real / "real" / "cat").rename(from_real / "real" / "n02121620")
    settings = ['prompts.0.classes="classes.csv"']
    run = synthgen.run(from_real, tmp_path / "run", stages=["plan"], settings=settings, workers=1)
    cats = {row["source_uid"] for row in rows_of(run, "plan") if row["class_name"] == "cat"}
    assert cats <= {file.stem for file in (from_real / "real" / "n02121620").glob("*")}
    assert len(cats) == 2


def test_the_licence_of_an_adapter_counts(from_real: Path, adapter_folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (own / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    parts = ", ".join(f'{key} = "{value}"' for key, value in PARTS.items())
    line = f'adapter = {{ path = "{own}", {parts}, scale = 0.6 }}'
    text = (from_real / "recipe.toml").read_text()
    (from_real / "recipe.toml").write_text(text.replace("strength = 0.6", line))
    found = {one.key: one.license for one in terms(open_job(from_real, fetch=False))}
    assert "cc-by-nc-4.0" in found["models.tiny"]
