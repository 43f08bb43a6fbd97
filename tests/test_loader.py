"""The loader: every sample exactly once, in an order of seed and epoch, whatever ranks and workers are."""

import functools
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import synthgen
from synthgen import tars
from synthgen.errors import FolderError
from synthgen.loader import join_classes, open_loader
from synthgen.loader.ordering import BLOCK, group_order, interleaved, pass_order, shares
from synthgen.uids import uid_array

REAL = ROOT / "shards" / "emoji-real"


def picture(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(sink, "PNG")
    return sink.getvalue()


def uid(number: int) -> str:
    return f"{number:032x}"


def write_split(folder: Path, sizes: list[int], first: int = 0, prompts: int = 4) -> Path:
    """A split of numbered samples: class number % 3, prompt number // `prompts`."""
    folder.mkdir(parents=True)
    (folder.parent / "classes.txt").write_text("ant\nbee\ncat\n")
    number, listed = first, {}
    for shard, size in enumerate(sizes):
        name = f"{shard:08d}.tar"
        with open(folder / name, "wb") as file:
            for _ in range(size):
                told = {"uid": uid(number), "prompt_id": f"{number // prompts}", "number": number}
                members = {
                    "png": picture(number),
                    "cls": b"%d" % (number % 3),
                    "txt": f"sample {number}".encode(),
                    "json": json.dumps(told).encode(),
                }
                tars.add_sample(file, uid(number), members)
                number += 1
            tars.finish(file)
        listed[name] = size
    (folder / "sizes.json").write_text(json.dumps(listed))
    return folder


def numbers(loader: object) -> list[list[int]]:
    """The sample numbers of each batch of an epoch; the loader's first field is `number`."""
    return [batch[0].tolist() for batch in loader]  # type: ignore[attr-defined]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("made") / "train", [30, 7, 1, 12])


only = functools.partial(open_loader, fields=("number",))


def test_every_sample_once_an_epoch_over_any_ranks_and_workers(split: Path) -> None:
    whole = only(split, batch_size=12, shuffle=True, seed=3)
    epochs = [flat(numbers(whole)) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1] != list(range(50))
    for ranks, workers in ((1, 0), (2, 2), (3, 0), (4, 0)):
        parts = [
            only(split, batch_size=12 // ranks, shuffle=True, seed=3, rank=rank, world_size=ranks,
                 workers=workers)
            for rank in range(ranks)
        ]  # fmt: skip
        for epoch in epochs:
            batches = [numbers(part) for part in parts]
            assert [len(own) for own in batches] == [len(part) for part in parts]
            steps = [flat(list(step)) for step in zip(*batches, strict=False)]
            assert flat(steps[:4]) == epoch[:48], "each step has the same samples for any ranks"
            assert sorted(flat([flat(own) for own in batches])) == list(range(50))
            sizes = [sum(map(len, own)) for own in batches]
            assert max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from(["keep", "equal", "drop"]),
    st.integers(0, 3),
)
def test_the_last_step_is_kept_made_equal_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], size: int, ranks: int, last: str, epoch: int
) -> None:
    made = write_split(tmp_path_factory.mktemp("any") / "train", sizes)
    total = sum(sizes)
    places = []
    for rank in range(ranks):
        try:
            loader = open_loader(
                made, batch_size=size, shuffle=True, rank=rank, world_size=ranks, last=last  # type: ignore[arg-type]
            )  # fmt: skip
        except FolderError as error:
            assert total < size * ranks, error  # noqa: PT017
            return
        own = list(loader.plan.batches(epoch))
        assert len(own) == len(loader)
        places.append([int(place) for batch in own for place in batch[:, 1]])
    every = Counter(place for own in places for place in own)
    counts = [len(own) for own in places]
    if last == "keep":
        assert every == Counter(range(total))
        assert max(counts) - min(counts) <= 1
    elif last == "equal":
        assert set(every) == set(range(total))
        assert len(set(counts)) == 1
        assert sum(every.values()) - total < ranks
    else:
        assert set(counts) == {total // (size * ranks) * size}
        assert set(every.values()) == {1}


def test_orders_are_whole_and_come_from_everywhere() -> None:
    sizes = [1000, 3, 2500]
    order = pass_order(sizes, np.random.default_rng(0), 100)
    assert sorted(order.tolist()) == list(range(3503))
    assert len({int(k) // BLOCK for k in order[:100]}) <= 3, "a window reads few blocks"
    assert pass_order(sizes, None, 100).tolist() == list(range(3503))
    few = pass_order(sizes, np.random.default_rng(0), 10_000)
    assert abs(np.corrcoef(few, np.arange(3503))[0, 1]) < 0.1


def test_sources_are_mixed_by_weight_in_every_batch_and_tagged(tmp_path: Path) -> None:
    real = write_split(tmp_path / "a" / "train", [10])
    synth = write_split(tmp_path / "b" / "train", [60], first=100)
    loader = only(
        {"real": real, "synth": synth}, batch_size=8, weights={"real": 3, "synth": 1}, shuffle=True,
        fields=("number", "source"), samples_per_epoch=40,
    )  # fmt: skip
    seen = []
    for _ in range(6):
        for values, source in loader:
            assert [int(number >= 100) for number in values] == source.tolist()
            assert Counter(source.tolist()) == {0: 6, 1: 2}
            seen += values.tolist()
    assert loader.sources == ["real", "synth"]
    assert loader.counts == {"real": 180, "synth": 60}
    counts = Counter(seen)
    assert {counts[k] for k in range(10)} == {18}, "30 an epoch are three whole passes"
    assert {counts[100 + k] for k in range(60)} == {1}, "10 an epoch: one pass in six epochs"


def test_a_source_is_repeated_whole_times(tmp_path: Path) -> None:
    real = write_split(tmp_path / "a" / "train", [5])
    synth = write_split(tmp_path / "b" / "train", [20], first=100)
    for workers in (0, 2):
        loader = only(
            {"real": real, "synth": synth}, batch_size=9, repeat={"real": 4}, shuffle=True, workers=workers
        )
        for _ in range(2):
            assert Counter(flat(numbers(loader))) == dict.fromkeys(range(5), 4) | {
                100 + k: 1 for k in range(20)
            }


def test_shares_and_interleaving_add_up() -> None:
    assert shares([3, 1], 10) == [8, 2] or shares([3, 1], 10) == [7, 3]
    assert sum(shares([1, 1, 1], 100)) == 100
    mixed = interleaved([30, 10])
    for start in range(0, 40, 4):
        assert Counter(mixed[start : start + 4].tolist()) == {0: 3, 1: 1}


@pytest.mark.parametrize(
    "counts", [[300, 100], [100, 60, 40], [10, *[1] * 8], [300, *[20] * 10], [480, 48, 48]]
)
def test_any_stretch_has_of_each_source_its_part_give_or_take_one(counts: list[int]) -> None:
    mixed = interleaved(counts)
    for number, count in enumerate(counts):
        had = np.concatenate([[0], np.cumsum(mixed == number)])
        ahead = had - np.arange(len(mixed) + 1) * count / len(mixed)
        assert ahead.max() - ahead.min() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_in_the_middle_of_an_epoch_on_other_ranks(split: Path, workers: int) -> None:
    whole = only(split, batch_size=6, shuffle=True, seed=5)
    expected = [flat(numbers(whole)) for _ in range(2)]
    first = [
        only(split, batch_size=6, shuffle=True, seed=5, rank=k, world_size=2, workers=workers) for k in (0, 1)
    ]
    seen = []
    for _ in range(2):
        iterators = [iter(loader) for loader in first]
        seen = [next(iterator)[0].tolist() for _ in range(2) for iterator in iterators]
    states = [loader.state_dict() for loader in first]
    assert states[0] == states[1] | {"counts": states[0]["counts"]}
    state = json.loads(json.dumps(states[0]))
    assert state["consumed"] == 24
    assert state["epoch"] == 1
    later = [
        only(split, batch_size=5, shuffle=True, seed=5, rank=k, world_size=3, workers=workers)
        for k in range(3)
    ]
    rest = []
    for loader in later:
        loader.load_state_dict(state)
        rest.append(numbers(loader))
    assert sorted(flat(seen) + flat([flat(own) for own in rest])) == list(range(50))
    assert flat(seen) == expected[1][:24]
    assert rest[0][0] + rest[1][0] + rest[2][0] == expected[1][24:39]
    assert sorted(flat(numbers(later[0]))) != list(range(50)), "then comes a rank's part of the next epoch"


def test_a_state_of_another_order_is_one_line(split: Path) -> None:
    state = only(split, batch_size=6, shuffle=True, seed=5).state_dict()
    with pytest.raises(
        FolderError, match=r"the loader's state: seed was 5, and is 6; open the loader as it was"
    ):
        only(split, batch_size=6, shuffle=True, seed=6).load_state_dict(state)
    done = only(split, batch_size=50, seed=6)
    list(done)
    again = only(split, batch_size=50, seed=6)
    again.load_state_dict(done.state_dict())
    assert again.epoch == 1
    assert len(list(again)) == 1


def test_a_subset_is_applied_while_loading(
    split: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = [3, 4, 4, 4, 31, 37, 49, 1000]
    np.save(tmp_path / "few.npy", uid_array(sorted(uid(number) for number in listed)))
    with caplog.at_level(logging.WARNING):
        loader = only(split, batch_size=3, subset=tmp_path / "few.npy")
    assert flat(numbers(loader)) == listed[:-1]
    assert "1 of its 6 uids are not in" in caplog.text
    np.save(tmp_path / "none.npy", uid_array([uid(1000)]))
    with pytest.raises(FolderError, match="lists 1 uids, and none is in the 50 samples"):
        only(split, batch_size=3, subset=tmp_path / "none.npy")


def test_a_run_is_read_from_its_pool_with_a_subset_by_name(emoji_run: Path) -> None:
    loader = open_loader(emoji_run, subset="main", batch_size=64, fields=("uid", "class_id", "axis_style"))
    read = [pair for uids, labels, _ in loader for pair in zip(uids, labels.tolist(), strict=True)]
    expected = []
    for part in ("train", "val"):
        final = open_loader(
            emoji_run / "final" / "main" / part, batch_size=64, fields=("uid", "class_id"), workers=2
        )
        expected += [pair for uids, labels in final for pair in zip(uids, labels.tolist(), strict=True)]
    assert sorted(read) == sorted(expected)
    assert len(loader.class_names) == 48
    with pytest.raises(FolderError, match="no subset best; it has main"):
        open_loader(emoji_run, subset="best", batch_size=64)


def test_an_imported_pool_is_read_where_it_lies(split: Path, tmp_path: Path) -> None:
    root = synthgen.bring([split], tmp_path / "pool", workers=1)
    loader = open_loader(root, batch_size=7, fields=("image", "class_id", "text", "number"))
    seen = []
    for images, labels, texts, values in loader:
        assert (images[:, 2] * 255 == 7).all()
        assert labels.tolist() == [number % 3 for number in values]
        assert texts == [f"sample {number}" for number in values]
        seen += values.tolist()
    assert sorted(seen) == list(range(50))


def test_an_imported_pool_says_what_importing_has_settled(tmp_path: Path) -> None:
    """Not what its sources' own members say: another column is label, or caption; they have uids."""
    (tmp_path / "web").mkdir()
    with open(tmp_path / "web" / "0.tar", "wb") as file:
        for k in range(6):
            told = {"coarse": k % 2, "caption": f"better {k}", "uid": f"img-{k}", "number": k}
            members = {"bmp": picture(k), "cls": b"%d" % (10 + k), "txt": b"alt text",
                       "json": json.dumps(told).encode()}  # fmt: skip
            tars.add_sample(file, f"{k:06d}", members)
        tars.finish(file)
    columns = ["class_id=coarse", "text=caption"]
    root = synthgen.bring([tmp_path / "web"], tmp_path / "pool", columns=columns, workers=1)
    rows = pq.read_table(root / "pool" / "00000000.parquet").to_pylist()
    fields = ("number", "class_id", "text", "uid", "image", "caption")
    ((found, labels, texts, uids, images, captions),) = open_loader(root, batch_size=6, fields=fields)
    by_number = {row["number"]: row for row in rows}
    assert sorted(found.tolist()) == list(range(6))
    for k, label, text, own, caption in zip(found.tolist(), labels, texts, uids, captions, strict=True):
        assert (int(label), text, own) == (k % 2, f"better {k}", by_number[k]["uid"])
        assert caption == text
    assert images.shape == (6, 3, 8, 8)
    copied = synthgen.bring([tmp_path / "web"], tmp_path / "copied", columns=columns, copy=True, workers=1)
    (tmp_path / "curate.toml").write_text('name = "web"\n[reshard]\nsplit = { train = 1.0 }\n')
    final = synthgen.run(tmp_path / "curate.toml", root, workers=1) / "final" / "main" / "train"
    for again in (copied, final):
        loader = open_loader(again, batch_size=6, fields=("number", "cls", "txt", "class_id", "caption"))
        ((found, numbers, texts, labels, captions),) = loader
        assert labels.tolist() == [int(text) for text in numbers] == [k % 2 for k in found.tolist()]
        assert texts == captions


@pytest.mark.parametrize("copy", [False, True])
def test_labels_that_are_names_are_read(tmp_path: Path, copy: bool) -> None:
    (tmp_path / "web").mkdir()
    with open(tmp_path / "web" / "0.tar", "wb") as file:
        for k in range(4):
            tars.add_sample(file, f"{k:06d}", {"png": picture(k), "cls": [b"dog", b"cat"][k % 2]})
        tars.finish(file)
    root = synthgen.bring([tmp_path / "web"], tmp_path / "pool", copy=copy, workers=1)
    loader = open_loader(root, batch_size=4)
    ((images, labels),) = loader
    for image, label in zip(images, labels.tolist(), strict=True):
        number = round(float(image[0, 0, 0]) * 255)
        assert loader.class_names[label] == ["dog", "cat"][number % 2]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    ((_, labels),) = open_loader(tmp_path / "web", batch_size=4)
    assert labels.tolist() == [1, 0, 1, 0]


def test_globs_braces_and_tars_are_sources(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flat(numbers(only(str(split / "*.tar"), batch_size=8))) == list(range(50))
    assert flat(numbers(only(str(split / "0000000{2..3}.tar"), batch_size=8))) == list(range(37, 50))
    assert flat(numbers(only([split / "00000002.tar", split / "00000000.tar"], batch_size=8))) == [
        37,
        *range(30),
    ]
    with pytest.raises(FolderError, match="no file is called so"):
        only(str(split / "*.tgz"), batch_size=8)


@pytest.fixture
def site(split: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(split))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


def test_urls_are_fetched_once(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGEN_CACHE", str(tmp_path))
    urls = f"{site}/{{00000000..00000003}}.tar"
    only(urls, batch_size=8).state_dict()
    assert not list(tmp_path.rglob("*.tar")), "none is fetched before it is read"
    assert flat(numbers(only(urls, batch_size=8, workers=2))) == list(range(50))
    assert not list(tmp_path.rglob("*.part"))
    assert len(list(tmp_path.rglob("*.tar"))) == 4
    with pytest.raises(FolderError, match=r"00000009.tar: cannot be fetched \(HTTP Error 404"):
        list(only(f"{site}/00000009.tar", batch_size=8))
    with pytest.raises(FolderError, match=r"URLs of \.tar files are wanted"):
        only(f"{site}/", batch_size=8)


def damage(folder: Path) -> dict[str, str]:
    """Damages some samples of the first shards; the keys, and what is to be said of each."""
    path = folder / "00000000.tar"
    data = bytearray(path.read_bytes())
    members = {member.name: member for member in tars.index(bytes(data))}
    image = members[f"{uid(2)}.png"]
    data[image.offset + 20 : image.offset + image.size] = b"\0" * (image.size - 20)
    label = members[f"{uid(5)}.cls"]
    data[label.offset : label.offset + 1] = b"x"
    cut = members[f"{uid(28)}.txt"].offset - 512 - 700
    path.write_bytes(data[:cut])
    return {
        uid(2): "image does not decode",
        uid(5): "no class id: a member .cls or class_id in its json is wanted",
        "row 28": "cut ",
        "row 29": "cut ",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_damaged_is_skipped_counted_and_named(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = write_split(tmp_path / "train", [30, 7])
    said = damage(made)
    loader = only(made, batch_size=10, fields=("number", "image", "class_id"), workers=workers)
    for epoch in range(2):
        with caplog.at_level(logging.WARNING):
            seen = flat(numbers(loader))
        assert len(seen) == 37 - len(said)
        assert {one.key: count for one, count in loader.skipped.items()} == dict.fromkeys(said, epoch + 1)
    for one in loader.skipped:
        assert one.reason.startswith(said[one.key])
        assert one.shard == str(made / "00000000.tar")
        assert caplog.text.count(f"{one.shard}: sample {one.key} skipped: {one.reason}") == 1
    equal = only(made, batch_size=10, fields=("number", "image", "class_id"), last="drop")
    assert [len(batch) for batch in numbers(equal)] == [10, 10, 10], "whole batches stay whole"
    assert sum(equal.skipped.values()) > 0


def test_a_damaged_shard_that_nobody_has_counted_is_named(tmp_path: Path) -> None:
    made = write_split(tmp_path / "train", [30, 7])
    damage(made)
    (made / "sizes.json").unlink()
    (made / "00000002.tar").write_bytes(b"<html>no such file</html>" * 40)
    loader = only(made, batch_size=10)
    assert sorted(flat(numbers(loader))) == [*range(28), *range(30, 37)]
    assert {(Path(one.shard).name, one.key) for one in loader.skipped} == {
        ("00000000.tar", "row 28"), ("00000002.tar", "row 0"),
    }  # fmt: skip


def test_one_of_the_same_prompt_takes_the_place_of_a_skipped_sample(tmp_path: Path) -> None:
    made = write_split(tmp_path / "train", [32])
    path = made / "00000000.tar"
    data = bytearray(path.read_bytes())
    image = {member.name: member for member in tars.index(bytes(data))}[f"{uid(1)}.png"]
    data[image.offset : image.offset + image.size] = b"\0" * image.size
    path.write_bytes(data)
    loader = only(made, batch_size=8, positives=4, last="drop", fields=("number", "positive", "image"))
    for found, positive, _ in loader:
        assert 1 not in found
        assert [len(set(own.tolist())) for own in positive.reshape(-1, 4)] == [1, 1]
        assert (found // 4 == positive).all()
    assert loader.skipped.total() == 1


def test_samples_of_one_prompt_share_a_number_wherever_they_are(split: Path) -> None:
    for found, positive in only(split, batch_size=10, shuffle=True, fields=("number", "positive")):
        assert (found // 4 == positive).all()


def test_no_readable_sample_is_an_error_where_batches_must_be_whole(tmp_path: Path) -> None:
    made = write_split(tmp_path / "train", [30])
    data = (made / "00000000.tar").read_bytes()
    (made / "00000000.tar").write_bytes(data[:100])
    with pytest.raises(synthgen.SynthgenError, match="no sample of a batch can be read"):
        list(only(made, batch_size=10, last="equal"))
    loader = only(made, batch_size=10)
    assert list(loader) == []
    assert len(loader.skipped) == 30
    (made / "00000000.tar").unlink()
    with pytest.raises(FolderError, match="no \\.tar shards there"):
        only(made, batch_size=10)


def test_images_of_one_prompt_come_together(tmp_path: Path) -> None:
    made = write_split(tmp_path / "train", [30, 7, 1, 12], prompts=5)  # 10 prompts of 5
    loader = only(made, batch_size=8, positives=2, shuffle=True, fields=("number", "positive"))
    left = Counter[int]()
    for _ in range(4):
        seen = []
        for values, positive in loader:
            pairs = values.reshape(-1, 2)
            assert (pairs[:, 0] // 5 == pairs[:, 1] // 5).all()
            assert (positive.reshape(-1, 2)[:, 0] == positive.reshape(-1, 2)[:, 1]).all()
            assert len(set(positive.tolist())) == len(set((values // 5).tolist()))
            seen += values.tolist()
        assert len(seen) == len(set(seen)) == 40, "two pairs of each five"
        left.update(set(range(50)) - set(seen))
    assert len(left) > 20, "others are left over each time"
    with pytest.raises(FolderError, match="no prompt has 6 images"):
        only(made, batch_size=12, positives=6)
    with pytest.raises(FolderError, match="a multiple of positives, which is 2"):
        only(made, batch_size=9, positives=2)


def test_group_order_is_exact() -> None:
    rng = np.random.default_rng(0)
    ties = rng.integers(0, 40, 300)
    rows = group_order(ties, 4, rng)
    assert (ties[rows] == ties[rows][:, :1]).all()
    assert len(set(rows.ravel().tolist())) == rows.size
    assert len(rows) == sum(count // 4 for count in Counter(ties.tolist()).values())


def test_pictures_masks_and_boxes_move_together() -> None:
    fields = ("image", "mask", "target", "class_id")
    plain = next(iter(open_loader(REAL / "validation", batch_size=8, fields=fields)))
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True)])
    turned = next(iter(open_loader(REAL / "validation", batch_size=8, fields=fields, transform=flip)))
    for k in range(8):
        assert turned[0][k].allclose(plain[0][k].flip(-1))
        assert torch.equal(turned[1][k], plain[1][k].flip(-1))
        target, other = plain[2][k], turned[2][k]
        assert target["labels"].tolist() == [int(plain[3][k])]
        x0, y0, x1, y1 = map(int, target["boxes"][0])
        assert plain[1][k][y0:y1, x0:x1].sum() == plain[1][k].sum() > 0
        assert [float(v) for v in other["boxes"][0]] == [64 - x1, y0, 64 - x0, y1]
        assert torch.equal(torch.as_tensor(target["masks"][0]).long(), plain[1][k])
    assert plain[1].dtype == torch.int64


def test_detection_targets_of_an_imported_coco_file(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    for k in range(2):
        (tmp_path / "coco" / f"{k}.png").write_bytes(picture(k))
    told = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 8, "height": 8} for k in range(2)],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64},
            {"id": 3, "image_id": 1, "category_id": 2, "bbox": [4, 4, 2, 2], "area": 4},
        ],
    }
    (tmp_path / "coco" / "instances.json").write_text(json.dumps(told))
    root = synthgen.bring([tmp_path / "coco" / "instances.json"], tmp_path / "pool", workers=1)
    loader = open_loader(root, batch_size=2, fields=("image", "target"))
    _, targets = next(iter(loader))
    ids = {name: k for k, name in loader.class_names.items()}
    found = [(t["boxes"].tolist(), t["labels"].tolist()) for t in targets]
    assert found == [
        ([[1, 2, 4, 6], [0, 0, 8, 8]], [ids["bee"], ids["ant"]]),
        ([[4, 4, 6, 6]], [ids["bee"]]),
    ]


def test_captions_go_through_a_tokenizer(split: Path) -> None:
    import open_clip

    loader = open_loader(
        split,
        batch_size=5,
        fields=("image", "text"),
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
        workers=1,
    )
    images, tokens = next(iter(loader))
    assert images.shape == (5, 3, 8, 8)
    assert tokens.shape == (5, 77)
    assert len({tuple(row) for row in tokens.tolist()}) == 5


def noisy(image: torch.Tensor) -> torch.Tensor:
    return torch.rand(2) + image.float().mean()


def test_augmentation_is_a_function_of_seed_and_epoch(split: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    keys = {"batch_size": 10, "fields": ("image", "number"), "transform": noisy, "shuffle": True}
    one = open_loader(split, **keys)  # type: ignore[arg-type]
    two = [
        open_loader(split, **keys | {"batch_size": 5}, rank=k, world_size=2, workers=2)  # type: ignore[arg-type]
        for k in (0, 1)
    ]
    draws = []
    for _ in range(2):
        drawn = {int(n): v for image, number in one for n, v in zip(number, image, strict=True)}
        other = {
            int(n): v for own in two for image, number in own for n, v in zip(number, image, strict=True)
        }
        assert drawn.keys() == other.keys()
        assert all(torch.equal(drawn[k], other[k]) for k in drawn)
        draws.append(drawn)
    assert not any(torch.equal(draws[0][k], draws[1][k]) for k in draws[0])
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is left as it was"


def test_a_batch_is_mixed_up(split: Path) -> None:
    for workers in (0, 1):
        loader = open_loader(
            split, batch_size=10, batch_transform=v2.CutMix(num_classes=3), workers=workers, shuffle=True
        )
        images, labels = next(iter(loader))
        assert labels.shape == (10, 3)
        assert labels.sum(1).allclose(torch.ones(10))
        again = next(
            iter(open_loader(split, batch_size=10, batch_transform=v2.CutMix(num_classes=3), shuffle=True))
        )
        assert torch.equal(again[0], images)


def test_other_fields_are_keys_and_members(emoji_run: Path) -> None:
    final = emoji_run / "final" / "main" / "train"
    loader = open_loader(final, batch_size=4, fields=("seed", "axis_style", "txt", "json", "source"))
    seeds, styles, texts, told, source = next(iter(loader))
    assert seeds.dtype == torch.int64
    assert [one["seed"] for one in told] == seeds.tolist()
    assert [one["text"] for one in told] == texts
    assert [one["axis_style"] for one in told] == styles
    assert source.tolist() == [0] * 4
    empty = open_loader(final, batch_size=4, fields=("nothing",))
    assert list(empty) == []
    assert {one.reason for one in empty.skipped} == {'no "nothing": neither a member nor a key of its json'}


def test_a_loader_can_be_sent_to_another_process(split: Path) -> None:
    loader = only(split, batch_size=50)
    list(loader)
    assert flat(numbers(pickle.loads(pickle.dumps(loader.reader)).__class__ and loader)) == list(range(50))
    copy = pickle.loads(pickle.dumps(loader.reader))
    assert copy.__getitems__(next(only(split, batch_size=3).plan.batches(0))).fields[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 0}, r"batch_size: got 0"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, r"rank: got 2 of 2; from 0 to 1 is allowed"),
        (
            {"batch_size": 4, "weights": {"rael": 1}},
            r'weights: no source is called "rael"; did you mean "real"\?',
        ),
        ({"batch_size": 4, "weights": {"real": 1}}, r"weights: synth has none"),
        ({"batch_size": 4, "weights": {"real": 1, "synth": 1}, "repeat": {"real": 2}}, r"weights and repeat"),
        ({"batch_size": 4, "repeat": {"real": 0}}, r'repeat: "real" is 0'),
        ({"batch_size": 4, "samples_per_epoch": 9}, r"samples_per_epoch: goes with weights"),
        (
            {"batch_size": 4, "batch_transform": max},
            r"batch_transform: takes image and class_id, and fields are",
        ),
        ({"batch_size": 4, "workers": -1}, r"workers: got -1; a whole number from 0"),
        ({"batch_size": 4, "seed": -1}, r"seed: got -1"),
        ({"batch_size": 4, "shuffle": -5}, r"shuffle: got -5"),
        ({"batch_size": 4, "last": "foo"}, r'last: got "foo"; one of keep, equal, drop'),
        ({"batch_size": 4, "weights": {"real": 1, "synth": float("inf")}}, r"weights: synth has none"),
        (
            {"batch_size": 4, "weights": {"real": 300, "synth": 1}, "samples_per_epoch": 100},
            r"an epoch of 100 samples has none of synth; 301 samples_per_epoch have each",
        ),
        (
            {"batch_size": 4, "fields": ("image", "mask"), "reinforcement": "x"},
            r"reinforcement: its views are crops",
        ),
        ({"batch_size": 99, "last": "drop"}, r"20 samples make no batch of 99 on each of 1 ranks"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    made = {name: write_split(tmp_path / name / "train", [10]) for name in ("real", "synth")}
    with pytest.raises(FolderError, match=message) as raised:
        open_loader(made, **{"fields": ("number",)} | keys)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_wrong_sources_are_one_line(tmp_path: Path, split: Path) -> None:
    for sources, message in (
        ([], r"sources: none is named"),
        ([split, split], r"is there twice; `repeat` says how often"),
        (str(split.parent / "*"), r"train is a folder; a pattern of \.tar files is wanted"),
        ("http://127.0.0.1:1/a b.tar", r"cannot be fetched"),
    ):
        with pytest.raises(FolderError, match=message):
            list(only(sources, batch_size=2))
    other = write_split(tmp_path / "other" / "train", [3])
    (other.parent / "classes.txt").write_bytes(b"ant\nb\xe9e\n")
    with pytest.raises(FolderError, match="byte 5 is not UTF-8"):
        only(other, batch_size=2)


def test_images_of_several_sizes_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    with open(folder / "0.tar", "wb") as file:
        for k in (8, 9):
            sink = io.BytesIO()
            Image.new("RGB", (k, k)).save(sink, "PNG")
            tars.add_sample(file, uid(k), {"png": sink.getvalue(), "cls": b"0"})
        tars.finish(file)
    for workers in (0, 1):
        with pytest.raises(FolderError, match=r"shapes \(3, 8, 8\) and \(3, 9, 9\) make no batch") as raised:
            list(open_loader(folder, batch_size=2, workers=workers))
        assert "\n" not in str(raised.value)


def test_classes_of_sources_must_agree(tmp_path: Path, split: Path) -> None:
    other = write_split(tmp_path / "other" / "train", [3])
    (other.parent / "classes.txt").write_text("bee\nant\n")
    with pytest.raises(FolderError, match='class id 0 is "bee", elsewhere 1 is "bee"'):
        only([split, other], batch_size=2)
    with pytest.raises(FolderError, match='class id 0 is "bee", elsewhere 1 is "bee"'):
        only({"one": [split, other]}, batch_size=2)
    with pytest.raises(FolderError, match='class id 0 is "bee", elsewhere 1 is "bee"'):
        only([f"{{{split},{other}}}/*.tar"], batch_size=2)
    assert join_classes([split, split]) == {0: "ant", 1: "bee", 2: "cat"}


def test_ranks_come_from_the_environment(split: Path) -> None:
    code = (
        "import sys; from synthgen.loader import open_loader\n"
        "print([b[0].tolist() for b in open_loader(sys.argv[1], batch_size=10, fields=('number',))])"
    )
    seen = []
    for rank in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(split)], capture_output=True, text=True, check=True,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
        )  # fmt: skip
        seen.append(json.loads(done.stdout))
    assert flat(seen[0][:2]) == [*range(10), *range(20, 30)]
    assert sorted(flat(seen[0]) + flat(seen[1])) == list(range(50))


def test_more_samples_than_sizes_json_says_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = write_split(tmp_path / "train", [9])
    (made / "sizes.json").write_text('{"00000000.tar": 6}')
    with caplog.at_level(logging.WARNING):
        assert flat(numbers(only(made, batch_size=4))) == list(range(6))
    assert "9 samples, though sizes.json or its record says 6; the others are not read" in caplog.text


def test_damaged_members_skip_their_sample(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("ant\n")
    (tmp_path / "train").mkdir()
    told = {"boxes": [[0, 0, 1]], "box_objects": ["ant"]}
    with open(tmp_path / "train" / "0.tar", "wb") as file:
        members = {"png": picture(1), "f.npy": b"no array", "cls": b"7", "json": json.dumps(told).encode()}
        tars.add_sample(file, uid(1), members)
        tars.finish(file)
    for field, reason in (
        ("f.npy", "f.npy: "), ("target", "boxes: lists of"), ("mask", "no mask"),
        ("probabilities", "class id 7 is none of the 1 classes"), ("text", "no caption"),
    ):  # fmt: skip
        loader = open_loader(tmp_path / "train", batch_size=1, fields=(field,))
        assert list(loader) == []
        assert next(iter(loader.skipped)).reason.startswith(reason)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(FolderError, match=r"probabilities: no source has a classes\.txt"):
        open_loader(tmp_path / "train", batch_size=1, fields=("probabilities",))


def test_keys_are_named_as_webdataset_names_them(tmp_path: Path) -> None:
    names = ["./a.png", "./a.cls", "v1.0/b.PNG", "v1.0/b.cls", "v1.0/c.png", "v1.0/c.cls", "v1.0/c.cls"]
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "0.tar", "w") as tar:
        for k, name in enumerate(names):
            data = picture(k) if name.lower().endswith("png") else b"%d" % k
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    loader = open_loader(tmp_path / "train", batch_size=9, fields=("uid", "class_id", "image"))
    ((uids, labels, _),) = list(loader)
    assert (uids, labels.tolist()) == (["a", "v1.0/b", "v1.0/c"], [1, 3, 5])
    assert {one.key: one.reason for one in loader.skipped} == {
        "v1.0/c": "no image: a member jpg, jpeg, png, webp, bmp, gif, tif, tiff is wanted"
    }, "a member that is there twice begins another sample"
