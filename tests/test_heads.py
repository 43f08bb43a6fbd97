"""The annotators `aesthetic` and `nsfw` against plain torch and transformers."""

from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from PIL import Image
from tiny_networks import picture, sequential
from transformers import AutoImageProcessor, AutoModelForImageClassification

from synthgen.annotators import ANNOTATORS, CHECKS, COLUMNS
from synthgen.data import Sample
from synthgen.errors import ModelError, RecipeError

AESTHETIC = {0: (8, 16), 2: (16, 12), 4: (12, 8), 6: (8, 4), 7: (4, 1)}
"""LAION's improved predictor, narrower: a Sequential with dropout at 1, 3 and 5."""
NSFW = {0: (8, 16), 3: (16, 32), 6: (32, 16), 9: (16, 8), 12: (8, 4), 15: (4, 2), 16: (2, 1)}
"""LAION's h14_nsfw, narrower: rectifier and dropout between layers, none between the last two."""
NOTHING = {"features": "", "weights": "", "activation": "", "model": "", "positive": []}


def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 8)).astype(np.float16)


def run(annotate: object, rows: np.ndarray) -> np.ndarray:
    made = [
        Sample("", 0, "a", "a", np.empty((0, 0, 3), np.uint8), b"", read={"clip_img": row}) for row in rows
    ]
    out = annotate(made)["score"]  # type: ignore[operator]
    assert out.dtype.name == COLUMNS["nsfw"]["score"]
    return out


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["aesthetic", "nsfw"])
def test_heads_of_laion_s_layouts(name: str, ending: str, tmp_path: Path) -> None:
    layers = sequential(tmp_path / f"head.{ending}", AESTHETIC if name == "aesthetic" else NSFW)
    keys = {"features": "clip_img", "weights": f"head.{ending}"}
    annotate = ANNOTATORS[name](device="cpu", folder=tmp_path, **keys)
    assert not annotate.needs_pixels  # type: ignore[attr-defined]
    x = torch.nn.functional.normalize(torch.tensor(features()).float(), dim=1)
    for place, layer in layers.items():
        x = layer(x)
        if name == "nsfw" and place not in ("15", "16"):
            x = x.relu()
    wanted = x[:, 0].detach().numpy()
    score = run(annotate, features())
    assert score == pytest.approx(wanted, rel=1e-5)
    assert len(set(score.tolist())) == 5
    assert (run(annotate, features()[::-1])[::-1] == score).all()


def test_a_linear_head(tmp_path: Path) -> None:
    weight, bias = torch.arange(8.0)[None], torch.tensor([3.0])
    torch.save({"weight": weight, "bias": bias}, tmp_path / "linear.pth")
    keys = {"features": "clip_img", "weights": "linear.pth"}
    annotate = ANNOTATORS["aesthetic"](device="cpu", folder=tmp_path, **keys)
    rows = features().astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert run(annotate, features()) == pytest.approx(unit @ np.arange(8) + 3, rel=1e-5)
    with pytest.raises(ModelError, match="is for features of width 8; clip_img has 5"):
        run(annotate, features()[:, :5])


@pytest.mark.usefixtures("one_thread")
def test_labels_of_a_classifier(tmp_path: Path) -> None:
    folder = tiny_networks.vit_classifier(tmp_path / "model", ["drawings", "hentai", "neutral", "porn"])
    keys = {"model": "model", "positive": ["porn", "hentai"]}
    annotate = ANNOTATORS["nsfw"](device="cpu", folder=tmp_path, **keys)
    made = [Sample("", 0, "a", "a", picture(k), b"") for k in range(3)]
    made = [Sample("", 0, "a", "a", s.image, b"", prepared=annotate.prepare(s)) for s in made]  # type: ignore[attr-defined]
    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[Image.fromarray(picture(k)) for k in range(3)], return_tensors="pt"
    )
    likely = AutoModelForImageClassification.from_pretrained(folder)(**pixels).logits.softmax(1)
    assert annotate(made)["score"] == pytest.approx(likely[:, [1, 3]].sum(1).detach().numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({}, RecipeError, "no key given; wanted are features and weights, a head on stored features, or"),
        ({"features": "clip_img"}, RecipeError, "features given; wanted are features and weights"),
        (
            {"features": "clip_img", "weights": "head.safetensors", "model": "m"},
            RecipeError,
            "features and weig",
        ),
        (
            {"features": "clip_img", "weights": "none.pt"},
            ModelError,
            "{folder}/none.pt: no such file of weights",
        ),
        (
            {"features": "clip_img", "weights": "wide.safetensors"},
            ModelError,
            "{folder}/wide.safetensors: no head ",
        ),
        (
            {"features": "clip_img", "weights": "gap.safetensors"},
            ModelError,
            "{folder}/gap.safetensors: no head that",
        ),
        (
            {"features": "clip_img", "weights": "named.pt"},
            ModelError,
            "{folder}/named.pt: no head that is known (l",
        ),
        (
            {"model": "model", "positive": ["nsfv"]},
            RecipeError,
            'positive: the model has no label "nsfv"; did you mean "nsfw"? Known: normal, nsfw',
        ),
    ],
)
def test_wrong_keys_are_told_before_there_are_images(
    keys: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    sequential(tmp_path / "head.safetensors", AESTHETIC)
    sequential(tmp_path / "wide.safetensors", {0: (8, 4), 1: (4, 2)})
    sequential(tmp_path / "gap.safetensors", {0: (8, 4), 1: (5, 1)})
    torch.save({"linear_1.weight": torch.ones(1, 8)}, tmp_path / "named.pt")
    tiny_networks.vit_classifier(tmp_path / "model", ["normal", "nsfw"])
    with pytest.raises(error) as told:
        CHECKS["aesthetic"](folder=tmp_path, **NOTHING | keys)  # type: ignore[arg-type]
    assert str(told.value).startswith(message.format(folder=tmp_path))
    assert "\n" not in str(told.value)
