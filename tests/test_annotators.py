"""Annotators against their references: imagehash, plain numpy, open_clip's own preprocessing."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from synthgen import pools
from synthgen.annotators import ANNOTATORS, CHECKS, COLUMNS
from synthgen.annotators.hashes import phash, shrink
from synthgen.data import Category, Sample
from synthgen.embedded import clip_folder
from synthgen.errors import ModelError, RecipeError

CLASSES = [
    Category(4, "cat", "cat"),
    Category(9, "soccer ball", "soccer ball"),
    Category(2, "apple", "apple"),
]

LANCZOS = Image.Resampling.LANCZOS


def picture(seed: int = 0, side: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def samples(n: int = 5) -> list[Sample]:
    made = []
    for k in range(n):
        category = CLASSES[k % len(CLASSES)]
        sink = io.BytesIO()
        Image.fromarray(picture(k)).save(sink, "PNG")
        made.append(
            Sample(f"{k:032x}", category.id, category.name, f"a {category.name}", picture(k), sink.getvalue())
        )
    return made


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("side", [64, 300])
def test_phash_is_imagehash_s(seed: int, side: int) -> None:
    import imagehash

    assert f"{phash(picture(seed, side)):016x}" == str(imagehash.phash(Image.fromarray(picture(seed, side))))


@pytest.mark.parametrize(
    "size", [(512, 512), (300, 200), (200, 300), (31, 33), (32, 40), (1, 1), (5, 700), (257, 511), (6400, 9)]
)
def test_an_image_is_shrunk_as_pillow_does(size: tuple[int, int]) -> None:
    """Byte for byte, black and white too, whose sums are the greatest; 6400 is beyond what float32 holds."""
    random = np.random.default_rng(0)
    for levels in (random.integers(0, 256, size[::-1]), random.integers(0, 2, size[::-1]) * 255):
        luma = levels.astype(np.uint8)
        assert (shrink(luma) == np.asarray(Image.fromarray(luma).resize((32, 32), LANCZOS))).all()


def test_equal_pixels_are_found_whatever_their_files_say() -> None:
    """The mark in each file has its own uid, so no hash of files finds an image again."""
    from synthgen import marks
    from synthgen.generation.encoding import encode

    flat = np.zeros((2, 8, 3), np.uint8)
    made = [
        Sample(uid, 0, "a", "a", image, encode(image, "webp", marks.packet(uid, "birds")))
        for uid, image in (("0", picture(1)), ("1", picture(1)), ("2", flat), ("3", flat.reshape(4, 4, 3)))
    ]
    assert made[0].stored != made[1].stored
    found = ANNOTATORS["hashes"](device="cpu")(made)["pixels"].tolist()
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_image_statistics_by_hand() -> None:
    black, noise = np.zeros((32, 48, 3), np.uint8), picture(1)
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    made = [Sample("0", 0, "a", "a", image, b"") for image in (black, half, noise)]
    out = ANNOTATORS["image"](device="cpu")(made)
    assert out["width"].tolist() == [48, 64, 64]
    assert out["height"].tolist() == [32, 64, 64]
    assert out["luma"][:2] == pytest.approx([0, 0.5])
    assert out["luma_std"][:2] == pytest.approx([0, 0.5])
    assert out["entropy"][:2] == pytest.approx([0, 1])
    assert out["sharpness"][0] == 0
    assert out["sharpness"][1] > out["sharpness"][2] > 0
    assert out["near_constant"].tolist() == [True, False, False]


def slow_rules(image: np.ndarray) -> dict[str, object]:
    """cleanvision's formulas, word for word, on all pixels."""
    pixels = image.astype(np.float64)
    seen = np.sqrt(0.241 * pixels[..., 0] ** 2 + 0.691 * pixels[..., 1] ** 2 + 0.068 * pixels[..., 2] ** 2)
    small = Image.fromarray(image)
    ratio = max(small.size) / 64
    if ratio > 1:
        small = small.resize((max(int(small.width // ratio), 1), max(int(small.height // ratio), 1)))
    grey = small.convert("L")
    edges = np.asarray(grey.filter(ImageFilter.FIND_EDGES)).std()
    of_histogram = 1 - np.exp(-np.std(grey.histogram()) / 100)
    blur = min(1 - np.exp(-edges / 100) + (of_histogram if of_histogram > 0.18 else 0), 1)
    height, width = image.shape[:2]
    return {
        "brightness_p5": np.percentile(seen / 255, 5),
        "brightness_p99": np.percentile(seen / 255, 99),
        "rgb_entropy": Image.fromarray(image).entropy(),
        "blur_score": blur,
        "aspect": min(width / height, height / width),
        "size": np.sqrt(width * height),
        "dark": np.percentile(seen / 255, 99) < 0.32,
        "light": 1 - np.percentile(seen / 255, 5) < 0.05,
        "odd_aspect": min(width / height, height / width) < 0.35,
        "low_information": Image.fromarray(image).entropy() * 0.1 < 0.3,
        "blurry": blur < 0.29,
        "grayscale": bool((image == image[..., :1]).all()),
    }


def bump(side: int) -> np.ndarray:
    arch = np.sin(np.pi * (np.arange(side) + 0.5) / side)
    levels = 10 + 200 * np.outer(arch, arch)
    return np.stack([levels, levels + 9, levels], axis=2).astype(np.uint8)


PLANTED = {
    "dark": lambda image: image // 4,
    "light": lambda image: 255 - image // 30,
    "odd_aspect": lambda image: image[: len(image) // 4],
    "low_information": lambda image: image // 128 * 90,
    "blurry": lambda image: bump(len(image)),
    "grayscale": lambda image: image[..., :1].repeat(3, axis=2),
}


@pytest.mark.parametrize("side", [48, 64, 500])
def test_cleanvision_s_rules(side: int) -> None:
    """Up to 64 pixels nothing is reduced, so the numbers are theirs; above the verdicts are."""
    tiles = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    clean = np.asarray(Image.fromarray(tiles).resize((side, side), Image.Resampling.BICUBIC))
    images = [clean, *(plant(clean) for plant in PLANTED.values())]
    out = ANNOTATORS["image"](device="cpu")([Sample("0", 0, "a", "a", image, b"") for image in images])
    for row, image in enumerate(images):
        for key, wanted in slow_rules(image).items():
            if isinstance(wanted, bool | np.bool_):
                assert out[key][row] == wanted, (row, key)
            elif side <= 64:
                assert out[key][row] == pytest.approx(wanted, rel=1e-5), (row, key)
    for row, rule in enumerate(PLANTED, 1):
        assert out[rule][row], rule
        assert not out[rule][0], rule


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["clip", "clusters", "hashes", "image"])
def test_outputs_are_the_documented_columns_whatever_the_neighbours(name: str) -> None:
    centroids = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32)
    fitted = {"centroids": centroids[:3], "class_names": np.array([""] * 3)}
    keys = {
        "clip": {"classes": CLASSES},
        "clusters": {"fitted": fitted, "features": "f", "count": 3},
    }
    annotate = ANNOTATORS[name](device="cpu", **keys.get(name, {}))  # type: ignore[operator]
    features = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float16)
    given = [replace(sample, read={"f": row}) for sample, row in zip(samples(), features, strict=True)]
    whole = annotate(given)
    columns = {key: values for key, values in whole.items() if values.ndim == 1}
    assert list(columns) == list(COLUMNS[name])
    for key, kind in COLUMNS[name].items():
        assert kind == ("string" if columns[key].dtype.kind == "U" else columns[key].dtype.name)
    turned = annotate(given[::-1])
    for key, values in whole.items():
        assert (values == turned[key][::-1]).all(), key


def test_clip_agrees_with_open_clip() -> None:
    import open_clip
    import torch

    given = samples()
    out = ANNOTATORS["clip"](device="cpu", classes=CLASSES)(given)  # type: ignore[call-arg]
    name = f"local-dir:{clip_folder()}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokenize = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        images = model.encode_image(
            torch.stack([preprocess(Image.fromarray(s.image)) for s in given]), normalize=True
        )
        texts = model.encode_text(tokenize([s.text for s in given]), normalize=True)
        labels = []
        for noun in ("a cat", "a soccer ball", "an apple"):
            captions = [f"a photo of {noun}", f"an image of {noun}", noun]
            labels.append(
                torch.nn.functional.normalize(
                    model.encode_text(tokenize(captions), normalize=True).mean(0), dim=0
                )
            )
        cosines = (images @ torch.stack(labels).T).numpy()
    assert out["similarity"] == pytest.approx((images * texts).sum(1).numpy(), abs=1e-6)
    true = np.array([k % 3 for k in range(5)])
    assert out["label_similarity"] == pytest.approx(cosines[np.arange(5), true], abs=1e-6)
    assert out["top1"].tolist() == [CLASSES[k].id for k in cosines.argmax(1)]
    assert out["rank"].tolist() == [(row > row[k]).sum() for row, k in zip(cosines, true, strict=True)]
    best_other = [np.delete(row, k).max() for row, k in zip(cosines, true, strict=True)]
    assert out["margin"] == pytest.approx(out["label_similarity"] - best_other, abs=1e-6)
    assert out["img"].dtype == np.float16
    assert np.linalg.norm(out["img"].astype(np.float32), axis=1) == pytest.approx(np.ones(5), abs=2e-3)


SHAPES = [(64, 64), (512, 512), (300, 200), (200, 300), (31, 90), (1, 7), (1000, 40), (640, 427)]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_images_are_preprocessed_as_open_clip_does(resize_mode: str) -> None:
    """Bit by bit, on images of any size."""
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from synthgen.annotators.clip import split

    theirs = image_transform_v2(PreprocessCfg(size=48, resize_mode=resize_mode), is_train=False)
    shrink, finish = split(theirs)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in SHAPES]
    ours = finish(np.stack([np.asarray(shrink(Image.fromarray(image))) for image in images]), "cpu")
    assert torch.equal(ours, torch.stack([theirs(Image.fromarray(image)) for image in images]))
    assert open_clip.__version__.startswith("3.3")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an open_clip model of random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    model = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    weights = open_clip.CLIP(**model).state_dict()
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return folder


