"""Weights of networks: what is read, and what is refused without running any of it."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from safetensors.torch import load_file

from synthgen.annotators import networks, weights
from synthgen.errors import ModelError, RecipeError


class Trap:
    """Leaves a file behind when a pickle of it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {shlex.quote(str(self.file))}",)


def run_told(message: str, monkeypatch: pytest.MonkeyPatch, folder: str = "") -> None:
    """Runs the command that a message tells, here; `folder` is for the word FOLDER."""
    told = re.search(r"`(python .*)`", message)
    assert told
    python, option, code, *words = shlex.split(told[1])
    assert (python, option) == ("python", "-c")
    monkeypatch.setattr("sys.argv", ["-c", *[folder if word == "FOLDER" else word for word in words]])
    exec(code, {})


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        weights.read_tensors(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_pickle_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap, file = tmp_path / "it ran", tmp_path / "it's.pt"
    torch.save({"state_dict": {"weight": torch.ones(1, 2)}, "more": Trap(trap)}, file)
    message = refusal(file)
    assert message.startswith(f"{file}: is pickle, not plain weights, and could run code when it is opened")
    assert not trap.exists()
    run_told(message, monkeypatch)
    assert trap.exists(), "it is a trap"
    assert weights.read_tensors(file.with_suffix(".safetensors"))["weight"].tolist() == [[1.0, 1.0]]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["pickle", "TorchScript", "torch.export"])
def test_a_whole_network_is_refused_with_the_command_that_converts_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)), tmp_path / "network.pt"
    if kind == "pickle":
        torch.save(network, file)
    elif kind == "TorchScript":
        torch.jit.trace(network, torch.zeros(1, 3)).save(str(file))
    else:
        file = file.with_suffix(".pt2")
        torch.export.save(torch.export.export(network, (torch.zeros(1, 3),)), file)
    message = refusal(file)
    assert f"is {kind}, not plain weights" in message
    run_told(message, monkeypatch)
    converted = weights.read_tensors(file.with_suffix(".safetensors"))
    assert weights.fingerprint(converted) == weights.fingerprint(network.state_dict())


def test_plain_weights_are_read_from_any_file(tmp_path: Path) -> None:
    safe = weights.read_tensors(tiny_networks.shufflenet(tmp_path / "a.safetensors"))
    plain = weights.read_tensors(tiny_networks.shufflenet(tmp_path / "a.pth"))
    assert weights.fingerprint(plain) == weights.fingerprint(safe)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.safetensors", b"nonsense", "a.safetensors: is no safetensors file ("),
        ("a.pt", b"nonsense", "a.pt: is pickle, not plain weights"),
        ("b.pt", None, "b.pt: no such file of weights; paths are relative to the folder of the recipe"),
    ],
)
def test_files_that_are_no_weights(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert refusal(tmp_path / name).startswith(f"{tmp_path}/{message}")


def test_a_state_dict_of_nothing(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    assert refusal(tmp_path / "a.pt").endswith("holds no tensors by name; a state dict is wanted")


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_a_folder_of_other_weights_is_refused_with_the_command_that_converts_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a model"
    if library == "timm":
        tiny_networks.timm_classifier(folder, tiny_networks.LABELS)
    else:
        tiny_networks.vit_classifier(folder)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        networks.locate("a model", folder=tmp_path, auto=networks.CLASSIFIER)
    assert "has no model.safetensors; other weights are not loaded (they can run code)" in str(error.value)
    run_told(str(error.value), monkeypatch, str(tmp_path / "safe"))
    assert weights.fingerprint(load_file(tmp_path / "safe/model.safetensors")) == weights.fingerprint(tensors)
    assert networks.load_classifier("safe", folder=tmp_path, device="cpu").outputs == 3


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_whole_of_an_image_is_looked_at_on_request(library: str, tmp_path: Path) -> None:
    """Their own preprocessing takes the middle: what is at the rim is not seen."""
    keys: dict[str, object] = {"folder": tmp_path, "device": "cpu"}
    if library == "timm":
        tiny_networks.timm_classifier(tmp_path / "net", ["a", "b", "c"])
        keys["model"] = "net"
    else:
        tiny_networks.shufflenet(tmp_path / "net.safetensors")
        keys |= {"model": "torchvision/shufflenet_v2_x0_5", "weights": "net.safetensors", "outputs": 3}
    image = np.zeros((400, 400, 3), np.uint8)
    image[:6] = image[-6:] = 255
    middle, whole = (
        networks.load_classifier(**keys, whole=whole).preprocess(image)[0] for whole in (False, True)
    )
    assert middle.shape == whole.shape
    assert middle.unique().tolist() == [float(whole.min())]
    for rim in (whole[0], whole[-1]):
        assert float(rim.min()) > float(whole.min())


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder, trap = tiny_networks.dinov2(tmp_path / "model"), tmp_path / "it ran"
    told = json.loads((folder / "config.json").read_text())
    told |= {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "code.py").write_text(f"open({str(trap)!r}, 'w')\n")
    networks.load_transformers(folder, networks.ENCODER, "cpu")  # transformers has a dinov2 of its own
    assert not trap.exists()
    told["model_type"] = "mine"
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(
        ModelError, match='transformers has no "mine", and code that comes with a model is not run'
    ):
        networks.load_transformers(folder, networks.ENCODER, "cpu")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            "nonsense",
            RecipeError,
            'model: "nonsense": no such model; a folder (looked for {folder}/nonsense)',
        ),
        ("nobody/nothing", ModelError, 'model = "nobody/nothing": cannot be had ('),
        ("empty", ModelError, "{folder}/empty: has no config.json; a folder that timm or transformers"),
        ("broken", ModelError, "{folder}/broken/config.json: is no JSON ("),
        ("other", ModelError, "{folder}/other/config.json: has neither timm's architecture nor"),
    ],
)
def test_models_that_cannot_be_had(model: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    for name, text in {"empty": None, "broken": "{", "other": "{}"}.items():
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "config.json").write_text(text)
    with pytest.raises(error) as told:
        networks.classifier_labels(model, folder=tmp_path)
    assert str(told.value).startswith(message.format(folder=tmp_path))
    assert "\n" not in str(told.value)


def test_a_model_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_networks.dinov2(tmp_path / "here/model")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RecipeError, match="paths are relative to the folder of the recipe"):
        networks.locate("model", folder=tmp_path, auto=networks.ENCODER)
