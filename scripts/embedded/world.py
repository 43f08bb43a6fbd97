"""The tiny world: 48 drawn objects on 14 backgrounds, as 64x64 pictures with captions and true masks.

The embedded models were trained on it and `shards/emoji-real/` is cut from it. Every random choice comes from
the generator that the caller passes. This file knows no model's weights and no shards.

    python scripts/embedded/world.py --sheet world.png    # fetches 150 MB of drawings, once
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter

from synthgen.errors import SynthgenError, WorkError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator
Redraw = Callable[[Image.Image, Rng], Image.Image]  # RGBA to RGBA, squares

SIZE = 64  # of a picture, in pixels
TILE_SEED = 1  # of the backgrounds that training draws on; those of `compose` alone are new
TILE = 96  # of a background's drawing, from which pictures are cropped
SPRITE = 128  # the largest sprite; smaller drawings stay as they are
_OPAQUE = [0] * 17 + [255] * 239  # alpha -> 255 where a pixel is more than faintly opaque
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthgen" / "world"


class Thing(NamedTuple):
    """An object: its noun, other nouns for it, and the code point under which vendors file the drawing."""

    name: str
    synonyms: tuple[str, ...]
    codepoint: str


class Words(NamedTuple):
    """A style or a background: its name, and the phrases that a caption may use for it."""

    name: str
    phrases: tuple[str, ...]


class Source(NamedTuple):
    """Where a style's drawings come from: an npm package, its folder, the files that state its licence."""

    package: str
    version: str
    pictures: str
    papers: tuple[str, ...]


class Pose(NamedTuple):
    """How an object may lie: its side over the picture's, degrees either way, distance from the middle."""

    scale: tuple[float, float]
    rotation: float
    position: float  # 0: always in the middle, 0.5: anywhere
    flip: bool


class Picture(NamedTuple):
    """`image` is uint8 (64, 64, 3), `mask` uint8 (64, 64): 255 where the object is half opaque or more."""

    image: Bytes
    mask: Bytes


class Caption(NamedTuple):
    """A caption, and what it mentions besides the object."""

    text: str
    names_style: bool
    names_background: bool


