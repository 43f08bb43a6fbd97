"""A small classifier, to see whether shards train anything: through Accelerate, on one process or many.

Labels are joined by class name: a class id that means two names is an error, and a class that was never
trained on counts as wrong wherever it is evaluated.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from synthgen import storage
from synthgen.errors import FolderError, nearest
from synthgen.loader import Loader, open_loader
from synthgen.training import checkpoints
from synthgen.training.augmenting import AUGMENTATIONS, MIXES, OnBatch
from synthgen.training.evaluating import Classifier, evaluate, table
from synthgen.training.networks import SMALL, build

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Classifier", "evaluate", "table", "train"]

SIDE = 48
LOG = "log.jsonl"


def train(
    sources: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    accelerator: "Accelerator",
    steps: int,
    batch_size: int,
    lr: float,
    seed: int = 0,
    model: str = SMALL,
    pretrained: bool = False,
    side: int = SIDE,
    augment: str = "standard",
    mix: str = "",
    smoothing: float = 0.1,
    soft_labels: bool = True,
    workers: int = 0,
    output: str | Path | None = None,
    save_every: int = 0,
    log_every: int = 50,
    **loading: Any,
) -> Classifier:
    """Trains on all sources together, mixed as `loading` says.

    Args:
        sources: as of `synthgen.open_loader`.
        accelerator: its `mixed_precision` is the training's.
        steps: optimizer steps (AdamW, one cycle).
        batch_size: samples a step on each process.
        lr: the peak learning rate.
        seed: of weights, order and augmentation.
        model: "small", or a model of timm by name; `pretrained` loads its weights.
        side: pixels of the squares that it is trained on.
        augment: one of `AUGMENTATIONS`.
        mix: one of `MIXES`; "" for none.
        smoothing: of labels.
        soft_labels: whether the views of a reinforcement are trained on with the teacher's probabilities, not
            with their labels.
        workers: processes that read.
        output: a folder for log.jsonl and the checkpoint, from which the same call goes on: to the same
            weights, on one process of a CPU bit by bit.
        save_every: steps between checkpoints; 0 has one at the end.
        log_every: steps between lines of the log.
        loading: more arguments of `open_loader`: weights, repeat, subset, reinforcement, soft.

    Raises:
        FolderError: a source has no shards or no classes, class ids disagree, or the output is of another
            training.
        ModelError: there is no such model.
    """
    for what, name, known in (("augment", augment, AUGMENTATIONS), ("mix", mix, {"": None, **MIXES})):
        if name not in known:
            raise FolderError(f'{what}: "{name}" is unknown{nearest(name, [*known])}')
    is_soft = bool(loading.get("reinforcement")) and soft_labels
    ways = AUGMENTATIONS[augment](side)
    keys = {"batch_size": batch_size, "shuffle": True, "seed": seed, "workers": workers, "last": "equal"}
    fields = ("image", "probabilities" if is_soft else "class_id")
    loader = open_loader(sources, fields=fields, transform=ways.image, **keys, **loading)  # type: ignore[arg-type]
    if not loader.class_names:
        raise FolderError(f"{', '.join(loader.sources)}: no classes.txt beside the split; put one there")
    n_outputs = max(loader.class_names) + 1
    if mix and is_soft:
        raise FolderError("mix: a reinforcement's views are not mixed; leave one of them out")
    mixing = MIXES[mix](n_outputs) if mix else None
    if ways.batch or mixing:
        loader.reader.batch_transform = OnBatch(ways.batch, mixing)
    torch.manual_seed(seed)
    network: Any = build(model, n_outputs, pretrained=pretrained).to(memory_format=torch.channels_last)
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    settings = {
        "sources": loader.sources, "steps": steps, "batch_size": batch_size * accelerator.num_processes,
        "lr": lr, "seed": seed, "model": model, "side": side, "augment": augment, "mix": mix,
        "smoothing": smoothing, "precision": accelerator.mixed_precision,
    }  # fmt: skip
    folder = None if output is None else Path(output)
    found = None if folder is None else checkpoints.load(folder, settings)
    if found is not None:
        checkpoints.restore(found, network, optimizer, schedule)
        loader.load_state_dict(found.told["loader"])
    network, optimizer = accelerator.prepare(network, optimizer)
    log = _Log(folder if accelerator.is_main_process else None, found.step if found else 0)
    network.train()
    batches = _endless(loader)
    for step in range(found.step if found else 0, steps):
        images, labels = next(batches)
        torch.manual_seed(hash((seed, step, accelerator.process_index)))  # of dropout
        images = images.to(accelerator.device, memory_format=torch.channels_last)
        with accelerator.autocast():
            logits = network(images)
        loss = nn.functional.cross_entropy(
            logits.float(), labels.to(accelerator.device), label_smoothing=0.0 if is_soft else smoothing
        )
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        done = step + 1
        if done % log_every == 0 or done == steps:
            log.write(done, loss.item(), float(schedule.get_last_lr()[0]), loader)
        is_due = done == steps or (save_every > 0 and done % save_every == 0)
        if folder is not None and is_due and accelerator.is_main_process:
            bare = accelerator.unwrap_model(network)
            state = loader.state_dict()
            checkpoints.save(folder, done, bare, optimizer, schedule, loader=state, settings=settings)
    accelerator.wait_for_everyone()
    return Classifier(network.eval(), loader.class_names, side)


def _endless(loader: Loader) -> Iterator[Any]:
    """Batches of one epoch after another."""
    while True:
        yield from loader


class _Log:
    """log.jsonl: a line of JSON now and then. What was logged after the checkpoint is trained again."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self.path = None if folder is None else folder / LOG
        self.start, self.first = time.perf_counter(), step
        if self.path is not None and storage.exists(self.path):
            lines = storage.read(self.path).decode().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            storage.write(self.path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, loss: float, lr: float, loader: Loader) -> None:
        """Where the training is after so many steps; samples and skipped ones are of the first process."""
        if self.path is None:
            return
        seconds = time.perf_counter() - self.start
        told = {
            "step": step, "epoch": loader.epoch, "loss": round(loss, 5), "lr": lr,
            "samples": dict(loader.counts), "skipped": sum(loader.skipped.values()),
            "steps_per_second": round((step - self.first) / seconds, 3),
        }  # fmt: skip
        storage.make_folder(self.path.parent)
        storage.append(self.path, json.dumps(told).encode() + b"\n")
