"""One static page of a run: contact sheet, funnel, score histograms, where everything came from."""

import base64
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from synthgen import pools, shards, storage, subsets
from synthgen.diversity import measure
from synthgen.errors import FolderError

SHOWN_CLASSES, SHOWN_LEAST, SHOWN_EACH, SHOWN_REJECTED, SHOWN_GROUPS, THUMBNAIL, BINS = (
    64,
    24,
    8,
    16,
    12,
    96,
    40,
)


class Thumbnail(NamedTuple):
    """A picture of the page: a data URL, and what is said of it."""

    source: str
    text: str


class Histogram(NamedTuple):
    """Counts of a score among the kept and the rejected, in equal bins from `low` to `high`."""

    column: str
    low: float
    high: float
    kept: list[int]
    rejected: list[int]


def inputs(root: Path, subset: str) -> dict[str, object]:
    """What the page is made of: it is made anew when this differs."""
    files = [root / shards.SUBSETS / f"{subset}.json", root / shards.FINAL / subset / shards.RECORD_SUFFIX]
    return {path.name: storage.checksum(path)["sha256"] for path in files if storage.exists(path)}


def latest_recipe(root: Path) -> dict[str, Any]:
    """The resolved recipe that the folder was last made with; of one that was only imported its name, and
    nothing else.
    """
    folder = root / shards.RECIPES
    found = [storage.read_json(folder / name) for name in storage.names(folder)]
    if not found:
        return {"name": root.name, "annotate": []}
    newest = max(found, key=lambda entry: float(entry["time"]))
    recipe: dict[str, Any] = newest["recipe"]
    return recipe


def page(root: Path, subset: str, sources: pools.Sources = {}) -> bytes:  # noqa: B006
    """The HTML page, pictures inside. All text is escaped.

    Args:
        sources: where sources of an imported pool are now; see `pools.source_paths`.
    """
    funnel = storage.read_json(root / shards.SUBSETS / f"{subset}.json")
    entry = storage.read_json(root / shards.RECIPES / f"{funnel['recipe']}.json")
    recipe = entry["recipe"]
    stems = shards.pool_stems(root)
    annotations = [table["name"] for table in recipe["annotate"]]
    columns = pools.PoolColumns(root, stems, annotations)
    verdicts = _verdicts(root, subset, columns["uid"])
    images = _Images(root, stems, columns, sources)
    kept = verdicts == "kept"
    environment = jinja2.Environment(loader=jinja2.PackageLoader("synthgen.reporting", "."), autoescape=True)
    card = storage.exists(root / shards.FINAL / subset / "_info.json")
    info = storage.read_json(root / shards.FINAL / subset / "_info.json") if card else {"splits": {}}
    splits = info["splits"]
    text = environment.get_template("page.html").render(
        name=recipe["name"],
        subset=subset,
        funnel=funnel,
        failures=_counts(columns["error"][columns["error"] != ""]),
        classes=[
            (
                name,
                asked,
                funnel["left"]["class"].get(name, [0])[-1],
                images.thumbnails((columns["class_name"] == name) & kept, SHOWN_EACH),
            )
            for name, asked in list(_counts(columns["class_name"]).items())[:SHOWN_CLASSES]
        ],
        groups_of=[
            (what, subsets.groups(funnel, what)[:SHOWN_LEAST], len(funnel["left"][what]))
            for what in ("model", "template", "class")
            if what in funnel["left"]
        ],
        n_classes=len(set(columns["class_name"].tolist())),
        rejected=[
            (verdict, count, images.thumbnails(verdicts == verdict, SHOWN_REJECTED))
            for verdict, count in sorted(_counts(verdicts).items())
            if verdict not in ("kept", "failed")
        ],
        histograms=[
            _histogram(name, columns[name], kept, columns["error"] == "")
            for name in _scores(columns, annotations)
            if np.isfinite(columns[name].astype(np.float64)).any()
        ],
        groups=_groups(columns, images),
        diversity=_diversity(recipe, entry.get("measured_axes", []), columns, kept),
        sources=info.get("sources", []),
        splits={name: entry["num_samples"] for name, entry in splits.items()},
        models=_models(columns),
        imported=[(one.name, one.license, one.path.name) for one in shards.imported(root)],
        recipe=storage.to_json(recipe).decode(),
        thumbnail=THUMBNAIL,
    )
    return text.encode()


