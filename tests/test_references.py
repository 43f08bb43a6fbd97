"""The annotator `references` against open_clip, imagehash and plain numpy."""

import json
import logging
import tarfile
from pathlib import Path

import imagehash
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_networks import picture

from synthgen import sources
from synthgen.annotators import ANNOTATORS, CHECKS, COLUMNS
from synthgen.data import Category, Sample
from synthgen.embedded import clip_folder
from synthgen.errors import RecipeError

CLASSES = [Category(0, "apple", "apple"), Category(1, "cat", "cat"), Category(2, "dog", "dog")]
KEYS = {"source": "sources.real", "per": "class", "features": "", "model": "embedded", "pretrained": ""}
REAL = {"apple/0": 100, "apple/1": 101, "apple/2": 102, "cat/3": 103, "bird/4": 104, "5": 105}
"""Real images by their places, and the number of the picture that each is: no dog, a bird, one without a
class.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, number in REAL.items():
        path = tmp_path / "real" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path)
    return tmp_path / "real"


def opened(folder: Path, per: str) -> sources.Source:
    if per:
        return sources.open_source(folder, "real", CLASSES, complete=False)
    return sources.open_all(folder, "real")


def clip_features(numbers: list[int]) -> np.ndarray:
    """By open_clip alone."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder()}")
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.fromarray(picture(k))) for k in numbers])
        return model.eval().encode_image(pixels, normalize=True).numpy()


def samples(numbers: list[int], annotate: object, read: str = "") -> list[Sample]:
    """Pictures, each of the next class; 103 is a copy of the real cat."""
    features = clip_features(numbers).astype(np.float16) if read else None
    made = []
    for row, k in enumerate(numbers):
        one = CLASSES[row % 3]
        brought = {read: features[row]} if features is not None else {}
        sample = Sample(f"{k:032x}", one.id, one.name, "a", picture(k), b"", brought)
        prepared = annotate.prepare(sample)  # type: ignore[attr-defined]
        # as in a shard, the pixels may be gone by then
        made.append(
            Sample(sample.uid, one.id, one.name, "a", np.empty((0, 0, 3), np.uint8), b"", brought, prepared)
        )
    return made


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("features", ["", "clip_img"])
@pytest.mark.parametrize("per", ["class", ""])
def test_columns_are_those_of_plain_numpy(per: str, features: str, folder: Path) -> None:
    numbers, encode = [1, 103, 2, 3, 4, 5, 100], None
    if features:
        encode = ANNOTATORS["clip"](device="cpu", classes=CLASSES).encode  # type: ignore[attr-defined]
    real = opened(folder, per)
    given = {"device": "cpu", "real": real, "encode": encode, "source": "sources.real", "per": per}
    annotate = ANNOTATORS["references"](**given, features=features)  # type: ignore[arg-type]
    made = samples(numbers, annotate, features)
    out = annotate(made)
    assert list(out) == list(COLUMNS["references"])
    of_uid = {image.uid: image.key.removesuffix(".png") for image in real.images.values()}
    for row, number in enumerate(numbers):
        own = [key for key in REAL if not per or key.split("/")[0] == CLASSES[row % 3].name]
        if not own:
            assert CLASSES[row % 3].name == "dog"
            assert all(values[row] is np.ma.masked for values in out.values())
            continue
        cosines = clip_features([REAL[key] for key in own]) @ clip_features([number])[0]
        assert out["mean"][row] == pytest.approx(cosines.mean(), abs=1e-3)
        assert out["max"][row] == pytest.approx(cosines.max(), abs=1e-3)
        assert out["norm2"][row] == pytest.approx(np.sqrt((cosines**2).sum()), abs=2e-3)
        assert of_uid[out["nearest"][row]] == own[int(cosines.argmax())]
        hashes = [imagehash.phash(Image.fromarray(picture(REAL[key]))) for key in own]
        distances = [one - imagehash.phash(Image.fromarray(picture(number))) for one in hashes]
        assert out["phash_distance"][row] == min(distances)
    assert (out["phash_distance"][1], out["max"][1]) == (0, pytest.approx(1, abs=1e-6)), "a copy"
    turned = annotate(made[::-1])
    for name, values in out.items():
        assert values.dtype == turned[name].dtype
        assert values.tolist() == turned[name][::-1].tolist(), name
    assert len(annotate.fingerprint) == 32  # type: ignore[attr-defined]


@pytest.mark.usefixtures("one_thread")
def test_real_images_are_encoded_in_batches_of_one_size(folder: Path) -> None:
    """Another image in the source changes nothing of what is said of the others."""
    sizes = []

    def encode(images: list[np.ndarray]) -> np.ndarray:
        sizes.append(len(images))
        return np.stack([np.ones(4) * image.mean() + np.arange(4) for image in images])

    encode.fingerprint = "f" * 32  # type: ignore[attr-defined]
    for k in range(6, 80):
        Image.fromarray(picture(k)).save(folder / "apple" / f"{k}.png")
    (folder / "cat/damaged.png").write_bytes(b"nonsense")
    given = {"device": "cpu", "real": opened(folder, "class"), "encode": encode, "source": "sources.real"}
    ANNOTATORS["references"](**given, features="clip_img")  # type: ignore[arg-type]
    assert sizes == [64, 64]


def test_sources_may_lack_classes_but_not_all(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CHECKS["references"](real=opened(folder, "class"), classes=CLASSES, **KEYS)
    assert caplog.messages == ["sources.real: has no image of 1 of 3 classes (dog); its columns are null"]
    with pytest.raises(RecipeError, match='no image of the class "zebra"; add some, or take it out'):
        sources.open_source(folder, "real", [Category(0, "zebra", "zebra")], complete=False)
    with pytest.raises(RecipeError, match='no image of the class "dog"; add some, or take it out'):
        sources.open_source(folder, "real", CLASSES)


def test_images_without_a_label_are_listed_too(folder: Path, tmp_path: Path) -> None:
    assert {image.key for image in opened(folder, "").images.values()} == {f"{key}.png" for key in REAL}
    path = tmp_path / "tars" / "00000000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for suffix, data in ((".png", (folder / "5.png").read_bytes()), (".json", json.dumps({}).encode())):
            (tmp_path / f"a{suffix}").write_bytes(data)
            tar.add(tmp_path / f"a{suffix}", f"a{suffix}")
    assert [image.class_name for image in sources.open_all(path.parent, "real").images.values()] == [""]
    with pytest.raises(RecipeError, match="has no class"):
        sources.list_images(path.parent, "real")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"features": "clip_txt"}, 'features: "clip_txt": not of images; some that end with _img are wanted'),
        (
            {"features": "clip_img", "model": "ViT-L-14"},
            'features: "clip_img" says already whose features are compared; take out model and pretrained',
        ),
        ({"model": "ViT-L-15"}, 'model: unknown "ViT-L-15"; did you mean "ViT-L-1'),
    ],
)
def test_wrong_keys_are_told_before_there_are_images(
    keys: dict[str, str], message: str, folder: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        CHECKS["references"](real=opened(folder, "class"), classes=CLASSES, **KEYS | keys)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_a_pool_without_classes_is_compared_with_all(folder: Path) -> None:
    with pytest.raises(RecipeError, match='compare with all real images by per = ""'):
        CHECKS["references"](real=opened(folder, "class"), classes=[], **KEYS)
    CHECKS["references"](real=opened(folder, ""), classes=[], **KEYS | {"per": ""})
