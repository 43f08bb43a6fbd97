"""DataComp's baselines as rules, so that a recipe can name one.

The method is that of DataComp (arXiv 2304.14108, sections 3 and 5, and its published baselines.py): scores
are compared in float32, ranks and ties are its own. What differs is said at each function. In a recipe with
several rules, `of = "pool"` makes a baseline judge the whole pool, as DataComp's intersections do.

All deviate in one thing: the language is a column, which the annotator `language` makes, where DataComp asks
fastText's lid.176 (laion2b: gcld3); the three disagree on short captions.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import clustering, wordnet
from synthgen.errors import RecipeError
from synthgen.selection.columns import (
    Columns,
    Features,
    Mask,
    NumberColumn,
    TextColumn,
    n_rows,
    numbers,
    texts,
)
from synthgen.selection.columns import features as read_features

LANGUAGE = "language_code"
SPACE = "\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What `str.split` splits at."""
ASCII_SPACE = np.array([chr(byte).isspace() and byte < 0x80 for byte in range(256)])
FASTTEXT_SPACE = " \n\r\t\v\f\\x00"
IDS = "data/_info/imagenet21k_goog_synsets.txt"
IDS_SHA256 = "66362bde"
"""The beginning of the sha256 that DataComp demands of its list of ImageNet-21k's synsets; timm has it."""
ROWS = 2**17
"""Captions that are cut into words at a time."""


def no_filter(columns: Columns) -> Mask:
    """Keeps everything."""
    return np.ones(n_rows(columns), bool)


def datacomp_basic(
    columns: Columns,
    *,
    text: TextColumn = "text",
    language: TextColumn = LANGUAGE,
    width: NumberColumn = "original_width",
    height: NumberColumn = "original_height",
) -> Mask:
    """Keeps English captions of more than 2 words and more than 5 characters, of images whose shorter side
    has at least 200 pixels and whose longer side is at most 3 times that.

    Words are what `str.split` gives. Deviates from `basic_filter` in the language alone.
    """
    wide, high = numbers(columns, width), numbers(columns, height)
    least, most = np.minimum(wide, high), np.maximum(wide, high)  # NaN where one is missing
    with np.errstate(divide="ignore", invalid="ignore"):
        keep: Mask = (least >= 200) & (most / least <= 3.0) & texts_equal(columns, language, "en")
    captions = texts(columns, text)
    keep &= _lengths(captions) > 5
    rows = np.flatnonzero(keep)
    keep[rows] = count_words(captions.filter(pa.array(keep))) > 2
    return keep


def datacomp_clip_score(
    columns: Columns,
    *,
    column: NumberColumn = "clip_l14_similarity_score",
    threshold: float | None = None,
    fraction: float | None = None,
) -> Mask:
    """Keeps scores of at least `threshold`, or of at least the one at the rank int(n * fraction), from 0, of
    all n scores in falling order.

    So n * fraction + 1 rows without ties, and all rows that tie with the last. Missing scores count in n and
    come last; where the rank falls on one, nothing is kept, as there. A fraction whose rank is n keeps all
    that have a score, where DataComp stops with an IndexError.

    Raises:
        RecipeError: not exactly one of threshold and fraction (0 to 1) is given.
    """
    if (threshold is None) == (fraction is None):
        raise RecipeError("datacomp_clip_score: give either threshold or fraction")
    if fraction is not None and not 0 <= fraction <= 1:
        raise RecipeError(f"datacomp_clip_score: fraction = {fraction}; 0 to 1 is allowed")
    score = numbers(columns, column).astype(np.float32, copy=False)
    if fraction is None:
        least = np.float32(threshold or 0)
    elif int(len(score) * fraction) < len(score):
        missing = int(np.isnan(score).sum())  # they come last
        place = len(score) - missing - 1 - int(len(score) * fraction)
        least = np.partition(score, place)[place] if place >= 0 else np.float32(np.nan)
    else:
        least = np.float32(-np.inf)
    keep: Mask = score >= least
    return keep


