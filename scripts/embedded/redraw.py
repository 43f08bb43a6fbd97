"""Drawings drawn again in styles that no vendor has: so CLIP learns what an object is apart from its style.

    python scripts/embedded/redraw.py --sheet redrawn.png

Flat colours, dark outlines, line art, other hues, other proportions: each by chance. The held-out style's
drawings are not looked at.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from world import CACHE, THINGS, TRAINING_STYLES, Floats, Rng, fetch, sheet, sprite, start

SIDE = 72


def redraw(drawing: Image.Image, rng: Rng) -> Image.Image:
    """Another style's version of a square RGBA drawing, RGBA, 72x72."""
    drawing = _bend(drawing, rng)
    alpha = drawing.getchannel("A")
    colours = Image.new("RGB", drawing.size, _any_colour(rng, 0, 255))
    colours.paste(drawing, mask=alpha)
    regions = None
    if rng.random() < 0.75:
        merged = colours.filter(ImageFilter.MedianFilter(3)) if rng.random() < 0.7 else colours
        flat = merged.quantize(int(rng.integers(2, 8)), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        regions = np.asarray(flat)
        if rng.random() < 0.75:
            colours = flat.convert("RGB")
    pixels = _recolour(np.asarray(colours, np.float32), rng)
    if rng.random() < 0.65:
        cover = np.asarray(alpha, np.float32) / 255
        if rng.random() < 0.3:  # line art: paper or one pale colour inside
            pixels = np.broadcast_to(np.float32(_any_colour(rng, 200, 255)), pixels.shape)
        inside = _borders(regions) if regions is not None else _steps(colours)
        rim = cover - np.asarray(alpha.filter(ImageFilter.MinFilter(3)), np.float32) / 255
        line = Image.fromarray((np.maximum(inside * cover, rim).clip(0, 1) * 255).astype(np.uint8))
        if rng.random() < 0.65:
            line = line.filter(ImageFilter.MaxFilter(3))
        ink = np.asarray(line.filter(ImageFilter.GaussianBlur(0.6)), np.float32)[..., None] / 255
        dark = np.float32(_any_colour(rng, 0, 60))
        pixels = pixels * (1 - ink) + dark * ink
        alpha = Image.fromarray((np.maximum(cover, ink[..., 0]) * 255).astype(np.uint8))
    made = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    made.putalpha(alpha)
    return made


def _any_colour(rng: Rng, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(v) for v in rng.integers(low, high + 1, 3))


def _bend(drawing: Image.Image, rng: Rng) -> Image.Image:
    """Other proportions: sheared, narrowed or widened, and bent in a smooth wave."""
    small = drawing.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    centre = (SIDE - 1) / 2
    x, y = np.meshgrid(np.arange(SIDE) - centre, np.arange(SIDE) - centre)
    wide, tall = rng.uniform(1.0, 1.3, 2)
    shear = rng.uniform(-0.15, 0.15)
    amount, phase = rng.uniform(0, 2.2), rng.uniform(0, 2 * np.pi, 2)
    sx = x * wide + shear * y + amount * np.sin(y / 11 + phase[0]) + centre
    sy = y * tall + amount * np.sin(x / 11 + phase[1]) + centre
    # A transparent rim for what comes from outside; what little is bent outwards is lost.
    data = np.pad(np.asarray(small), ((1, 1), (1, 1), (0, 0)))
    column, row = np.rint(sx).clip(-1, SIDE).astype(int) + 1, np.rint(sy).clip(-1, SIDE).astype(int) + 1
    return Image.fromarray(data[row, column])


def _recolour(pixels: Floats, rng: Rng) -> Floats:
    """Other hues, saturation and contrast; now and then grey, or shuffled channels."""
    kind = rng.random()
    grey = pixels.mean(-1, keepdims=True)
    if kind < 0.1:
        pixels = np.broadcast_to(grey, pixels.shape)
    elif kind < 0.25:
        pixels = pixels[..., rng.permutation(3)]
    saturation, contrast = rng.uniform((0.5, 0.7), (1.7, 1.4))
    pixels = grey + (pixels - grey) * np.float32(saturation)
    tint = rng.normal(0, 14, 3) + rng.normal(0, 14)
    return ((pixels - 128) * np.float32(contrast) + 128 + tint).astype(np.float32)


def _borders(regions: np.ndarray) -> Floats:
    """1 where a pixel's region differs from that of its right or lower neighbour."""
    edge = np.zeros(regions.shape, np.float32)
    edge[:, :-1] = regions[:, :-1] != regions[:, 1:]
    edge[:-1] = np.maximum(edge[:-1], regions[:-1] != regions[1:])
    return edge


def _steps(colours: Image.Image) -> Floats:
    """About 1 where brightness changes sharply."""
    grey = np.asarray(colours.convert("L").filter(ImageFilter.GaussianBlur(1.0)), np.float32)
    down, across = np.gradient(grey)
    return (np.hypot(down, across) / 24).clip(0, 1) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheet", type=Path, required=True, metavar="PNG", help="the contact sheet to write")
    parser.add_argument("--drawings", type=Path, default=CACHE, metavar="DIR")
    options = parser.parse_args()
    rng, folder = np.random.default_rng(0), fetch(options.drawings)
    images = []
    for number in range(16 * 12):
        made = redraw(sprite(number % len(THINGS), TRAINING_STYLES[number // len(THINGS) % 3], folder), rng)
        page = Image.new("RGB", made.size, (200, 205, 190))
        page.paste(made, mask=made.getchannel("A"))
        images.append(np.asarray(page.resize((64, 64), Image.Resampling.LANCZOS)))
    sheet(images, columns=16).save(options.sheet)
    print(json.dumps({"sheet": str(options.sheet), "images": len(images)}))


if __name__ == "__main__":
    start(main)
