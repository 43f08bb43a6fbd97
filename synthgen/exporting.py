"""A pool handed on to DataComp's code: `metadata/<32 hex>.parquet` and, row for row, `.npz`, as its
`baselines.py` reads them. Its `resharder.py` reads `pool/` of a run as it is, or the source's own shards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from synthgen import shards, storage, subsets
from synthgen.errors import FolderError, SynthgenError, nearest
from synthgen.uids import repeated, rows_of, uid_pairs, uid_strings

COLUMNS = {
    "uid": pa.string(),
    "url": pa.string(),
    "text": pa.string(),
    "original_width": pa.int64(),
    "original_height": pa.int64(),
    "clip_b32_similarity_score": pa.float32(),
    "clip_l14_similarity_score": pa.float32(),
    "face_bboxes": pa.list_(pa.list_(pa.float64())),
    "sha256": pa.string(),
}
"""DataComp's columns and their types, in its order (Gadre et al., arXiv 2304.14108)."""
FEATURES = ("b32_img", "b32_txt", "l14_img", "l14_txt", "dedup")
"""Its features, float16."""
MODELS = {"ViT-B-32": "b32", "ViT-B-32-quickgelu": "b32", "ViT-L-14": "l14", "ViT-L-14-quickgelu": "l14"}
"""The models that its names mean, with OpenAI's weights."""
KINDS = ("img", "txt")


class Features(NamedTuple):
    """Where features of a name are, and how wide."""

    folder: Path
    width: int


class Exported(NamedTuple):
    """What was written: the rows, DataComp's columns and features among them, and what is to be known."""

    folder: str
    rows: int
    columns: list[str]
    features: list[str]
    notes: list[str]


def to_datacomp(
    root: Path,
    output: Path,
    *,
    columns: Sequence[str] = (),
    features: Sequence[str] = (),
    subset: str = "",
) -> Exported:
    """Writes `metadata/` below a folder: a file, or with features a pair, for each shard of the pool.

    Only written samples are rows; a missing text is "". DataComp's names of scores and features mean certain
    models, and go by themselves only to `clip` annotations of these (ViT-B-32 and ViT-L-14, pretrained
    "openai") and to columns that are called so already, as those that were imported from it.

    Args:
        root: the run's folder.
        output: where `metadata/` is made; it may be there from an export that was cut short.
        columns: "NEW=OLD", DataComp's name and that of a column of the pool or its annotations.
        features: "NEW=OLD", DataComp's name and that of features of its annotations.
        subset: only the samples of this selection; "" is all.

    Raises:
        SynthgenError: there is no such column, feature or selection.
        FolderError: the pool is not finished or holds a uid twice, or the folder holds something else.
    """
    stems = shards.pool_stems(root)
    lacking = [stem for stem in stems if not shards.is_done(root / shards.POOL, stem)]
    if lacking or not stems:
        raise FolderError(f"{root}: {len(lacking)} of {len(stems)} shards of the pool are not there yet")
    annotations = [
        root / shards.ANNOTATIONS / name
        for name in storage.names(root / shards.ANNOTATIONS)
        if set(stems) <= set(shards.records(root / shards.ANNOTATIONS / name))
    ]
    table, arrays = _known(root, stems, annotations)
    wanted = {name: name for name in COLUMNS if name in table} | _by_model(annotations, stems, "_similarity")
    wanted |= _named("--columns", columns, list(COLUMNS)[1:], list(table))
    wanted = {name: wanted.get(name, "") for name in COLUMNS if name in wanted or name == "url"}
    taken = {
        f"{short}_{kind}": f"{name}_{kind}" for short, name in _models(annotations, stems) for kind in KINDS
    }
    taken = {new: old for new, old in taken.items() if old in arrays}
    taken |= _named("--features", features, FEATURES, list(arrays))
    listed = _subset(root, subset)
    uids = [_uids(root, stem) for stem in stems]
    _require_unique(root, np.concatenate(uids))
    ends = np.cumsum([len(own) for own in uids])[:-1]
    chosen = None if listed is None else np.split(rows_of(np.concatenate(uids), np.unique(listed)) >= 0, ends)
    files = {f"{shards.digest([root.name, subset, stem])[:32]}": stem for stem in stems}
    _require_own(output / "metadata", [f"{name}.{end}" for name in files for end in ("parquet", "npz")])
    count, missing = 0, 0
    for number, (name, stem) in enumerate(files.items()):
        kept = None if chosen is None else chosen[number]
        rows, own = _shard(root, stem, wanted, taken, table, arrays, kept)
        storage.write(output / "metadata" / f"{name}.parquet", shards.to_parquet([rows]))
        if taken:
            storage.write(output / "metadata" / f"{name}.npz", shards.to_npz(own))
        count += len(rows)
        missing += sum(int(np.isnan(array).any(axis=1).sum()) for array in own.values())
    notes = [
        f"{name}: not known, and not written; --columns {name}=COLUMN"
        for name in COLUMNS
        if name not in wanted
    ]
    notes += [] if taken else ["no features: image_based and the like want l14_img; --features l14_img=NAME"]
    notes += [f"features are missing (NaN) in {missing} rows"] if missing else []
    return Exported(str(output / "metadata"), count, list(wanted), list(taken), notes)


