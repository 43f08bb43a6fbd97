"""Which samples of a source are loaded, and which of them come together: a subset applied without a rewrite,
and the prompts that samples share.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from synthgen import shards, storage
from synthgen.errors import FolderError, WorkError
from synthgen.loader.indexing import Indexes
from synthgen.loader.locating import Source
from synthgen.loader.samples import KEY, Sample
from synthgen.subsets import read_array
from synthgen.uids import UID, rows_of, uid_array

log = logging.getLogger(__name__)
TIES = ("prompt_id", "group", "text", "caption")
"""Keys of a sample's json that say what it shares with others, the first that is there."""
Rows = npt.NDArray[np.int64]


def rows_of_subset(source: Source, indexes: Indexes, subset: str | Path) -> list[Rows]:
    """The rows of each shard that a subset lists, in order; of one that it lists k times, k.

    Args:
        subset: a .npy of uids, or the name of a subset of the run that the source is of.

    Raises:
        FolderError: there is no such subset, it lists nothing of the source, or samples have no uids.
    """
    path = Path(subset)
    if source.root and path.suffix != ".npy":
        folder = Path(source.root) / shards.SUBSETS
        path = folder / f"{subset}.npy"
        if not storage.exists(path):
            known = [name.removesuffix(".npy") for name in storage.names(folder) if name.endswith(".npy")]
            raise FolderError(f"{source.root}: no subset {subset}; it has {', '.join(known) or 'none yet'}")
    listed, times = np.unique(read_array(path), return_counts=True)
    counts = [indexes[number].found for number in range(len(source.shards))]
    found = rows_of(_uids(source, indexes), listed)
    held = found >= 0
    present = np.bincount(found[held], minlength=len(listed))
    if not held.any():
        raise FolderError(f"{path}: lists {len(listed)} uids, and none is in the {sum(counts)} samples of "
                          f"{source.name}; name the subset of this dataset")  # fmt: skip
    if (present == 0).any():
        log.warning(
            "%s: %d of its %d uids are not in %s", path, (present == 0).sum(), len(listed), source.name
        )
    order = np.argsort(found, kind="stable")
    ordered = found[order]
    copy = np.empty(len(found), np.int64)  # the how-manieth of its uid a row is
    copy[order] = np.arange(len(found)) - np.searchsorted(ordered, ordered)
    wanted, there = times[found], np.maximum(present[found], 1)
    repeats = np.where(held, wanted // there + (copy < wanted % there), 0)
    ends = np.cumsum(counts)
    return [
        np.repeat(np.arange(count), repeats[end - count : end])
        for count, end in zip(counts, ends.tolist(), strict=True)
    ]


def _uids(source: Source, indexes: Indexes) -> npt.NDArray[np.void]:
    """The uid of each sample: its key, or that of its json."""
    found = [np.empty(0, UID)]
    for number, shard in enumerate(source.shards):
        index = indexes[number]
        keys = [KEY.fullmatch(index.key(row).rpartition("/")[2]) for row in range(index.found)]
        texts = [key[1] if key else "" for key in keys]
        for row, text in enumerate(texts):
            if not text:
                texts[row] = str(Sample("", indexes.read(number, row), {}).json.get("uid", ""))
                if not KEY.fullmatch(texts[row]):
                    raise FolderError(
                        f"{shard.path}: sample {index.key(row)} has no uid of 32 hex digits, by which a "
                        "subset lists it; import the dataset, and load the pool"
                    )
        found.append(uid_array([text[:32] for text in texts]))
    return np.concatenate(found)


def groups(source: Source, indexes: Indexes, rows: list[Rows]) -> npt.NDArray[np.int64]:
    """What each sample shares with others, as numbers from 0: its prompt, shape (n,), in the order of `rows`.

    Raises:
        FolderError: a sample says nothing of it.
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(tie, len(numbers)) for tie in _ties(source, indexes, rows)], np.int64)


def _ties(source: Source, indexes: Indexes, rows: list[Rows]) -> Iterator[str]:
    for number, own in enumerate(rows):
        for row in own.tolist():
            try:
                sample = Sample("", indexes.read(number, row), {})
                yield (
                    next((str(sample.json[name]) for name in TIES if sample.json.get(name)), "")
                    or sample.text
                )
            except WorkError as error:
                where = f"{source.shards[number].path}: row {row}"
                raise FolderError(
                    f"{where}: {error}; `positives` wants to know each sample's prompt"
                ) from None
