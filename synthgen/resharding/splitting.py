"""Which split a group of samples goes to: by its hash, which never changes as a dataset grows, or
stratified, which meets the parts in every cell as exactly as whole groups allow. Or the one that a sample was
published with.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import RecipeError
from synthgen.importing.forms import SPLITS
from synthgen.importing.tables import split_name

Whole = npt.NDArray[np.intp]
Hashes = npt.NDArray[np.uint64]


class Missed(NamedTuple):
    """A split that has fewer or more samples than it should, and the number of a group that is too large."""

    split: str
    got: int
    wanted: int
    group: int


def parts_of(split: Mapping[str, float]) -> dict[str, float]:
    """The splits that are parts, scaled to add up to 1: fractions. (Whole numbers are counts.)"""
    total = sum(value for value in split.values() if isinstance(value, float))
    return {name: value / total for name, value in split.items() if isinstance(value, float)}


def counts_of(split: Mapping[str, float]) -> dict[str, int]:
    """The splits that are counts: so many samples of each cell."""
    return {name: value for name, value in split.items() if isinstance(value, int)}


def split_of(key: str, split: Mapping[str, float]) -> str:
    """The split of a group or uid by its hash: 64 bits of it against the parts, in the order given."""
    names = list(split)
    return names[int(by_hash(hash_keys([key]), split)[0])]


def hash_keys(keys: Sequence[str]) -> Hashes:
    """64 bits of the sha256 of each group or uid, shape (n,)."""
    hashed = [hashlib.sha256(f"split {key}".encode()).digest()[:8] for key in keys]
    return np.frombuffer(b"".join(hashed), dtype=">u8").astype(np.uint64)


def by_hash(hashes: Hashes, split: Mapping[str, float]) -> Whole:
    """The number of each group's split. `split` has parts alone."""
    ends = np.cumsum(list(parts_of(split).values()))
    found = np.searchsorted(ends, hashes.astype(np.float64) / 2**64, side="right")
    return np.minimum(found, len(ends) - 1)


def stratified(cells: Whole, groups: Whole, hashes: Hashes, split: Mapping[str, float]) -> Whole:
    """The number of each group's split, such that each cell (a class, say) meets the parts.

    One group after the other goes to the split that lacks most: those that reach over several cells first,
    then cell by cell, the larger before the smaller, equal ones in order of their hashes. Where groups are
    single samples, a cell is within 1.5 of its parts; what rounding left is carried to the next cell, so that
    the whole stays close too. A cell that has as many groups as there are splits has at least one in each.
    This is the greedy idea of iterative stratification (Sechidis et al. 2011), with groups.

    Args:
        cells: of each sample, shape (n,).
        groups: of each sample, the number of its group, shape (n,); each from 0 on occurs.
        hashes: of each group.
        split: name -> part, or count of each cell (an int); the parts share what the counts leave.
    """
    n_cells, n_splits = int(cells.max(initial=-1)) + 1, len(split)
    pairs, sizes = np.unique(groups * max(n_cells, 1) + cells, return_counts=True)
    pair_group, pair_cell = pairs // max(n_cells, 1), pairs % max(n_cells, 1)
    firsts = np.searchsorted(pair_group, np.arange(len(hashes) + 1))
    is_single = np.diff(firsts) == 1
    own_cell = np.where(is_single, pair_cell[firsts[:-1]], -1)
    order = np.lexsort((hashes, -np.bincount(groups, minlength=len(hashes)), own_cell, is_single))
    need = _needs(np.bincount(cells, minlength=n_cells), split)
    left = np.bincount(pair_cell, minlength=n_cells).tolist()  # groups that are still to come
    empty = [set(range(n_splits)) for _ in range(n_cells)]
    found, numbers, before = [0] * len(hashes), range(n_splits), -1
    cell_of, size_of, first_of = pair_cell.tolist(), sizes.tolist(), firsts.tolist()
    for group in order.tolist():
        own = range(first_of[group], first_of[group + 1])
        cell = cell_of[own[0]]
        if len(own) == 1:
            lacks = need[cell]
            if cell != before:
                if before >= 0:
                    lacks[:] = [a + min(0.5, max(-0.5, b)) for a, b in zip(lacks, need[before], strict=True)]
                before = cell
            due = empty[cell] if left[cell] <= len(empty[cell]) else ()
        else:
            lacks = [sum(size_of[k] * need[cell_of[k]][s] for k in own) for s in numbers]
            due = {s for k in own if left[cell_of[k]] <= len(empty[cell_of[k]]) for s in empty[cell_of[k]]}
        # the first of those that lack most; a set has no order that may decide
        chosen = max(sorted(due) if due else numbers, key=lacks.__getitem__)
        for k in own:
            need[cell_of[k]][chosen] -= size_of[k]
            left[cell_of[k]] -= 1
            empty[cell_of[k]].discard(chosen)
        found[group] = chosen
    return np.array(found, dtype=np.intp)


