"""The dataset card: the README.md beside final shards, for people and for the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.data import Category

MADE = """\
A synthetic labelled image dataset made by synthgen. Each sample has an image, `txt` (prompt), `cls` (class
id) and `json` (provenance: prompt, model and its fingerprint, seed, steps, guidance, scheduler, licence of
the model, sha256 of the image)."""
CHOSEN = """\
Images of other datasets, chosen by synthgen. Each sample has the members that it has in its source, under
its uid, and `cls` (class id), `txt` (caption) and `json` (where it is from) where they are known."""


def card(
    name: str,
    classes: Sequence[Category],
    info: Mapping[str, Any],
    models: Sequence[tuple[str, ...]],
    *,
    marked: bool,
    sources: Sequence[tuple[str, ...]] = (),
) -> str:
    """Markdown with the splits, how to open them, the models (id, path, fingerprint, licence) and the
    classes; of what was imported the sources (name, licence) in place of models.
    """
    splits = info["splits"]
    front = "".join(f"  - split: {split}\n    path: {split}/*.tar\n" for split in splits)
    table = "".join(
        f"| {split} | {entry['num_samples']} | {len(entry['filenames'])} |\n"
        for split, entry in splits.items()
    )
    listed = "".join(f"| {category.id} | {category.name.replace('|', ' ')} |\n" for category in classes)
    rows = "".join("| " + " | ".join(one).replace("\n", " ") + " |\n" for one in models or sources)
    made_by = (
        "Made by these models, whose terms may extend to what they make:\n\n"
        "| model | path | fingerprint | licence |\n|---|---|---|---|\n"
        if models
        else "Chosen from these sources, whose terms apply:\n\n| source | licence |\n|---|---|\n"
    ) + rows
    what = MADE if models else CHOSEN
    listed = f"| class id | class |\n|---|---|\n{listed}" if classes else ""
    tag = "- synthetic\n" if models else ""
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

{made_by}
{listed}"""
