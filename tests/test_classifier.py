"""The annotator `classifier` against transformers, timm and torchvision themselves."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from PIL import Image
from tiny_networks import LABELS, picture

from synthgen import sources
from synthgen.annotators import ANNOTATORS, CHECKS, COLUMNS
from synthgen.annotators.classifier import join
from synthgen.data import Category, Sample
from synthgen.errors import ModelError, RecipeError

CLASSES = [Category(4, "apple", "apple"), Category(9, "tabby cat", "tabby cat"), Category(2, "dog", "dog")]
KEYS = {"weights": "", "labels": [], "source": "", "quantile": None}


def samples(annotate: object, n: int = 7) -> list[Sample]:
    """As the loop over a shard gives them: prepared."""
    made = []
    for k in range(n):
        one = CLASSES[k % 3]
        sample = Sample(f"{k:032x}", one.id, one.name, "a", picture(k), b"")
        prepared = annotate.prepare(sample)  # type: ignore[attr-defined]
        made.append(Sample(sample.uid, one.id, one.name, "a", sample.image, b"", prepared=prepared))
    return made


def make(folder: Path, model: str, real: sources.Source | None = None, **keys: object) -> object:
    given = {"device": "cpu", "folder": folder, "classes": CLASSES, "real": real, "model": model}
    return ANNOTATORS["classifier"](**given, **keys)  # type: ignore[arg-type]


def expected(library: str, folder: Path) -> np.ndarray:
    """Probabilities by the library alone."""
    images = [Image.fromarray(picture(k)) for k in range(7)]
    if library == "transformers":
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
        logits = AutoModelForImageClassification.from_pretrained(folder)(**pixels).logits
    elif library == "timm":
        import timm

        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        logits = model(torch.stack([transform(image) for image in images]))
    else:
        import torchvision

        model = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=3)
        model.load_state_dict(torch.load(folder / "net.pth")["state_dict_without_prefix"])
        transform = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
        logits = model.eval()(torch.stack([transform(image) for image in images]))
    return logits.softmax(1).detach().numpy()


@pytest.fixture(params=["transformers", "timm", "torchvision"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[object, np.ndarray]:
    """The annotator of a model, and what the model's library says of the same images."""
    if request.param == "transformers":
        tiny_networks.vit_classifier(tmp_path / "model")
        return make(tmp_path, "model"), expected("transformers", tmp_path / "model")
    if request.param == "timm":
        tiny_networks.timm_classifier(tmp_path / "model", ["apple", "tabby cat", "zebra"])
        return make(tmp_path, "model"), expected("timm", tmp_path / "model")
    file = tiny_networks.shufflenet(tmp_path / "net.pth")
    tensors = torch.load(file)["state_dict"]
    plain = {key.removeprefix("module."): value for key, value in tensors.items()}
    torch.save({"state_dict": tensors, "state_dict_without_prefix": plain}, file)
    keys = {"weights": "net.pth", "labels": ["apple", "tabby cat", "zebra"]}
    return make(tmp_path, "torchvision/shufflenet_v2_x0_5", **keys), expected("torchvision", tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_it_says_what_the_model_says(made: tuple[object, np.ndarray]) -> None:
    annotate, likely = made
    out = annotate(samples(annotate))  # type: ignore[operator]
    assert list(out) == list(COLUMNS["classifier"])
    for name, kind in COLUMNS["classifier"].items():
        assert out[name].dtype.name == kind, name
    own = np.array([0, 1, 0] * 3)[:7]
    is_dog = np.array([False, False, True] * 3)[:7]
    assert out["confidence"][~is_dog] == pytest.approx(likely[np.arange(7), own][~is_dog], abs=1e-5)
    assert np.isnan(out["confidence"][is_dog]).all()
    top = likely.argmax(1)
    ids = [4, 9, None]
    assert out["top1"].tolist() == [ids[k] for k in top]
    assert out["top1_confidence"] == pytest.approx(likely.max(1), abs=1e-5)
    assert out["correct"].tolist() == [
        None if dog else bool(t == o) for dog, t, o in zip(is_dog, top, own, strict=True)
    ]
    assert np.isnan(out["bar"]).all()
    turned = annotate(samples(annotate)[::-1])  # type: ignore[operator]
    for name, values in out.items():
        assert values.tolist() == pytest.approx(turned[name][::-1].tolist(), abs=0, nan_ok=True), name


@pytest.fixture
def real(tmp_path: Path) -> sources.Source:
    """Five real apples, one of them damaged, and three real cats."""
    for k, name in enumerate(["apple"] * 5 + ["tabby cat"] * 3):
        path = tmp_path / "real" / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(100 + k)).save(path)
    (tmp_path / "real/apple/4.png").write_bytes(b"nonsense")
    return sources.open_source(tmp_path / "real", "real", CLASSES, complete=False)


