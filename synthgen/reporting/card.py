"""The dataset card: the README.md beside final shards, for people and for the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from synthgen.data import Category


def card(name: str, classes: Sequence[Category], info: Mapping[str, Any]) -> str:
    """Markdown with the splits, how to open them and the classes."""
    splits = info["splits"]
    front = "".join(f"  - split: {split}\n    path: {split}/*.tar\n" for split in splits)
    table = "".join(
        f"| {split} | {entry['num_samples']} | {len(entry['filenames'])} |\n"
        for split, entry in splits.items()
    )
    listed = "".join(f"| {category.id} | {category.name.replace('|', ' ')} |\n" for category in classes)
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
id) and `json` (provenance: prompt, model and its fingerprint, seed, steps, guidance, scheduler, sha256 of
the image).

| split | images | shards |
|---|---|---|
{table}
```python
import webdataset
samples = webdataset.WebDataset("{first}/00000000.tar", shardshuffle=False).decode("pil")
```

| class id | class |
|---|---|
{listed}"""
