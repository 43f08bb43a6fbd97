"""How many bytes a megapixel takes in each image format, of the images in a folder, at some sizes.

    python scripts/bench/image_bytes.py FOLDER

The constants of `synthgen/costs.py` are the means at 512x512 of 8 photographs that come with scikit-image
(astronaut, chelsea, coffee, motorcycle_left, retina, rocket) and scikit-learn (china, flower).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from synthgen.generation.encoding import encode

files = sorted(
    path for path in Path(sys.argv[1]).rglob("*") if path.suffix in (".jpg", ".jpeg", ".png", ".webp")
)
for side in (64, 256, 512, 1024):
    images = [np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (side, side))) for file in files]
    for kind in ("jpg", "webp", "png"):
        sizes = [len(encode(image, kind)) / side**2 for image in images]
        print(
            f"{side}x{side} {kind:5}{np.mean(sizes):6.3f} MB/megapixel, {min(sizes):.3f} to {max(sizes):.3f}"
        )