@pytest.mark.usefixtures("one_thread")
def test_a_folder_of_open_clip_and_samples_without_class_or_text(tiny_clip: Path) -> None:
    annotate = ANNOTATORS["clip"](device="cpu", classes=CLASSES, model=str(tiny_clip))  # type: ignore[call-arg]
    whole = samples(6)
    lacking = [
        replace(sample, class_id=None, class_name=None) if k % 3 == 1 else sample
        for k, sample in enumerate(whole)
    ]
    lacking = [replace(sample, text=None) if k % 3 == 2 else sample for k, sample in enumerate(lacking)]
    lacking[3] = replace(lacking[3], class_name="unheard of")
    out, full = annotate(lacking), annotate(whole)
    assert full["img"].shape == (6, 24)
    assert annotate.fingerprint  # type: ignore[attr-defined]
    for key, values in full.items():
        missing = pools.is_missing(out[key])
        if key in ("similarity", "txt"):
            assert missing.tolist() == [False, False, True] * 2
        elif key in ("label_similarity", "margin", "rank"):
            assert missing.tolist() == [False, True, False, True, True, False]
        else:
            assert not missing.any()
        assert (np.ma.getdata(out[key])[~missing] == np.ma.getdata(values)[~missing]).all(), key
    nobody = ANNOTATORS["clip"](device="cpu", classes=[], model=str(tiny_clip))(whole)  # type: ignore[call-arg]
    for key in ("label_similarity", "margin", "top1", "rank"):
        assert pools.is_missing(nobody[key]).all()
    assert (nobody["similarity"] == full["similarity"]).all()


