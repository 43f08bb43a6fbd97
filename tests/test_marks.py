"""The mark in an image: what other readers see of it, what it must not change, what it must not do."""

import io
import itertools
import json
import re
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SMALL
from PIL import Image

import synthgen
from synthgen import marks
from synthgen.cli import main
from synthgen.errors import SynthgenError
from synthgen.generation.encoding import OPTIONS, encode

UID = "0123456789abcdef" * 2
MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PACKET = marks.packet(UID, "birds")


def picture(side: int = 48) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side + 5, side), Image.Resampling.BICUBIC))


def segments(data: bytes, kind: str) -> dict[bytes, bytes]:
    """The parts of a file by their names, taken apart by its specification, without Pillow."""
    found = {}
    if kind == "jpg":
        at = 2
        while data[at : at + 2] != b"\xff\xda":
            (length,) = struct.unpack(">H", data[at + 2 : at + 4])
            found[data[at : at + 2]] = data[at + 4 : at + 2 + length]
            at += 2 + length
    elif kind == "webp":
        assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
        at = 12
        while at < len(data):
            name, length = struct.unpack("<4sI", data[at : at + 8])
            found[name] = data[at + 8 : at + 8 + length]
            at += 8 + length + length % 2
    else:
        at = 8
        while at < len(data):
            length, name = struct.unpack(">I4s", data[at : at + 8])
            found[name] = data[at + 8 : at + 8 + length]
            assert zlib.crc32(name + found[name]) == struct.unpack(">I", data[at + 8 + length :][:4])[0]
            at += 12 + length
    return found


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_packet_is_where_the_format_has_it(kind: str) -> None:
    parts = segments(encode(picture(), kind, PACKET), kind)
    if kind == "jpg":
        assert parts[b"\xff\xe1"] == b"http://ns.adobe.com/xap/1.0/\0" + PACKET
    elif kind == "webp":
        assert parts[b"XMP "] == PACKET
        assert parts[b"VP8X"][0] == 0b100  # XMP, and no alpha, ICC profile, Exif or animation
        assert list(parts) == [b"VP8X", b"VP8L", b"XMP "]
    else:  # keyword, not compressed, no language, no translated keyword
        assert parts[b"iTXt"] == b"XML:com.adobe.xmp\0\0\0\0\0" + PACKET
        assert list(parts) == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("kind", OPTIONS)
def test_pixels_do_not_change_and_bytes_are_always_the_same(kind: str) -> None:
    plain, marked = encode(picture(), kind), encode(picture(), kind, PACKET)
    assert marked == encode(picture(), kind, PACKET) != encode(picture(), kind, marks.packet(UID, "dogs"))
    a, b = (Image.open(io.BytesIO(data)) for data in (plain, marked))
    assert (a.mode, a.size) == (b.mode, b.size) == ("RGB", (53, 48))
    assert (np.asarray(a) == np.asarray(b)).all()
    assert 0 < len(marked) - len(plain) < 680
    assert marks.read(plain, "a") == marks.Mark()
    assert marks.read(marked, "b") == marks.Mark("synthgen", "birds", UID, MADE)


@pytest.mark.parametrize("kind", OPTIONS)
def test_readers_of_datasets_decode_marked_images(kind: str, tmp_path: Path) -> None:
    import webdataset
    from torchvision.io import decode_image

    from synthgen import tars

    data = encode(picture(), kind, PACKET)
    expected = np.asarray(Image.open(io.BytesIO(encode(picture(), kind))))
    files = [tmp_path / f"marked.{kind}", tmp_path / f"plain.{kind}"]
    for path, stored in zip(files, (data, encode(picture(), kind)), strict=True):
        path.write_bytes(stored)
    assert (decode_image(str(files[0]), mode="RGB") == decode_image(str(files[1]), mode="RGB")).all()
    with open(tmp_path / "00000000.tar", "wb") as file:
        tars.write(file, [(UID, {kind: data, "cls": b"3"})])
    (tmp_path / "sizes.json").write_text('{"00000000.tar": 1}')
    read = webdataset.WebDataset(str(tmp_path / "00000000.tar"), shardshuffle=False).decode("rgb8")
    assert (next(iter(read))[kind] == expected).all()
    loader = synthgen.open_loader(tmp_path, batch_size=1, transform=lambda image: image)
    images, class_ids = next(iter(loader))
    assert (images[0].permute(1, 2, 0).numpy() == expected).all()
    assert list(class_ids) == [3]


