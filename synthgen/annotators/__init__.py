"""Stage 4, looking at images: images -> columns and features, row-aligned with the pool. Knows nothing of
selection.

An annotator is `(*, device, **keys) -> Callable[[list[Sample]], dict[str, ndarray]]`: n samples in, arrays
with n rows out. One-dimensional arrays become columns `<name>_<key>` in parquet, two-dimensional ones
features in npz (float16). What is NaN, or masked in a `numpy.ma` array, is null. The call is made with a
fixed number of samples, so a score never depends on how a shard was cut.

An annotator reads what others made by naming it in a key that `READS` lists, such as
`features = "clip_img"`: then each sample has it as `sample.read["clip_img"]`. A sample that lacks any of it
is not shown to the annotator, and is null in its columns too. The callable may have three attributes:

- `fingerprint`, a hash of the weights that it looks with;
- `needs_pixels = False`: it works from text, label and what it reads, so nothing is decoded for it;
- `prepare(sample)`, done ahead of the call in threads that decode; the call finds it as `sample.prepared`.
"""

from collections.abc import Callable

from synthgen.annotators.clip import CLIP_COLUMNS, check_clip, clip, clip_origin
from synthgen.annotators.hashes import HASHES_COLUMNS, hashes
from synthgen.annotators.image import IMAGE_COLUMNS, image
from synthgen.annotators.shard import Annotate

ANNOTATORS: dict[str, Callable[..., Annotate]] = {"clip": clip, "hashes": hashes, "image": image}
CHECKS: dict[str, Callable[..., None]] = {"clip": check_clip}
"""What finds wrong keys, and models that cannot be had, before there are images."""
ORIGINS: dict[str, Callable[..., str]] = {"clip": clip_origin}
"""What says whose model an annotator looks with; the others have none."""

COLUMNS = {"clip": CLIP_COLUMNS, "hashes": HASHES_COLUMNS, "image": IMAGE_COLUMNS}
"""Columns of each annotator, without its name before them, and their types in parquet."""
FEATURES: dict[str, tuple[str, ...]] = {"clip": ("img", "txt")}
"""Features of each annotator that has some, without its name before them: rows of float16 in npz."""
READS: dict[str, tuple[str, ...]] = {}
"""Keys of each annotator that name what it reads: a column or features of another annotation (a key
`features` only these), or a column of the pool; a name or a list of names, "" for nothing.
"""
