"""The terms of models and sources, as their cards tell them, and what to look out for in them."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthgen.embedded import pipeline_folder

UNKNOWN = "unknown"
SECONDS = 10.0
"""How long the hub may take to answer."""
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)(?<!\.bin)(?<!\.pt)$")
"""ORG/NAME on the hub; what ends as weights do is a file."""
FREE = {
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "isc", "mit", "odc-by", "pddl", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""Identifiers, as the hub spells them, of terms that allow any use, some with attribution or share-alike."""
CONCERNS = {
    r"\bnc\b|non-?commercial|research": "not for commercial use",
    r"openrail": "restricts what it may be used for",
    r"\bnd\b": "allows no changed copies",
}
"""What some terms say in their names."""
TITLES = {
    "apache-2.0": r"apache license\s+version 2\.0",
    "mit": r"mit license|permission is hereby granted, free of charge, to any person obtaining a copy",
    "cc0-1.0": r"cc0 1\.0 universal",
    "cc-by-nc-sa-4.0": r"cc by-nc-sa 4\.0|attribution-noncommercial-sharealike 4\.0",
    "cc-by-nc-4.0": r"cc by-nc 4\.0|attribution-noncommercial 4\.0",
    "cc-by-sa-4.0": r"cc by-sa 4\.0|attribution-sharealike 4\.0",
    "cc-by-4.0": r"cc by 4\.0|attribution 4\.0 international",
}
"""How the files begin that hold the text of some terms."""


def model_license(
    path: str, *, folder: Path, revision: str = "", here: Path | None = None, fetch: bool = True
) -> str:
    """The terms of a model as its card tells them: identifiers of the hub, or a name; "unknown" where there
    is no card or it does not say.

    Args:
        path: "embedded", a folder (absolute, or relative to `folder`), or a hub id.
        revision: a branch, tag or commit on the hub; "" is its default.
        here: where its files are, if that is known.
        fetch: ask the hub where no card is here; one that is out of reach has told nothing.
    """
    local = here or folder / Path(path).expanduser()
    if path == "embedded":
        local = pipeline_folder().parent
    found = folder_license(local) if local.is_dir() else UNKNOWN
    # a hub's model is fetched without its card
    is_hubs = here.parent.name == "snapshots" if here else not local.is_dir()
    if found == UNKNOWN and is_hubs and HUB_ID.match(path):
        return _hub_license(path, here.name if here else revision or None, fetch)
    return found


def folder_license(folder: Path) -> str:
    """The terms of what a folder, or that of a file, holds: of its card, else of the file with their text."""
    folder = folder.parent if folder.is_file() else folder
    found = _card_license(folder / "README.md") if (folder / "README.md").is_file() else UNKNOWN
    files = sorted(path for path in folder.glob("LICEN[CS]E*") if path.is_file())
    if found != UNKNOWN or not files:
        return found
    with files[0].open(encoding="utf-8", errors="replace") as file:
        begin = " ".join(file.read(1000).lower().split())
    return next((name for name, title in TITLES.items() if re.search(title, begin)), f"see {files[0].name}")


def _card_license(card: Path) -> str:
    """What the front matter of a card says: `license`, or where that is "other" its name."""
    from huggingface_hub import metadata_load

    try:
        front = metadata_load(card) or {}
    except Exception as error:  # YAML has many
        reason = " ".join(str(error).split())[:120]
        logging.getLogger(__name__).warning("%s: its front matter cannot be read (%s)", card, reason)
        return UNKNOWN
    return _terms(front)


def _terms(front: Mapping[str, Any]) -> str:
    told = front.get("license") or UNKNOWN
    names = [str(name).strip().lower() for name in (told if isinstance(told, list) else [told])]
    if names == ["other"]:
        names = [str(front.get("license_name") or front.get("license_link") or "other").strip()]
    return ", ".join(names)[:200]


def _hub_license(model: str, revision: str | None, fetch: bool) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(model, "README.md", revision=revision)
    if isinstance(cached, str):
        return _card_license(Path(cached))
    if not fetch:
        return UNKNOWN
    # no download: in the cache a newer commit would become its newest, without the weights that are there
    try:
        found = HfApi(token=os.environ.get("HF_TOKEN")).model_info(model, revision=revision, timeout=SECONDS)
    except Exception:  # no network, no card, no such model: who needs the model itself is told so
        return UNKNOWN
    return _terms(dict(vars(found.card_data)) if found.card_data else {})


def concern(license: str) -> str:
    """What to look out for in some terms; "" where they are known to allow any use."""
    names = license.lower().split(", ")
    if all(name in FREE for name in names):
        return ""
    if UNKNOWN in names:
        return 'no card tells the terms; find them, and say them in its table: license = "..."'
    for pattern, meaning in CONCERNS.items():
        if re.search(pattern, license.lower()):
            return meaning
    return "has terms to read"