@pytest.mark.parametrize("quantile", [None, 0.0, 0.25])
def test_bars_are_of_the_real_images(
    quantile: float | None, real: sources.Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_networks.vit_classifier(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        annotate = make(tmp_path, "model", real, source="sources.real", quantile=quantile)
    assert caplog.messages == [f"{tmp_path}/real/apple/4.png: apple/4.png does not decode"]
    out = annotate(samples(annotate))  # type: ignore[operator]
    plain = make(tmp_path, "model")
    bars = []
    for label, numbers in ((0, range(100, 104)), (1, range(105, 108))):
        images = [Sample("", 0, CLASSES[label].name, "", picture(k), b"") for k in numbers]
        prepared = [Sample(*vars(one).values()) for one in images]
        prepared = [
            Sample("", 0, one.class_name, "", one.image, b"", prepared=plain.prepare(one))  # type: ignore[attr-defined]
            for one in images
        ]
        sure = plain(prepared)["confidence"]  # type: ignore[operator]
        bars.append(float(sure.mean() if quantile is None else np.quantile(sure, quantile)))
    wanted = [[*bars, np.nan][k % 3] for k in range(7)]
    assert out["bar"] == pytest.approx(wanted, abs=1e-5, nan_ok=True)
    assert out["above_bar"] == pytest.approx(out["confidence"] - out["bar"], nan_ok=True)
    of_top = {4: bars[0], 9: bars[1], None: np.nan}
    assert out["top1_above_bar"] == pytest.approx(
        out["top1_confidence"] - np.array([of_top[k] for k in out["top1"].tolist()]), abs=1e-5, nan_ok=True
    )


def test_classes_are_joined_by_synset_then_name_then_other_words() -> None:
    labels = [
        ("n01", "crane"),
        ("n02", "crane"),
        ("Tiger_Cat",),
        ("n04", "kit fox, Vulpes", "kit fox", "Vulpes"),
        (),
    ]
    classes = [
        Category(0, "crane", "crane", "n02"),
        Category(1, "tiger-cat", "tiger cat"),
        Category(2, "Fox", "fox", synonyms=("vulpes",)),
        Category(3, "crane (bird)", "crane"),
        Category(4, "dog", "dog"),
    ]
    assert join(classes, labels) == {"crane": 1, "tiger-cat": 2, "Fox": 3}


def test_a_thousand_outputs_of_timm_are_imagenet_s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_networks.timm_classifier(tmp_path / "model", classes=1000)
    classes = [Category(0, "tench", "tench"), Category(1, "pup", "pup", "n02085620"), CLASSES[0]]
    given = {"folder": tmp_path, "classes": classes, "real": None, "model": "model"}
    with caplog.at_level(logging.WARNING):
        CHECKS["classifier"](**given, **KEYS)
    assert caplog.messages == [
        "model: does not know, or knows several of, 1 of 3 classes (apple); their confidence is null"
    ]


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"labels": ["a"]}, RecipeError, "labels: 1 for the 3 outputs of the model; name all, in order"),
        (
            {"labels": ["x", "y", "z"]},
            RecipeError,
            "labels: none of the classes (apple, tabby cat, dog) is one of the model's 3 (x, y, z); name",
        ),
        ({"model": "nameless"}, RecipeError, "labels: nothing says what the model's outputs mean; give a"),
        ({"model": "dinov2"}, ModelError, "dinov2: is a Dinov2Model, which is none that classifies images"),
        ({"model": "bert"}, ModelError, "bert: is a BertModel, which is none that classifies images"),
        (
            {"quantile": 0.5},
            RecipeError,
            "quantile: is of the real images' confidence; name these with source",
        ),
        ({"quantile": 2.0, "source": "sources.real"}, RecipeError, "quantile: 2; 0 to 1 is wanted"),
        ({"weights": "a.pt"}, RecipeError, "labels: nothing says what the model's outputs mean"),
        (
            {"weights": "net.safetensors", "labels": LABELS, "model": "model"},
            RecipeError,
            'model: "model": with weights an architecture, "timm/NAME" or "torchvision/NAME", is wanted',
        ),
        (
            {"weights": "net.safetensors", "labels": LABELS, "model": "timm/resnet19"},
            RecipeError,
            'model: timm has no "resnet19"; did you mean "resnet',
        ),
        (
            {"weights": "net.safetensors", "labels": LABELS, "model": "torchvision/resnet18"},
            ModelError,
            "torchvision/resnet18 with {folder}/net.safetensors: cannot be loaded (RuntimeError: ",
        ),
        (
            {"weights": "net.safetensors", "labels": ["apple"], "model": "torchvision/shufflenet_v2_x0_5"},
            ModelError,
            "torchvision/shufflenet_v2_x0_5 with {folder}/net.safetensors: cannot be loaded (RuntimeError: ",
        ),
    ],
)
def test_wrong_keys_are_told_before_there_are_images(
    keys: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    tiny_networks.vit_classifier(tmp_path / "model")
    tiny_networks.vit_classifier(tmp_path / "nameless", ["LABEL_0", "LABEL_1"])
    tiny_networks.dinov2(tmp_path / "dinov2")
    tiny_networks.bert(tmp_path / "bert")
    tiny_networks.shufflenet(tmp_path / "net.safetensors")
    given = {"folder": tmp_path, "classes": CLASSES, "real": None, "model": "model"}
    with pytest.raises(error) as told:
        CHECKS["classifier"](**given | KEYS | keys)  # type: ignore[arg-type]
    assert message.format(folder=tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
