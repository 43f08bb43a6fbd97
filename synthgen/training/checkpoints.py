"""Where a training is: one safetensors file, replaced whole, so that a kill at any moment leaves the last."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from synthgen import storage
from synthgen.errors import FolderError

NAME = "checkpoint.safetensors"


class Checkpoint(NamedTuple):
    """Tensors of network and optimizer by name, and what JSON holds of the rest."""

    tensors: dict[str, torch.Tensor]
    told: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return int(self.told["step"])


class Learner(NamedTuple):
    """What learns. The network is the bare one, without what DDP wraps around it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def save(folder: Path, step: int, learner: Learner, told: Mapping[str, object]) -> None:
    """Writes the checkpoint of a step in place of the one before.

    Args:
        told: what JSON holds of the rest, with the `settings` of the training.
    """
    from safetensors.torch import save as to_bytes

    state = learner.optimizer.state_dict()
    tensors = {f"network.{name}": value for name, value in learner.network.state_dict().items()}
    for number, own in state["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in own.items()}
    told = {
        **told,
        "step": step,
        "groups": state["param_groups"],
        "schedule": learner.schedule.state_dict(),
    }
    # copies, as weights that are tied share their memory
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    storage.replace(folder, folder / NAME, to_bytes(plain, {"synthgen": json.dumps(told)}), NAME)


def load(folder: Path, settings: Mapping[str, object], others: Sequence[str] = ()) -> Checkpoint | None:
    """The checkpoint of a folder; None where there is none.

    Args:
        settings: of the training, as JSON has them.
        others: names of files that are ours only beside a checkpoint.

    Raises:
        FolderError: it is of another training, or is no checkpoint of ours; or there is none, but others.
    """
    from safetensors import safe_open

    path = folder / NAME
    if not storage.exists(path):
        for name in others:
            if storage.exists(folder / name):
                raise FolderError(
                    f"{folder / name}: is of no training, for there is no {NAME}; use another folder"
                )
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["synthgen"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own, KeyError
        raise FolderError(f"{path}: is no checkpoint of synthgen's ({error}); use another folder") from None
    for key in {**settings, **told["settings"]}:
        was, now = told["settings"].get(key), settings.get(key)
        if was != now:
            raise FolderError(
                f"{path}: was trained with {key} = {was}, and now it is {now}; train as before, or into "
                "another folder"
            )
    return Checkpoint(tensors, told)


def restore(found: Checkpoint, learner: Learner) -> None:
    """Gives network, optimizer and schedule what the checkpoint holds of them."""
    own = {name: value for name, value in found.tensors.items() if name.startswith("network.")}
    learner.network.load_state_dict({name.removeprefix("network."): value for name, value in own.items()})
    weights = [weight for group in learner.optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in found.tensors.items():
        room, _, rest = name.partition(".")
        number, _, key = rest.partition(".")
        if room == "optimizer":
            weight = weights[int(number)]
            if value.shape == weight.shape:  # in its strides, or torch steps tensor by tensor
                value = torch.empty_like(weight, dtype=value.dtype, device="cpu").copy_(value)
            state.setdefault(int(number), {})[key] = value
    learner.optimizer.load_state_dict({"state": state, "param_groups": found.told["groups"]})
    learner.schedule.load_state_dict(found.told["schedule"])