def contact_sheet(
    root: Path,
    subset: str,
    sources: pools.Sources = {},  # noqa: B006
    *,
    columns: int = 16,
    rows: int = 8,
    side: int = 64,
) -> bytes:
    """A JPEG of kept images, class after class in turn, `columns` x `rows` cells of `side` pixels."""
    stems = shards.pool_stems(root)
    pool = pools.PoolColumns(root, stems, [])
    chosen = np.flatnonzero(_verdicts(root, subset, pool["uid"]) == "kept")[: columns * rows]
    sheet = Image.new("RGB", (columns * (side + 2), max(1, -(-len(chosen) // columns)) * (side + 2)), "white")
    for cell, image in enumerate(_Images(root, stems, pool, sources).open(chosen)):
        image = image.resize((side, side), Image.Resampling.LANCZOS) if image.size != (side, side) else image
        sheet.paste(image, (cell % columns * (side + 2) + 1, cell // columns * (side + 2) + 1))
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=92, subsampling=0)
    return sink.getvalue()


def _verdicts(root: Path, subset: str, uids: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The verdict of each row of the pool.

    Raises:
        FolderError: the pool has other rows than when the subset was chosen.
    """
    path = root / shards.SUBSETS / f"{subset}.parquet"
    table = shards.read_table(path, ["uid", "verdict"])
    if not table["uid"].equals(pa.chunked_array([pa.array(uids, pa.string())])):
        raise FolderError(f"{path}: has other rows than the pool; choose the subset again")
    verdicts: npt.NDArray[np.generic] = table["verdict"].to_numpy().astype(str)
    return verdicts


def _counts(values: npt.NDArray[np.generic]) -> dict[str, int]:
    """How often each value is there, in order of first appearance."""
    found, first, counts = np.unique(values.astype(str), return_index=True, return_counts=True)
    return {str(found[k]): int(counts[k]) for k in np.argsort(first)}


def _groups(columns: pools.PoolColumns, images: "_Images") -> list[list[Thumbnail]]:
    """The pictures of the first groups of a grid: the same but for what is crossed."""
    if "prompt_id" not in columns:  # what was imported has no grid
        return []
    group = columns["group"]
    from_one_image = group == columns["source_uid"].astype("U16")
    crossed = (group != columns["prompt_id"]) & ~from_one_image
    first = list(dict.fromkeys(group[crossed].tolist()))[:SHOWN_GROUPS]
    return [images.thumbnails((group == one) & (columns["error"] == ""), SHOWN_REJECTED) for one in first]


def _diversity(
    recipe: dict[str, Any],
    measured_axes: Sequence[str],
    columns: pools.PoolColumns,
    kept: npt.NDArray[np.bool_],
) -> list[tuple[str, str, str]]:
    """The figures of the prompts, planned and kept, as the page shows them. `coverage` is of the planned."""
    if not kept.any() or not recipe["prompts"]:
        return []
    wanted = {axis: f"axis_{axis}" for axis in measured_axes if f"axis_{axis}" in columns}
    if len(recipe["models"]) > 1:
        wanted["model"] = "model"
    texts, everything = columns["text"].tolist(), np.ones(len(kept), bool)
    found = [
        measure(
            columns["text"][mask].tolist(),
            columns["class_name"][mask].tolist(),
            {axis: columns[column][mask].tolist() for axis, column in wanted.items()},
            reference=None if mask is everything else texts,
            seed=recipe["seed"],
        )
        for mask in (everything, kept)
    ]
    return [(key, _number(found[0].get(key)), _number(value)) for key, value in found[1].items()]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "too few to say" if np.isnan(value) else f"{value:.4g}"


def _scores(columns: pools.PoolColumns, annotations: Sequence[str]) -> list[str]:
    """The float columns of the annotations, and those that came with what was imported."""
    imported = "members" in columns
    return [
        name
        for name in columns
        if (imported or any(name.startswith(f"{a}_") for a in annotations)) and columns.is_float(name)
    ]


def _histogram(
    name: str, values: npt.NDArray[np.generic], kept: npt.NDArray[np.bool_], written: npt.NDArray[np.bool_]
) -> Histogram:
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers) & written
    low, high = (float(numbers[finite].min()), float(numbers[finite].max())) if finite.any() else (0.0, 1.0)
    high = high if high > low else low + 1e-6
    bins = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(numbers[finite & mask], bins)[0].tolist() for mask in (kept, ~kept)]
    return Histogram(name, low, high, *counts)


def _models(columns: pools.PoolColumns) -> list[tuple[str, ...]]:
    names = ("model", "fingerprint", "scheduler", "steps", "guidance", "dtype", "license")
    if "model" not in columns:
        return []
    rows = zip(*(columns[name].astype(str).tolist() for name in names), strict=True)
    return list(dict.fromkeys(rows))


class _Images:
    """The stored images of the pool by row."""

    def __init__(
        self, root: Path, stems: Sequence[str], columns: pools.PoolColumns, sources: pools.Sources
    ) -> None:
        self._root, self._columns, self._sources = root, columns, sources
        lengths = [shards.rows(root / shards.POOL / f"{stem}.parquet") for stem in stems]
        self._stems = np.repeat(np.array(stems), lengths)
        self._firsts = dict(zip(stems, np.cumsum([0, *lengths]).tolist(), strict=False))

    def open(self, rows: npt.NDArray[np.intp]) -> list[Image.Image]:
        found = []
        for stem, group in itertools.groupby(rows.tolist(), key=lambda row: str(self._stems[row])):
            own = pa.array([row - self._firsts[stem] for row in group], pa.int64())
            table = shards.read_table(self._root / shards.POOL / f"{stem}.parquet").take(own)
            for row in range(len(own)):
                found += pools.read_images(self._root, stem, table.slice(row, 1), self._sources)
        return [_decode(data) for data in found]

    def thumbnails(self, mask: npt.NDArray[np.bool_], count: int) -> list[Thumbnail]:
        rows = np.flatnonzero(mask)[:count]
        return [
            Thumbnail(_data_url(image), f"{self._columns['text'][row]} ({self._columns['uid'][row]})")
            for row, image in zip(rows.tolist(), self.open(rows), strict=True)
        ]


def _decode(data: bytes) -> Image.Image:
    """An image; an empty one where it is damaged, as other people's may be."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")


def _data_url(image: Image.Image) -> str:
    image.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
