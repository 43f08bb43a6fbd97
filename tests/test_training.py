"""The trainer: scripts/train.py as a user runs it, on one process and two, killed and resumed; and what
evaluation counts, on a split whose answers are known.
"""

import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, killed_until_done
from PIL import Image
from safetensors import safe_open
from torch import nn

from synthgen import tars
from synthgen.errors import FolderError, SynthgenError, WorkError
from synthgen.loader import class_names, join_classes, open_loader
from synthgen.training import Classifier, evaluate, markdown, table, train
from synthgen.training.augmenting import AUGMENTATIONS, MIXES
from synthgen.training.networks import build
from synthgen.training.options import named, parser, training_keys

REAL = ROOT / "shards" / "emoji-real"
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": "--standalone --nproc_per_node 2",
    "accelerate": "launch --multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no "
    "--dynamo_backend no",
}
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 4, "lr": 1e-3, "side": 16}
CLASSES = ("ant", "bee", "cat")


def script(*arguments: object, launcher: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    start = [str(BIN / launcher), *LAUNCHERS[launcher].split()] if launcher else [sys.executable]
    command = [*start, str(ROOT / "scripts" / "train.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=170)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def picture(level: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def write_split(folder: Path, sizes: list[int], broken: int = -1) -> Path:
    """Samples of three classes in turn, in shards of these sizes. An image is as red as its class says, but
    in the place "sea" all look like an ant. Every third round is at sea. `broken` has no image.
    """
    folder.mkdir(parents=True)
    (folder.parent / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    number = 0
    for shard, size in enumerate(sizes):
        with open(folder / f"{shard:08d}.tar", "wb") as file:
            for _ in range(size):
                k, place = number % 3, "sea" if number // 3 % 3 == 2 else "land"
                told = {"place": place, "deep": place == "sea"}
                image = b"" if number == broken else picture(0 if place == "sea" else 100 * k)
                members = {"png": image, "cls": b"%d" % k, "json": json.dumps(told).encode()}
                tars.add_sample(file, f"{number:032x}", members)
                number += 1
            tars.finish(file)
    return folder


class Reddest(nn.Module):
    """Knows the class of an image by how red it is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = torch.tensor([0.0, 100.0, 200.0]) / 255
        return -(images[:, 0].mean((1, 2))[:, None] - levels).abs()


@pytest.fixture
def reddest() -> Classifier:
    return Classifier(Reddest(), dict(enumerate(CLASSES)), 16)


@pytest.fixture
def alone() -> Accelerator:
    return Accelerator(cpu=True)


def test_training_learns_something_and_says_on_what() -> None:
    done = script(REAL / "train", "--evaluate", REAL / "train", REAL / "validation", "--steps", "50")
    assert done.returncode == 0, done.stderr
    seen, unseen = (json.loads(line) for line in done.stdout.splitlines())
    assert (seen["split"], unseen["split"]) == (str(REAL / "train"), str(REAL / "validation"))
    assert seen["samples"] == unseen["samples"] == 480
    assert seen["classes"] == seen["classes_trained_on"] == 48
    assert seen["accuracy"] > 4 / 48  # chance is 1/48
    assert unseen["accuracy"] > 3 / 48


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_evaluation_counts_what_is_known(
    reddest: Classifier, alone: Accelerator, tmp_path: Path, batch_size: int
) -> None:
    """27 samples, 9 a class: on land all are right; at sea only the ants are."""
    split = write_split(tmp_path / "a" / "test", [10, 1, 16])
    found = evaluate(reddest, split, accelerator=alone, groups=["place"], batch_size=batch_size)
    assert found == {
        "split": str(split),
        "samples": 27,
        "classes": 3,
        "accuracy": round(21 / 27, 4),
        "classes_trained_on": 3,
        "accuracy_on_those": round(21 / 27, 4),
        "class_accuracy": round((1 + 2 * 6 / 9) / 3, 4),
        "skipped": 0,
        "groups": {
            f"{name} / {place}": {"samples": n, "accuracy": float(place == "land" or name == "ant")}
            for name in CLASSES
            for place, n in (("land", 6), ("sea", 3))
        },
        "worst_group": "bee / sea",
        "worst_group_accuracy": 0.0,
    }
    two = evaluate(reddest, split, accelerator=alone, groups=["deep", "place"])
    assert two["worst_group"] == "bee / True / sea"


def test_a_class_that_was_not_trained_on_is_wrong(
    reddest: Classifier, alone: Accelerator, tmp_path: Path
) -> None:
    split = write_split(tmp_path / "a" / "test", [27])
    fewer = reddest._replace(class_names={0: "ant", 1: "bee"})
    found = evaluate(fewer, split, accelerator=alone)
    assert (found["classes"], found["classes_trained_on"]) == (3, 2)
    assert found["accuracy_on_those"] == round(15 / 18, 4)
    none = evaluate(reddest._replace(class_names={7: "gnu"}), split, accelerator=alone)
    assert (none["classes_trained_on"], none["accuracy_on_those"]) == (0, None)
    with pytest.raises(FolderError, match='test: class id 0 is "ant", in training it was "dog"'):
        evaluate(reddest._replace(class_names={0: "dog"}), split, accelerator=alone)
    with pytest.raises(FolderError, match='test: "ant" has class id 0, in training it had 7'):
        evaluate(reddest._replace(class_names={7: "ant"}), split, accelerator=alone)


def test_samples_that_cannot_be_read_are_counted(
    reddest: Classifier, alone: Accelerator, tmp_path: Path
) -> None:
    split = write_split(tmp_path / "a" / "test", [9], broken=1)
    found = evaluate(reddest, split, accelerator=alone)
    assert (found["samples"], found["skipped"]) == (8, 1)
    with pytest.raises(
        FolderError, match=r'no sample can be evaluated: no "palce": neither a member nor a key'
    ):
        evaluate(reddest, split, accelerator=alone, groups=["palce"])


def test_one_call_compares_sources(reddest: Classifier, alone: Accelerator, tmp_path: Path) -> None:
    sources = {"all": write_split(tmp_path / "a" / "x", [27]), "land": write_split(tmp_path / "b" / "x", [6])}
    (tmp_path / "log.jsonl").write_text('{"step": 2}\n')
    rows = table(reddest, sources, accelerator=alone, groups=["place"], output=tmp_path)
    assert [(row["source"], row["samples"], row["accuracy"]) for row in rows] == [
        ("all", 27, 0.7778), ("land", 6, 1.0),
    ]  # fmt: skip
    assert lines(tmp_path / "log.jsonl") == [{"step": 2}, *rows]
    assert markdown(rows).splitlines()[2:] == [
        "| all | 27 | 77.8 | 77.8 | 0.0, bee / sea (3) |",
        "| land | 6 | 100.0 | 100.0 | 100.0, ant / land (2) |",
    ]
    assert markdown(table(reddest, sources, accelerator=alone)).endswith("| land | 6 | 100.0 | 100.0 |  |")


def test_two_processes_train_on_unequal_shards_and_count_as_one(tmp_path: Path, alone: Accelerator) -> None:
    """By both launchers. What one process finds in the checkpoint, it evaluates to the same figures. Of the
    first split one process has nothing, so that none may wait for the other there.
    """
    big = write_split(tmp_path / "big" / "train", [13, 2, 30])
    small = write_split(tmp_path / "small" / "train", [5])
    single = write_split(tmp_path / "single" / "test", [1])
    common = [
        f"big={big}", f"small={small}", "--repeat", "small=3", "--evaluate", single, big, "--groups", "place",
        "--steps", "9", "--side", "16", "--log-every", "4", "--save-every", "4", "--lr", "1e-2",
    ]  # fmt: skip
    found = {}
    for launcher in LAUNCHERS:
        done = script(*common, "--batch-size", 4, "-o", tmp_path / launcher, launcher=launcher)
        assert done.returncode == 0, done.stderr
        found[launcher] = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["samples"] for row in found[launcher]] == [1, 45]
        log = lines(tmp_path / launcher / "log.jsonl")
        assert [row["step"] for row in log[:3]] == [4, 8, 9]
        assert log[3:] == found[launcher]
        # an epoch is 45 + 15 samples, seven steps of 8 and one of 4: 9 steps are 60 and 8 more
        assert log[2]["epoch"] == 1
        assert sum(log[2]["samples"].values()) == 68
        assert log[1]["samples"] == {"big": 45, "small": 15}
    assert found["torchrun"] == found["accelerate"]
    before = (tmp_path / "torchrun" / "checkpoint.safetensors").stat().st_mtime_ns
    trained = train(
        {"big": big, "small": small}, repeat={"small": 3}, accelerator=alone, steps=9, batch_size=8, lr=1e-2,
        side=16, output=tmp_path / "torchrun",
    )  # fmt: skip
    splits = {str(split): split for split in (single, big)}
    assert table(trained, splits, accelerator=alone, groups=["place"]) == found["torchrun"]
    assert (tmp_path / "torchrun" / "checkpoint.safetensors").stat().st_mtime_ns == before


KEYS = "steps=12, batch_size=6, lr=1e-2, side=16, augment='standard', mix='cutmix', save_every=2, log_every=1"
WORK = (
    "synthgen.training.train({'a': sys.argv[1], 'b': sys.argv[2]}, weights={'a': 3, 'b': 1}, "
    f"accelerator=accelerate.Accelerator(cpu=True), output=sys.argv[3], {KEYS})"
)


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Killed as soon as a file is made durable, before it has its name, and again after it has it."""
    sources = [write_split(tmp_path / name / "train", sizes) for name, sizes in (("a", [11, 9]), ("b", [7]))]
    ends = {}
    for name, changes in (("undisturbed", ()), ("killed", ("_sync", "replace", "append"))):
        deaths = killed_until_done(
            WORK, *map(str, sources), str(tmp_path / name), period=13, changes=changes,
            imports="accelerate, synthgen.training",
        )  # fmt: skip
        assert (deaths > 6) == bool(changes)
        assert sorted(os.listdir(tmp_path / name)) == [".work", "checkpoint.safetensors", "log.jsonl"]
        assert not os.listdir(tmp_path / name / ".work" / "tmp")
        log = lines(tmp_path / name / "log.jsonl")
        assert [row["step"] for row in log] == list(range(1, 13))
        assert log[-1]["samples"] == {"a": 49, "b": 17}
        ends[name] = (
            (tmp_path / name / "checkpoint.safetensors").read_bytes(),
            [row | {"images_per_second": 0} for row in log],
        )
    assert ends["killed"] == ends["undisturbed"]


def test_the_bits_depend_on_the_seed(tmp_path: Path, alone: Accelerator) -> None:
    """Without this the test before could compare what never changes."""
    split = write_split(tmp_path / "a" / "train", [11, 9])

    def weights(seed: int) -> torch.Tensor:
        network = train(split, accelerator=alone, seed=seed, **SHORT).network
        return torch.cat([weight.flatten() for weight in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_every_augmentation_trains(tmp_path: Path, alone: Accelerator, augment: str) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    trained = train(split, accelerator=alone, augment=augment, **SHORT | {"side": 24})
    assert trained.network(torch.rand(2, 3, 24, 24)).shape == (2, 3)


@pytest.mark.parametrize("mix", MIXES)
def test_every_mix_trains_by_the_loader_s_draws(tmp_path: Path, alone: Accelerator, mix: str) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    ends = [train(split, accelerator=alone, mix=mix, workers=n, **SHORT).network for n in (0, 1)]
    plain = train(split, accelerator=alone, **SHORT).network
    last = [network[-1].weight for network in (*ends, plain)]  # type: ignore[index]
    assert torch.equal(last[0], last[1])
    assert not torch.equal(last[0], last[2])


def test_timm_s_models_train_and_keep_their_names(tmp_path: Path) -> None:
    """A vision transformer at a side that is not its own, in bf16."""
    import timm

    split = write_split(tmp_path / "a" / "train", [12])
    done = script(
        split, "--model", "test_vit.r160_in1k", "--side", 32, "--bf16", "--batch-size", 4, "--steps", 3,
        "--evaluate", split, "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 12
    can = torch.cpu.get_capabilities()
    is_fast = torch.accelerator.is_available() or can["avx512_bf16"] or can["amx_bf16"]
    assert ("bf16: this CPU has no instructions for it" in done.stderr) != is_fast
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as file:
        names = {name.removeprefix("network.") for name in file.keys() if name.startswith("network.")}  # noqa: SIM118
    assert names == set(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict())


def test_timm_s_models_see_what_they_are_used_to() -> None:
    torch.manual_seed(0)
    network = build("test_resnet.r160_in1k", 3, side=32).eval()
    images = torch.rand(2, 3, 32, 32)
    hooks = list(network._forward_pre_hooks.values())
    (given,) = hooks[0](network, (images,))
    torch.testing.assert_close(given, (images - 0.5) / 0.5)
    with torch.no_grad():
        out = network(images)
        network._forward_pre_hooks.clear()
        assert torch.equal(out, network(given))


def test_a_name_that_comes_twice_has_both(tmp_path: Path) -> None:
    splits = [write_split(tmp_path / name / "train", [4]) for name in "ab"]
    done = script(
        *(f"both={split}" for split in splits), "--evaluate", *(f"both={split}" for split in splits),
        "--table", "--steps", 2, "--batch-size", 8, "--side", 16, "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("| both | 8 | ")
    assert lines(tmp_path / "run" / "log.jsonl")[0]["samples"] == {"both": 16}


def test_a_folder_without_shards_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    done = script(tmp_path / "nothing")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        f"train.py: {tmp_path / 'nothing'}: no .tar shards there; a split such as final/main/train is wanted"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--repeat real=2.5", "--repeat real=2.5: a whole number is wanted; --weights takes others"),
        ("--repeat real", "--repeat real: NAME=NUMBER above 0 is wanted, such as real=3"),
        ("--weights real=much", "--weights real=much: NAME=NUMBER above 0 is wanted, such as real=3"),
        ("--weights real=0", "--weights real=0: NAME=NUMBER above 0 is wanted, such as real=3"),
    ],
)
def test_numbers_by_name_that_are_none_are_one_line(arguments: str, message: str) -> None:
    options = parser("").parse_args(["real=somewhere", *arguments.split()])
    with pytest.raises(SynthgenError, match=f"^{re.escape(message)}$"):
        training_keys(options)


def test_what_the_options_say_is_what_is_trained() -> None:
    command = "a=x b=y/c=d y/c=d a=z --weights a=3 b=0.5 --repeat a=2 b=7 --subset main --save-every 5"
    options = parser("").parse_args(command.split())
    assert named(options.train) == {"a": ["x", "z"], "b": ["y/c=d"], "y/c=d": ["y/c=d"]}
    keys = training_keys(options)
    assert (keys["weights"], keys["repeat"]) == ({"a": 3.0, "b": 0.5}, {"a": 2, "b": 7})
    wanted = set(inspect.signature(train).parameters) | set(inspect.signature(open_loader).parameters)
    assert set(keys) <= wanted
    plain = training_keys(parser("").parse_args(["x"]))
    defaults = {name: one.default for name, one in inspect.signature(train).parameters.items()}
    for name in set(plain) & set(defaults) - {"steps", "batch_size", "lr"}:
        assert plain[name] == defaults[name], name


def test_processes_that_accelerate_does_not_see_are_an_error(
    reddest: Classifier, alone: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of torchrun on a CPU, without Accelerator(cpu=True): each would train by itself."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for act in (
        lambda: train(REAL / "train", accelerator=alone, **SHORT),
        lambda: evaluate(reddest, REAL / "train", accelerator=alone),
    ):
        with pytest.raises(SynthgenError, match="WORLD_SIZE is 2 and Accelerate sees 1"):
            act()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"steps": 0}, r"steps: got 0; a whole number from 1 is wanted"),
        ({"lr": -1.0}, r"lr: got -1.0; a number above 0"),
        ({"seed": -1}, r"seed: got -1; a whole number from 0"),
        ({"batch_size": 0}, r"batch_size: got 0"),
        ({"side": 8}, r"side: got 8; 16 pixels or more"),
        ({"augment": "flop"}, r'augment: "flop" is unknown; did you mean "flip"\?'),
        ({"mix": "cutmux"}, r'mix: "cutmux" is unknown; did you mean "cutmix"\?'),
        ({"model": "resnet81"}, r'model: timm has no "resnet81"; did you mean "resnet'),
        ({"model": "resnet18.mine"}, r"model resnet18.mine at 16 pixels: Invalid pretrained tag"),
        ({"model": "test_vit", "side": 50}, r"model test_vit at 50 pixels: .*divisible"),
        ({"pretrained": True}, r'pretrained: "small" has no weights'),
        ({"weights": {"rael": 1}}, r'weights: no source is called "rael"'),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, alone: Accelerator, keys: dict[str, Any], message: str
) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    with pytest.raises(SynthgenError, match=message) as raised:
        train({"real": split}, accelerator=alone, output=tmp_path / "run", **SHORT | keys)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr": 2e-3}, r"was trained with lr = 0.001, and now it is 0.002; train as before, or into another"),
        ({"batch_size": 2}, r"batch_size x processes = 4, and now it is 2"),
        ({"weights": {"real": 1}}, r"weights = None, and now it is {'real': 1}"),
        ({"augment": "none"}, r"augment = standard, and now it is none"),
    ],
)
def test_a_checkpoint_of_other_settings_is_one_line(
    tmp_path: Path, alone: Accelerator, keys: dict[str, Any], message: str
) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    train({"real": split}, accelerator=alone, output=tmp_path / "run", **SHORT)
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(FolderError, match=message):
        train({"real": split}, accelerator=alone, output=tmp_path / "run", **SHORT | keys)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_a_checkpoint_of_other_data_under_the_same_name_is_one_line(
    tmp_path: Path, alone: Accelerator
) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    train({"real": split}, accelerator=alone, output=tmp_path / "run", **SHORT)
    other = write_split(tmp_path / "b" / "train", [8])
    data = (other / "00000000.tar").read_bytes()
    (other / "00000000.tar").write_bytes(data.replace(b"0" * 31, b"f" * 31))  # other keys, as many bytes
    with pytest.raises(FolderError, match=r"the loader's state: samples was .*; open the loader as it was"):
        train({"real": other}, accelerator=alone, output=tmp_path / "run", **SHORT)
    moved = (tmp_path / "a").rename(tmp_path / "moved") / "train"
    train({"real": moved}, accelerator=alone, output=tmp_path / "run", **SHORT)


def test_an_epoch_s_last_batch_of_one_is_left_out(tmp_path: Path, alone: Accelerator) -> None:
    """On images whose last features are one pixel, batch norm cannot do with one."""
    split = write_split(tmp_path / "a" / "train", [9])
    train(split, accelerator=alone, **SHORT | {"steps": 5})


@pytest.mark.parametrize("mix", ["", "mixup", "cutmix", "resizemix"])
def test_labels_are_classes_with_any_mix(tmp_path: Path, alone: Accelerator, mix: str) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    (tmp_path / "a" / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(FolderError, match=r"class id 2 of a sample: classes\.txt has 0 to 1"):
        train(split, accelerator=alone, mix=mix, workers=1, **SHORT)


def test_groups_may_be_lists(reddest: Classifier, alone: Accelerator) -> None:
    unnamed = reddest._replace(class_names={})
    found = evaluate(unnamed, REAL / "validation", accelerator=alone, groups=["json"])
    assert sum(own["samples"] for own in found["groups"].values()) == 480


def test_a_split_to_evaluate_that_is_not_there_is_said_before_training(tmp_path: Path) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    done = script(split, "--evaluate", tmp_path / "typo", "--steps", "2", "-o", tmp_path / "run")
    assert done.returncode == 1
    assert f"{tmp_path / 'typo'}: no .tar shards there" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("log.jsonl", b"mine\n", r"log.jsonl: is of no training, for there is no checkpoint"),
        ("checkpoint.safetensors", b"mine", r"checkpoint.safetensors: is no checkpoint of synthgen's"),
    ],
)
def test_what_is_not_ours_is_left_as_it_is(
    tmp_path: Path, alone: Accelerator, name: str, data: bytes, message: str
) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FolderError, match=message):
        train(split, accelerator=alone, output=tmp_path, **SHORT)
    assert (tmp_path / name).read_bytes() == data


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(tmp_path: Path, alone: Accelerator) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    with pytest.raises(WorkError, match=r"step \d+: the loss is (nan|inf); use a lower lr"):
        train(
            split,
            accelerator=alone,
            output=tmp_path / "run",
            save_every=1,
            **SHORT | {"steps": 9, "lr": 1e30},
        )
    with safe_open(tmp_path / "run" / "checkpoint.safetensors", "pt") as file:
        assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


def test_a_class_id_beyond_classes_txt_is_one_line(tmp_path: Path, alone: Accelerator) -> None:
    split = write_split(tmp_path / "a" / "train", [8])
    (tmp_path / "a" / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(FolderError, match=r"class id 2 of a sample: classes.txt has 0 to 1"):
        train(split, accelerator=alone, **SHORT)
    (tmp_path / "a" / "classes.txt").unlink()
    with pytest.raises(FolderError, match=r"no classes\.txt beside the split"):
        train(split, accelerator=alone, **SHORT)


def test_classes_are_joined_by_name(emoji_run: Path, tmp_path: Path) -> None:
    made = emoji_run / "final" / "main" / "train"
    assert join_classes([made, REAL / "train"]) == class_names(REAL / "train")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(FolderError, match='class id 0 is "dog", elsewhere 1 is "dog"'):
        join_classes([REAL / "train", tmp_path / "train"])
    with pytest.raises(FolderError, match=r"no classes\.txt"):
        class_names(tmp_path / "deeper" / "train")
