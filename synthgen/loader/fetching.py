"""Shards that lie at a URL: each is fetched whole, once, into a cache that all processes share."""

import hashlib
import os
import shutil
import urllib.request
import uuid
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from synthgen.errors import WorkError

ENVIRONMENT = "SYNTHGEN_CACHE"
"""The variable that names the folder of the cache; else it is ~/.cache/synthgen."""


def is_url(path: str) -> bool:
    return "://" in path


def fetch(url: str) -> Path:
    """The file that a URL names, from the cache; http(s) is read by Python itself, others (s3, gs, hf) by
    fsspec and the package that it names. A file in the cache is not compared with the URL again.

    Raises:
        WorkError: it cannot be had.
    """
    folder = Path(os.environ.get(ENVIRONMENT) or "~/.cache/synthgen").expanduser() / "shards"
    name = url.rpartition("/")[2]
    path = folder / hashlib.sha256(url.encode()).hexdigest()[:32] / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            _copy(url, file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _copy(url: str, file: "shutil.SupportsWrite[bytes]") -> None:  # type: ignore[name-defined]
    try:
        if url.startswith(("http://", "https://")):
            with urllib.request.urlopen(url, timeout=60) as answer:
                shutil.copyfileobj(answer, file, 2**20)
                length = answer.headers["Content-Length"]
            if length is not None and file.tell() != int(length):
                raise OSError(f"cut: {file.tell()} of {length} bytes came")
        else:
            import fsspec

            with fsspec.open(url, "rb") as answer:
                shutil.copyfileobj(answer, file, 2**20)
    except (OSError, URLError, HTTPException, ImportError, ValueError) as error:
        raise WorkError(f"{url}: cannot be fetched ({error}); look at the address, or run again") from None
