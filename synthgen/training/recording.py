"""What a training writes down while it runs: the log, and where it is. It counts for all processes."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from synthgen import storage
from synthgen.errors import FolderError, WorkError
from synthgen.loader import Loader
from synthgen.training import checkpoints
from synthgen.training.checkpoints import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)
LOG = "log.jsonl"


def note(folder: Path, line: Mapping[str, object]) -> None:
    """Adds a line to the log of a folder."""
    storage.append(folder / LOG, json.dumps(line, allow_nan=False).encode() + b"\n")


def cut_log(folder: Path, step: int) -> None:
    """Leaves in a log what was true at a step: no later line, and none that a kill has cut."""
    path, kept = folder / LOG, []
    for line in storage.read(path).splitlines(keepends=True) if storage.exists(path) else ():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except ValueError:
            continue
    if storage.exists(path):
        storage.replace(folder, path, b"".join(kept), LOG)


class Recording:
    """Of one training; all processes call the same methods at the same steps."""

    def __init__(
        self, accelerator: "Accelerator", loader: Loader, settings: Mapping[str, object], folder: Path | None
    ) -> None:
        self._accelerator, self._loader, self._settings, self._folder = accelerator, loader, settings, folder
        self._is_writer = folder is not None and accelerator.is_main_process
        self._before = [0] * (len(loader.sources) + 1)
        self._begin_line(0)

    def _begin_line(self, step: int) -> None:
        self._step, self._time = step, time.monotonic()
        self._loss, self._losses = torch.zeros((), device=self._accelerator.device), 0

    def begin(self, learner: Learner) -> int:
        """The step from which the training goes on; all that learns is as it was there.

        Raises:
            FolderError: the folder is of another training, or not all processes see it.
        """
        if self._folder is None:
            return 0
        found = checkpoints.load(self._folder, self._settings, others=(LOG,))
        step = found.step if found else 0
        told = torch.tensor([found.step if found else -1], device=self._accelerator.device)
        if len(self._accelerator.gather(told).unique()) > 1:
            raise FolderError(
                f"{self._folder}: not all processes see the same checkpoint; use a shared folder"
            )
        if found:
            checkpoints.restore(found, learner)
            self._loader.load_state_dict(found.told["loader"])
            self._before = found.told["counts"]
        if self._is_writer:
            storage.make_folder(self._folder)
            cut_log(self._folder, step)
            if found:
                log.info("%s: goes on after step %d", self._folder, step)
        if not found:  # so that whatever comes into the folder later is known as ours
            self.save(0, learner)
        self._begin_line(step)
        return step

    def add(self, loss: torch.Tensor, lr: float) -> None:
        """Takes in a step's loss and learning rate."""
        self._loss += loss.detach()
        self._losses += 1
        self._lr = lr

    def write(self, step: int) -> None:
        """Writes a line: the mean loss since the line before (or since this process began), samples since the
        training began.
        """
        loss = self._mean_loss(step)
        *counts, skipped = self._counts()
        seconds = max(time.monotonic() - self._time, 1e-6)
        line: dict[str, Any] = {
            "step": step,
            "epoch": self._loader.epoch,
            "loss": round(loss, 5),
            "lr": self._lr,
            "samples": dict(zip(self._loader.sources, counts, strict=True)),
            "skipped": skipped,
            "images_per_second": round((step - self._step) * self._loader.plan.step / seconds, 1),
        }
        if self._accelerator.is_main_process:
            log.info("step %d: loss %.4f, %.1f images/s", step, loss, line["images_per_second"])
        if self._is_writer and self._folder is not None:
            note(self._folder, line)
        self._begin_line(step)

    def save(self, step: int, learner: Learner) -> None:
        """Writes the checkpoint of a step in place of the one before."""
        if self._folder is None:
            return
        self._mean_loss(step)
        place = {**self._loader.state_dict(), "counts": {}}  # of one process; `counts` are of all
        told = {"loader": place, "counts": self._counts(), "settings": self._settings}
        if self._is_writer:
            checkpoints.save(self._folder, step, learner, told)

    def _mean_loss(self, step: int) -> float:
        """Of all processes, since the line before.

        Raises:
            WorkError: it is no number.
        """
        mean = float(self._accelerator.reduce(self._loss / max(1, self._losses), "mean"))
        if not math.isfinite(mean):
            raise WorkError(f"step {step}: the loss is {mean}; use a lower lr, or leave out bf16")
        return mean

    def _counts(self) -> list[int]:
        """Samples by source, and skipped ones, of all processes since the training began."""
        loader = self._loader
        own = [*(loader.counts[name] for name in loader.sources), loader.skipped.total()]
        every = self._accelerator.reduce(torch.tensor(own, device=self._accelerator.device), "sum")
        return [int(count) + before for count, before in zip(every.tolist(), self._before, strict=True)]
