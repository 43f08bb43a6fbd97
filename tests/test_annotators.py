"""Annotators against their references: imagehash, plain numpy, open_clip's own preprocessing."""

import io

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["clip", "hashes", "image"])
def test_outputs_are_the_documented_columns_whatever_the_neighbours(name: str) -> None:
    given = {"classes": CLASSES} if name == "clip" else {}
    annotate = ANNOTATORS[name](device="cpu", **given)  # type: ignore[operator]
    whole = annotate(samples())
    columns = {key: values for key, values in whole.items() if values.ndim == 1}
    assert list(columns) == list(COLUMNS[name])
    for key, kind in COLUMNS[name].items():
        assert kind == ("string" if columns[key].dtype.kind == "U" else columns[key].dtype.name)
    turned = annotate(samples()[::-1])
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