def test_a_folder_without_weights(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_clip / "open_clip_config.json", tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        ANNOTATORS["clip"](device="cpu", classes=CLASSES, model=str(tmp_path))  # type: ignore[call-arg]


@pytest.mark.usefixtures("one_thread")
def test_prompts_that_come_again_are_encoded_once_with_the_same_bits(tiny_clip: Path) -> None:
    """Also where a batch has more texts than are encoded at a time, and they come in another order."""
    annotate = ANNOTATORS["clip"](device="cpu", classes=CLASSES, model=str(tiny_clip))  # type: ignore[call-arg]
    texts = [f"a {'very ' * (k % 5)}small {k % 20}" for k in range(40)]
    given = [replace(sample, text=text) for sample, text in zip(samples(40), texts, strict=True)]
    once = annotate(given)["txt"]
    annotate.start()  # type: ignore[attr-defined]
    again = np.concatenate([annotate(given[::-1][k : k + 8])["txt"] for k in range(0, 40, 8)])[::-1]
    assert (once == again).all()
    assert (once[:20] == once[20:]).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "ViT-L-15"}, 'model: unknown "ViT-L-15"; did you mean "ViT-L-'),
        (
            {"pretrained": "opnai"},
            'pretrained: unknown "opnai" of model "ViT-L-14"; did you mean "openai"? Known: ',
        ),
        ({"templates": ["a {thing}"]}, 'templates: "a {thing}": one slot {class} and no other is wanted'),
        ({"templates": ["a thing"]}, 'templates: "a thing": one slot {class} and no other is wanted'),
    ],
)
def test_clip_s_keys_are_checked_before_there_are_images(keys: dict[str, object], message: str) -> None:
    given = {"model": "ViT-L-14", "pretrained": "openai", "templates": ["a {class}"]} | keys
    with pytest.raises(RecipeError) as error:
        CHECKS["clip"](**given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model": "ViT-L-14", "pretrained": "openai"},
            "tried the Hugging Face cache and hub. Without network give a local",
        ),
        (
            {"model": "hf-hub:nobody/nothing"},
            "tried the Hugging Face cache and hub. Without network give a local",
        ),
    ],
)
def test_a_clip_that_cannot_be_had(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError) as error:
        ANNOTATORS["clip"](device="cpu", classes=CLASSES, **keys)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)
