import io
import re
import tarfile
import time

import pytest

from synthgen import tars
from synthgen.errors import WorkError

SAMPLES = [("a" * 32, {"jpg": b"x" * 700, "txt": b"one"}), ("b" * 32, {"jpg": b"", "txt": "zwei ü".encode()})]


def archive() -> bytes:
    sink = io.BytesIO()
    assert tars.write(sink, SAMPLES) == 2
    return sink.getvalue()


def test_tarfile_reads_what_was_written() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar.getmembers()} == {(0, 0, 0, "", 0o644)}
    assert members == [
        (f"{key}.{suffix}", data) for key, sample in SAMPLES for suffix, data in sample.items()
    ]


def test_samples_round_trip() -> None:
    assert list(tars.samples(archive())) == SAMPLES


def test_add_sample_says_where_the_data_lies() -> None:
    sink = io.BytesIO()
    tars.add_sample(sink, *SAMPLES[0])
    member = tars.add_sample(sink, *SAMPLES[1])["txt"]
    assert sink.getvalue()[member.offset : member.offset + member.size] == SAMPLES[1][1]["txt"]


@pytest.mark.parametrize("end", [600, 1000, 513])
def test_a_cut_archive_is_an_error(end: int) -> None:
    with pytest.raises(WorkError, match="cut inside"):
        list(tars.index(archive()[:end]))


def test_a_damaged_header_is_an_error() -> None:
    data = bytearray(archive())
    data[3] ^= 1
    with pytest.raises(WorkError, match="damaged header at byte 0"):
        list(tars.index(bytes(data)))


@pytest.mark.parametrize("name", ["x" * 101, "", "ü.txt"])
def test_names_that_readers_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"ASCII|ascii"):
        tars.header(name, 0)


def foreign(kind: int, **more: float) -> bytes:
    """An archive as others write it: folders, links, empty and long and foreign names."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as tar:
        for name, data in (
            ("./one.jpg", b"x" * 700), ("empty.txt", b""), ("folder/" + "long" * 40 + ".json", b"{}"),
            ("p" * 90 + "/" + "n" * 90 + ".cls", b"1"), ("last.txt", b"z" * 512),
        ):  # fmt: skip
            name = name if kind != tarfile.USTAR_FORMAT or len(name) < 150 or "/n" in name else "short.json"
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), more.get("mtime", 0)  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
        for type_ in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"special{type_!r}")
            info.type, info.linkname = type_, "one.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("ü.txt" if kind != tarfile.USTAR_FORMAT else "u.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"end"))
    return sink.getvalue()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_others_are_walked_as_tarfile_reads_them(kind: int) -> None:
    data = foreign(kind, mtime=1.5 if kind == tarfile.PAX_FORMAT else 1)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert [tuple(member) for member in tars.walk(io.BytesIO(data))] == expected
    assert len(expected) == 6


def test_sizes_in_base_256_and_in_extended_headers() -> None:
    data = bytearray(tars.blocks("a.jpg", b"x" * 600) + bytes(1024))
    data[124:136] = b"\x80" + (600).to_bytes(11)
    data[148:156] = b"%06o\0 " % (sum(data[:512]) - sum(data[148:156]) + 256)
    assert [tuple(member) for member in tars.walk(io.BytesIO(data))] == [("a.jpg", 512, 600)]
    info = tarfile.TarInfo("b.jpg")
    info.size, info.pax_headers = 600, {"size": "600"}
    head = info.tobuf(tarfile.PAX_FORMAT)
    wrong = bytearray(head[-512:])
    wrong[124:136] = b"00000000000\0"
    wrong[148:156] = b"%06o\0 " % (sum(wrong) - sum(wrong[148:156]) + 256)
    data = bytearray(head[:-512] + wrong + b"y" * 600 + bytes(424 + 1024))
    assert [(member.name, member.size) for member in tars.walk(io.BytesIO(data))] == [("b.jpg", 600)]


def read_until_damaged(data: bytes) -> tuple[list[tuple[object, ...]], str]:
    """The members that were read, and what stopped that."""
    found = list[tuple[object, ...]]()
    try:
        for member in tars.walk(io.BytesIO(data)):
            found.append(tuple(member))
    except WorkError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_cut_and_every_damaged_header_is_found(kind: int) -> None:
    """`tarfile` itself takes most of them for the end."""
    data = foreign(kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        ends = [(m.offset_data + m.size + -m.size % 512, m.offset) for m in tar]
    whole = [tuple(member) for member in tars.walk(io.BytesIO(data))]
    for size in range(0, max(end for end, _ in ends) + 1, 128):
        found, said = read_until_damaged(data[:size])
        assert re.search("cut|no end|damaged", said)
        assert found == whole[: len(found)]
    for _, header in ends:
        hurt = bytearray(data)
        hurt[header + 20] ^= 255
        with pytest.raises(WorkError, match=f"damaged header at byte {header}|cut inside"):
            list(tars.walk(io.BytesIO(hurt)))


def pax(records: bytes) -> bytes:
    """An archive of one file with this extended header."""
    head = bytearray(tars.blocks("pax", records))
    head[156:157] = b"x"
    head[148:156] = b"%06o\0 " % (sum(head[:512]) - sum(head[148:156]) + 256)
    return bytes(head) + tars.blocks("a.jpg", b"x" * 9) + bytes(1024)


def test_extended_headers_that_mean_harm() -> None:
    for size in (b"9" * 30, b"9" * 9_000):  # Python converts no number of so many digits
        record = b" size=" + size + b"\n"
        length = next(n for n in range(len(record), len(record) + 9) if n == len(record) + len(str(n)))
        with pytest.raises(WorkError, match="cut inside"):
            list(tars.walk(io.BytesIO(pax(b"%d" % length + record))))
    with pytest.raises(WorkError, match="damaged extended header"):
        list(tars.walk(io.BytesIO(pax(b"9" * 9_000 + b" path=b\n"))))
    start = time.process_time()
    many = pax(b"6 a=b\n" * (2**20 // 6))
    assert [member.name for member in tars.walk(io.BytesIO(many))] == ["a.jpg"]
    assert time.process_time() - start < 3  # not the square of their number


def test_sparse_files_are_refused() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    with pytest.raises(WorkError, match="sparse file"):
        list(tars.walk(io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))))
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(WorkError, match="sparse file"):
        list(tars.walk(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))))
