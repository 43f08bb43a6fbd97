"""Real images of other people: found, labelled by name, told apart by uid, read; or a line that says why."""

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT
from PIL import Image

from synthgen import sources
from synthgen.errors import RecipeError
from synthgen.prompts.lists import source_classes

EMOJI = ROOT / "shards" / "emoji-real"
HEX = "0123456789abcdef" * 2
RED = (255, 0, 0)


def picture(color: tuple[int, ...] = RED, mode: str = "RGB", kind: str = "PNG", **more: object) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (4, 2), color).save(sink, kind, **more)  # type: ignore[arg-type]
    return sink.getvalue()


def folder(path: Path, *names: str) -> Path:
    """A folder of images of these names, each of another colour."""
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture((number, 0, 0)))
    return path


def archive(path: Path, members: dict[str, bytes], **more: float) -> Path:
    """A tar as Python and webdataset write it: with a time in parts of a second it has extended headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), more.get("mtime", 0)  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
    return path.parent


def test_a_folder_a_class(tmp_path: Path) -> None:
    names = ("cat/a.png", "cat/deep/b.JPG", "owl/a.png", "owl/notes.txt", "loose.png", f"owl/{HEX}.png")
    found = sources.list_images(folder(tmp_path / "real", *names), "real")
    assert [(image.class_name, image.key) for image in found] == [
        ("cat", "cat/a.png"), ("cat", "cat/deep/b.JPG"), ("owl", f"owl/{HEX}.png"), ("owl", "owl/a.png"),
    ]  # fmt: skip
    assert found[2].uid == HEX
    assert len({image.uid for image in found}) == 4
    assert all(len(image.uid) == 32 for image in found)


def test_uids_go_by_name_and_place_not_by_folder_or_bytes(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", "cat/a.png", "owl/b.png")
    other = folder(tmp_path / "other", "owl/b.png", "cat/a.png")  # with the colours exchanged
    uids = [image.uid for image in sources.list_images(one, "real")]
    assert [image.uid for image in sources.list_images(other, "real")] == uids
    assert not {image.uid for image in sources.list_images(one, "train")} & set(uids)


def test_a_name_that_is_there_twice_is_no_uid(tmp_path: Path) -> None:
    found = sources.list_images(folder(tmp_path, f"cat/{HEX}.png", f"owl/{HEX}.png"), "real")
    assert HEX not in {image.uid for image in found}
    assert len({image.uid for image in found}) == 2


def test_a_split_in_tars() -> None:
    names = (EMOJI / "classes.txt").read_text().split("\n")[:48]
    found = sources.list_images(EMOJI / "train", "real")
    assert Counter(image.class_name for image in found) == dict.fromkeys(names, 10)
    assert [category.name for category in source_classes(EMOJI / "train")] == names
    whole = {image.uid: image for image in sources.list_images(EMOJI, "all")}
    assert len(whole) == 1920
    with tarfile.open(EMOJI / "train" / "00000000.tar") as tar:
        for image in found[::97]:
            file, meta = (tar.extractfile(f"{image.uid}.{ending}") for ending in ("jpg", "json"))
            assert file
            assert meta
            assert sources.read(image) == sources.read(whole[image.uid]) == file.read()
            about = json.load(meta)
            assert hashlib.sha256(sources.read(image)).hexdigest() == about["sha256"]
            assert image.class_name == about["class_name"]


def test_other_people_s_tars(tmp_path: Path) -> None:
    long = "a" * 150
    members = {
        "./x/one.v2.cls": b"1", "./x/one.v2.PNG": b"no member of this ending", "two.png": picture(),
        "two.mask.png": b"not the picture", "two.cls": b"0\n", "three.cls": b"0",
        f"{long}.jpeg": picture(kind="JPEG"), f"{long}.cls": b"1",
    }  # fmt: skip
    path = archive(tmp_path / "deep" / "0.tar", members, mtime=1.5).parent
    (path / "classes.txt").write_text("cat\nowl\n")
    found = sources.list_images(path, "real")
    assert [(image.class_name, image.key) for image in found] == [
        ("cat", "deep/0.tar/two"), ("owl", f"deep/0.tar/{long}"),
    ]  # fmt: skip
    assert sources.read(found[0]) == picture()


def test_the_json_says_the_class_where_no_list_does(tmp_path: Path) -> None:
    archive(tmp_path / "0.tar", {"a.png": picture(), "a.json": b'{"class_name": "owl"}', "a.cls": b"7"})
    assert [image.class_name for image in sources.list_images(tmp_path, "real")] == ["owl"]


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not there; a folder of webdataset tars"):
        sources.list_images(tmp_path / "nothing", "real")
    with pytest.raises(RecipeError, match="no labelled images there"):
        sources.list_images(folder(tmp_path / "flat", "a.png"), "real")
    plain = archive(tmp_path / "plain" / "0.tar", {"a.png": picture(), "a.cls": b"1"})
    with pytest.raises(
        RecipeError, match=r"0.tar: a has no class; a .cls with a classes.txt beside the tars"
    ):
        sources.list_images(plain, "real")
    (plain / "classes.txt").write_text("cat\n")
    with pytest.raises(RecipeError, match=r"0.tar: a: cls: no line of classes.txt, 0 to 0"):
        sources.list_images(plain, "real")
    cut = tmp_path / "cut"
    shutil.copytree(EMOJI / "train", cut)
    (cut / "classes.txt").write_text((EMOJI / "classes.txt").read_text())
    (cut / "00000000.tar").write_bytes((EMOJI / "train" / "00000000.tar").read_bytes()[:100_000])
    with pytest.raises(RecipeError, match=r"00000000.tar: cut inside \w+.\w+, \d+ of its \d+ bytes"):
        sources.list_images(cut, "real")


def test_what_goes_after_it_was_listed_is_named(tmp_path: Path) -> None:
    (image,) = sources.list_images(folder(tmp_path, "cat/a.png"), "real")
    (tmp_path / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"real image cat/a\.png is there no more; put it back"):
        sources.read(image)


def colors(image: npt.NDArray[np.uint8] | None) -> set[tuple[int, ...]]:
    assert image is not None
    assert image.dtype == np.uint8
    return {tuple(map(int, pixel)) for pixel in image.reshape(-1, 3)}


def test_pixels() -> None:
    assert colors(sources.decode(picture())) == {RED}
    assert colors(sources.decode(picture((255, 0, 0, 0), "RGBA"))) == {(255, 255, 255)}
    assert colors(sources.decode(picture((0, 128), "LA"))) == {(127, 127, 127)}
    assert colors(sources.decode(picture((9,), "L"))) == {(9, 9, 9)}
    assert colors(sources.decode(picture((0, 0, 0, 0), "CMYK", "TIFF"))) == {(255, 255, 255)}
    frames = [Image.new("RGB", (4, 2), (0, 0, 255))]
    first = sources.decode(picture(kind="GIF", save_all=True, append_images=frames))
    assert colors(first) == {(254, 0, 0)} or colors(first) == {RED}
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = sources.decode(picture(kind="JPEG", exif=turned))
    assert upright is not None
    assert upright.shape == (4, 2, 3)


def test_what_is_damaged_has_no_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG", "WEBP"):
        sink = io.BytesIO()
        Image.fromarray(noise).save(sink, kind)
        assert sources.decode(sink.getvalue()) is not None
        assert sources.decode(sink.getvalue()[:1000]) is None
    assert sources.decode(b"") is None
    assert sources.decode(b"<html>not found</html>") is None
