"""What others' packages make of our shards, as they are: webdataset, Hugging Face's, timm, open_clip's.

Each is given four unequal shards of a run, and the one shard a split of `shards/emoji-real`. A sample is
known by its pixels: what a reader gives must be the images and class ids of the tars, as often as they are
there.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import synthgen
from synthgen import tars
from synthgen.embedded import clip_folder

README = (ROOT / "README.md").read_text()
TINY_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
RANKS = """
import datetime, json, os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
import synthgen

torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
said = {}
for last in ("keep", "equal", "drop"):
    fields = ("uid",) if last == "keep" else ("uid", "image", "class_id")
    loader = synthgen.open_loader(
        sys.argv[2:], batch_size=6, fields=fields, shuffle=True, seed=3, workers=1, last=last
    )
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 48))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    said[last] = []
    for epoch in range(2):
        said[last].append([])
        for uids, *data in loader:
            said[last][-1].append(uids)
            if data:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(data[0]), data[1]).backward()
                optimizer.step()
    assert [len(steps) for steps in said[last]] == [len(loader)] * 2
    said[last + " weights"] = float(network[1].weight.detach().double().square().sum())
open(f"{sys.argv[1]}/{os.environ['RANK']}.json", "w").write(json.dumps(said))
torch.distributed.destroy_process_group()
"""
Seen = Counter[tuple[str, int]]

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset leaves them to the GC
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
]


@pytest.fixture(scope="module")
def place(emoji_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards/emoji, whose train split has four unequal shards, and shards/emoji-real."""
    shards = tmp_path_factory.mktemp("interop") / "shards"
    shutil.copytree(emoji_run, shards / "emoji")
    (shards / "emoji-real").symlink_to(ROOT / "shards" / "emoji-real")
    settings = ["quota.requests=2", "reshard.shard_size=24"]
    synthgen.run("emoji", shards / "emoji", stages=("reshard",), settings=settings, replace=True, workers=1)
    sizes = json.loads((shards / "emoji/final/main/train/sizes.json").read_text())
    assert len(sizes) == 4
    assert len(set(sizes.values())) == 2
    return shards.parent


