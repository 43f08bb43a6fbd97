"""The dataset card: the README.md beside final shards, for people and for the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.data import Category


def card(
    name: str,
    classes: Sequence[Category],
    info: Mapping[str, Any],
    models: Sequence[tuple[str, ...]],
    *,
    marked: bool,
) -> str:
    """Markdown with the splits, how to open them, the models (id, path, fingerprint, licence) and the
    classes.
    """
    splits = info["splits"]
    front = "".join(f"  - split: {split}\n    path: {split}/*.tar\n" for split in splits)
    table = "".join(
        f"| {split} | {entry['num_samples']} | {len(entry['filenames'])} |\n"
        for split, entry in splits.items()
    )
    listed = "".join(f"| {category.id} | {category.name.replace('|', ' ')} |\n" for category in classes)
    made_by = "".join("| " + " | ".join(one).replace("\n", " ") + " |\n" for one in models)
    mark = " Each image has an XMP packet with IPTC's `DigitalSourceType` and its uid." if marked else ""
    first = next(iter(splits), "train")
    return f"""---
configs:
- config_name: default
  data_files:
{front}task_categories:
- image-classification
tags:
- synthetic
- webdataset
---
# {name}

A synthetic labelled image dataset made by synthgen. Each sample has an image, `txt` (prompt), `cls` (class
id) and `json` (provenance: prompt, model and its fingerprint, seed, steps, guidance, scheduler, licence of
the model, sha256 of the image).{mark}

| split | images | shards |
|---|---|---|
{table}
```python
import webdataset
samples = webdataset.WebDataset("{first}/00000000.tar", shardshuffle=False).decode("pil")
```

Made by these models, whose terms may extend to what they make:

| model | path | fingerprint | licence |
|---|---|---|---|
{made_by}
| class id | class |
|---|---|
{listed}"""
