"""`synthgen combine`: a subset made of other subsets, and of files of uids such as DataComp's own code
writes.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthgen import shards, storage, subsets
from synthgen.claims import Claim
from synthgen.engine import Unit, Worker
from synthgen.errors import FolderError, RecipeError, WorkError, nearest
from synthgen.inspection import open_run
from synthgen.pools import PoolColumns
from synthgen.reporting.report import latest_recipe
from synthgen.selection import expressions
from synthgen.selection.funnel import FAILED, KEPT
from synthgen.uids import rows_of, uid_strings

POOL = "pool"
"""The operand that is every written sample."""


class Operand(NamedTuple):
    """What an operand holds: different uids, how many they are with repeats, and those of them that are no
    written sample of the pool, with the first.
    """

    uids: int
    copies: int
    unknown: int
    first_unknown: str


class Combined(NamedTuple):
    """A subset that was made of others: samples, with repeats, and how many each reason left out."""

    subset: str
    expression: str
    requested: int
    kept: int
    copies: int
    rejected: dict[str, int]
    operands: dict[str, Operand]


def combine(folder: str | Path, name: str, expression: str, *, replace: bool = False) -> Combined:
    """Makes `subsets/<name>` of an expression over names of subsets of the folder, "pool" and paths of
    subset files.

    Args:
        name: of the new subset; one that was combined before is made anew.
        replace: take also a name that rules of the recipe have.

    Raises:
        SynthgenError: the expression is none, an operand is not there or no subset file, nothing would be
            left, or the name is taken.
    """
    root = open_run(folder)
    parsed = expressions.parse(expression)
    _check_name(root, name, parsed, replace=replace)
    stems = shards.pool_stems(root)
    missing = [stem for stem in stems if not shards.is_done(root / shards.POOL, stem)]
    if missing or not stems:
        raise FolderError(
            f"{root}: {len(missing)} of {len(stems)} shards of the pool are not made yet; generate first"
        )
    columns = PoolColumns(root, stems, [])
    columns.read(subsets.READ)
    written = columns["error"] == ""
    pool = columns.uids
    counts, found, files = {}, dict[str, Operand](), list[list[str]]()
    for operand in dict.fromkeys(expressions.operands(parsed)):
        if operand == POOL:
            counts[operand] = written.astype(np.intp)
            continue
        path = _path(root, operand)
        array = subsets.read_array(path)
        rows = rows_of(array, pool)
        is_known = (rows >= 0) & written[rows]
        counts[operand] = np.bincount(rows[is_known], minlength=len(pool))
        unknown = uid_strings(np.unique(array[~is_known]))
        uids = int((counts[operand] > 0).sum()) + len(unknown)
        found[operand] = Operand(uids, len(array), len(unknown), unknown[0] if unknown else "")
        files.append([path.name, str(storage.checksum(path)["sha256"])])
    verdict, words, copies = expressions.combine(parsed, counts, written)
    if not copies.any():
        held = ", ".join(f"{one} has {own.uids - own.unknown}" for one, own in found.items())
        raise FolderError(
            f"expression: {expression}: nothing is left of the {written.sum()} samples of the pool; {held}"
        )
    spelt = expressions.spell(parsed)
    inputs = {"requests": len(written), "expression": spelt, "operands": files}

    def done() -> bool:
        try:
            return bool(subsets.told(root, name).get("inputs") == inputs)
        except WorkError:  # about to be replaced
            return False

    def make(claim: Claim) -> None:
        subsets.publish(
            root,
            name,
            claim,
            columns,
            verdict,
            {KEPT: "kept", FAILED: "failed", **words},
            [(FAILED, "generated"), *words.items()],
            head={"inputs": inputs, "recipe": shards.digest(latest_recipe(root))[:32]},
            tail={"short": []},
            copies=copies,
        )

    Worker(root).work([Unit(f"subsets/{name}", done, make)])
    rejected = {word: int((verdict == code).sum()) for code, word in words.items()}
    kept = int((copies > 0).sum())
    return Combined(name, spelt, len(written), kept, int(copies.sum()), rejected, found)


def _check_name(root: Path, name: str, expression: expressions.Expression, *, replace: bool) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == POOL:
        raise RecipeError(
            f'"{name}": letters, digits, - and _ are allowed in a subset\'s name, and not "{POOL}" alone'
        )
    if name in expressions.operands(expression):
        raise RecipeError(f'expression: is made of "{name}" itself; give the new subset another name')
    subsets.check_is_view(root, name)
    there = subsets.told(root, name)
    of_rules = ["main", *(table["subset"] for table in latest_recipe(root)["select"])]
    if not replace and not subsets.is_given(root, name) and (there or name in of_rules):
        raise FolderError(
            f"{root}: subset {name} is what the recipe's rules choose; give the new subset another name, or "
            "add --replace to put it in that one's place"
        )


def _path(root: Path, operand: str) -> Path:
    """The file of an operand: of a path that itself, of a name that of the folder's subset.

    Raises:
        FolderError: there is no such subset, or it was chosen from another pool than there is now.
    """
    if "/" in operand or operand.endswith(".npy"):
        return Path(operand).expanduser()
    known = subsets.names(root)
    if operand not in known:
        raise FolderError(
            f'{root}: no subset "{operand}"{nearest(operand, [*known, POOL])}; the path of a file ends in '
            ".npy or has a slash"
        )
    chosen_from, planned = subsets.told(root, operand).get("requested"), shards.planned_requests(root)
    if chosen_from not in (None, planned):
        raise FolderError(
            f"{root}: subset {operand} was chosen from {chosen_from} of {planned} requests; select again"
        )
    return root / shards.SUBSETS / f"{operand}.npy"
