"""A small classifier, to see whether shards train anything: through Accelerate, on one process or many.

Labels are joined by class name: a class id that means two names is an error, and a class that was never
trained on counts as wrong wherever it is evaluated.
"""

import itertools
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from synthgen.errors import FolderError, nearest, require_least
from synthgen.loader import Paths, open_loader
from synthgen.training.augmenting import AUGMENTATIONS, MIXES, OnBatch, require_classes
from synthgen.training.checkpoints import Learner
from synthgen.training.evaluating import Classifier, evaluate, markdown, table
from synthgen.training.networks import SMALL, build
from synthgen.training.processes import is_slow, require_all, settled
from synthgen.training.recording import Recording

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Classifier", "evaluate", "markdown", "table", "train"]

log = logging.getLogger(__name__)
SIDE = 48


def train(
    sources: Paths | Mapping[str, Paths],
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
    """Trains on all sources together, mixed as `loading` says; gives the same to each process.

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
        output: a folder, seen by all processes, for log.jsonl and the checkpoint, from which the same call
            goes on: to the same weights, on one process of a CPU bit by bit.
        save_every: steps between checkpoints; 0 has one at the end.
        log_every: steps between lines of the log.
        loading: more arguments of `open_loader`: weights, repeat, subset, reinforcement, soft.

    Raises:
        FolderError: a source has no shards or no classes, class ids disagree, the output is of another
            training, or a number is too small.
        ModelError: there is no such model.
        WorkError: the loss is no number any more.
    """
    require_all(accelerator)
    if is_slow(accelerator) and accelerator.is_main_process:
        log.warning("bf16: this CPU has no instructions for it; without, it is several times as fast")
    for what, number, least in (
        ("steps", steps, 1), ("save_every", save_every, 0), ("log_every", log_every, 1),
    ):  # fmt: skip
        require_least(what, number, least)
    if not 0 < lr < math.inf:
        raise FolderError(f"lr: got {lr}; a number above 0 is wanted")
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
        loader.reader.batch_transform = OnBatch(ways.batch, mixing, n_outputs)
    torch.manual_seed(seed)
    bare = build(model, n_outputs, side=side, pretrained=pretrained).to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(bare.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=lr, total_steps=steps)
    settings = {
        "sources": loader.sources, "classes": sorted(loader.class_names.items()), "steps": steps,
        "batch_size x processes": batch_size * accelerator.num_processes, "lr": lr, "seed": seed,
        "model": model, "pretrained": pretrained, "side": side, "augment": augment, "mix": mix,
        "smoothing": smoothing, "soft_labels": is_soft, "precision": accelerator.mixed_precision,
        **{name: own for name, own in loading.items() if own},
    }  # fmt: skip
    settings = json.loads(json.dumps(settings, default=str))  # as a checkpoint has them
    learner = Learner(bare, adam, schedule)
    recording = Recording(accelerator, loader, settings, None if output is None else Path(output))
    start = recording.begin(learner)
    network, optimizer = accelerator.prepare(bare, adam)
    network.train()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step in range(start, steps):
        images, labels = next(batches)
        if len(images) == 1 < batch_size:  # what an epoch has left over, on all ranks: no batch norm of one
            images, labels = next(batches)
        require_classes(labels, n_outputs)
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
        recording.add(loss, float(schedule.get_last_lr()[0]))
        schedule.step()
        done = step + 1
        if done % log_every == 0 or done == steps:
            recording.write(done)
        if done == steps or (save_every > 0 and done % save_every == 0):
            recording.save(done, learner)
    return Classifier(settled(accelerator.unwrap_model(network)), loader.class_names, side)
