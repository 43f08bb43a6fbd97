"""The real images of a source, decoded in batches of one size."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from synthgen import sources
from synthgen.data import Category

Pixels = npt.NDArray[np.uint8]
BATCH = 64
"""Real images are looked at so many at a time, whatever the pool or the machine."""
DECODERS = 4


def batches(real: sources.Source, uids: Sequence[str]) -> Iterator[tuple[list[str], list[Pixels]]]:
    """Real images in order, each batch decoded while the one before is in use: the uids of those that decode,
    and `BATCH` images, the last of them again and again where there are fewer.
    """

    def read(uid: str) -> Pixels | None:
        return sources.decode(sources.read(real.images[uid]))

    with ThreadPoolExecutor(DECODERS) as decoders:
        parts = [uids[start : start + BATCH] for start in range(0, len(uids), BATCH)]
        following = decoders.map(read, parts[0]) if parts else iter(())
        for number, part in enumerate(parts):
            found = dict(zip(part, following, strict=True))
            following = decoders.map(read, parts[number + 1] if number + 1 < len(parts) else ())
            for uid in [uid for uid, image in found.items() if image is None]:
                damaged = real.images[uid]
                logging.getLogger(__name__).warning("%s: %s does not decode", damaged.file, damaged.key)
            whole = {uid: image for uid, image in found.items() if image is not None}
            if whole:
                images = list(whole.values())
                yield list(whole), [*images, *[images[-1]] * (BATCH - len(images))]


def warn_of_classes(real: sources.Source | None, source: str, classes: Sequence[Category]) -> None:
    """Says which classes a source has no real image of: their columns are null."""
    lost = [one.name for one in classes if not real.by_class.get(one.name)] if real else []
    if lost:
        logging.getLogger(__name__).warning(
            "%s: has no image of %d of %d classes (%s); %s columns are null",
            source, len(lost), len(classes), ", ".join(lost[:5]), "its" if len(lost) == 1 else "their",
        )  # fmt: skip
