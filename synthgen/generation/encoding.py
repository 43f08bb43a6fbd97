"""Images as files: the recipe's format, the same bytes each time."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

OPTIONS: dict[str, dict[str, object]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "exact": True},
    "png": {"format": "PNG"},
}


def encode(image: npt.NDArray[np.uint8], kind: str, mark: bytes = b"") -> bytes:
    """The file of an image; `kind` is "jpg" (quality 95, 4:4:4), "webp" (lossless) or "png".

    Args:
        mark: an XMP packet that it carries (about 620 bytes, no pixel changes); b"" is none.
    """
    options = dict(OPTIONS[kind])
    if mark and kind == "png":
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", mark.decode())
        options["pnginfo"] = texts
    elif mark:
        options["xmp"] = mark
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, **options)  # type: ignore[arg-type]
    return sink.getvalue()
