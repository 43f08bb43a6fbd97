"""Named subsets of a pool, `subsets/<name>.npy .parquet .json`: read, counted and published as views.

Knows no rule: a verdict is a code with its words, whoever gave it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen import shards, storage
from synthgen.claims import Claim
from synthgen.errors import FolderError
from synthgen.pools import PoolColumns
from synthgen.selection.funnel import FAILED, KEPT, Steps, Verdicts, funnel, left_by_value
from synthgen.uids import UID, sort_uids

GROUPED = {"class": "class_name", "model": "model", "template": "template"}
"""What a funnel is counted by, and the columns."""
READ = ("uid", "error", *GROUPED.values())
"""Columns that publishing a subset reads."""


class Group(NamedTuple):
    """What became of the samples of a class, model or template: how many there are, are kept, and were
    rejected by each step that rejected any, most first.
    """

    name: str
    requested: int
    kept: int
    rejected: dict[str, int]

    @property
    def share(self) -> float:
        return self.kept / max(1, self.requested)


def groups(told: Mapping[str, Any], what: str) -> list[Group]:
    """The groups of a kind ("class", "model", "template") in a subset's JSON file, the least kept first;
    nothing where the pool has no such column.
    """
    steps = ["failed", *(stage["rule"] for stage in told["funnel"][1:])]

    def group(name: str, left: Sequence[int]) -> Group:
        lost = {step: before - after for step, before, after in zip(steps, left[:-1], left[1:], strict=True)}
        most = sorted(filter(lost.get, lost), key=lambda step: -lost[step])
        return Group(name, left[0], left[-1], {step: lost[step] for step in most})

    found = [group(name, left) for name, left in told["left"].get(what, {}).items()]
    return sorted(found, key=lambda one: (one.share, -one.requested))


def names(root: Path) -> list[str]:
    """The subsets that are there, with or without a funnel."""
    found = storage.names(root / shards.SUBSETS)
    return [name.removesuffix(".npy") for name in found if name.endswith(".npy")]


def unknown(root: Path, name: str) -> str:
    """What is said of a subset that is not there."""
    return f"{root}: no subset {name}; known: {', '.join(names(root)) or 'none, select first'}"


def told(root: Path, name: str) -> dict[str, Any]:
    """What `<name>.json` says; nothing where there is no such file."""
    path = root / shards.SUBSETS / f"{name}.json"
    return storage.read_json(path) if storage.exists(path) else {}


def is_given(root: Path, name: str) -> bool:
    """Whether a subset was made from others, and not by a recipe's rules."""
    return "expression" in told(root, name).get("inputs", {})


def check_is_view(root: Path, name: str) -> None:
    """Raises FolderError where `<name>.npy` is not ours: the parquet file is written before it."""
    path = root / shards.SUBSETS / f"{name}.npy"
    if storage.exists(path) and not storage.exists(path.with_suffix(".parquet")):
        raise FolderError(
            f"{path}: was not made by synthgen, and stays; `synthgen combine {root} NEW {name}` makes a "
            "subset NEW of it"
        )


def publish(
    root: Path,
    name: str,
    claim: Claim,
    columns: PoolColumns,
    verdict: Verdicts,
    words: Mapping[int, str],
    steps: Steps,
    *,
    head: dict[str, object],
    tail: dict[str, object],
    copies: npt.NDArray[np.intp] | None = None,
) -> None:
    """Writes a subset; while the JSON file is away, the other two are about to be replaced.

    Args:
        verdict: of each row of the pool, with its `words`; `steps` are those that reject, in order.
        head: what the JSON file begins with: `inputs`, `recipe`.
        tail: what else it says.
        copies: how often each row stands in the subset; None is once for each that is kept.
    """
    folder = root / shards.SUBSETS
    kept = verdict == KEPT
    pairs = columns.uids[kept]
    array = sort_uids(pairs if copies is None else np.repeat(pairs, copies[kept]))
    tables = shards.verdict_tables(columns.stored("uid"), verdict, words, columns.stored("error"))
    files = {f"{name}.parquet": shards.to_parquet(tables), f"{name}.npy": shards.to_npy(array)}
    found = {
        **head,
        "requested": len(verdict),
        "failed": int((verdict == FAILED).sum()),
        "kept": int(kept.sum()),
        "copies": len(array),
        "funnel": [stage._asdict() for stage in funnel(verdict, steps)],
        "left": {
            what: left_by_value(columns.stored(column), verdict, steps)
            for what, column in GROUPED.items()
            if column in columns
        },
        **tail,
        "files": {file: storage.checksum_of(data) for file, data in files.items()},
    }
    check_is_view(root, name)
    with storage.staging(root) as aside:  # while it is away, the others say nothing
        storage.move(folder / f"{name}.json", aside / "json")
        if not claim.is_held():  # what was moved is another's
            storage.give_name(aside / "json", folder / f"{name}.json")
    for file, data in {**files, f"{name}.json": storage.to_json(found)}.items():
        claim.check()
        storage.replace(root, folder / file, data)


def read_array(path: Path) -> npt.NDArray[np.void]:
    """The uids of a subset file, in its order: a `.npy` of dtype u8,u8, or the bytes of such an array alone,
    as `numpy.memmap` writes them.

    Raises:
        FolderError: it is neither.
    """
    wanted = "a one-dimensional array of dtype u8,u8 (upper and lower half of each uid) is wanted"
    if not storage.exists(path) or storage.is_folder(path):
        raise FolderError(f"{path}: {'is a folder' if storage.exists(path) else 'is not there'}; {wanted}")
    data = storage.read(path)
    if not data.startswith(b"\x93NUMPY"):
        if len(data) % UID.itemsize:
            raise FolderError(f"{path}: is no .npy, and {len(data)} bytes are no multiple of 16; {wanted}")
        return np.frombuffer(data, dtype=UID)
    try:
        array: npt.NDArray[np.void] = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise FolderError(f"{path}: cannot be read ({error}); {wanted}") from None
    if array.dtype != UID or array.ndim != 1:
        raise FolderError(f"{path}: has dtype {array.dtype} and shape {array.shape}; {wanted}")
    return array