def datacomp_laion2b(
    columns: Columns,
    *,
    column: NumberColumn = "clip_b32_similarity_score",
    language: TextColumn = LANGUAGE,
) -> Mask:
    """Keeps English captions with a ViT-B/32 score of at least 0.28.

    Deviates from `laion2b_filter` in the language alone.
    """
    return datacomp_clip_score(columns, column=column, threshold=0.28) & texts_equal(columns, language, "en")


def datacomp_text_based(
    columns: Columns, *, text: TextColumn = "text", language: TextColumn = LANGUAGE
) -> Mask:
    """Keeps English captions with a word whose first meaning in WordNet 3.0 is one of ImageNet-21k's synsets.

    Words are what `str.split` gives, punctuation and all; the meaning is NLTK's `synsets(word)[0]`, and its
    offset is compared without the kind of word: "rocked", a verb, has the offset of some noun, as there.
    Deviates from `text_based_filter` in the language alone, and from NLTK before 3.7 in forms of forms.

    Raises:
        RecipeError: timm, which has the list of synsets, is not installed.
    """
    wanted = imagenet_offsets()
    captions, keep = texts(columns, text), np.zeros(n_rows(columns), bool)
    for start in range(0, len(captions), ROWS):
        lists = pc.utf8_split_whitespace(captions.slice(start, ROWS))
        words = lists.flatten().dictionary_encode()
        hits = np.array([wordnet.first_offset(word) in wanted for word in words.dictionary.to_pylist()], bool)
        rows = pc.list_parent_indices(lists).to_numpy()
        keep[start + rows[hits[words.indices.to_numpy()]]] = True
    return keep & texts_equal(columns, language, "en")


def datacomp_image_based(
    columns: Columns,
    *,
    file: Path,
    features: Features = "l14_img",
    text: TextColumn = "text",
    language: TextColumn = LANGUAGE,
) -> Mask:
    """Keeps English captions of more than 1 word and more than 5 characters, of images whose nearest centroid
    is the nearest of some image of a target set.

    Words are what fastText's `tokenize` gives: cut at ASCII white space, a line's end being a word. Nearest
    is the greatest product with the features as they are stored; of equals the first. Deviates from
    `image_based_filter` in the language; and the centroids are given: it makes 100,000 of them by k-means
    over the features of the pool, and takes ImageNet-1k's training images for targets.

    Args:
        file: a .npz with `centroids`, shape (centroids, width), and either `targets`, the numbers of those
            that images of the target set are nearest to, or `references`, these images' features.

    Raises:
        RecipeError: the file cannot be read, or lacks an array or has one of another width.
    """
    centroids, targets = read_centroids(file)
    images, captions = read_features(columns, features), texts(columns, text)
    if len(images) and images.shape[1] != centroids.shape[1]:
        raise RecipeError(
            f'datacomp_image_based.file: {file.name}: centroids of width {centroids.shape[1]}; "{features}" '
            f"has {images.shape[1]}"
        )
    words = _count(captions, f"[^{FASTTEXT_SPACE}]+") + pc.count_substring(captions, "\n").to_numpy()
    keep: Mask = texts_equal(columns, language, "en") & (words > 1) & (_lengths(captions) > 5)
    rows = np.flatnonzero(keep)
    keep[rows] = targets[nearest(images, rows, centroids)]
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        keep[part] &= np.isfinite(images[part]).all(axis=1)
    return keep


def datacomp_image_based_intersect_clip_score(
    columns: Columns,
    *,
    file: Path,
    column: NumberColumn = "clip_l14_similarity_score",
    threshold: float | None = None,
    fraction: float | None = None,
    features: Features = "l14_img",
    text: TextColumn = "text",
    language: TextColumn = LANGUAGE,
) -> Mask:
    """Keeps what both `datacomp_image_based` and `datacomp_clip_score` keep, the threshold of a fraction
    being that of all rows: with fraction = 0.3 the recipe of DataComp-1B.
    """
    by_score = datacomp_clip_score(columns, column=column, threshold=threshold, fraction=fraction)
    return by_score & datacomp_image_based(
        columns, file=file, features=features, text=text, language=language
    )