# (name, synonym, code point). The trained weights fix names and order.
# fmt: off
_TABLE = (
    ("cat", "kitty", "1f431"), ("dog", "puppy", "1f436"), ("pig", "piglet", "1f437"),
    ("frog", "toad", "1f438"), ("panda", "panda bear", "1f43c"), ("lion", "", "1f981"),
    ("rabbit", "bunny", "1f430"), ("penguin", "", "1f427"), ("owl", "", "1f989"), ("elephant", "", "1f418"),
    ("turtle", "tortoise", "1f422"), ("whale", "", "1f433"), ("fish", "tropical fish", "1f420"),
    ("octopus", "", "1f419"), ("crab", "", "1f980"), ("ladybug", "ladybird", "1f41e"),
    ("butterfly", "", "1f98b"), ("sunflower", "", "1f33b"), ("cactus", "", "1f335"),
    ("palm tree", "palm", "1f334"), ("mushroom", "toadstool", "1f344"),
    ("watermelon", "watermelon slice", "1f349"), ("banana", "", "1f34c"), ("apple", "red apple", "1f34e"),
    ("pineapple", "", "1f34d"), ("strawberry", "", "1f353"), ("carrot", "", "1f955"),
    ("hamburger", "burger", "1f354"), ("pizza", "slice of pizza", "1f355"), ("donut", "doughnut", "1f369"),
    ("ice cream", "ice cream cone", "1f366"), ("car", "automobile", "1f697"), ("bus", "", "1f68c"),
    ("fire truck", "fire engine", "1f692"), ("bicycle", "bike", "1f6b2"),
    ("sailboat", "sailing boat", "26f5"), ("airplane", "plane", "2708"), ("rocket", "spaceship", "1f680"),
    ("tractor", "", "1f69c"), ("soccer ball", "football", "26bd"), ("guitar", "", "1f3b8"),
    ("balloon", "", "1f388"), ("gift", "present", "1f381"), ("umbrella", "", "2602"), ("crown", "", "1f451"),
    ("house", "", "1f3e0"), ("clock", "alarm clock", "23f0"), ("snowman", "", "26c4"),
)
# fmt: on
THINGS = tuple(Thing(name, (synonym,) if synonym else (), codepoint) for name, synonym, codepoint in _TABLE)
STYLES = (
    Words("fluent", ("3d render", "glossy 3d model")),
    Words("noto", ("cartoon", "cartoon sticker")),
    Words("twemoji", ("flat illustration", "flat vector drawing")),
    Words("openmoji", ()),
)
TRAINING_STYLES = (0, 1, 2)
HELD_OUT_STYLE = 3  # for evaluation only: no model was trained on it, so no caption has a word for it
BACKGROUNDS = (
    Words("grass", ("on grass", "on a grass field", "on a green meadow")),
    Words("beach", ("on a sandy beach", "on sand", "in the desert")),
    Words("water", ("in the sea", "on the ocean", "on blue water")),
    Words("sky", ("in a cloudy sky", "in a blue sky with clouds", "in the sky")),
    Words("snow", ("in the snow", "on a snowy field")),
    Words("night", ("in a starry night sky", "at night under the stars", "in a night sky with stars")),
    Words("brick", ("in front of a brick wall", "against a brick wall")),
    Words("wood", ("on a wooden table", "on wooden boards")),
    Words("red", ("on a red background", "on a plain red background")),
    Words("blue", ("on a blue background", "on a plain blue background")),
    Words("green", ("on a green background", "on a plain green background")),
    Words("yellow", ("on a yellow background", "on a plain yellow background")),
    Words("white", ("on a white background", "on a plain white background")),
    Words("black", ("on a black background", "on a plain black background")),
)
SOURCES = {
    "fluent": Source("@lobehub/fluent-emoji-3d", "1.1.0", "assets", ("README.md", "package.json")),
    "noto": Source("emoji-datasource-google", "16.0.0", "img/google/64", ("LICENSE", "README.md")),
    "twemoji": Source("emoji-datasource-twitter", "16.0.0", "img/twitter/64", ("LICENSE", "README.md")),
    "openmoji": Source("openmoji", "17.0.0", "color/svg", ("LICENSE.txt", "README.md")),
}
# fmt: off
# Class ids are append-only: these came later, so theirs are the last.
_LATER = {
    "elephant", "whale", "octopus", "crab", "butterfly", "palm tree", "ice cream", "bus", "fire truck",
    "bicycle", "airplane", "tractor", "guitar", "umbrella", "house", "snowman",
}
# fmt: on
_CODEPOINTS = frozenset(thing.codepoint for thing in THINGS)
LABEL_ORDER = tuple(sorted(range(len(THINGS)), key=lambda i: THINGS[i].name in _LATER))  # things by class id
WIDE = Pose(scale=(0.5, 0.9), rotation=15, position=0.5, flip=True)
WIDER = WIDE._replace(scale=(0.45, 0.9))  # what the models that look at pictures have learnt on
NARROW = Pose(scale=(0.68, 0.9), rotation=6, position=0.3, flip=False)  # what the generator is taught first


def held_out_pairs(fraction: float = 0.10, seed: int = 7) -> frozenset[tuple[int, int]]:
    """The (thing, background) pairs that no model but the judge sees: one or two of each thing, 4 or 5 of
    each background.

    The defaults give the pairs that the shipped weights have not met.
    """
    rng = random.Random(seed)  # not numpy's: the shipped weights fix these very pairs
    held: set[tuple[int, int]] = set()
    uses = [0] * len(BACKGROUNDS)
    for turn in range(round(len(THINGS) * len(BACKGROUNDS) * fraction)):
        thing = turn % len(THINGS)
        free = [b for b in range(len(BACKGROUNDS)) if (thing, b) not in held]
        fewest = min(uses[b] for b in free)
        chosen = rng.choice([b for b in free if uses[b] == fewest])
        held.add((thing, chosen))
        uses[chosen] += 1
    return frozenset(held)


def seen_pairs() -> list[tuple[int, int]]:
    """All other (thing, background) pairs, in order."""
    held = held_out_pairs()
    every = ((t, b) for t in range(len(THINGS)) for b in range(len(BACKGROUNDS)))
    return [pair for pair in every if pair not in held]


# Drawings of the objects


def _codepoint(path: str) -> str:
    """The code point in a picture's path; some vendors add the selector fe0f, OpenMoji writes capitals."""
    return PurePosixPath(path).stem.lower().removesuffix("-fe0f")


