"""Files of weights: read, told apart by a hash, and refused where opening them would run code."""

import hashlib
import shlex
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.errors import ModelError

if TYPE_CHECKING:
    import torch

OPENERS = {
    "TorchScript": "torch.jit.load(sys.argv[1], 'cpu').state_dict()",
    "torch.export": "dict(torch.export.load(sys.argv[1]).state_dict)",
    "pickle": "torch.load(sys.argv[1], 'cpu', weights_only=False)",
}
"""How what runs code when it is opened is opened all the same: printed for who trusts it, not run here."""


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a file of weights, by name: of a state dict, or of one under `state_dict` or `model`.

    Raises:
        ModelError: there is none, or it would run code when it is opened; the message has the command that
            converts it.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; paths are relative to the folder of the recipe")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path}: is no safetensors file ({error}); download it again") from error
    kind = _kind(path)
    if kind != "pickle":
        raise ModelError(_refusal(path, kind))
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many: its own, pickle's, those of broken files
        raise ModelError(_refusal(path, kind)) from error
    for key in ("state_dict", "model"):
        if isinstance(read, dict) and isinstance(read.get(key), dict):
            read = read[key]
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in (read.items() if isinstance(read, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ModelError(f"{path}: holds no tensors by name; a state dict is wanted")
    return tensors


def _kind(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "pickle"
    names = {name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()}
    if "archive_format" in names:
        return "torch.export"
    return "TorchScript" if any(name.startswith("code/") for name in names) else "pickle"


def _refusal(path: Path, kind: str) -> str:
    code = (
        f"import sys, torch; from safetensors.torch import save_file; d = {OPENERS[kind]}; "
        "d = d.state_dict() if hasattr(d, 'state_dict') else d.get('state_dict', d); save_file({k: "
        "v.detach().clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
    )
    target = path.with_suffix(".safetensors")
    return (
        f"{path}: is {kind}, not plain weights, and could run code when it is opened, so it is not; if you "
        f"trust it, `python -c {shlex.quote(code)} {shlex.quote(str(path))} {shlex.quote(str(target))}` "
        "makes a .safetensors of it"
    )


def weights_file(weights: str, folder: Path) -> Path:
    """The file of weights that a recipe in a folder names."""
    return folder / Path(weights).expanduser()


def fingerprint(tensors: "Mapping[str, torch.Tensor]", without: Collection[str] = ()) -> str:
    """Hash of weights and their names, 32 hex digits."""
    import torch

    weights = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        if key not in without:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            weights.update(key.encode() + flat.numpy().tobytes())
    return weights.hexdigest()[:32]
