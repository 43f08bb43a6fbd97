"""The dataset card: the README.md beside final shards, for people and for the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any


def card(
    name: str,
    classes: Sequence[tuple[int, str]],
    info: Mapping[str, Any],
    models: Sequence[tuple[str, ...]],
    *,
    marked: bool,
) -> str:
    """Markdown with the splits, how to open them, the models (id, path, fingerprint, licence), what was
    joined, and the classes (id, name).
    """
    splits = info["splits"]
    front = "".join(f"  - split: {split}\n    path: {split}/*.tar\n" for split in splits)
    table = "".join(
        f"| {split} | {entry['num_samples']} | {len(entry['filenames'])} |\n"
        for split, entry in splits.items()
    )
    listed = "".join(f"| {class_id} | {class_name.replace('|', ' ')} |\n" for class_id, class_name in classes)
    joined = _joined(info["sources"])
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
{made_by}{joined}
| class id | class |
|---|---|
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