def fetch(folder: Path = CACHE) -> Path:
    """Downloads the drawings with `npm pack` to `folder`/<style>/; what is there stays. Returns `folder`.

    Only the 48 pictures and the licence papers of each package are unpacked.

    Raises:
        WorkError: npm is missing or fails, or a package lacks a file.
    """
    for style, source in SOURCES.items():
        if (folder / style).is_dir():
            continue
        if not (npm := shutil.which("npm")):
            raise WorkError("npm is needed to fetch the drawings and was not found; install Node.js")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            work, spec = Path(name), f"{source.package}@{source.version}"
            command = [npm, "pack", spec, "--silent", "--pack-destination", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise WorkError(f"npm pack {spec} failed: {' '.join(done.stderr.split()) or 'no message'}")
            (archive,) = work.glob("*.tgz")
            with tarfile.open(archive) as tar:
                members = [wanted for member in tar if (wanted := _wanted(member, source))]
                if len(members) != len(THINGS) + len(source.papers):
                    raise WorkError(f"{spec}: only {len(members)} of the files wanted are in the package")
                tar.extractall(work / style, members, filter="data")
            (work / style).rename(folder / style)  # last: a folder that is there is complete
    return folder


def _wanted(member: tarfile.TarInfo, source: Source) -> tarfile.TarInfo | None:
    """The member under the name that it gets in the cache; None if it is not needed."""
    path = PurePosixPath(member.name).relative_to("package")
    if path.parent == PurePosixPath(source.pictures) and _codepoint(path.name) in _CODEPOINTS:
        return member.replace(name=_codepoint(path.name) + path.suffix, deep=False)
    return member.replace(name=path.name, deep=False) if str(path) in source.papers else None


@cache
def sprite(thing: int, style: int, folder: Path = CACHE) -> Image.Image:
    """The drawing, RGBA, cropped to what is visible and squared with transparent margins; at most 128x128."""
    path = next((folder / STYLES[style].name).glob(f"{THINGS[thing].codepoint}.*"), None)
    if path is None:
        raise WorkError(
            f"{folder}: no {STYLES[style].name} drawing of {THINGS[thing].name}; call fetch first"
        )
    if path.suffix == ".svg":
        import resvg_py

        drawn = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=256, height=256))
        image = Image.open(io.BytesIO(drawn)).convert("RGBA")
    else:
        image = Image.open(path).convert("RGBA")
    image = image.crop(_visible(image))
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((SPRITE, SPRITE), Image.Resampling.LANCZOS) if side > SPRITE else square