def missed(cells: Whole, groups: Whole, found: Whole, split: Mapping[str, float]) -> Missed | None:
    """The split that misses most what it should have, by more than a tenth and more than one sample, where a
    group is larger than what a split should have of its cell. None where there is none.

    Args:
        cells: of each sample, shape (n,).
        groups: of each sample, shape (n,).
        found: the number of each sample's split.
        split: as `stratified` has it.
    """
    needs = np.array(_needs(np.bincount(cells), split)).reshape(-1, len(split))
    wanted, got = needs.sum(axis=0), np.bincount(found, minlength=len(split))
    off = np.abs(got - wanted)
    if not (off > np.maximum(1, wanted / 10)).any():
        return None
    n_cells = len(needs)
    pairs, sizes = np.unique(groups * n_cells + cells, return_counts=True)
    blame = np.where((sizes > 1) & (sizes > needs.min(axis=1)[pairs % n_cells]), sizes, 0)
    if not blame.any():
        return None
    group, worst = int(pairs[blame.argmax()]) // n_cells, int((off / np.maximum(wanted, 1)).argmax())
    return Missed(list(split)[worst], int(got[worst]), round(float(wanted[worst])), group)


def published(column: str, numbers: Whole, values: Sequence[object]) -> tuple[list[str], Whole]:
    """The splits that samples were published with, train before val before test before others by name, and
    the number of each sample's. 0, 1 and 2 are train, val and test, as at an import.

    Args:
        column: its name, for messages.
        numbers: of each sample, the number of its value, shape (n,).
        values: names of splits.

    Raises:
        RecipeError: a sample has no value, or one that is no name.
    """
    counts = np.bincount(numbers, minlength=len(values)).tolist()
    there = [(value, count) for value, count in zip(values, counts, strict=True) if count]
    missing = sum(count for value, count in there if value in (None, ""))
    if missing:
        raise RecipeError(
            f'reshard.split: {missing} of {len(numbers)} samples have nothing in column "{column}"; leave '
            "them out by a rule, such as not_listed, or give parts, { train = 0.9, val = 0.1 }"
        )
    named = {value: str(split_name(value)) for value, _ in there}
    for value, count in there:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", named[value]):
            raise RecipeError(
                f'reshard.split: {count} samples have "{value}" in column "{column}", which is no name of a '
                "split; letters, digits and _ are wanted, a letter first (0, 1, 2 are train, val, test)"
            )
    known = [name for name in SPLITS if name in named.values()]
    names = known + sorted({*named.values()} - {*known})
    number = np.array([names.index(named[value]) if value in named else -1 for value in values], np.intp)
    return names, number[numbers]


def _needs(sizes: Whole, split: Mapping[str, float]) -> list[list[float]]:
    """How many samples of each cell each split should have."""
    parts, counts = parts_of(split), counts_of(split)
    rest = np.maximum(sizes - sum(counts.values()), 0)
    columns = [rest * parts[name] if name in parts else np.full(len(sizes), counts[name]) for name in split]
    needs: list[list[float]] = np.stack(columns, axis=1).astype(np.float64).tolist()
    return needs
