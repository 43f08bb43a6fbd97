"""Where a training is: one safetensors file, replaced whole, so that a kill at any moment leaves the last."""

import json
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


def save(
    folder: Path,
    step: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    loader: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Writes the checkpoint of a step in place of the one before."""
    from safetensors.torch import save as to_bytes

    state = optimizer.state_dict()
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for number, own in state["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in own.items()}
    told = {
        "step": step,
        "settings": settings,
        "loader": loader,
        "groups": state["param_groups"],
        "schedule": schedule.state_dict(),
    }
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    storage.make_folder(folder)
    storage.write(folder / NAME, to_bytes(plain, {"synthgen": json.dumps(told)}))


def load(folder: Path, settings: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint of a folder; None where there is none.

    Raises:
        FolderError: it is of another training, or is no checkpoint of ours.
    """
    from safetensors import safe_open

    path = folder / NAME
    if not storage.exists(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["synthgen"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' own, KeyError
        raise FolderError(f"{path}: is no checkpoint of synthgen's ({error}); use another folder") from None
    for key in {**settings, **told["settings"]}:
        was, now = told["settings"].get(key), json.loads(json.dumps(settings.get(key)))
        if was != now:
            raise FolderError(
                f"{path}: was trained with {key} = {was}, and now it is {now}; train as before, or into "
                "another folder"
            )
    return Checkpoint(tensors, told)


def restore(
    found: Checkpoint,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Gives network, optimizer and schedule what the checkpoint holds of them."""
    own = {name: value for name, value in found.tensors.items() if name.startswith("network.")}
    network.load_state_dict({name.removeprefix("network."): value for name, value in own.items()})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in found.tensors.items():
        room, _, rest = name.partition(".")
        number, _, key = rest.partition(".")
        if room == "optimizer":
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": found.told["groups"]})
    schedule.load_state_dict(found.told["schedule"])
