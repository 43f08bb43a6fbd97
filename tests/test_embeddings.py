"""The annotator `embeddings` against transformers itself."""

from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from PIL import Image
from tiny_networks import picture
from transformers import AutoImageProcessor, AutoModel

from synthgen.annotators import ANNOTATORS, CHECKS, FEATURES
from synthgen.data import Sample
from synthgen.errors import ModelError


def make(folder: Path, **keys: str) -> object:
    return ANNOTATORS["embeddings"](device="cpu", folder=folder, **keys)


def run(annotate: object, numbers: list[int]) -> np.ndarray:
    out = annotate([Sample("", 0, "a", "a", picture(k, 48 + 4 * k), b"") for k in numbers])  # type: ignore[operator]
    assert tuple(out) == FEATURES["embeddings"]
    assert out["img"].dtype == np.float16
    return out["img"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("network", "pooling"),
    [("dinov2", "cls"), ("dinov2", "mean"), ("dinov2", "pooled"), ("resnet", "mean"), ("resnet", "pooled")],
)
def test_they_are_the_model_s(network: str, pooling: str, tmp_path: Path) -> None:
    folder = getattr(tiny_networks, network)(tmp_path / "model")
    features = run(make(tmp_path, model="model", pooling=pooling), [0, 1, 2, 3])
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    images = [Image.fromarray(picture(k, 48 + 4 * k)) for k in range(4)]
    with torch.inference_mode():
        out = model(**processor(images=images, return_tensors="pt"))
    last = out.last_hidden_state
    wanted = {
        "cls": lambda: last[:, 0],
        "mean": lambda: last.mean((2, 3)) if last.ndim == 4 else last.mean(1),
        "pooled": lambda: out.pooler_output.flatten(1),
    }[pooling]()
    wanted = torch.nn.functional.normalize(wanted, dim=1).numpy()
    assert features == pytest.approx(wanted, abs=2e-3)
    assert np.linalg.norm(features.astype(float), axis=1) == pytest.approx(np.ones(4), abs=2e-3)
    assert (run(make(tmp_path, model="model", pooling=pooling), [3, 2, 1, 0])[::-1] == features).all()


def test_the_fingerprint_is_of_the_weights_that_are_read(tmp_path: Path) -> None:
    """A classifier's body has no pooler: transformers makes one at random, another each time."""
    tiny_networks.vit_classifier(tmp_path / "classifier")
    tiny_networks.dinov2(tmp_path / "a")
    tiny_networks.dinov2(tmp_path / "b")
    made = [make(tmp_path, model=name) for name in ("classifier", "classifier", "a", "b")]
    first, again, a, b = (annotate.fingerprint for annotate in made)  # type: ignore[attr-defined]
    assert first == again != a == b
    with pytest.raises(ModelError, match="has no weights for pooler"):
        make(tmp_path, model="classifier", pooling="pooled")


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        (
            "masked_autoencoder",
            {},
            'model = "model": gives other features each time; take one without random',
        ),
        ("resnet", {}, 'pooling: "cls": the model has no tokens; say "mean" or "pooled"'),
    ],
)
def test_models_that_cannot_be_used(model: str, keys: dict[str, str], message: str, tmp_path: Path) -> None:
    getattr(tiny_networks, model)(tmp_path / "model")
    with pytest.raises(ModelError) as error:
        make(tmp_path, model="model", **keys)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("model", ["bert", "timm_classifier"])
def test_what_does_not_look_at_images_alone_is_refused(model: str, tmp_path: Path) -> None:
    getattr(tiny_networks, model)(tmp_path / "model")
    wanted = {
        "bert": "model: is a BertModel, which is none that looks at images alone; take another model",
        "timm_classifier": "model: is timm's; a vision model that transformers saved is wanted",
    }
    with pytest.raises(ModelError) as error:
        CHECKS["embeddings"](folder=tmp_path, model="model", pooling="cls")
    assert wanted[model] in str(error.value)


def test_a_preprocessing_of_several_sizes_is_refused(tmp_path: Path) -> None:
    folder = tiny_networks.dinov2(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"do_center_crop": true', '"do_center_crop": false'))
    with pytest.raises(ModelError, match="makes images of several sizes; give it one size"):
        make(tmp_path, model="model")
