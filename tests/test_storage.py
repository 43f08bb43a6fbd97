from pathlib import Path
from typing import BinaryIO

import pytest

from synthgen import claims, shards, storage
from synthgen.errors import FolderError, WorkError
from synthgen.uids import UID, uid_array, uid_strings


def test_publishing_is_once(tmp_path: Path) -> None:
    for content, first in ((b"one", True), (b"two", False)):
        with storage.staging(tmp_path) as stage:
            with storage.create(stage / "a") as file:
                file.write(content)
            assert storage.publish(stage / "a", tmp_path / "out" / "a") is first
    assert (tmp_path / "out" / "a").read_bytes() == b"one"
    assert storage.names(tmp_path / ".work" / "tmp") == []


def test_the_record_names_every_file_and_comes_last(tmp_path: Path) -> None:
    record: dict[str, object] = {"stage": "test"}
    with claims.claim(tmp_path, "unit") as claim:
        assert claim
        with shards.new_unit(tmp_path, tmp_path / "pool", "0", record, claim) as create:
            create(".tar").write(b"data")
            create(".parquet").write(b"rows")
            assert storage.names(tmp_path / "pool") == []
    assert storage.names(tmp_path / "pool") == ["0.parquet", "0.tar", "0_stats.json"]
    files = shards.read_record(tmp_path / "pool", "0")["files"]
    assert files["0.tar"] == storage.checksum(tmp_path / "pool" / "0.tar")  # type: ignore[index]


def _fail(file: BinaryIO) -> None:
    file.write(b"data")
    raise RuntimeError


def test_a_failed_unit_leaves_nothing(tmp_path: Path) -> None:
    with claims.claim(tmp_path, "unit") as claim:
        assert claim
        with (
            pytest.raises(RuntimeError),
            shards.new_unit(tmp_path, tmp_path / "pool", "0", {}, claim) as create,
        ):
            _fail(create(".tar"))
    assert storage.names(tmp_path / "pool") == storage.names(tmp_path / ".work" / "tmp") == []


def test_data_without_a_record_is_replaced_and_foreign_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for name in ("0.tar", "0.notes.txt", "10.tar"):
        (tmp_path / "pool" / name).write_bytes(b"old")
    with claims.claim(tmp_path, "unit") as claim:
        assert claim
        with shards.new_unit(tmp_path, tmp_path / "pool", "0", {}, claim) as create:
            create(".tar").write(b"new")
    assert {name: (tmp_path / "pool" / name).read_bytes() for name in ("0.tar", "0.notes.txt", "10.tar")} == {
        "0.tar": b"new",
        "0.notes.txt": b"old",
        "10.tar": b"old",
    }


def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert storage.read(tmp_path / "a", 1, 3) == b"234"
    with pytest.raises(WorkError, match="cut: 3 bytes wanted at 4, got 1"):
        storage.read(tmp_path / "a", 4, 3)
    with pytest.raises(WorkError, match="missing"):
        storage.read(tmp_path / "b")


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="cannot write there"):
        storage.make_folder(tmp_path / "file" / "run")


def test_uids_as_pairs_sort_as_their_text() -> None:
    uids = ["ff" * 16, "00" * 16, "0f" * 16, "f0" * 8 + "0f" * 8]
    array = uid_array(uids)
    assert array.dtype == UID
    assert uid_strings(array) == uids
    assert len(uid_array([])) == 0


def test_append_gives_a_torn_line_its_end(tmp_path: Path) -> None:
    path = tmp_path / "texts" / "lines.jsonl"
    storage.append(path, b"one\n")
    storage.append(path, b"two\nthr")
    storage.append(path, b"four\n")
    assert path.read_bytes() == b"one\ntwo\nthr\nfour\n"


def test_write_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "texts" / "lines.jsonl"
    storage.write(path, b"old")
    storage.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert storage.names(path.parent) == ["lines.jsonl"]
