import io
import tarfile

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
