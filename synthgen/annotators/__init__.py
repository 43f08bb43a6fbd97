"""Stage 4, looking at images: images -> columns and features, row-aligned with the pool. Knows nothing of
selection.

An annotator is `(*, device, **keys) -> Callable[[list[Sample]], dict[str, ndarray]]`: n samples in, arrays
with n rows out. One-dimensional arrays become columns `<name>_<key>` in parquet, two-dimensional ones
features in npz (float16), those of three dimensions tables there, of their own type, which no rule reads.
What is NaN, or masked in a `numpy.ma` array, is null (in tables of whole numbers -1). The call is made with a
fixed number of samples, so a score never depends on how a shard was cut.

An annotator reads what others made by naming it in a key that `READS` lists, such as
`features = "clip_img"`: then each sample has it as `sample.read["clip_img"]`. A sample that lacks any of it
is not shown to the annotator, and is null in its columns too. The callable may have attributes:

- `fingerprint`, a hash of the weights that it looks with;
- `needs_pixels = False`: it works from text, label and what it reads, so nothing is decoded for it;
- `prepare(sample)`, done ahead of the call in threads that decode; the call finds it as
  `sample.prepared`, and may find no pixels any more, so that few are in memory;
- `start()`, called before a shard, where it keeps anything between calls;
- `encode(images)`, which makes its feature `img` of other images, with `encode.fingerprint`;
- `tells`, JSON values that its records have, for who reads what it made and sees nothing else.

Beside the recipe's keys a function gets what it has a parameter for: `classes`, `folder` (the recipe's),
`real` (the real images that its key `source` names) and `encode` (of the annotation whose `features` it
reads); its check gets the same, and `fetch`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from synthgen.annotators.classifier import (
    CLASSIFIER_COLUMNS,
    check_classifier,
    classifier,
    classifier_origin,
)
from synthgen.annotators.clip import CLIP_COLUMNS, check_clip, clip, clip_origin
from synthgen.annotators.clusters import CLUSTERS_COLUMNS, check_clusters, clusters, fit_clusters
from synthgen.annotators.embeddings import check_embeddings, embeddings, embeddings_origin
from synthgen.annotators.hashes import HASHES_COLUMNS, hashes
from synthgen.annotators.heads import HEAD_COLUMNS, aesthetic, check_head, head_origin, nsfw
from synthgen.annotators.image import IMAGE_COLUMNS, image
from synthgen.annotators.language import LANGUAGE_COLUMNS, check_language, language
from synthgen.annotators.references import REFERENCES_COLUMNS, check_references, references, references_origin
from synthgen.annotators.reinforce import REINFORCE_COLUMNS, check_reinforce, reinforce, reinforce_origin
from synthgen.annotators.shard import Annotate

ANNOTATORS: dict[str, Callable[..., Annotate]] = {
    "aesthetic": aesthetic,
    "classifier": classifier,
    "clip": clip,
    "clusters": clusters,
    "embeddings": embeddings,
    "hashes": hashes,
    "image": image,
    "language": language,
    "nsfw": nsfw,
    "references": references,
    "reinforce": reinforce,
}
CHECKS: dict[str, Callable[..., None]] = {
    "aesthetic": check_head,
    "classifier": check_classifier,
    "clip": check_clip,
    "clusters": check_clusters,
    "embeddings": check_embeddings,
    "language": check_language,
    "nsfw": check_head,
    "references": check_references,
    "reinforce": check_reinforce,
}
"""What finds wrong keys, and models that cannot be had, before there are images."""
ORIGINS: dict[str, Callable[..., str | None]] = {
    "aesthetic": head_origin,
    "classifier": classifier_origin,
    "clip": clip_origin,
    "embeddings": embeddings_origin,
    "nsfw": head_origin,
    "references": references_origin,
    "reinforce": reinforce_origin,
}
"""What says whose model an annotator looks with ("": nobody tells); the others, and what gives None, have
none.
"""

FITS: dict[str, Callable[..., dict[str, npt.NDArray[np.generic]]]] = {"clusters": fit_clusters}
"""What an annotator is fitted to the whole pool by, once the features that it names are there:
`(shards, **keys) -> arrays`, with uids, class names and features of each shard; the annotator gets the arrays
as `fitted`.
"""

COLUMNS: dict[str, dict[str, str]] = {
    "aesthetic": HEAD_COLUMNS,
    "classifier": CLASSIFIER_COLUMNS,
    "clip": CLIP_COLUMNS,
    "clusters": CLUSTERS_COLUMNS,
    "embeddings": {},
    "hashes": HASHES_COLUMNS,
    "image": IMAGE_COLUMNS,
    "language": LANGUAGE_COLUMNS,
    "nsfw": HEAD_COLUMNS,
    "references": REFERENCES_COLUMNS,
    "reinforce": REINFORCE_COLUMNS,
}
"""Columns of each annotator, without its name before them, and their types in parquet."""
FEATURES: dict[str, tuple[str, ...]] = {"clip": ("img", "txt"), "embeddings": ("img",)}
"""Features of each annotator that has some, without its name before them: rows of float16 in npz."""
READS: dict[str, tuple[str, ...]] = {
    "aesthetic": ("features",),
    "clusters": ("features",),
    "language": ("column",),
    "nsfw": ("features",),
    "references": ("features",),
}
"""Keys of each annotator that name what it reads: a column or features of another annotation (a key
`features` only these), or a column of the pool; a name or a list of names, "" for nothing.
"""
