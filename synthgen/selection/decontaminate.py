"""Keeping evaluation sets out of what is trained on."""

import numpy as np

from synthgen.errors import RecipeError
from synthgen.selection.columns import Columns, Mask, n_rows, numbers


def decontaminate(
    columns: Columns, *, annotation: str, similarity: float | None = None, distance: int | None = None
) -> Mask:
    """Drops what is like an image of an evaluation set: its cosine to the nearest one is at least
    `similarity`, or its perceptual hash differs from some one's in at most `distance` bits.

    Args:
        annotation: the name of the `references` annotation of that set, made with `per = ""` so that it
            looks at all its images; its columns `max` and `phash_distance` are read.

    Raises:
        RecipeError: neither similarity nor distance is given, or one is out of range.
    """
    if similarity is None and distance is None:
        raise RecipeError("decontaminate: neither similarity nor distance is given; give one of them")
    if similarity is not None and not -1 <= similarity <= 1:
        raise RecipeError(f"decontaminate: similarity = {similarity}; a cosine, -1 to 1, is wanted")
    if distance is not None and not 0 <= distance <= 64:
        raise RecipeError(f"decontaminate: distance = {distance}; 0 to 64 bits is wanted")
    keep = np.ones(n_rows(columns), bool)
    if similarity is not None:
        greatest = numbers(columns, f"{annotation}_max")
        keep &= greatest < greatest.dtype.type(similarity)
    if distance is not None:
        keep &= numbers(columns, f"{annotation}_phash_distance") > distance
    return keep
