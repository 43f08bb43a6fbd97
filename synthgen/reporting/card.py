"""The dataset card: the README.md beside final shards, for people and for the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

MADE = """\
A synthetic labelled image dataset made by synthgen. Each sample has an image, `txt` (prompt), `cls` (class
id) and `json` (provenance: prompt, model and its fingerprint, seed, steps, guidance, scheduler, licence of
the model, sha256 of the image)."""
MADE_BY = """\
Made by these models, whose terms may extend to what they make:

| model | path | fingerprint | licence |
|---|---|---|---|
"""
CHOSEN = """\
Images of other datasets, chosen by synthgen. Each sample has the members that it has in its source, under
its uid, and `cls` (class id), `txt` (caption) and `json` (where it is from) where they are known."""
CHOSEN_FROM = """\
Chosen from these sources, whose terms apply:

| source | licence |
|---|---|
"""


def card(
    name: str,
    classes: Sequence[tuple[int, str]],
    info: Mapping[str, Any],
    models: Sequence[tuple[str, ...]],
    *,
    marked: bool,
    sources: Sequence[tuple[str, ...]] = (),
) -> str:
    """Markdown with the splits, how to open them, the models (id, path, fingerprint, licence), what was
    joined, and the classes (id, name); of what was imported the sources (name, licence) in place of models.
    """
    splits = info["splits"]
    front = "".join(f"  - split: {split}\n    path: {split}/*.tar\n" for split in splits)
    table = "".join(
        f"| {split} | {entry['num_samples']} | {len(entry['filenames'])} |\n"
        for split, entry in splits.items()
    )
    listed = "".join(f"| {class_id} | {class_name.replace('|', ' ')} |\n" for class_id, class_name in classes)
    listed = f"| class id | class |\n|---|---|\n{listed}" if classes else ""
    joined = _joined(info["sources"])
    rows = "".join("| " + " | ".join(one).replace("\n", " ") + " |\n" for one in sources or models)
    made_by = (CHOSEN_FROM if sources else MADE_BY) + rows
    what, tag = (CHOSEN, "") if sources else (MADE, "- synthetic\n")
    mark = " Each image has an XMP packet with IPTC's `DigitalSourceType` and its uid." if marked else ""
    first = next(iter(splits), "train")
    return f"""---
configs:
- config_name: default
  data_files:
{front}task_categories:
- image-classification
tags:
{tag}- webdataset
---
# {name}

{what}{mark}

| split | images | shards |
|---|---|---|
{table}
```python
import webdataset
samples = webdataset.WebDataset("{first}/00000000.tar", shardshuffle=False).decode("pil")
```

{made_by}{joined}
{listed}"""


def _joined(sources: Sequence[Mapping[str, Any]]) -> str:
    """What several runs gave, nothing for one."""
    if len(sources) < 2:
        return ""
    lines = "".join(
        "| {} | {} | {} | {} |\n".format(
            one["name"],
            one["samples"],
            *(
                ", ".join(str(entry) for entry in one[key] if entry).replace("|", " ")
                for key in ("model", "license")
            ),
        )
        for one in sources
    )
    return f"\nJoined from:\n\n| run:subset | images | models | licences |\n|---|---|---|---|\n{lines}"