@pytest.fixture(params=["shards/emoji/final/main", "shards/emoji-real"])
def root(place: Path, request: pytest.FixtureRequest) -> Path:
    """A dataset of several splits: webp in four unequal shards, then jpg and masks in one."""
    return place / str(request.param)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps goes away with the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def fingerprint(pixels: Any) -> str:
    """Of an RGB image: uint8 of shape (height, width, 3), or float in [0, 1] of shape (3, height, width)."""
    array = np.asarray(pixels)
    if array.dtype != np.uint8:
        array = np.rint(array * 255).astype(np.uint8).transpose(1, 2, 0)
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def seen(batches: Iterable[tuple[Any, Any]]) -> Seen:
    """What batches of images and class ids hold."""
    return Counter(
        (fingerprint(image), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    )


@functools.cache
def truth(root: Path, split: str) -> Seen:
    """The same of a split's tars, by bare tarfile; its class ids are those of classes.txt."""
    classes = (root / "classes.txt").read_text().splitlines()
    found, members = Seen(), dict[str, bytes]()
    for path in sorted((root / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for name, data in members.items():
        key, _, suffix = name.partition(".")
        if suffix in ("webp", "jpg"):
            label = int(members[f"{key}.cls"])
            assert classes[label] == json.loads(members[f"{key}.json"])["class_name"]
            found[fingerprint(Image.open(io.BytesIO(data)).convert("RGB")), label] += 1
    assert found.total() == sum(json.loads((root / split / "sizes.json").read_text()).values())
    return found


def splits(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/sizes.json"))


def test_webdataset_gives_every_sample_once_an_epoch(root: Path) -> None:
    """Through decoding and shuffling, with batches made in two workers and mixed outside of them."""
    import webdataset

    for split in splits(root):
        urls = [str(path) for path in sorted((root / split).glob("*.tar"))]
        samples = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000)
        decoded = samples.decode("torchrgb").to_tuple("webp;jpg", "cls").batched(8)
        loader = webdataset.WebLoader(decoded, batch_size=None, num_workers=2)
        assert seen(loader) == truth(root, split)
    assert seen(loader.unbatched().shuffle(100).batched(16)) == truth(root, split)


def test_webdataset_with_open_clip_s_preprocessing(place: Path) -> None:
    import open_clip
    import torch
    import webdataset

    name = f"local-dir:{clip_folder()}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenize = open_clip.get_tokenizer(name)
    root = place / "shards/emoji/final/main"
    urls = [str(path) for path in sorted(root.glob("train/*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("webp", "cls")
    images, class_ids = zip(*samples, strict=True)
    classes = (root / "classes.txt").read_text().splitlines()
    with torch.inference_mode():
        seen = model.eval().encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        labels = model.encode_text(tokenize([f"a photo of a {name}" for name in classes]), normalize=True)
    agreement = ((seen @ labels.T).argmax(1) == torch.tensor(class_ids)).float().mean()
    assert agreement > 0.8  # swapped labels would give 2 %


def test_webdataset_decodes_every_member(root: Path) -> None:
    import webdataset

    for sample in webdataset.WebDataset(str(root / "train/00000000.tar"), shardshuffle=False).decode("pil"):
        image = sample.get("webp") or sample["jpg"]
        assert image.size == (sample["json"]["original_width"], sample["json"]["original_height"])
        assert (sample["__key__"], sample["txt"]) == (sample["json"]["uid"], sample["json"]["text"])
        assert sample["cls"] == sample["json"]["class_id"]
        if "mask.png" in sample:
            assert sample["mask.png"].size == image.size


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets_open_the_folder(root: Path, streaming: bool) -> None:
    """By its card, all splits; then by name of the format and of files."""
    import datasets

    def pairs(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[list[Any], list[int]]]:
        for row in rows:
            assert (row["__key__"], row["txt"]) == (row["json"]["uid"], row["json"]["text"])
            assert row["cls"] == row["json"]["class_id"]
            assert row["json"]["seed"] == seeds[row["__key__"]]
            yield [row.get("webp") or row["jpg"]], [row["cls"]]

    seeds = {
        key: json.loads(members["json"])["seed"]
        for path in root.glob("*/*.tar")
        for key, members in tars.samples(path.read_bytes())
    }

    loaded = datasets.load_dataset(str(root), streaming=streaming)
    assert sorted(name.replace("_", "-") for name in loaded) == splits(root)
    for name, rows in loaded.items():
        assert seen(pairs(rows)) == truth(root, name.replace("_", "-"))
    files = {"train": str(root / "train" / "*.tar")}
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=streaming)
    assert seen(pairs(rows)) == truth(root, "train")


@pytest.mark.usefixtures("no_cache")
def test_hugging_face_streaming_in_two_workers_gives_every_sample_once(place: Path) -> None:
    import datasets
    import torch

    root = place / "shards/emoji/final/main"
    rows = datasets.load_dataset(str(root), split="train", streaming=True).shuffle(seed=1, buffer_size=100)
    for epoch in range(2):
        rows.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2)
        assert seen(([row["webp"]], [row["cls"]]) for row in loader) == truth(root, "train")


@pytest.mark.usefixtures("no_cache")
def test_the_readme_s_snippets_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    section = README.split("The shards open as they are", 1)[1].split("\n## ", 1)[0]
    values = dict[str, Any]()
    for code in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(code, values)
        if "batches" in values:
            images, class_ids = next(iter(values.pop("batches")))
            assert tuple(images.shape) == (16, 3, 64, 64)
            assert set(class_ids.tolist()) <= set(range(48))
    assert len(values["rows"]) == truth(place / "shards/emoji/final/main", "train").total()


def tiny_resnet() -> Any:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=48, **sizes))


def trained(trainer: type[Any], folder: Path, workers: int, **data: Any) -> list[float]:
    """The losses that a `transformers.Trainer` logs, of 24 steps of a tiny ResNet."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        str(folder), max_steps=24, per_device_train_batch_size=32, learning_rate=1e-2, logging_steps=6,
        dataloader_num_workers=workers, remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
        report_to="none", save_strategy="no",
    )  # fmt: skip
    running = trainer(tiny_resnet(), arguments, **data)
    running.train()
    assert running.state.global_step == 24
    return [row["loss"] for row in running.state.log_history if "loss" in row]


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(("streaming", "workers"), [(False, 0), (True, 2)])
def test_transformers_trainer_learns(place: Path, tmp_path: Path, streaming: bool, workers: int) -> None:
    import datasets
    import torch
    from transformers import Trainer

    def prepared(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in rows["webp"]]
        return {"pixel_values": pixels, "labels": rows["cls"]}

    root = place / "shards/emoji/final/main"
    rows = datasets.load_dataset(str(root), split="train", streaming=streaming)
    if streaming:
        rows = rows.map(prepared, batched=True, remove_columns=rows.column_names).shuffle(seed=0)
    else:
        rows = rows.with_transform(prepared)
    losses = trained(Trainer, tmp_path, workers, train_dataset=rows)
    assert losses[-1] < losses[0] - 0.5


def timm_loader(root: Path, split: str, workers: int, batch_size: int = 10, **training: bool) -> Any:
    """With the values of pixels as they are: no augmentation, no normalizing."""
    import torch
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("wds/any", root=str(root), split=split, batch_size=batch_size, **training)
    return create_loader(
        dataset, (3, 64, 64), batch_size, num_workers=workers, persistent_workers=False, no_aug=True,
        crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1), device=torch.device("cpu"), **training,
    )  # fmt: skip


def test_timm_evaluates_on_every_sample_once(root: Path) -> None:
    """With four workers, also where there are fewer shards."""
    for split in splits(root):
        assert seen(timm_loader(root, split, 4)) == truth(root, split)


def test_timm_trains_on_every_sample(place: Path) -> None:
    """In training each worker has shards of its own; all give as many batches, by reading short ones anew."""
    root = place / "shards/emoji/final/main"
    batches = timm_loader(root, "train", 4, is_training=True)
    for epoch in range(2):
        batches.dataset.set_epoch(epoch)
        assert set(seen(batches)) == set(truth(root, "train"))


def test_timm_wants_no_more_workers_than_shards_to_train(place: Path) -> None:
    """timm's own rule, of which README warns: the epoch ends for all when a worker without a shard has had
    its turns.
    """
    root = place / "shards/emoji-real"
    assert seen(timm_loader(root, "train", 1, is_training=True)) == truth(root, "train")
    assert len(timm_loader(root, "train", 4, is_training=True)) == 48
    assert seen(timm_loader(root, "train", 4, is_training=True)).total() == 120


@pytest.fixture(scope="session")
def older_webdataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the webdataset that open_clip's trainer reads with, beside the one that is installed."""
    folder = tmp_path_factory.mktemp("older")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "0"]
    chosen = ["--timeout", "20", "--no-deps", "--target", str(folder), "webdataset==0.2.86"]
    done = subprocess.run([*pip, *chosen], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"webdataset 0.2.86 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_open_clip_s_own_trainer_learns(place: Path, older_webdataset: Path, tmp_path: Path) -> None:
    """By README's command, but for a tiny model; it counts the samples by sizes.json."""
    pytest.importorskip("pandas", reason="open_clip_train.data imports it")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CLIP))
    script = (
        f"import sys, open_clip; open_clip.add_model_config({str(tmp_path / 'tiny.json')!r})\n"
        "from open_clip_train.main import main; main(sys.argv[1:])"
    )
    command = re.search(r"^PYTHONPATH=\S+ python -m open_clip_train.main (.*?)\n```", README, re.S | re.M)
    assert command
    given = shlex.split(command[1].replace("\\\n", " "))
    small = "--model tiny --device cpu --precision fp32 --batch-size 16 --warmup 5 --lr 2e-3"
    judge = "--val-data shards/emoji-real/validation/00000000.tar --val-frequency 2 --log-every-n-steps 1"
    done = subprocess.run(
        [sys.executable, "-c", script, *given, *small.split(), *judge.split(), "--logs", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(older_webdataset)},
        cwd=place, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"Train Epoch: (\d+) \[ *\d+/(\d+) .* Loss: ([\d.]+) \(", done.stderr)
    samples = truth(place / "shards/emoji/final/main", "train").total()
    assert {int(total) for _, total, _ in steps} == {-(-samples // 32) * 32}  # two workers, batches of 16
    by_epoch = [fmean(float(loss) for epoch, _, loss in steps if int(epoch) == k) for k in range(4)]
    assert by_epoch[-1] < by_epoch[0] - 0.5
    judged = re.findall(r"clip_val_loss: ([\d.]+)\s+epoch: \S+\s+num_samples: (\S+)", done.stderr)
    assert [samples for _, samples in judged] == ["480.0000"] * 2


def test_two_ranks_of_torchrun_share_an_epoch(place: Path, tmp_path: Path) -> None:
    """Of five unequal shards. With "keep" every sample comes once; with "equal" and "drop" both ranks train
    to the end. All have the order of one rank.
    """
    sources = [str(place / "shards" / name) for name in ("emoji/final/main/train", "emoji-real/train")]
    (tmp_path / "ranks.py").write_text(RANKS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "ranks.py"), str(tmp_path), *sources],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = synthgen.open_loader(sources, batch_size=12, fields=("uid",), shuffle=True, seed=3)
    for epoch in range(2):
        steps = [uids for (uids,) in alone]
        total = Counter(uid for uids in steps for uid in uids)
        assert set(total.values()) == {1}
        assert len(total) == sum(truth(Path(path).parent, "train").total() for path in sources)
        kept = itertools.zip_longest(first["keep"][epoch], second["keep"][epoch], fillvalue=[])
        assert [one + other for one, other in kept] == steps
        equal = list(zip(first["equal"][epoch], second["equal"][epoch], strict=True))
        assert all(len(one) == len(other) for one, other in equal)
        assert [one + other for one, other in equal][:-1] == steps[:-1]
        assert sum(len(one) * 2 for one, _ in equal) == len(total) + len(total) % 2
        assert {uid for pair in equal for uids in pair for uid in uids} == set(total)
        dropped = zip(first["drop"][epoch], second["drop"][epoch], strict=True)
        assert [one + other for one, other in dropped] == [uids for uids in steps if len(uids) == 12]
    weights = [[said[f"{last} weights"] for last in ("keep", "equal", "drop")] for said in (first, second)]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 3  # it was trained


def test_transformers_trainer_takes_a_loader(place: Path, tmp_path: Path) -> None:
    """By the class of README."""
    code = re.search(r"```python\n(import transformers\n.*?)```", README, re.S)
    assert code
    split = place / "shards/emoji/final/main/train"
    values: dict[str, Any] = {"loader": synthgen.open_loader(split, batch_size=32, shuffle=True)}
    exec(code[1], values)
    losses = trained(values["Trainer"], tmp_path, workers=0)
    assert losses[-1] < losses[0] - 0.4
    assert values["loader"].epoch == 23 // len(values["loader"])
