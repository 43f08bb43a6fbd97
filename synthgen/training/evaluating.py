"""How good a classifier is on a split: over all samples, by class, by group, and in the worst group."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from synthgen.errors import FolderError
from synthgen.loader import Paths, open_loader
from synthgen.training.augmenting import plain
from synthgen.training.processes import require_all
from synthgen.training.recording import note

if TYPE_CHECKING:
    from accelerate import Accelerator


class Classifier(NamedTuple):
    """A network whose outputs are the class ids, the names that it was trained on by id, and the side in
    pixels of the images that it takes.
    """

    network: nn.Module
    class_names: dict[int, str]
    side: int


def evaluate(
    classifier: Classifier,
    split: Paths,
    *,
    accelerator: "Accelerator",
    groups: Sequence[str] = (),
    batch_size: int = 256,
    workers: int = 0,
) -> dict[str, Any]:
    """Top-1 accuracies in [0, 1] on a split, with `samples` that they are over.

    `accuracy` is over all samples, `accuracy_on_those` over those of classes that were trained on (null for
    none), `class_accuracy` the mean over classes. With `groups`, keys of the samples' json such as
    "axis_background", a group is a class and a value of each: `groups` has samples and accuracy of each, and
    `worst_group` names the least accurate one.

    Raises:
        FolderError: there are no shards, the class ids disagree with those of the training, or no sample has
            such keys.
    """
    require_all(accelerator)
    loader = open_loader(
        split,
        batch_size=batch_size,
        fields=("image", "class_id", *groups),
        transform=plain(classifier.side),
        workers=workers,
    )
    join, where = loader.class_names, ", ".join(loader.sources)
    trained = classifier.class_names
    ids = {name: k for k, name in trained.items()}
    for k, name in join.items():
        if trained.get(k, name) != name:
            raise FolderError(f'{where}: class id {k} is "{name}", in training it was "{trained[k]}"')
        if ids.get(name, k) != k:
            raise FolderError(f'{where}: "{name}" has class id {k}, in training it had {ids[name]}')
    hits: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])  # class and values: right, all
    with torch.inference_mode(), accelerator.autocast():
        for images, labels, *values in loader:
            outputs = classifier.network(images.to(accelerator.device))
            right = (outputs.argmax(1).cpu() == labels).tolist()
            plain_values = [own.tolist() if isinstance(own, torch.Tensor) else own for own in values]
            texts = [map(str, own) for own in plain_values]  # a value may be a list
            for hit, *group in zip(right, labels.tolist(), *texts, strict=True):
                hits[tuple(group)][0] += hit
                hits[tuple(group)][1] += 1
    counted = _over_ranks({key: (right, count) for key, (right, count) in hits.items()}, accelerator)
    skipped = sum(_over_ranks({("skipped",): (0, sum(loader.skipped.values()))}, accelerator)[("skipped",)])
    if not counted:
        reason = next(iter(loader.skipped), None)
        raise FolderError(f"{where}: no sample can be evaluated{f': {reason.reason}' if reason else ''}")
    found = {
        "split": where,
        "samples": sum(count for _, count in counted.values()),
        "classes": len(join),
        "accuracy": _accuracy(counted.values()),
        "classes_trained_on": len(set(join.values()) & set(classifier.class_names.values())),
        "accuracy_on_those": _accuracy(
            pair for (k, *_), pair in counted.items() if k in classifier.class_names
        ),
        "class_accuracy": _mean_by_class(counted),
        "skipped": skipped,
    }
    return found | (_by_group(counted, join) if groups else {})


def _over_ranks(
    own: dict[tuple[Any, ...], tuple[int, int]], accelerator: "Accelerator"
) -> dict[tuple[Any, ...], tuple[int, int]]:
    """The counts of all ranks, added up."""
    from accelerate.utils import gather_object

    every = gather_object([own]) if accelerator.num_processes > 1 else [own]
    found: dict[tuple[Any, ...], tuple[int, int]] = {}
    for part in every:
        for key, (right, count) in part.items():
            before = found.get(key, (0, 0))
            found[key] = before[0] + right, before[1] + count
    return found


def _accuracy(pairs: Any) -> float | None:
    """The part that is right; None of none."""
    right, count = (sum(column) for column in zip(*[(0, 0), *pairs], strict=True))
    return round(right / count, 4) if count else None


def _mean_by_class(counted: Mapping[tuple[Any, ...], tuple[int, int]]) -> float:
    by_class = defaultdict[Any, list[tuple[int, int]]](list)
    for (k, *_), pair in counted.items():
        by_class[k].append(pair)
    exact = [sum(right for right, _ in own) / sum(n for _, n in own) for own in by_class.values()]
    return round(sum(exact) / len(exact), 4)


def _by_group(counted: Mapping[tuple[Any, ...], tuple[int, int]], names: Mapping[int, str]) -> dict[str, Any]:
    groups = {
        " / ".join([names.get(k, str(k)), *map(str, values)]): {
            "samples": count,
            "accuracy": _accuracy([pair]),
        }
        for (k, *values), pair in sorted(counted.items(), key=str)
        for count in [pair[1]]
    }
    worst = min(sorted(groups), key=lambda name: float(groups[name]["accuracy"] or 0.0))
    return {"groups": groups, "worst_group": worst, "worst_group_accuracy": groups[worst]["accuracy"]}


def table(
    classifier: Classifier,
    splits: Mapping[str, Paths],
    *,
    accelerator: "Accelerator",
    groups: Sequence[str] = (),
    output: str | Path | None = None,
) -> list[dict[str, Any]]:
    """`evaluate` of a validation split of each source, by the source's name (`source`): whether mixing helps
    each of them, or dilutes one, is a matter of measurement. With `output`, the folder of the training, each
    is a line of its log.

    Source: Nguyen et al., Quality Not Quantity (arXiv 2208.05516).
    """
    rows = []
    for name, split in splits.items():
        found = evaluate(classifier, split, accelerator=accelerator, groups=groups)
        rows.append({"source": name, **found})
        if output is not None and accelerator.is_main_process:
            note(Path(output), rows[-1])
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `table` gave as a table in Markdown, accuracies in %; with the samples of the worst group."""
    lines = ["| source | samples | accuracy | mean of classes | worst group |", "|---|---|---|---|---|"]
    for row in rows:
        top, mean = (f"{100 * row[key]:.1f}" for key in ("accuracy", "class_accuracy"))
        worst = ""
        if "groups" in row:
            name = row["worst_group"]
            worst = f"{100 * row['worst_group_accuracy']:.1f}, {name} ({row['groups'][name]['samples']})"
        lines.append(f"| {row['source']} | {row['samples']} | {top} | {mean} | {worst} |")
    return "\n".join(lines)
