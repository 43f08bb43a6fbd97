"""What a teacher said of augmented views, read for training: annotations of `use = "reinforce"`, by uid."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen import arrays, shards, storage
from synthgen.augmentations.recorded import Recorded
from synthgen.errors import FolderError, SynthgenError
from synthgen.uids import uid_pairs

TABLES = ("params", "probs", "ids")
MOST = 64
"""Shards whose tables are mapped at a time."""
How = Literal["smooth", "zeros"]


class Views(NamedTuple):
    """The views of one sample: `params` (samples, numbers) float32 for `Recorded.apply`, and of each the
    teacher's greatest probabilities `probs` (samples, k) float16 and their class `ids` (samples, k) int32.
    """

    params: npt.NDArray[np.float32]
    probs: npt.NDArray[np.float16]
    ids: npt.NDArray[np.int32]


class Reinforcement:
    """The folder annotations/<name>/ of an annotation with `use = "reinforce"`. Of each sample 24 bytes are
    in memory; its views are read from the disk when they are looked up. Can be pickled.

    Attributes:
        settings: the augmentation that replays the views.
        classes: names of the classes by id.
        n_classes: how many outputs a network needs: the greatest class id and one.

    Raises:
        FolderError: the folder holds no such annotation, or one of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.stems = shards.annotated(self.folder)
        if not self.stems:
            raise FolderError(
                f"{folder}: no annotation is there; a folder such as shards/birds/annotations/dr is wanted, "
                "which `synthgen reinforce` makes"
            )
        record = shards.read_record(self.folder, self.stems[0])
        inputs = record["inputs"]
        uses = {key.split(".")[1]: use for key, use in inputs.items() if key.endswith(".use")}
        self.name = next((name for name, use in uses.items() if use == "reinforce"), "")
        if not self.name:
            raise FolderError(
                f"{folder}: is an annotation of {', '.join(map(str, uses.values()))}; one of reinforce is "
                "wanted, which `synthgen reinforce` makes"
            )
        self.settings = Recorded.of(record["augmentation"])
        self.classes: dict[int, str] = {
            number: name for number, name, *_ in inputs[f"annotate.{self.name}.classes"]
        }
        self.n_classes = max(self.classes) + 1
        self._index()
        self._tables: dict[int, Views] = {}

    def _index(self) -> None:
        """Sorts the uids that have views by their upper halves; a shard's number and a row go with each."""
        mass, pairs, at = f"{self.name}_mass", list[npt.NDArray[np.void]](), list[npt.NDArray[np.int32]]()
        for number, stem in enumerate(self.stems):
            table = shards.read_table(self.folder / f"{stem}.parquet", ["uid", mass])
            rows = np.flatnonzero(table[mass].is_valid().to_numpy())
            pairs.append(uid_pairs(table["uid"])[rows])
            at.append(np.stack([np.full(len(rows), number), rows], 1).astype(np.int32))
        every = np.concatenate(pairs)
        order = np.lexsort((every["f1"], every["f0"]))
        self._high, self._low = every["f0"][order], every["f1"][order]
        self._at = np.concatenate(at)[order]

    def __len__(self) -> int:
        """How many samples have views."""
        return len(self._high)

    def lookup(self, uid: str) -> Views | None:
        """The views of a sample, by its uid or a key in final/ ("UID-1" is a further copy); None where it has
        none.
        """
        try:
            high, low = np.uint64(int(uid[:16], 16)), np.uint64(int(uid[16:32], 16))
        except ValueError:  # a key that is no uid
            return None
        place = int(np.searchsorted(self._high, high))
        while place < len(self) and self._high[place] == high:
            if self._low[place] == low:
                number, row = self._at[place].tolist()
                return Views(*(table[row].copy() for table in self._of_shard(number)))
            place += 1
        return None

    def _of_shard(self, number: int) -> Views:
        """The tables of a shard, mapped: nothing is read yet."""
        if number not in self._tables:
            if len(self._tables) >= MOST:
                self._tables.pop(next(iter(self._tables)))
            path = self.folder / f"{self.stems[number]}.npz"
            data, there = storage.map_file(path), arrays.places(path)
            found = []
            for key in TABLES:
                start, shape, kind = there[f"{self.name}_{key}"]
                flat = np.frombuffer(data, kind, int(np.prod(shape)), start)
                found.append(flat.reshape(shape))
            self._tables[number] = Views(*found)
        return self._tables[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}


def densify(
    probs: npt.NDArray[np.floating],
    ids: npt.NDArray[np.integer],
    n_classes: int,
    how: How = "smooth",
) -> npt.NDArray[np.float32]:
    """Probabilities of all classes, float32 of shape (..., n_classes), that sum to 1, from the greatest ones.

    Args:
        probs: shape (..., k), each row of sum 1 at most.
        ids: the class of each, shape (..., k), different in a row.
        n_classes: class ids are 0 to one less.
        how: "smooth" spreads what is left evenly over the other classes; "zeros" gives these nothing, and the
            softmax over the k (their logits are known up to a constant, so that is to divide by their sum).

    Raises:
        SynthgenError: an id is none of the classes, or `how` is unknown.

    Source: Faghri et al. (arXiv 2303.08983).
    """
    if how not in ("smooth", "zeros"):
        raise SynthgenError(f'how: "{how}"; smooth or zeros is wanted')
    if ids.size and not 0 <= ids.min() <= ids.max() < n_classes:
        raise SynthgenError(f"ids: from {ids.min()} to {ids.max()}; 0 to n_classes - 1 = {n_classes - 1} are")
    given = probs.astype(np.float32)
    others = n_classes - given.shape[-1]
    left = np.maximum(1 - given.sum(-1, keepdims=True), 0) if how == "smooth" and others else 0.0
    dense = np.zeros((*given.shape[:-1], n_classes), np.float32)
    dense += left / max(1, others)
    np.put_along_axis(dense, ids.astype(np.intp), given, -1)
    dense /= dense.sum(-1, keepdims=True)
    return dense