def test_the_format_page_lists_what_the_packet_says() -> None:
    page = (ROOT / "shards" / "README.md").read_text().partition("## The mark in an image")[2]
    listed = re.findall(r"^\| `(\w+:\w+)`", page, re.M)
    assert sorted(listed) == sorted(re.findall(r" (?!xmlns|rdf)(\w+:\w+)=", PACKET.decode()))


def test_a_real_image_s_share_and_odd_names_are_told() -> None:
    odd = "a<b>&\"c' é 日本"
    found = marks.parse(marks.packet(odd, odd, from_image=True))
    assert (found.uid, found.dataset) == (odd, odd)
    assert found.digital_source_type.endswith("/compositeWithTrainedAlgorithmicMedia")


def test_other_spellings_of_xmp_are_read() -> None:
    """As exiftool writes it (elements), with other prefixes, as a resource, and nothing of interest."""
    around = (
        '<?xpacket begin="" id="W"?><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</r:RDF>'
    )
    ext = 'xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    element = f"<r:Description {ext}><e:DigitalSourceType> {MADE}\n</e:DigitalSourceType></r:Description>"
    resource = f'<r:Description {ext}><e:DigitalSourceType r:resource="{MADE}"/></r:Description>'
    for told in (element, resource):
        found = marks.parse(around.format(told).encode() + b'<?xpacket end="w"?>' + b" " * 2000 + b"\0")
        assert found == marks.Mark(digital_source_type=MADE)
        assert not found.is_ours
    other = '<r:Description xmlns:e="http://example.org/" e:DigitalSourceType="no"/>'
    assert marks.parse(around.format(other).encode()) == marks.parse(b" \0") == marks.Mark()


BOMB = "<!DOCTYPE a [" + "".join(f'<!ENTITY x{k} "{f"&x{k - 1};" * 10 if k else "boom"}">' for k in range(10))


@pytest.mark.parametrize(
    ("xmp", "reason"),
    [
        (f"{BOMB}]><a>&x9;</a>".encode(), "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type"),
        (b"<a>" + b" " * marks.LARGEST + b"</a>", "at most 1048576"),
        (b"<a><b></a>", "mismatched tag"),
    ],
)
def test_hostile_packets_are_refused(xmp: bytes, reason: str) -> None:
    sink = io.BytesIO()
    Image.fromarray(picture()).save(sink, "WEBP", xmp=xmp)
    with pytest.raises(SynthgenError, match=f"photo.webp: its XMP packet cannot be read .*{reason}"):
        marks.read(sink.getvalue(), "photo.webp")


def test_what_is_no_image_is_said() -> None:
    for data in (b"", b"GIF89a", encode(picture(), "png")[:40]):
        with pytest.raises(SynthgenError, match="no JPEG, WebP or PNG"):
            marks.read(data, "x")