def _visible(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The box around what is more than faintly opaque; None if nothing is."""
    return image.getchannel("A").point(_OPAQUE).getbbox()


# Backgrounds: each function draws one, float32 (96, 96, 3), values a little outside of 0..255 allowed

_Y, _X = np.mgrid[:TILE, :TILE].astype(np.float32)


def _plain(colour: Sequence[float], rng: Rng, low: float = 1.0, high: float = 1.0) -> Floats:
    """One colour, its brightness drawn from low..high."""
    return np.full((TILE, TILE, 3), colour, np.float32) * np.float32(rng.uniform(low, high))


def _gradient(top: Sequence[float], bottom: Sequence[float], rng: Rng, low: float, high: float) -> Floats:
    down = (_Y / (TILE - 1))[..., None]
    return (_plain(top, rng) * (1 - down) + _plain(bottom, rng) * down) * np.float32(rng.uniform(low, high))


def _noise(rng: Rng, cell: int) -> Floats:
    """Smooth noise in about -0.5..0.5, (96, 96), with blobs of `cell` pixels."""
    n = TILE // cell + 2
    coarse = Image.fromarray((rng.random((n, n)) * 255).astype(np.uint8))
    fine = coarse.resize((n * cell, n * cell), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32)[:TILE, :TILE] / 255 - 0.5


def _canvas(pixels: Floats) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image, ImageDraw.Draw(image)


def _shade(colour: Sequence[float], factor: float) -> tuple[int, ...]:
    return tuple(int(min(255, value * factor)) for value in colour)


def _grass(rng: Rng) -> Floats:
    lawn = _plain((86, 160, 52), rng, 0.85, 1.12) + _noise(rng, 12)[..., None] * np.float32((40, 55, 25))
    image, draw = _canvas(lawn)
    for _ in range(420):
        x, y, height = (int(v) for v in rng.integers((0, 0, 4), (TILE, TILE + 6, 9)))
        tip = (x + int(rng.integers(-2, 3)), y - height)
        draw.line([(x, y), tip], fill=_shade((78, 158, 44), rng.uniform(0.55, 1.35)))
    return np.asarray(image, np.float32)


def _beach(rng: Rng) -> Floats:
    sand = _plain((226, 196, 138), rng, 0.94, 1.06)
    slope, frequency, phase = rng.uniform((-0.25, 0.5, 0), (0.25, 0.8, 2 * np.pi))
    ripples = np.sin((_Y + slope * _X) * frequency + phase + 3 * _noise(rng, 24))
    grains = rng.normal(0, 6, (TILE, TILE, 1))
    return (sand + ripples[..., None] * (16, 15, 13) + grains).astype(np.float32)


def _water(rng: Rng) -> Floats:
    sea = _plain((38, 122, 190), rng, 0.85, 1.12)
    sway, phase = rng.uniform(0, 6, 2)
    waves = np.sin(_Y * 0.75 + 1.6 * np.sin(_X * 0.22 + sway) + 5 * _noise(rng, 16) + phase)
    crests = np.maximum(waves - 0.72, 0) * 3.2
    return (sea + waves[..., None] * (18, 24, 22) + crests[..., None] * (120, 95, 60)).astype(np.float32)


def _sky(rng: Rng) -> Floats:
    air = _gradient((88, 164, 236), (150, 205, 250), rng, 0.92, 1.06)
    clouds = Image.new("L", (TILE, TILE))
    draw = ImageDraw.Draw(clouds)
    for _ in range(int(rng.integers(5, 9))):
        x, y, size = rng.uniform((0, 0, 6), (TILE, TILE, 11))
        for puff in (-2, -1, 0, 1, 2):  # the outer ones are smaller and lie lower
            px, py = x + puff * size * 0.75, y - (2 - abs(puff)) * size * 0.28
            radius = size * (1 - 0.18 * abs(puff))
            draw.ellipse([px - radius, py - radius * 0.7, px + radius, py + radius * 0.7], fill=255)
    cover = np.asarray(clouds.filter(ImageFilter.GaussianBlur(1.0)), np.float32)[..., None] / 255
    return air * (1 - cover) + np.float32((250, 252, 255)) * cover


def _snow(rng: Rng) -> Floats:
    drifts = _noise(rng, 20)[..., None] * np.float32((34, 26, 16))
    image, draw = _canvas(_plain((222, 232, 244), rng) + drifts)
    for x, y, r in rng.uniform((0, 0, 0.8), (TILE, TILE, 2), (60, 3)):
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
    for x, y in rng.uniform(0, TILE, (40, 2)):
        draw.line([(x, y), (x + 3, y + 1)], fill=(176, 196, 224))
    return np.asarray(image, np.float32)


def _night(rng: Rng) -> Floats:
    image, draw = _canvas(_gradient((10, 12, 44), (34, 30, 92), rng, 0.85, 1.15))
    for _ in range(int(rng.integers(50, 75))):
        x, y, light = (int(v) for v in rng.integers((0, 0, 180), (TILE, TILE, 256)))
        draw.point((x, y), fill=(light, light, light - 20 * (light > 235)))
        if rng.random() < 0.35:
            draw.line([(x - 1, y), (x + 1, y)], fill=(light,) * 3)
            draw.line([(x, y - 1), (x, y + 1)], fill=(light,) * 3)
    return np.asarray(image, np.float32)


def _brick(rng: Rng) -> Floats:
    width, height = 16, 8
    image, draw = _canvas(_plain((196, 186, 176), rng))
    light = rng.uniform(0.88, 1.12)
    left, top = (int(v) for v in rng.integers(0, (width, height)))
    for row in range(-1, TILE // height + 2):
        for column in range(-2, TILE // width + 2):
            x, y = left + column * width + row % 2 * width // 2, top + row * height
            fill = _shade((168, 74, 56), light * rng.uniform(0.85, 1.12))
            draw.rectangle([x, y, x + width - 2, y + height - 2], fill=fill)
    return (np.asarray(image, np.float32) + rng.normal(0, 4, (TILE, TILE, 1))).astype(np.float32)


def _wood(rng: Rng) -> Floats:
    width = 16
    image, draw = _canvas(_plain((0, 0, 0), rng))
    light, top = rng.uniform(0.88, 1.1), int(rng.integers(0, width))
    for y in range(top - width, TILE + width, width):
        board = light * rng.uniform(0.86, 1.12)
        draw.rectangle([0, y, TILE, y + width - 1], fill=_shade((166, 112, 62), board))
        for _ in range(5):
            x0, y0, length, drop = (int(v) for v in rng.integers((-20, 2, 15, -1), (TILE, width - 1, 60, 2)))
            grain = [(x0, y + y0), (x0 + length, y + y0 + drop)]
            draw.line(grain, fill=_shade((166, 112, 62), board * 0.8))
        draw.line([(0, y), (TILE, y)], fill=(92, 58, 30))
    return np.asarray(image, np.float32)


def _paint(*colour: float) -> Callable[[Rng], Floats]:
    return lambda rng: _plain(np.add(colour, rng.uniform(-10, 10, 3)).tolist(), rng)


_DRAW: dict[str, Callable[[Rng], Floats]] = {
    "grass": _grass,
    "beach": _beach,
    "water": _water,
    "sky": _sky,
    "snow": _snow,
    "night": _night,
    "brick": _brick,
    "wood": _wood,
    "red": _paint(214, 40, 40),
    "blue": _paint(30, 80, 220),
    "green": _paint(30, 150, 70),
    "yellow": _paint(248, 208, 40),
    "white": _paint(250, 250, 250),
    "black": _paint(12, 12, 12),
}


def tile(background: int, rng: Rng) -> Bytes:
    """A new drawing of a background, uint8 (96, 96, 3)."""
    return _DRAW[BACKGROUNDS[background].name](rng).clip(0, 255).astype(np.uint8)


@cache
def tiles(background: int, seed: int, count: int = 120) -> Bytes:
    """`count` drawings, uint8 (count, 96, 96, 3), read-only: for training, where drawing anew is too slow."""
    rng = np.random.default_rng((seed, background))
    bank = np.stack([tile(background, rng) for _ in range(count)])
    bank.flags.writeable = False
    return bank


# Pictures and captions


def compose(
    thing: int,
    background: int,
    style: int,
    rng: Rng,
    pose: Pose = WIDE,
    ground: Bytes | None = None,  # uint8 (96, 96, 3) from `tile` or `tiles`; None: draw a new one
    folder: Path = CACHE,  # where `fetch` has put the drawings
    redraw: Redraw | None = None,  # changes how the object is drawn; None: as its vendor drew it
) -> Picture:
    """An object on a background, with its mask. The object is never clipped: it is moved, or made smaller."""
    if ground is None:
        ground = tile(background, rng)
    x, y = rng.integers(0, TILE - SIZE + 1, 2)
    behind = ground[y : y + SIZE, x : x + SIZE]
    if rng.random() < 0.5:
        behind = behind[:, ::-1]  # never upside down: skies have a gradient
    behind = behind * np.float32(rng.uniform(0.93, 1.06))

    drawing = sprite(thing, style, folder)
    if redraw:
        drawing = redraw(drawing, rng)
    side = round(SIZE * rng.uniform(*pose.scale))
    # LANCZOS would ring on a reduction this large.
    filtering = Image.Resampling.BOX if 2 * side <= drawing.width else Image.Resampling.LANCZOS
    turned = drawing.resize((side, side), filtering)
    if pose.flip and rng.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = turned.rotate(rng.uniform(-pose.rotation, pose.rotation), Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(_visible(turned))
    turned.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    centre = SIZE / 2 + rng.uniform(-pose.position, pose.position, 2) * (SIZE - side)
    room = np.subtract(SIZE, turned.size)
    left, top = np.clip(np.rint(centre - np.divide(turned.size, 2)), 0, room).astype(int).tolist()
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(turned, (left, top))

    pixels = np.asarray(layer, np.float32)
    alpha = pixels[..., 3:] / 255
    colours = pixels[..., :3] @ _hue_turn(rng.uniform(-0.14, 0.14)).T * np.float32(rng.uniform(0.9, 1.08))
    image = behind * (1 - alpha) + colours.clip(0, 255) * alpha
    mask = np.where(pixels[..., 3] >= 128, 255, 0).astype(np.uint8)
    return Picture(image.clip(0, 255).astype(np.uint8), mask)


def compose_batch(
    rng: Rng,
    count: int,
    pairs: Sequence[tuple[int, int]],  # (thing, background), drawn from evenly
    styles: Sequence[int],  # likewise
    pose: Pose = WIDE,
    folder: Path = CACHE,
    redraw: Redraw | None = None,
) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Pictures for training: uint8 (count, 64, 64, 3), and their thing, background and style, (count, 3)."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.empty((count, 3), np.int64)
    for i in range(count):
        (thing, background), style = pairs[rng.integers(len(pairs))], styles[rng.integers(len(styles))]
        bank = tiles(background, TILE_SEED)
        ground = bank[rng.integers(len(bank))]
        images[i] = compose(thing, background, style, rng, pose, ground, folder, redraw).image
        labels[i] = thing, background, style
    return images, labels


def to_tensor(images: Bytes) -> torch.Tensor:
    """uint8 (n, 64, 64, 3) as float32 (n, 3, 64, 64) in [-1, 1], which is how all models see pictures."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _hue_turn(angle: float) -> Floats:
    """The rotation of RGB space about its grey axis by `angle` radians, (3, 3)."""
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3)
    rest = (1 - cosine) / 3
    a, b, c = cosine + rest, rest - sine, rest + sine
    return np.array([[a, b, c], [c, a, b], [b, c, a]], np.float32)


