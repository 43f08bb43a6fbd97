"""Stage 7, feeding training: final shards -> batches, through webdataset."""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from synthgen import storage
from synthgen.errors import FolderError

if TYPE_CHECKING:
    import torch

IMAGES = ("jpg", "webp", "png")


class Loader(Protocol):
    """Iterates over (images, class ids); each time anew is the next epoch. `len` counts batches."""

    def __iter__(self) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]": ...

    def __len__(self) -> int: ...


def open_loader(
    folder: str | Path,
    *,
    batch_size: int,
    transform: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
) -> Loader:
    """Batches of a split: images of shape (n, 3, height, width) and class ids of shape (n,), int64.

    Args:
        folder: a split, such as shards/emoji/final/main/train.
        batch_size: samples a batch; the last one is smaller.
        transform: takes one image, uint8 of shape (3, height, width), and returns what is stacked; None
            scales to float32 in [0, 1].
        shuffle: another order each epoch, by seed and epoch; all samples pass through one buffer of 10,000.
        seed: of the order.
        workers: reading processes; at most one a shard. Each sample comes exactly once an epoch.

    Raises:
        FolderError: there are no shards.
    """
    import torch
    import webdataset

    root = Path(folder)
    urls = [str(root / name) for name in storage.names(root) if name.endswith(".tar")]
    if not urls:
        splits = [name for name in storage.names(root) if storage.exists(root / name / "sizes.json")]
        hint = (
            f"name one of its splits: {', '.join(splits)}"
            if splits
            else "a split such as final/main/train is wanted"
        )
        raise FolderError(f"{root}: no .tar shards there; {hint}")
    count: int = sum(storage.read_json(root / "sizes.json").values())

    class Epochs(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
        """Reads the shards; each iteration is the next epoch."""

        epoch = -1

        def __len__(self) -> int:
            return count

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            self.epoch += 1
            order = np.random.default_rng([seed, self.epoch])
            chosen = [urls[k] for k in order.permutation(len(urls))] if shuffle else urls
            samples = webdataset.WebDataset(
                chosen,
                shardshuffle=False,
                nodesplitter=None,
                workersplitter=webdataset.split_by_worker,
                empty_check=False,
            )
            if shuffle:
                samples = samples.shuffle(10_000, seed=int(order.integers(2**31)))
            for sample in samples:
                yield _image(sample, transform), torch.tensor(int(sample["cls"]))

    logging.getLogger("webdataset").setLevel(logging.ERROR)
    dataset = Epochs()
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=min(workers, len(urls)),
        persistent_workers=min(workers, len(urls)) > 0,
    )


def _image(
    sample: dict[str, bytes], transform: "Callable[[torch.Tensor], torch.Tensor] | None"
) -> "torch.Tensor":
    import torch

    data = next(sample[suffix] for suffix in IMAGES if suffix in sample)
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    return pixels.float() / 255 if transform is None else transform(pixels)
