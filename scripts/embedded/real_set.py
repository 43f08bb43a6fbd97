"""Cuts `shards/emoji-real/` from the tiny world: four labelled splits of 480 pictures, with true masks.

    python scripts/embedded/real_set.py                      # writes shards/emoji-real
    python scripts/embedded/real_set.py -o /tmp/emoji-real   # elsewhere; the same bytes

Every picture has a seed of its own, so that neither order nor number of pictures matters to it.
"""

import argparse
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from world import (
    BACKGROUNDS,
    CACHE,
    HELD_OUT_STYLE,
    LABEL_ORDER,
    SIZE,
    SOURCES,
    STYLES,
    THINGS,
    TRAINING_STYLES,
    WIDE,
    Bytes,
    caption,
    compose,
    fetch,
    held_out_pairs,
    start,
)

from synthgen import tars
from synthgen.errors import FolderError

SEED = 0
PER_CLASS = 10
# Lossless WebP would need 16.7 MB in all, 4:4:4 JPEG of this quality 14.3 MB; 15 MB are allowed.
JPEG_QUALITY = 92
CLASSES = "".join(f"{THINGS[thing].name}\n" for thing in LABEL_ORDER)
OUTPUT = Path(__file__).parents[2] / "shards" / "emoji-real"


class Split(NamedTuple):
    """Which (class, background) pairs and which styles the pictures of a split show."""

    held_out: bool
    styles: tuple[int, ...]


SPLITS = {
    "train": Split(False, TRAINING_STYLES),
    "validation": Split(False, TRAINING_STYLES),
    "heldout-pairs": Split(True, TRAINING_STYLES),
    "heldout-style": Split(False, (HELD_OUT_STYLE,)),
}

OPENMOJI_NOTICE = """\
The pictures in this folder show emojis of OpenMoji, cropped, resized, rotated, mirrored, tinted and placed on
backgrounds. All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and icon project.
License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). The pictures are adapted material and
are under the same licence, whose text, as the package openmoji 17.0.0 carries it, follows.

"""