def _known(
    root: Path, stems: Sequence[str], annotations: Sequence[Path]
) -> tuple[dict[str, Path], dict[str, Features]]:
    """The folders of all columns and of all features."""
    firsts = dict.fromkeys([stems[0], *(source.stems[0] for source in shards.imported(root) if source.stems)])
    table, arrays = dict[str, Path](), dict[str, Features]()
    for folder in [root / shards.POOL, *annotations]:
        for stem in firsts:
            table = {**dict.fromkeys(shards.names(folder / f"{stem}.parquet"), folder), **table}
    for folder in annotations:
        there = next((stem for stem in stems if storage.exists(folder / f"{stem}.npz")), "")
        for name, array in shards.read_npz(folder / f"{there}.npz").items():
            if array.ndim == 2:  # tables are no features
                arrays[name] = Features(folder, array.shape[1])
    return table, arrays


def _models(annotations: Sequence[Path], stems: Sequence[str]) -> list[tuple[str, str]]:
    """DataComp's short name of a model, and the annotation that looks with it."""
    found = []
    for folder in annotations:
        inputs = shards.read_record(folder, stems[0])["inputs"]
        told = {key: inputs.get(f"annotate.{folder.name}.{key}") for key in ("use", "model", "pretrained")}
        if told["use"] == "clip" and told["pretrained"] == "openai" and told["model"] in MODELS:
            found.append((MODELS[str(told["model"])], folder.name))
    return found


def _by_model(annotations: Sequence[Path], stems: Sequence[str], key: str) -> dict[str, str]:
    return {f"clip_{short}{key}_score": f"{name}{key}" for short, name in _models(annotations, stems)}


def _named(
    option: str, given: Sequence[str], new_names: Sequence[str], old_names: list[str]
) -> dict[str, str]:
    found = {}
    for each in given:
        new, _, old = each.partition("=")
        if new not in new_names:
            raise SynthgenError(f'{option} {each}: DataComp has no "{new}"{nearest(new, list(new_names))}')
        if old not in old_names:
            raise SynthgenError(f'{option} {each}: there is no "{old}"{nearest(old, old_names)}')
        found[new] = old
    return found


def _subset(root: Path, name: str) -> npt.NDArray[np.void] | None:
    if not name:
        return None
    path = root / shards.SUBSETS / f"{name}.npy"
    if not storage.exists(path):
        raise FolderError(subsets.unknown(root, name))
    return shards.read_npy(path)


def _uids(root: Path, stem: str) -> npt.NDArray[np.void]:
    return uid_pairs(shards.read_table(root / shards.POOL / f"{stem}.parquet", ["uid"])["uid"])


def _require_unique(root: Path, uids: npt.NDArray[np.void]) -> None:
    twice, _ = repeated(uids)
    if len(twice):
        uid = uid_strings(twice[:1])[0]
        raise FolderError(f"{root}: uid {uid} is there twice; DataComp's resharder would repeat its key")


def _require_own(folder: Path, names: Sequence[str]) -> None:
    stray = sorted(set(storage.names(folder)) - set(names))
    if stray:
        raise FolderError(
            f"{folder}: holds {stray[0]}, which is no part of this export; choose another folder with -o DIR"
        )


def _cast(column: pa.ChunkedArray, name: str, old: str) -> pa.ChunkedArray:
    try:
        return column.cast(COLUMNS[name])
    except pa.ArrowException as error:
        raise SynthgenError(
            f"--columns {name}={old}: {old} holds {column.type}, and DataComp's {name} {COLUMNS[name]} "
            f"({str(error).splitlines()[0]})"
        ) from None


def _shard(
    root: Path,
    stem: str,
    wanted: dict[str, str],
    taken: dict[str, str],
    table: dict[str, Path],
    arrays: dict[str, Features],
    chosen: npt.NDArray[np.bool_] | None,
) -> tuple[pa.Table, dict[str, npt.NDArray[np.float16]]]:
    """The rows of a pool shard in DataComp's columns, and its features."""
    pool = shards.read_table(root / shards.POOL / f"{stem}.parquet", ["uid", "error"])
    keep = pool["error"].is_null().to_numpy()
    if chosen is not None:
        keep &= chosen
    rows = pa.array(np.flatnonzero(keep))
    found = {}
    for name, kind in COLUMNS.items():
        if name not in wanted:
            continue
        old, column = wanted[name], pa.nulls(len(rows), kind)
        path = table[old] / f"{stem}.parquet" if old else None  # our own images have no url
        if path and old in shards.names(path):
            column = _cast(shards.read_table(path, [old])[old].take(rows), name, old)
        found[name] = pc.fill_null(column, "") if name in ("url", "text") else column
    own = {}
    for new, old in taken.items():
        features = shards.read_npz(arrays[old].folder / f"{stem}.npz").get(old)
        if features is None:  # none of its images was annotated
            features = np.full((len(pool), arrays[old].width), np.nan, np.float16)
        own[new] = features[keep]
    return pa.table(found), own