@functools.cache
def imagenet_offsets() -> frozenset[int]:
    """The offsets of ImageNet-21k's synsets."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise RecipeError("datacomp_text_based: ImageNet-21k's synsets come with timm; pip install timm")
    data = (Path(found.submodule_search_locations[0]) / IDS).read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(IDS_SHA256):
        raise RecipeError(
            f"datacomp_text_based: timm's {IDS} is not the list that DataComp uses; try timm 1.0"
        )
    return frozenset(int(line[1:]) for line in data.decode().split())


def read_centroids(file: Path) -> tuple[npt.NDArray[np.float32], Mask]:
    """Centroids, shape (n, width), and which of them are targets, as `datacomp_image_based` has it."""
    key = f"datacomp_image_based.file: {file.name}"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays) if isinstance(arrays, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{key}: cannot be read: {str(error).splitlines()[0]}") from None
    if "centroids" not in found or not {"targets", "references"} & found.keys():
        raise RecipeError(
            f'{key}: holds {", ".join(found) or "no arrays"}; "centroids" and "targets" or "references" are '
            "wanted"
        )
    centroids = found["centroids"].astype(np.float32)
    is_target = np.zeros(len(centroids), bool)
    if "targets" in found:
        targets = found["targets"]
        if targets.dtype.kind not in "iu" or not ((targets >= 0) & (targets < len(centroids))).all():
            raise RecipeError(f"{key}: targets: numbers of centroids, 0 to {len(centroids) - 1}, are wanted")
        is_target[targets] = True
    else:
        references = found["references"]
        if references.ndim != 2 or centroids.ndim != 2 or references.shape[1] != centroids.shape[1]:
            raise RecipeError(f"{key}: references of shape {references.shape}; width as centroids is wanted")
        is_target[nearest(references, np.arange(len(references)), centroids)] = True
    return centroids, is_target


def nearest(
    images: npt.NDArray[np.floating], rows: npt.NDArray[np.intp], centroids: npt.NDArray[np.float32]
) -> npt.NDArray[np.intp]:
    """For some rows of features the number of the centroid with the greatest product; of equals the first."""
    found = np.empty(len(rows), np.intp)
    size = max(64, 2**24 // max(1, len(centroids)))
    for start in range(0, len(rows), size):
        part = images[rows[start : start + size]].astype(np.float32)
        found[start : start + size] = clustering.products(part, centroids).argmax(axis=1)
    return found


def texts_equal(columns: Columns, name: str, value: str) -> Mask:
    """Where a column of texts has a value."""
    found: Mask = pc.equal(texts(columns, name), value).to_numpy(zero_copy_only=False)
    return found


def count_words(captions: pa.Array) -> npt.NDArray[np.int64]:
    """How many words `str.split` would give of each text.

    Args:
        captions: of type large_string, without nulls.
    """
    counts = np.zeros(len(captions), np.int64)
    for start in range(0, len(captions), ROWS):
        part = captions.slice(start, ROWS)
        ends = np.frombuffer(part.buffers()[1], np.int64)[part.offset : part.offset + len(part) + 1]
        data = np.frombuffer(part.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
        bounds, is_space = ends - ends[0], ASCII_SPACE[data]
        begins = ~is_space
        begins[1:] &= is_space[:-1]
        firsts = bounds[:-1][np.diff(bounds) > 0]
        begins[firsts] = ~is_space[firsts]
        own = _sums(begins, bounds)
        others = _sums(data >= 0x80, bounds) > 0
        own[others] = _count(part.filter(pa.array(others)), f"[^{SPACE}]+")
        counts[start : start + len(part)] = own
    return counts


def _sums(flags: npt.NDArray[np.bool_], bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many flags are set from each bound to the next."""
    before = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=before[1:])
    return np.diff(before[bounds]).astype(np.int64)


def _count(captions: pa.Array, pattern: str) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = pc.count_substring_regex(captions, pattern).to_numpy()
    return found


def _lengths(captions: pa.Array) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = pc.utf8_length(captions).to_numpy()
    return found