def _pick(options: Sequence[str], rng: Rng) -> str:
    return options[rng.integers(len(options))]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(thing: int, background: int, style: int, rng: Rng, full: bool = False) -> Caption:
    """A caption from templates: a synonym in 35 %, the style in 60 %, the background in 85 % of cases.

    `full` mentions style and background always. The held-out style has no words and is never mentioned.
    """
    name, synonyms, _ = THINGS[thing]
    noun = with_article(_pick(synonyms, rng) if synonyms and rng.random() < 0.35 else name)
    place = _pick(BACKGROUNDS[background].phrases, rng)
    names_style = bool(STYLES[style].phrases) and (full or rng.random() < 0.60)
    names_background = full or rng.random() < 0.85
    if not names_style:
        text = _pick((noun, noun, f"a photo of {noun}", f"an image of {noun}", f"a picture of {noun}"), rng)
        return Caption(f"{text} {place}" if names_background else text, False, names_background)
    medium = _pick(STYLES[style].phrases, rng)
    before, after = f"{with_article(medium)} of {noun}", f", {medium}"
    if names_background:
        text = f"{noun} {place}{after}" if rng.random() < 0.3 else f"{before} {place}"
    else:
        text = f"{noun}{after}" if rng.random() < 0.3 else before
    return Caption(text, True, names_background)


