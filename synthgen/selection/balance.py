"""Flattening the head of a pool, and leaving its tail alone."""

import numpy as np

from synthgen.errors import RecipeError
from synthgen.selection.columns import Columns, Mask, cell_numbers, hashed


def balance(columns: Columns, *, target: int, per: str | list[str] = "class", seed: int = 0) -> Mask:
    """Keeps a sample with the chance target / max(n, target), n being how many its cell has: all of a cell of
    up to `target`, about `target` of a greater one.

    The chance is compared with hash(seed, uid) in [0, 1), so the same samples are kept in any order, and more
    with a greater target. Where MetaCLIP gives a text several entries and keeps it with the chance that any
    of them does, each sample has one cell here; several names in `per` cross. `sample` and `top` with `count`
    keep an exact number.

    Source: MetaCLIP (arXiv 2309.16671, section 3.4), where `target` is t, 20,000 for 400M pairs.

    Raises:
        RecipeError: the target is below 1.
    """
    if target < 1:
        raise RecipeError(f"balance: target = {target}; 1 or more is allowed")
    cells = cell_numbers(columns, per)
    chance = target / np.maximum(np.bincount(cells), target)
    random = (hashed(columns, f"balance {seed}") >> np.uint64(11)) * 2.0**-53
    keep: Mask = random < chance[cells]
    return keep
