"""Stage 7, feeding training: shards -> batches. Exact, mixed from several sources, and resumable."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from synthgen.errors import FolderError, nearest, require_least
from synthgen.loader.batches import Loader, Reader, Skipped
from synthgen.loader.choosing import groups, rows_of_subset
from synthgen.loader.classes import class_names, join_classes, joined
from synthgen.loader.indexing import Indexes
from synthgen.loader.locating import Source, locate
from synthgen.loader.ordering import group_order, shares
from synthgen.loader.plan import Plan
from synthgen.reinforcement import How, Reinforcement

if TYPE_CHECKING:
    import torch

__all__ = ["Loader", "Skipped", "class_names", "join_classes", "open_loader"]

Paths = str | Path | Sequence[str | Path]
WINDOW = 10_000
LAST = ("keep", "equal", "drop")


def open_loader(
    sources: Paths | Mapping[str, Paths],
    *,
    batch_size: int,
    fields: Sequence[str] = ("image", "class_id"),
    transform: "Callable[..., Any] | None" = None,
    batch_transform: "Callable[..., Any] | None" = None,
    tokenizer: "Callable[[list[str]], torch.Tensor] | None" = None,
    subset: str | Path | Mapping[str, str | Path] | None = None,
    weights: Mapping[str, float] | None = None,
    repeat: Mapping[str, int] | None = None,
    samples_per_epoch: int | None = None,
    positives: int = 1,
    reinforcement: str | Path | Mapping[str, str | Path] | None = None,
    soft: How = "smooth",
    shuffle: bool | int = False,
    seed: int = 0,
    workers: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    last: Literal["keep", "equal", "drop"] = "keep",
    pin_memory: bool = False,
) -> Loader:
    """Batches of one or several sources: tuples of `fields`, by default images of shape (n, 3, height, width)
    and class ids of shape (n,), int64.

    Args:
        sources: a split, such as shards/emoji/final/main/train; a run's folder, whose pool is read, imported
            ones too; a .tar; a pattern with * or {00..09}; a URL with braces, fetched once into
            ~/.cache/synthgen (or $SYNTHGEN_CACHE). Several as a list, or by name as a mapping.
        batch_size: samples a batch on each rank.
        fields: of a batch, in order. `image`; `class_id`; `text` (a list, or what `tokenizer` makes of it);
            `uid`; `source`, the place in `loader.sources`; `positive`, a number that samples of one prompt
            share; `mask`, int64 (n, height, width); `target`, a list of what torchvision's detectors take
            (boxes, labels, masks); `probabilities`, float32 (n, classes), of a teacher or else of the label;
            any other is a key of the samples' json, or the suffix of a member, such as `clip_img.npy`.
        transform: takes one image, uint8 (3, height, width), and returns what is stacked; None scales to
            float32 in [0, 1]. With `mask` or `target` it takes and returns (image, target) as tv_tensors, as
            torchvision's v2 does. torch's generator is seeded for each sample and epoch.
        batch_transform: takes and returns (images, class ids) of a batch, as v2.MixUp does; seeded likewise.
        tokenizer: takes the texts of a batch, as open_clip's do.
        subset: a .npy of uids, or the name of a subset of the run whose pool is read; of several sources a
            mapping. The others are left out while loading; a uid listed k times comes k times an epoch.
        weights: parts of the sources in an epoch, and in any stretch of it, such as {"real": 3, "synth": 1}.
            A source that is asked for more than it has begins again; with less, it goes on in the next epoch.
        repeat: how often an epoch has each sample of a source, by its name; 1 for the others.
        samples_per_epoch: with `weights`; None is as many as all sources have.
        positives: so many images of one prompt come together (StableRep, arXiv 2306.00984; SynCLR). An epoch
            has of each prompt as many whole sets as there are; which are left over changes with it.
        reinforcement: a folder that `synthgen reinforce` made, such as shards/emoji/annotations/teacher; of
            several sources a mapping. Each time a sample comes, one of its views is replayed in place of the
            image (then `transform`), and `probabilities` are what the teacher said of that view.
        soft: how the teacher's greatest probabilities become those of all classes: "smooth" or "zeros", see
            `synthgen.reinforcement.densify`.
        shuffle: another order each epoch. True shuffles within 10,000 samples, a number within so many, which
            are blocks of 256 neighbours from everywhere. A source that is no larger is shuffled whole.
        seed: of order and augmentation.
        workers: reading processes; 0 reads in this one.
        rank: which of `world_size` processes this is; None asks torch.distributed, then RANK and WORLD_SIZE.
        last: what becomes of the last step of an epoch, if it is not whole. "keep": every sample exactly once
            over all ranks, whose numbers differ by one at most. "equal": the same number on each rank, for
            which at most (world_size - 1) * positives samples come twice. "drop": left out. Where a sample is
            skipped, "keep" has a shorter batch; else a good one of the batch takes its place, of the same
            prompt if there is one.
        pin_memory: as of torch's DataLoader.

    Raises:
        FolderError: a source has no shards, there is no such subset, classes of sources disagree, or names or
            numbers do not fit together.
    """
    named = _named(sources)
    for what, number, least in (
        ("batch_size", batch_size, 1), ("samples_per_epoch", samples_per_epoch, 1), ("shuffle", shuffle, 0),
        ("seed", seed, 0), ("workers", workers, 0),
    ):  # fmt: skip
        require_least(what, number, least)
    if last not in LAST:
        raise FolderError(f'last: got "{last}"; one of {", ".join(LAST)} is wanted')
    found = [locate(name, paths) for name, paths in named.items()]
    indexes = [Indexes(source.shards) for source in found]
    subsets = subset if isinstance(subset, Mapping) else dict.fromkeys(named, subset)
    folders = reinforcement if isinstance(reinforcement, Mapping) else dict.fromkeys(named, reinforcement)
    for what, given in (
        ("subset", subsets),
        ("reinforcement", folders),
        ("weights", weights or {}),
        ("repeat", repeat or {}),
    ):
        _check_names(what, given, named)
    rows = [_rows(source, own, subsets.get(source.name)) for source, own in zip(found, indexes, strict=True)]
    for source, own in zip(found, rows, strict=True):
        if not sum(map(len, own)):
            raise FolderError(f"{', '.join(map(str, named[source.name]))}: no samples there")
    labels = {"class_id", "probabilities"} & {*fields}
    if batch_transform is not None and not ("image" in fields and labels):
        raise FolderError(f"batch_transform: takes image and class_id, and fields are {', '.join(fields)}")
    if reinforcement and {"mask", "target"} & {*fields}:
        raise FolderError("reinforcement: its views are crops, and have no mask or target; leave one out")
    positives = max(1, positives)
    if batch_size % positives:
        raise FolderError(
            f"batch_size: got {batch_size}; a multiple of positives, which is {positives}, is wanted"
        )
    ties = (
        [groups(*each) for each in zip(found, indexes, rows, strict=True)]
        if positives > 1 or "positive" in fields
        else [np.empty(0, np.int64) for _ in found]
    )
    units = [
        len(group_order(tie, positives, None)) if positives > 1 else sum(map(len, own))
        for tie, own in zip(ties, rows, strict=True)
    ]
    for source, count in zip(found, units, strict=True):
        if not count:
            raise FolderError(f"{source.name}: no prompt has {positives} images; use fewer positives")
    rank, world_size = _place(rank, world_size)
    views = [Reinforcement(path) if (path := folders.get(source.name)) else None for source in found]
    classes = {source.name: source.classes for source in found}
    every = joined(classes | {str(one.folder): one.classes for one in views if one})
    if "probabilities" in fields and not every:
        raise FolderError("probabilities: no source has a classes.txt, which says how many classes there are")
    reader = Reader(
        found,
        indexes,
        tuple(fields),
        transform,
        batch_transform,
        tokenizer,
        every,
        seed,
        views,
        soft,
        is_refilled=last != "keep",
    )
    plan = Plan(
        rows,
        ties,
        units,
        _per_epoch([source.name for source in found], units, weights, repeat, samples_per_epoch, positives),
        batch_size=batch_size,
        positives=positives,
        seed=seed,
        window=WINDOW if shuffle is True else int(shuffle),
        is_mixed=len(found) > 1 and bool(shuffle or weights),
        rank=rank,
        world_size=world_size,
        last=last,
    )
    return Loader(reader, plan, workers, pin_memory)


def _named(sources: Paths | Mapping[str, Paths]) -> dict[str, list[str | Path]]:
    """The paths of each source by its name; without names the path is one, or all paths are one source."""
    if not isinstance(sources, str | Path) and not sources:
        raise FolderError("sources: none is named; a split such as shards/emoji/final/main/train is wanted")
    if not isinstance(sources, Mapping):
        paths = [sources] if isinstance(sources, str | Path) else list(sources)
        twice = next((path for k, path in enumerate(paths) if path in paths[:k]), None)
        if twice is not None:
            raise FolderError(f"sources: {twice} is there twice; `repeat` says how often a source comes")
        return {str(path): [path] for path in paths}
    return {
        name: [paths] if isinstance(paths, str | Path) else list(paths) for name, paths in sources.items()
    }


def _check_names(what: str, given: Mapping[str, object], named: Mapping[str, object]) -> None:
    for name in given:
        if name not in named:
            raise FolderError(f'{what}: no source is called "{name}"{nearest(name, list(named))}')


def _rows(source: Source, indexes: Indexes, subset: str | Path | None) -> list[Any]:
    """The rows of each shard that are loaded."""
    if subset is not None:
        return rows_of_subset(source, indexes, subset)
    return [
        np.arange(shard.samples if shard.samples >= 0 else len(indexes[number]))
        for number, shard in enumerate(source.shards)
    ]


def _per_epoch(
    names: Sequence[str],
    units: Sequence[int],
    weights: Mapping[str, float] | None,
    repeat: Mapping[str, int] | None,
    samples: int | None,
    positives: int,
) -> list[int]:
    """Units of each source an epoch."""
    if weights is None:
        if samples is not None:
            raise FolderError("samples_per_epoch: goes with weights; without, an epoch has every sample")
        wrong = next((name for name, times in (repeat or {}).items() if times < 1), None)
        if wrong:
            raise FolderError(
                f'repeat: "{wrong}" is {(repeat or {})[wrong]}; a whole number from 1 is wanted'
            )
        return [count * (repeat or {}).get(name, 1) for name, count in zip(names, units, strict=True)]
    if repeat:
        raise FolderError("weights and repeat: one of them says how the sources are mixed")
    lacking = [name for name in names if not 0 < weights.get(name, 0) < math.inf]
    if lacking:
        raise FolderError(f"weights: {', '.join(lacking)} has none; each source wants a number above 0")
    own = [weights[name] for name in names]
    found = shares(own, (samples or sum(units) * positives) // positives)
    if 0 in found:
        raise FolderError(
            f"weights: an epoch of {sum(found) * positives} samples has none of {names[found.index(0)]}; "
            f"{math.ceil(sum(own) / min(own)) * positives} samples_per_epoch have each"
        )
    return found


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of processes.

    Raises:
        FolderError: the rank is none of them.
    """
    import torch.distributed as group

    is_grouped = group.is_available() and group.is_initialized()
    if world_size is None:
        world_size = group.get_world_size() if is_grouped else int(os.environ.get("WORLD_SIZE") or 1)
    if rank is None:
        rank = group.get_rank() if is_grouped else int(os.environ.get("RANK") or 0)
    if not 0 <= rank < world_size:
        raise FolderError(f"rank: got {rank} of {world_size}; from 0 to {world_size - 1} is allowed")
    return rank, world_size
