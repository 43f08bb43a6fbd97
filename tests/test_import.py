"""Other people's data brought in where it lies: every form, every defect, and what comes of it in the end."""

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, data_digests, killed_until_done
from PIL import Image

import synthgen
from synthgen import pools, shards, sources
from synthgen.cli import main
from synthgen.errors import FolderError, RecipeError, SynthgenError
from synthgen.importing.forms import Keys
from synthgen.inspection import verify
from synthgen.intake import bring

HEX = [hashlib.md5(bytes([k])).hexdigest() for k in range(100)]
ENDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def picture(number: int, kind: str = "JPEG", side: int = 16) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((side, side)).save(sink, kind)
    return sink.getvalue()


def archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def img2dataset(folder: Path, shards_: int = 2, each: int = 4) -> Path:
    """As img2dataset writes it with DataComp's settings: a parquet beside each tar, with what was not had."""
    for number in range(shards_):
        members, rows = list[tuple[str, bytes]](), []
        for k in range(each):
            key, uid = f"{number * 10_000 + k:012d}", HEX[number * each + k]
            told = {
                "uid": uid, "caption": f"a cat, the {number * each + k}th", "url": f"https://x.org/{k}.jpg",
                "key": key, "status": "success", "error_message": None, "width": 16, "height": 16,
                "original_width": 640 + k, "original_height": 480, "exif": "{}", "sha256": "0" * 64,
            }  # fmt: skip
            if k == each - 1 and number == 0:
                told |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
            else:
                members += [
                    (f"{key}.jpg", picture(number * each + k)),
                    (f"{key}.json", json.dumps(told, indent=4).encode()),
                    (f"{key}.txt", str(told["caption"]).encode()),
                ]
            rows.append(told)
        tar = archive(folder / f"{number:08d}.tar", members)
        pq.write_table(pa.Table.from_pylist(rows), tar.with_suffix(".parquet"))
        tar.with_name(f"{tar.stem}_stats.json").write_text(json.dumps({"successes": len(members) // 3}))
    return folder


def datacomp(folder: Path) -> Path:
    """A pool of DataComp: shards and, in another order, metadata with scores."""
    img2dataset(folder / "shards")
    order = list(reversed(range(10)))
    table = pa.table(
        {
            "uid": [HEX[k] for k in order],
            "text": [f"a cat, the {k}th" for k in order],
            "clip_l14_similarity_score": pa.array([k / 10 for k in order], pa.float32()),
            "face_bboxes": pa.array(
                [[[0.1, 0.2, 0.3, 0.4]][: k % 2] for k in order], pa.list_(pa.list_(pa.float64()))
            ),
        }
    )
    (folder / "metadata").mkdir()
    for k in range(2):
        pq.write_table(table.slice(5 * k, 5), folder / "metadata" / f"{HEX[50 + k]}.parquet")
    return folder


def webdataset(folder: Path, shards_: int = 2, each: int = 4, kind: str = "PNG") -> Path:
    """Plain: keys that are no uids, labels without names."""
    for number in range(shards_):
        members = []
        for k in range(each):
            key = f"s{number}/{k:04d}"
            members += [
                (f"{key}.{ENDS[kind]}", picture(number * each + k, kind)),
                (f"{key}.cls", b"%d" % (k % 3)),
            ]
        archive(folder / f"{number:06d}.tar", members)
    return folder


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def waterbirds(folder: Path) -> Path:
    images(folder, *(f"001.albatross/{k}.jpg" for k in range(6)))
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
        for k in range(6):
            table.writerow([k, f"001.albatross/{k}.jpg", k % 2, k % 3, k // 3, "/o/ocean/1.jpg"])
    return folder / "metadata.csv"


def coco(folder: Path) -> Path:
    images(folder / "val2017", *(f"{k:012d}.jpg" for k in range(3)))
    told = {
        "images": [{"id": k, "file_name": f"{k:012d}.jpg", "license": 4} for k in range(3)],
        "licenses": [{"id": 4, "name": "CC BY 2.0"}],
        "categories": [{"id": 3, "name": "car"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"image_id": 0, "category_id": 3, "area": 60.0, "bbox": [0, 0, 6, 10], "iscrowd": 0},
            {"image_id": 0, "category_id": 17, "area": 50.0, "bbox": [1, 1, 5, 10], "iscrowd": 0},
            {"image_id": 0, "category_id": 17, "area": 20.0, "bbox": [8, 8, 2, 10], "iscrowd": 0},
            {"image_id": 1, "category_id": 3, "area": 1.0, "bbox": [0, 0, 1, 1], "iscrowd": 0},
            {"image_id": 1, "category_id": 17, "area": 99.0, "bbox": [0, 0, 9, 11], "iscrowd": 1},
        ],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(told))
    return folder / "annotations" / "instances_val2017.json"


def rows(root: Path) -> list[dict[str, Any]]:
    found = [pq.read_table(path) for path in sorted(root.glob("pool/*.parquet"))]
    return [row for table in found for row in table.to_pylist()]


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_datacomp_and_img2dataset(tmp_path: Path) -> None:
    source = datacomp(tmp_path / "pool")
    before = tree(source)
    root = bring([source], tmp_path / "out", columns=["similarity=clip_l14_similarity_score"], workers=1)
    found = rows(root)
    assert [row["uid"] for row in found if not row["error"]] == [HEX[k] for k in (0, 1, 2, 4, 5, 6, 7)]
    (failed,) = [row for row in found if row["error"]]
    assert (failed["error"], failed["key"]) == ("HTTP Error 404: Not Found", "000000000003")
    one = next(row for row in found if row["uid"] == HEX[5])
    assert one["text"] == "a cat, the 5th"
    assert (one["original_width"], one["original_height"], one["width"]) == (641, 480, 16)
    assert one["similarity"] == np.float32(0.5)
    assert one["face_bboxes"] == [[0.1, 0.2, 0.3, 0.4]]
    assert one["url"] == "https://x.org/1.jpg"
    assert one["sha256"] == hashlib.sha256(picture(5)).hexdigest()
    assert one["data_sha256"] == "0" * 64
    assert (one["source"], one["file"], one["class_id"]) == ("pool", "shards/00000001.tar", None)
    kinds = {field.name: str(field.type) for field in pq.read_schema(root / "pool" / "00000000.parquet")}
    assert kinds["similarity"] == "float"
    assert [member["suffix"] for member in one["members"]] == ["jpg", "json", "txt"]
    tar = (source / one["file"]).read_bytes()
    for member, data in zip(one["members"], (picture(5), None, b"a cat, the 5th"), strict=True):
        held = tar[member["offset"] : member["offset"] + member["size"]]
        assert data is None or held == data
    assert tree(source) == before
    made = {path.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file()}
    assert {path.suffix for path in root.rglob("*.*") if path.is_file()} == {".parquet", ".json"}
    assert made == {"pool", "sources"}
    assert verify(root) == []


@pytest.mark.parametrize("kind", ENDS)
def test_a_plain_webdataset(tmp_path: Path, kind: str) -> None:
    root = bring([webdataset(tmp_path / "web", kind=kind)], tmp_path / "out", workers=1)
    found = rows(root)
    assert [(row["class_id"], row["class_name"]) for row in found[:4]] == [
        (0, "0"),
        (1, "1"),
        (2, "2"),
        (0, "0"),
    ]
    assert [row["key"] for row in found[3:6]] == ["s0/0003", "s1/0000", "s1/0001"]
    assert [row["uid"] for row in found] == [
        sources.uid_of("web", f"{row['file']}/{row['key']}") for row in found
    ]
    assert {(row["original_width"], row["text"], row["error"]) for row in found} == {(16, None, None)}
    moved = tmp_path / "elsewhere" / "web"
    shutil.copytree(tmp_path / "web", moved)
    assert [row["uid"] for row in rows(bring([moved], tmp_path / "again", workers=1))] == [
        row["uid"] for row in found
    ]
    other = rows(bring([moved], tmp_path / "other", name="other", workers=1))
    assert not {row["uid"] for row in other} & {row["uid"] for row in found}


def test_our_own_final_shards(tmp_path: Path) -> None:
    """With classes.txt, json and uids, in splits: the same samples under the same uids."""
    root = bring([ROOT / "shards" / "emoji-real"], tmp_path / "out", workers=1)
    found = rows(root)
    assert len(found) == 1920
    assert Counter(row["split"] for row in found) == {
        "train": 480, "validation": 480, None: 960,
    }  # fmt: skip
    named = (ROOT / "shards" / "emoji-real" / "classes.txt").read_text().split("\n")
    assert all(named[row["class_id"]] == row["class_name"] for row in found)
    assert all(row["uid"] == row["key"] for row in found)
    listed = sources.list_images(ROOT / "shards" / "emoji-real", "emoji_real")
    assert {image.uid: (image.offset, image.size) for image in listed} == {
        row["uid"]: (row["image_offset"], row["image_bytes"]) for row in found
    }


def test_a_folder_of_images_with_splits(tmp_path: Path) -> None:
    names = ("train/owl/a.jpg", "train/cat/deep/b.jpg", "val/cat/c.jpg", f"val/owl/{HEX[0]}.jpg")
    source = images(tmp_path / "birds", *names)
    (source / "LICENSE").write_text("MIT License\n")
    found = {row["key"]: row for row in rows(bring([source], tmp_path / "out", workers=1))}
    assert {key: (row["split"], row["class_id"], row["class_name"]) for key, row in found.items()} == {
        names[0]: ("train", 1, "owl"), names[1]: ("train", 0, "cat"),
        names[2]: ("val", 0, "cat"), names[3]: ("val", 1, "owl"),
    }  # fmt: skip
    assert found[names[3]]["uid"] == HEX[0]
    assert {row["license"] for row in found.values()} == {"mit"}
    flat = images(tmp_path / "flat", "train/a.jpg", "b.jpg", "7/c.jpg")
    assert {row["key"]: row["class_name"] for row in rows(bring([flat], tmp_path / "two", workers=1))} == {
        "7/c.jpg": "7", "b.jpg": None, "train/a.jpg": "train",
    }  # fmt: skip
    numbered = images(tmp_path / "digits", "10/a.jpg", "2/b.jpg")
    ids = {
        row["class_name"]: row["class_id"] for row in rows(bring([numbered], tmp_path / "three", workers=1))
    }
    assert ids == {"10": 10, "2": 2}


def test_links_to_folders_end(tmp_path: Path) -> None:
    source = images(tmp_path / "birds", "cat/a.jpg")
    (source / "cat" / "up").symlink_to("..")
    (source / "cat" / "here").symlink_to(".")
    (source / "owl").symlink_to("cat")
    (source / "far").symlink_to(images(tmp_path / "far", "b.jpg"))
    found = rows(bring([source], tmp_path / "out", workers=1))
    assert [row["file"] for row in found] == ["cat/a.jpg", "far/b.jpg", "owl/a.jpg"]


def test_hidden_copies_are_no_samples(tmp_path: Path) -> None:
    source = images(
        tmp_path / "birds", "owl/a.jpg", "owl/.ipynb_checkpoints/a.jpg", ".trash/b.jpg", "owl/._a.jpg"
    )
    assert [row["file"] for row in rows(bring([source], tmp_path / "out", workers=1))] == ["owl/a.jpg"]


@pytest.mark.parametrize("workers", [1, 2])
def test_images_beside_tars_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    apart = images(webdataset(tmp_path / "apart"), "more/cat/b.jpg", "more/dog/a.png", "more/dog/c.JPG")
    among = images(webdataset(tmp_path / "among"), "x.webp", "more/a.jpg")
    for source, told in (
        (
            apart,
            "3 images that lie beside its tars were passed over (2 jpg, 1 png; first more/cat/b.jpg); "
            f"`synthgen import {apart}/more -o {tmp_path}/out` brings them in",
        ),
        (
            among,
            "2 images that lie beside its tars were passed over (1 jpg, 1 webp; first x.webp); "
            "move them into a folder without tars, and import that by itself",
        ),
    ):
        caplog.clear()
        with caplog.at_level("WARNING", "synthgen"):
            root = bring([source], tmp_path / "out", workers=workers)
        assert caplog.messages == [f"{source}: {told}"]
    assert len(rows(root)) == 16
    caplog.clear()
    bring([apart / "more"], root, workers=1)
    assert [row["class_name"] for row in rows(root)[16:]] == ["cat", "dog", "dog"]
    assert caplog.messages == []


def test_what_was_downloaded_and_is_not_in_the_tar(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "web", shards_=1)
    tar = source / "00000000.tar"
    with tarfile.open(tar) as whole:
        first = [(one.name, whole.extractfile(one).read()) for one in whole.getmembers()[:3]]  # type: ignore[union-attr]
    archive(tar, first)
    errors = [row["error"] for row in rows(bring([source], tmp_path / "out", workers=1))]
    assert sorted(errors, key=str) == ["HTTP Error 404: Not Found", None, "not in the tar", "not in the tar"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_as_waterbirds_is_published(tmp_path: Path, kind: str) -> None:
    path = waterbirds(tmp_path / "birds")
    table = pa.csv.read_csv(path)
    if kind == "tsv":
        pa.csv.write_csv(table, path.with_suffix(".tsv"), pa.csv.WriteOptions(delimiter="\t"))
    if kind == "parquet":
        pq.write_table(table, path.with_suffix(".parquet"))
    if kind == "jsonl":
        path.with_suffix(".jsonl").write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    keys = Keys("img_filename", "y", "place", "split")
    found = rows(bring([path.with_suffix(f".{kind}")], tmp_path / "out", keys=keys, workers=1))
    assert [(row["class_id"], row["class_name"], row["group"], row["split"]) for row in found[:4]] == [
        (0, "0", "0", "train"), (1, "1", "0", "val"), (0, "0", "0", "test"), (1, "1", "1", "train"),
    ]  # fmt: skip
    assert found[4]["place_filename"] == "/o/ocean/1.jpg"
    assert (found[4]["y"], found[4]["place"], found[4]["img_id"]) == (0, 1, 4)
    assert found[4]["file"] == "001.albatross/4.jpg"


def test_rows_of_a_table_that_lead_nowhere(tmp_path: Path) -> None:
    path = waterbirds(tmp_path / "birds")
    with path.open("a") as file:
        file.write(
            "6,001.albatross/none.jpg,1,0,0,x\n7,../../../etc/passwd,1,0,0,x\n8,001.albatross/0.jpg,1,0,0,x\n"
        )
        file.write("9,,1,0,0,x\n10,/etc/passwd,1,0,0,x\n")
    found = rows(bring([path], tmp_path / "out", keys=Keys("img_filename", "y"), workers=1))
    assert [row["error"] for row in found[6:]] == [
        "no such file", "no path below the folder of the table", "duplicate key",
        "no path below the folder of the table", "no path below the folder of the table",
    ]  # fmt: skip
    assert len({row["uid"] for row in found}) == len(found) == 11


def test_coco_and_lvis(tmp_path: Path) -> None:
    path = coco(tmp_path / "coco")
    found = rows(bring([path], tmp_path / "out", workers=1))
    assert [(row["class_id"], row["class_name"], row["n_classes"]) for row in found] == [
        (17, "cat", 2), (3, "car", 2), (None, None, 0),
    ]  # fmt: skip
    assert found[0]["objects"] == ["car", "cat"]
    assert found[0]["box_objects"] == ["car", "cat", "cat"]
    assert found[0]["boxes"][1] == [1.0, 1.0, 5.0, 10.0]
    assert {row["license"] for row in found} == {"CC BY 2.0"}
    told = json.loads(path.read_text())
    for image in told["images"]:  # LVIS has URLs, and its images lie beside it
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    (tmp_path / "coco" / "lvis_v1_val.json").write_text(json.dumps(told))
    again = rows(bring([tmp_path / "coco" / "lvis_v1_val.json"], tmp_path / "two", workers=1))
    assert [row["file"] for row in again] == [f"val2017/{k:012d}.jpg" for k in range(3)]
    assert [row["class_name"] for row in again] == ["cat", "car", None]
    listed = sources.list_images(path, "real")
    assert [(image.class_name, image.key) for image in listed] == [
        ("cat", "000000000000.jpg"), ("car", "000000000001.jpg"),
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "coco" / "val2017")
    with pytest.raises(RecipeError, match=r"its images are not there: 000000000000.jpg was looked for in"):
        bring([path], tmp_path / "three", workers=1)


def test_every_defect_is_a_row_with_its_reason(tmp_path: Path) -> None:
    def sample(key: str, *parts: str, image: bytes | None = None) -> list[tuple[str, bytes]]:
        data = {"jpg": image or picture(len(key)), "json": b'{"score": 1}', "txt": b"a cat", "cls": b"1"}
        return [(f"{key}.{part}", data[part]) for part in parts or ("jpg", "json", "txt")]

    whole = picture(1, side=64)
    first = [
        *sample("good"), *sample("lacks", "jpg", "txt"), *sample("noimage", "json", "txt"),
        *sample("cut", image=whole[: len(whole) // 2]), *sample("html", image=b"<html>"),
        *sample("again"), *sample("good"), *sample(HEX[0]), *sample("more", "jpg", "json", "txt", "cls"),
        ("bad.jpg", picture(1)), ("bad.json", b"{"), ("bad.txt", b"x"),
        ("list.jpg", picture(1)), ("list.json", b"[]"), ("list.txt", b"x"),
        ("latin.jpg", picture(1)), ("latin.json", b"{}"), ("latin.txt", "é".encode("latin1")),
        ("twice.jpg", picture(1)), ("twice.jpg", picture(2)), ("twice.json", b"{}"), ("twice.txt", b"x"),
    ]  # fmt: skip
    source = archive(tmp_path / "web" / "0.tar", first).parent
    archive(source / "1.tar", [*sample(HEX[0]), *sample(HEX[1])])
    data = archive(source / "2.tar", [*sample("whole"), *sample("partly")]).read_bytes()
    (source / "2.tar").write_bytes(data[: data.index(b"partly.jpg") + 1000])
    archive(source / "3.tar", sample("whole"))
    hurt = bytearray((source / "3.tar").read_bytes())
    hurt[hurt.index(b"whole.json") + 20] ^= 255
    (source / "3.tar").write_bytes(hurt)
    (source / "4.tar").write_bytes(b"")
    root = bring([source], tmp_path / "out", workers=1)
    errors = {(row["file"], row["key"]): row["error"] for row in rows(root)}
    assert errors.pop(("3.tar", "")).startswith("damaged header at byte ")
    assert errors.pop(("2.tar", "")).startswith("cut inside partly.jpg, ")
    assert errors.pop(("3.tar", "whole")).startswith("missing ")
    assert errors == {
        ("0.tar", "good"): None, ("0.tar", "lacks"): "missing json", ("0.tar", "noimage"): "no image",
        ("0.tar", "cut"): "image does not decode", ("0.tar", "html"): "image does not decode",
        ("0.tar", "again"): None, ("0.tar", "good#2"): "duplicate key", ("0.tar", HEX[0]): None,
        ("0.tar", "more"): None, ("0.tar", "bad"): "json: not valid JSON",
        ("0.tar", "list"): "json: a JSON object is wanted, got list", ("0.tar", "latin"): "txt: not UTF-8",
        ("0.tar", "twice"): "missing json, txt", ("0.tar", "twice#2"): "duplicate key",
        ("1.tar", HEX[0]): "duplicate uid", ("1.tar", HEX[1]): None,
        ("2.tar", "whole"): None, ("4.tar", ""): "cut at byte 0: the archive has no end",
    }  # fmt: skip
    found = rows(root)
    assert len({row["uid"] for row in found}) == len(found)
    assert [row["file"] for row in found if row["uid"] == HEX[0]] == ["0.tar"]
    for row in found:
        empty = [
            row[name] is None
            for name in ("image_offset", "image_bytes", "sha256", "members", "original_width")
        ]
        assert set(empty) == {row["error"] is not None}
    told = synthgen.status(root)
    assert (told["written"], told["failed"]) == (6, len(found) - 6)
    assert verify(root) == []


def test_whole_is_what_most_samples_are(tmp_path: Path) -> None:
    """One odd first sample makes no other an error, and where samples have what they like, none is one."""

    def errors(name: str, *samples: str, workers: int = 1) -> list[object]:
        data = {"jpg": picture(1), "json": b"{}", "txt": b"a cat", "mask.png": picture(2, "PNG")}
        for number, parts in enumerate(samples):
            members = [(f"s{number}.{part}", data[part]) for part in parts.split()]
            archive(tmp_path / name / f"{number}.tar", members)
        root = bring([tmp_path / name], tmp_path / f"{name}{workers}", workers=workers)
        return [row["error"] for row in rows(root)]

    odd = ("jpg mask.png", "jpg json txt", "txt json jpg", "jpg txt", "jpg txt json mask.png")
    for workers in (1, 2):
        found = errors("odd", *odd, workers=workers)
        assert found == ["missing json, txt", None, None, "missing json", None]
    assert errors("even", "jpg txt", "jpg json") == [None, None]
    assert errors("sole", "jpg txt", "jpg") == [None, None]
    assert errors("free", "jpg", "jpg txt", "jpg json", "jpg mask.png", "jpg txt") == [None] * 5


def test_what_is_damaged_in_the_middle_is_found_by_decoding(tmp_path: Path) -> None:
    data = bytearray(picture(3, "PNG", 64))
    at = data.index(b"IDAT") + 100
    data[at : at + 8] = bytes(8)
    source = archive(
        tmp_path / "web" / "0.tar", [("a.png", bytes(data)), ("b.png", picture(4, "PNG"))]
    ).parent
    found = rows(bring([source], tmp_path / "out", workers=1))
    assert [row["error"] for row in found] == [None, None]
    found = rows(bring([source], tmp_path / "decoded", decode=True, workers=1))
    assert [row["error"] for row in found] == ["image does not decode", None]


def test_columns_get_the_types_that_hold_all_values(tmp_path: Path) -> None:
    told: list[dict[str, object]] = [
        {"a": 1, "b": True, "c": "x", "my score!": 1, "d": None, "e": {"deep": [1]}, "error": "odd", "f": []},
        {"a": 1.5, "b": 3, "c": 2, "my score!": None, "d": None, "g": 2**70, "f": [1.5]},
    ]
    for number, own in enumerate(told):
        members = [("0.jpg", picture(number)), ("0.json", json.dumps(own).encode())]
        archive(tmp_path / "web" / f"{number}.tar", members)
    root = bring([tmp_path / "web"], tmp_path / "out", workers=1)
    first, second = rows(root)
    assert (first["a"], second["a"]) == (1.0, 1.5)
    assert (first["b"], second["b"], first["c"], second["c"]) == ("true", "3", "x", "2")
    assert (first["my_score"], second["my_score"], first["d"]) == (1, None, None)
    assert (first["e"], first["data_error"], second["g"]) == ('{"deep": [1]}', "odd", str(2**70))
    assert (first["f"], second["f"]) == ([], [1.5])
    columns = pools.PoolColumns(root, shards.pool_stems(root), [])
    assert columns["a"].tolist() == [1.0, 1.5]


def test_odd_values_of_columns_that_mean_something(tmp_path: Path) -> None:
    told = json.dumps({"class_name": ["a", "b"]}).encode()
    members = [("0.jpg", picture(0)), ("0.json", told), (f"{HEX[1]}.jpg", picture(1))]
    members += [(f"{HEX[1]}.json", told)]
    tar = archive(tmp_path / "web" / "shards" / "0.tar", members)
    beside = pa.table({"key": ["0", HEX[1], "2"], "uid": [7, 8, 9], "rating": [1, 2, 3]})
    pq.write_table(beside, tar.with_suffix(".parquet"))
    (tmp_path / "web" / "metadata").mkdir()
    metadata = pa.table({"uid": ["zz", None, HEX[1]], "score": [1.0, 2.0, 3.0]})
    pq.write_table(metadata, tmp_path / "web" / "metadata" / "a.parquet")
    found = rows(bring([tmp_path / "web" / "shards"], tmp_path / "out", workers=1))
    assert [row["class_name"] for row in found] == ['["a", "b"]'] * 2 + [None]
    assert [(row["rating"], row["score"]) for row in found] == [(1, None), (2, 3.0), (3, None)]
    assert [row["error"] for row in found] == [None, None, "not in the tar"]


def test_two_sources_share_classes_by_name_and_keep_their_ids(tmp_path: Path) -> None:
    one = images(tmp_path / "one", "cat/a.jpg", "owl/b.jpg")
    two = images(tmp_path / "two", "ant/a.jpg", "owl/b.jpg")
    root = bring([one], tmp_path / "out", workers=1)
    before = data_digests(root)
    bring([two], root, workers=1)
    assert {name: data_digests(root)[name] for name in before} == before
    assert {(row["source"], row["class_name"]): row["class_id"] for row in rows(root)} == {
        ("one", "cat"): 0, ("one", "owl"): 1, ("two", "ant"): 2, ("two", "owl"): 1,
    }  # fmt: skip
    assert [stem for source in shards.imported(root) for stem in source.stems] == ["00000000", "00000001"]
    three = images(tmp_path / "three", "a/owl.jpg")
    (three / "metadata.csv").write_text("path,name,id\na/owl.jpg,owl,5\n")
    with pytest.raises(FolderError, match=r'"three" has class "owl" with id 5, .* "owl" has id 1'):
        bring(
            [three / "metadata.csv"], root, name="three", keys=Keys("path"), workers=1,
            columns=["class_name=name", "class_id=id"],
        )  # fmt: skip
    assert shards.records(root / "sources") == ["one", "two"]


def test_a_sources_own_columns_are_missing_in_the_others(tmp_path: Path) -> None:
    root = bring([datacomp(tmp_path / "pool"), webdataset(tmp_path / "web")], tmp_path / "out", workers=1)
    columns = pools.PoolColumns(root, shards.pool_stems(root), [])
    score = columns["clip_l14_similarity_score"]
    assert np.isnan(score).tolist() == [False] * 8 + [True] * 8
    assert columns["url"].tolist()[8:] == [""] * 8
    assert "url" in columns
    assert "nothing" not in columns


def test_columns_of_sources_in_the_type_that_holds_all_values(tmp_path: Path) -> None:
    told: dict[str, dict[str, object]] = {
        "one": {"a": 1, "b": True, "c": ["x", "y"], "d": [1]},
        "two": {"a": 1.5, "b": "no", "c": "x", "d": [0.5]},
    }
    for name, own in told.items():
        archive(tmp_path / name / "0.tar", [("0.jpg", picture(0)), ("0.json", json.dumps(own).encode())])
    root = bring([tmp_path / "one", tmp_path / "two"], tmp_path / "out", workers=1)
    columns = pools.PoolColumns(root, shards.pool_stems(root), [])
    assert columns["a"].tolist() == [1.0, 1.5]
    assert columns["b"].tolist() == ["true", "no"]
    assert columns["c"].tolist() == ['["x", "y"]', "x"]
    assert columns.stored("d").to_pylist() == [[1.0], [0.5]]


def test_members_that_our_tars_cannot_name(tmp_path: Path) -> None:
    members = [("0.jpg", picture(0)), ("1.jpg", picture(1)), ("1.ü.txt", b""), ("2.jpg", picture(2))]
    archive(tmp_path / "web" / "0.tar", [*members, (f"2.{'x' * 61}", b"")])
    errors = [row["error"] for row in rows(bring([tmp_path / "web"], tmp_path / "out", workers=1))]
    assert errors == [None, *["a member's name is too long, or not ASCII"] * 2]


def test_the_same_bytes_from_any_number_of_workers_and_again(tmp_path: Path) -> None:
    webdataset(tmp_path / "web", shards_=5)
    one = bring([tmp_path / "web"], tmp_path / "one", workers=1)
    three = bring([tmp_path / "web"], tmp_path / "three", workers=3)
    assert data_digests(one) == data_digests(three)
    when = {path: path.stat().st_mtime_ns for path in one.rglob("*.*") if ".work" not in path.parts}
    bring([tmp_path / "web"], one, workers=1)
    assert {path: path.stat().st_mtime_ns for path in one.rglob("*.*") if ".work" not in path.parts} == when
    assert list((one / ".work" / "import").rglob("*.parquet")) == []


def test_killed_after_each_step_and_gone_on_with(tmp_path: Path) -> None:
    webdataset(tmp_path / "web", shards_=2)
    whole = bring([tmp_path / "web"], tmp_path / "whole", copy=True, workers=1)
    deaths = killed_until_done(
        "synthgen.bring([sys.argv[1]], sys.argv[2], copy=True, workers=1)",
        str(tmp_path / "web"), str(tmp_path / "out"),
        period=3, changes=("publish", "replace"), imports="synthgen.intake",
    )  # fmt: skip
    assert deaths >= 5
    assert data_digests(tmp_path / "out") == data_digests(whole)
    assert verify(tmp_path / "out") == []


def test_a_source_that_has_changed_or_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = webdataset(tmp_path / "web")
    root = bring([source], tmp_path / "out", workers=1)
    moved = tmp_path / "moved" / "web"
    moved.parent.mkdir()
    source.rename(moved)
    stem, table = "00000000", pq.read_table(root / "pool" / "00000000.parquet")
    with pytest.raises(
        FolderError, match=r'source "web": 000000.tar is not in .*web; --set sources.web.path='
    ):
        pools.read_images(root, stem, table)
    assert pools.read_images(root, stem, table, {"web": moved})[0] == picture(0, "PNG")
    assert len(verify(root)) == 2
    bring([moved], root, workers=1)  # from there: only the path is new
    assert verify(root) == []
    data = bytearray((moved / "000000.tar").read_bytes())
    data[int(table["image_offset"][2].as_py()) + 40] ^= 1
    (moved / "000000.tar").write_bytes(data)
    with pytest.raises(FolderError, match=r'source "web": the image .*000000.tar: s0/0002 has other bytes'):
        pools.read_images(root, stem, table)
    (problem,) = verify(root)
    assert "000000.tar: s0/0002" in problem
    webdataset(moved, each=50)
    capsys.readouterr()
    assert main(["import", str(moved), "-o", str(root)]) == 2
    assert 'source "web" has changed since it was imported: 000000.tar (' in capsys.readouterr().err
    (moved / "000002.tar").write_bytes(b"")
    images(tmp_path / "folder", "cat/a.jpg")
    other = bring([tmp_path / "folder"], tmp_path / "two", workers=1)
    (tmp_path / "folder" / "cat" / "b.jpg").write_bytes(picture(7))
    with pytest.raises(
        FolderError, match=r'"folder" has changed .*: an image, or .* from cat/a.jpg to cat/a.jpg'
    ):
        bring([tmp_path / "folder"], other, workers=1)


def test_copied_samples(tmp_path: Path) -> None:
    source = webdataset(tmp_path / "web")
    root = bring([source], tmp_path / "out", copy=True, workers=1)
    shutil.rmtree(source)
    assert verify(root) == []
    stem = "00000001"
    table = pq.read_table(root / "pool" / f"{stem}.parquet")
    assert pools.read_images(root, stem, table)[1] == picture(5, "PNG")
    with tarfile.open(root / "pool" / f"{stem}.tar") as tar:
        assert [member.name.partition(".")[2] for member in tar][:3] == ["png", "cls", "json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: is not there; a folder of webdataset tars"),
        (["nothing.csv", "--image", "x"], "nothing.csv: there is no such file"),
        (["birds/metadata.csv"], "which column holds the paths of the images? --image NAME, one of:"),
        (["birds/metadata.csv", "--image", "img_filenam"], 'no column "img_filenam"; did you mean "img_file'),
        (["birds", "--label", "y"], "--image, --label, --group and --split are for a table"),
        (["web", "--columns", "text"], "--columns text: NEW=OLD is wanted"),
        (["web", "--columns", "text=caption"], 'text=caption: source "web" has no column "caption"'),
        (["web", "--columns", "uid=class_id"], "uid=class_id: uid is no name that a column can have here"),
        (["web", "birds", "--name", "x"], "--name: is for one source"),
        (["web", "--name", "a b"], '"a b": is no name of a source'),
        (["web", "web"], 'two sources are called "web"'),
        (["."], "lies in the folder that it is imported into"),
        (["birds/001.albatross/0.jpg"], "0.jpg: no images there"),
        (["../inside"], "out: lies in what is imported, ../inside"),
        (["none.json"], "none.json: there is no such file"),
        (["bad.json"], "bad.json: no COCO or LVIS file of instances: "),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    waterbirds(Path("birds"))
    webdataset(Path("web"))
    Path("bad.json").write_text("{}")
    output = "." if arguments == ["."] else "out"
    if output == ".":
        bring(["web"], tmp_path / "made", workers=1)
        monkeypatch.chdir(tmp_path / "made")
    assert main(["import", *arguments, "-o", output, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("out/pool").exists()


def test_folders_that_are_something_else(tmp_path: Path, emoji_run: Path) -> None:
    source = webdataset(tmp_path / "web")
    with pytest.raises(FolderError, match="is the folder of a run that makes images"):
        bring([source], emoji_run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FolderError, match="is not empty and was not made by synthgen"):
        bring([source], tmp_path / "mine")
    root = bring([source], tmp_path / "out", workers=1)
    with pytest.raises(FolderError, match=r"holds what was imported, and .*recipe.toml makes images"):
        synthgen.run("emoji", root)
    with pytest.raises(SynthgenError, match=r"was made with --columns\.?.* = "):
        bring([source], root, columns=["label=class_id"], workers=1)