def test_every_image_of_a_run_has_its_own_mark(emoji_run: Path) -> None:
    n = 0
    for path in itertools.chain(emoji_run.glob("pool/*.tar"), emoji_run.glob("final/main/*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".webp"):
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    assert marks.read(data, "") == marks.Mark(
                        "synthgen", "emoji", member.name.partition(".")[0], MADE
                    )
                    n += 1
    assert n > 96


def test_it_can_be_left_out_and_is_guarded(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it only the files differ; on the same folder its keys may not change."""
    more = [part for setting in (*SMALL, "images.mark=false") for part in ("--set", setting)]
    root = tmp_path / "plain"
    assert main(["generate", "emoji", "-o", str(root), "--workers", "1", "--limit", "20", *more]) == 0
    with_mark, without = (
        {row["uid"]: row for row in pq.read_table(run / "pool" / "00000000.parquet").to_pylist()}
        for run in (small_run, root)
    )
    assert with_mark.keys() == without.keys()
    for uid, row in without.items():
        datas = [
            (run / "pool" / "00000000.tar").read_bytes()[each["image_offset"] :][: each["image_bytes"]]
            for run, each in ((root, row), (small_run, with_mark[uid]))
        ]
        plain, marked = (np.asarray(Image.open(io.BytesIO(data))) for data in datas)
        assert b"DigitalSourceType" not in datas[0]
        assert b"DigitalSourceType" in datas[1]
        assert (plain == marked).all()
    capsys.readouterr()
    copy = shutil.copytree(small_run, tmp_path / "copy")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    for changed, said in (
        ("images.mark=false", "images.mark = true, now it would be false"),
        ("name=birds", 'name = "emoji", now it would be "birds"'),
    ):
        assert main(["generate", "emoji", "-o", str(copy), *settings, "--set", changed]) == 2
        assert said in capsys.readouterr().err


def test_show_tells_what_is_known(
    emoji_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar_path = emoji_run / "pool" / "00000000.tar"
    with tarfile.open(tar_path) as tar:
        name = tar.getnames()[0]
        tar.extractall(tmp_path, [tar.getmember(name)], filter="data")
    uid, file = name.partition(".")[0], str(tmp_path / name)
    row = pq.read_table(emoji_run / "pool" / "00000000.parquet").to_pylist()[0]

    def show(*arguments: str) -> tuple[int, str]:
        status = main(["show", *arguments])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    status, said = show(file)
    assert status == 0
    assert f"uid                     {uid}" in said
    assert "-o DIR names the run" in said
    for arguments in (
        (file, "-o", str(emoji_run)),
        (str(emoji_run), uid[:12]),
        (str(tar_path), uid[:12]),
    ):
        status, said = show(*arguments)
        assert status == 0
        for key in ("text", "seed", "model", "license"):
            assert re.search(rf"  {key} +{re.escape(str(row[key]))}\n", said), (arguments, key)
        told = json.loads(show(*arguments, "--json")[1])
        assert told["mark"] == marks.Mark("synthgen", "emoji", uid, MADE)._asdict()
        assert told["provenance"]["sha256"] == row["sha256"]
    inside = emoji_run / "report" / "contact_sheet.jpg"
    assert show(str(inside)) == (1, f"{inside}: has no mark\n")


def test_show_of_others_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.jpg"
    capture = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    xmp = PACKET.replace(MADE.encode(), capture.encode()).replace(b'"synthgen"', b'"Camera"')
    Image.fromarray(picture()).save(photo, xmp=xmp)
    assert main(["show", str(photo)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{photo}: has no mark of synthgen, but others' XMP\n")
    assert f"digital source type     {capture}\n" in said


def test_show_refuses_clearly(emoji_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, shard = tmp_path / "a.png", emoji_run / "pool" / "00000000.tar"
    photo.write_bytes(encode(picture(), "png", PACKET))
    text = tmp_path / "a.txt"
    text.write_text("no image")
    for arguments, said in (
        ([tmp_path / "none.png"], "is not there; an image, a .tar shard or the folder of a run is wanted"),
        ([emoji_run], f"which image? `synthgen show {emoji_run} UID`"),
        ([shard], f"which image? `synthgen show {shard} UID`"),
        ([emoji_run, "zz"], f"{emoji_run}: has no image zz"),
        ([shard, "zz"], f"{shard}: has no image zz"),
        ([shard, ""], "which image?"),
        ([photo, "ab"], "is one image; a uid goes with a shard or the folder of a run"),
        ([shard, "ab", "-o", emoji_run], "-o says which run made an image file; this is none"),
        ([photo, "-o", emoji_run], f"{emoji_run}: has no image {UID}"),
        ([photo, "-o", tmp_path], f"{tmp_path}: is no folder of a run"),
        ([tmp_path, "ab"], f"{tmp_path}: is no folder of a run"),
        ([text], "no JPEG, WebP or PNG"),
    ):
        assert main(["show", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err
    first = pq.read_table(emoji_run / "pool" / "00000000.parquet")["uid"].to_pylist()
    shared = next(c for c in "0123456789abcdef" if sum(uid.startswith(c) for uid in first) > 1)
    assert main(["show", str(emoji_run), shared]) == 2
    assert f"{shared} is the beginning of" in capsys.readouterr().err


def test_show_knows_a_copy_from_its_original_and_a_failed_row(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from synthgen import tars

    data = encode(picture(), "png", PACKET)
    with open(tmp_path / "s.tar", "wb") as file:
        tars.write(file, [(UID, {"png": data}), (f"{UID}-1", {"png": data}), ("odd", {"txt": b"x"})])
    assert main(["show", str(tmp_path / "s.tar"), UID]) == 0
    assert main(["show", str(tmp_path / "s.tar"), f"{UID}-"]) == 0
    assert f"s.tar: {UID}-1: has" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "s.tar"), "odd"]) == 2
    assert "has no image; there are txt" in capsys.readouterr().err
    uid = pq.read_table(run_copy / "pool" / "00000000.parquet")["uid"][0].as_py()
    (run_copy / "pool" / "00000000_stats.json").unlink()
    assert main(["show", str(run_copy), uid]) == 1
    assert re.search(r"error +not made yet\n", capsys.readouterr().out)