def canonical(value: object) -> bytes:
    """JSON in one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def pretty(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def choose_backgrounds(held_out: bool) -> list[tuple[int, int]]:
    """480 (class, background) pairs, 10 of each class, in order of class; backgrounds as even as possible.

    No seen pair comes twice, and all splits of seen pairs get the same 480: they differ in styles and poses.
    """
    rng, held = np.random.default_rng(SEED), held_out_pairs()
    uses: Counter[object] = Counter()
    chosen = []
    for thing in range(len(THINGS)):
        allowed = [b for b in range(len(BACKGROUNDS)) if ((thing, b) in held) == held_out]
        for _ in range(PER_CLASS):
            keys = [(uses[thing, b], uses[b], rng.random(), b) for b in allowed]
            background = min(keys)[-1]
            uses.update([(thing, background), background])
            chosen.append((thing, background))
    return chosen


def choose_styles(pairs: list[tuple[int, int]], styles: tuple[int, ...], seed: int) -> list[int]:
    """A style for each pair: even within each class (counts differ by one at most), pair and background."""
    rng = np.random.default_rng(seed)
    uses: Counter[object] = Counter()
    chosen = []
    for thing, background in pairs:
        places = [("class", thing), ("all",), ("pair", thing, background), ("background", background)]
        keys = [(*(uses[*place, style] for place in places), rng.random(), style) for style in styles]
        style = int(min(keys)[-1])
        uses.update((*place, style) for place in places)
        chosen.append(style)
    return chosen


def encode(image: Bytes | Image.Image, kind: str, **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **options)
    return file.getvalue()


def draw_split(name: str, cache: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a split: (uid, suffix -> bytes)."""
    split = SPLITS[name]
    pairs = choose_backgrounds(split.held_out)
    styles = choose_styles(pairs, split.styles, seed=SEED + list(SPLITS).index(name))
    for i, ((thing, background), style) in enumerate(zip(pairs, styles, strict=True)):
        class_id = LABEL_ORDER.index(thing)
        class_name, place, vendor = THINGS[thing].name, BACKGROUNDS[background].name, STYLES[style].name
        description: dict[str, object] = {
            "split": name,
            "class": class_name,
            "background": place,
            "style": vendor,
            "index": i % PER_CLASS,
        }
        digest = hashlib.sha256(canonical({**description, "seed": SEED})).digest()
        seed = int.from_bytes(digest[:8]) >> 1  # below 2**63: it must fit a signed column
        uid = hashlib.sha256(canonical({**description, "seed": seed})).hexdigest()[:32]
        rng = np.random.default_rng(seed)
        text = caption(thing, background, style, rng, full=True).text
        picture = compose(thing, background, style, rng, WIDE, folder=cache)
        jpg = encode(picture.image, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        row = {
            "uid": uid,
            "class_id": class_id,
            "class_name": class_name,
            "text": text,
            "group": f"{class_name}/{place}",
            "axis_background": place,
            "axis_style": vendor,
            "source": vendor,
            "seed": seed,
            "original_width": SIZE,
            "original_height": SIZE,
            "sha256": hashlib.sha256(jpg).hexdigest(),
        }
        yield (
            uid,
            {
                "jpg": jpg,
                "txt": text.encode("ascii"),
                "cls": b"%d" % class_id,
                "json": canonical(row),
                "mask.png": encode(Image.fromarray(picture.mask).convert("1"), "PNG"),
            },
        )


def write_split(folder: Path, name: str, cache: Path) -> int:
    """Writes one split's shard, its record and its sizes; returns the number of samples."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = io.BytesIO()
    count = tars.write(shard, sorted(draw_split(name, cache)))
    data = shard.getvalue()
    split, shard_name = SPLITS[name], "00000000.tar"
    vendors = [STYLES[style].name for style in split.styles]
    record = {
        "version": 1,
        "stage": "real_set",
        "inputs": {
            "seed": SEED,
            "split": name,
            "pairs": "held out" if split.held_out else "seen",
            "pose": WIDE._asdict(),
            "jpeg_quality": JPEG_QUALITY,
            "sources": {v: f"{SOURCES[v].package}@{SOURCES[v].version}" for v in vendors},
        },
        "requested": len(THINGS) * PER_CLASS,
        "written": count,
        "failed": 0,
        "successes": count,
        "files": {shard_name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }
    (folder / shard_name).write_bytes(data)
    (folder / "00000000_stats.json").write_bytes(pretty(record))
    (folder / "sizes.json").write_bytes(pretty({shard_name: count}))
    if split.styles == (HELD_OUT_STYLE,):
        licence = (cache / "openmoji" / "LICENSE.txt").read_text(encoding="utf-8")
        (folder / "LICENSE").write_text(OPENMOJI_NOTICE + licence, encoding="utf-8")
    return count


def write_set(output: Path, cache: Path) -> dict[str, int]:
    """Writes the whole set and returns split -> number of samples.

    Raises:
        FolderError: `output` holds files and was not made by this script.
    """
    marker = output / "classes.txt"
    ours = marker.is_file() and marker.read_text(encoding="ascii", errors="replace") == CLASSES
    if output.exists() and not ours and (not output.is_dir() or any(output.iterdir())):
        raise FolderError(f"{output}: not empty and not made by this script; name another folder with -o")
    fetch(cache)
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text(CLASSES, encoding="ascii")
    info = output / "_info.json"
    info.unlink(missing_ok=True)  # written last: its existence means that the set is complete
    counts = {name: write_split(output / name, name, cache) for name in SPLITS}
    splits = {
        name: {
            "name": name,
            "num_samples": count,
            "filenames": [f"{name}/00000000.tar"],
            "shard_lengths": [count],
        }
        for name, count in counts.items()
    }
    info.write_bytes(pretty({"name": "emoji-real", "splits": splits}))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the small real set from the tiny world.")
    parser.add_argument(
        "-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--drawings", type=Path, default=CACHE, metavar="DIR", help="keeps the drawings")
    options = parser.parse_args()
    print(json.dumps(write_set(options.output, options.drawings)))


if __name__ == "__main__":
    start(main)