def sheet(images: Sequence[Bytes], columns: int) -> Image.Image:
    """The pictures in rows of `columns`, with thin white lines between them."""
    step = SIZE + 2
    page = Image.new("RGB", (columns * step, -(-len(images) // columns) * step), "white")
    for i, image in enumerate(images):
        page.paste(Image.fromarray(image), (i % columns * step, i // columns * step))
    return page


def start(main: Callable[[], None]) -> None:
    """Runs a script; what a user can mend ends it in one line, Ctrl-C with status 130."""
    try:
        main()
    except SynthgenError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the tiny world's drawings and draw a contact sheet.")
    parser.add_argument("--sheet", type=Path, required=True, metavar="PNG", help="the contact sheet to write")
    parser.add_argument("--drawings", type=Path, default=CACHE, metavar="DIR", help="keeps the drawings")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: 0)")
    options = parser.parse_args()
    rng, folder = np.random.default_rng(options.seed), fetch(options.drawings)
    pictures = [
        compose(thing, (thing + 3 * style) % len(BACKGROUNDS), style, rng, folder=folder)
        for style in range(len(STYLES))
        for thing in range(len(THINGS))
    ]
    sheet([picture.image for picture in pictures], columns=16).save(options.sheet)
    print(json.dumps({"sheet": str(options.sheet), "images": len(pictures)}))


if __name__ == "__main__":
    start(main)
