"""DataComp's metadata: its columns and types, features beside their rows, names only for what they mean."""

import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_import import HEX, datacomp

from synthgen import shards, storage
from synthgen.cli import main
from synthgen.errors import FolderError, SynthgenError
from synthgen.exporting import to_datacomp
from synthgen.intake import bring
from synthgen.uids import uid_strings

KINDS = {
    "uid": "string", "url": "string", "text": "string", "original_width": "int64", "original_height": "int64",
    "clip_b32_similarity_score": "float", "clip_l14_similarity_score": "float",
    "face_bboxes": "list<element: list<element: double>>", "sha256": "string",
}  # fmt: skip


def read(folder: Path) -> tuple[pa.Table, dict[str, npt.NDArray[np.float16]]]:
    """All of it, as DataComp's code goes through it: file by file, a npz of the same name beside each."""
    tables, arrays = [], list[dict[str, npt.NDArray[np.float16]]]()
    for path in sorted((folder / "metadata").glob("*.parquet")):
        assert re.fullmatch("[0-9a-f]{32}", path.stem)
        tables.append(pq.read_table(path))
        beside = path.with_suffix(".npz")
        arrays.append(dict(np.load(beside, allow_pickle=False)) if beside.exists() else {})
        assert all(len(array) == len(tables[-1]) for array in arrays[-1].values())
    features = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
    return pa.concat_tables(tables), features


def named(run: Path, model: str, pretrained: str) -> None:
    """Lets the records say that another model made the annotation."""
    for path in (run / "annotations" / "clip").glob("*_stats.json"):
        told = json.loads(path.read_text())
        told["inputs"] |= {"annotate.clip.model": model, "annotate.clip.pretrained": pretrained}
        path.write_text(json.dumps(told))


def test_a_run_of_ours(run_copy: Path, tmp_path: Path) -> None:
    done = to_datacomp(
        run_copy,
        tmp_path / "dc",
        columns=["clip_l14_similarity_score=clip_similarity"],
        features=["l14_img=clip_img", "l14_txt=clip_txt"],
    )
    table, features = read(tmp_path / "dc")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {name: KINDS[name] for name in kinds}
    assert list(kinds) == [name for name in KINDS if name not in ("clip_b32_similarity_score", "face_bboxes")]
    assert {name: (array.dtype, array.shape) for name, array in features.items()} == {
        name: (np.dtype(np.float16), (96, 192)) for name in ("l14_img", "l14_txt")
    }
    rows = {
        row["uid"]: row for path in run_copy.glob("pool/*.parquet") for row in pq.read_table(path).to_pylist()
    }
    scores = {
        row["uid"]: row["clip_similarity"]
        for path in run_copy.glob("annotations/clip/*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert len(table) == done.rows == len(rows) == 96
    for row, image, text in zip(table.to_pylist(), features["l14_img"], features["l14_txt"], strict=True):
        pool = rows[row["uid"]]
        assert (row["text"], row["sha256"], row["url"]) == (pool["text"], pool["sha256"], "")
        assert row["original_width"] == pool["original_width"]
        assert row["clip_l14_similarity_score"] == np.float32(scores[row["uid"]])
        cosine = float(image.astype(np.float32) @ text.astype(np.float32))
        assert cosine == pytest.approx(row["clip_l14_similarity_score"], abs=2e-3)  # the rows belong together
    assert any(note.startswith("clip_b32_similarity_score: not known") for note in done.notes)


def test_names_go_only_to_the_models_that_they_mean(run_copy: Path, tmp_path: Path) -> None:
    assert "clip_l14_similarity_score" not in to_datacomp(run_copy, tmp_path / "plain").columns
    assert not list((tmp_path / "plain" / "metadata").glob("*.npz"))
    named(run_copy, "ViT-L-14", "laion2b_s32b_b82k")
    assert "clip_l14_similarity_score" not in to_datacomp(run_copy, tmp_path / "laion").columns
    named(run_copy, "ViT-L-14", "openai")
    done = to_datacomp(run_copy, tmp_path / "openai")
    assert "clip_l14_similarity_score" in done.columns
    assert done.features == ["l14_img", "l14_txt"]
    assert set(read(tmp_path / "openai")[1]) == {"l14_img", "l14_txt"}


def test_what_was_imported_from_datacomp_keeps_its_names(tmp_path: Path) -> None:
    root = bring([datacomp(tmp_path / "pool")], tmp_path / "out", workers=1)
    to_datacomp(root, tmp_path / "dc")
    table, _ = read(tmp_path / "dc")
    assert {field.name: str(field.type) for field in table.schema} == {
        name: kind for name, kind in KINDS.items() if name != "clip_b32_similarity_score"
    }
    rows = {row["uid"]: row for row in table.to_pylist()}
    assert sorted(rows) == sorted(HEX[k] for k in (0, 1, 2, 4, 5, 6, 7))  # those that have an image
    assert rows[HEX[5]]["clip_l14_similarity_score"] == np.float32(0.5)
    assert rows[HEX[5]]["face_bboxes"] == [[0.1, 0.2, 0.3, 0.4]]
    assert (rows[HEX[5]]["original_width"], rows[HEX[5]]["url"]) == (641, "https://x.org/1.jpg")


def test_a_subset_alone_and_again(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "datacomp", str(run_copy), "-o", str(tmp_path / "dc"), "--subset", "main"]
    arguments += ["--features", "b32_img=clip_img"]
    assert main(arguments) == 0
    assert "rows; columns uid, url, text, " in capsys.readouterr().out
    table, features = read(tmp_path / "dc")
    kept = uid_strings(shards.read_npy(run_copy / "subsets" / "main.npy"))
    assert sorted(table["uid"].to_pylist()) == kept
    assert features["b32_img"].shape == (len(kept), 192)
    before = {path.name: path.read_bytes() for path in (tmp_path / "dc" / "metadata").iterdir()}
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == len(kept)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dc" / "metadata").iterdir()} == before
    with pytest.raises(
        FolderError, match="which is no part of this export; choose another folder with -o DIR"
    ):
        to_datacomp(run_copy, tmp_path / "dc")


def test_texts_that_are_missing_and_uids_that_are_there_twice(run_copy: Path, tmp_path: Path) -> None:
    path = sorted(run_copy.glob("pool/*.parquet"))[0]
    table = pq.read_table(path)
    texts = pa.array([None, *table["text"].to_pylist()[1:]], pa.string())
    errors = pa.array([*table["error"].to_pylist()[:-1], "black"], pa.string())
    for name, column in (("text", texts), ("error", errors)):
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    to_datacomp(run_copy, tmp_path / "dc")
    found, _ = read(tmp_path / "dc")
    assert "" in found["text"].to_pylist()
    assert found["text"].null_count == 0
    assert len(found) == 95
    uids = pa.array([table["uid"][1].as_py(), *table["uid"].to_pylist()[1:]])
    pq.write_table(table.set_column(table.column_names.index("uid"), "uid", uids), path)
    with pytest.raises(FolderError, match=r"uid \w+ is there twice; DataComp's resharder would repeat"):
        to_datacomp(run_copy, tmp_path / "twice")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"columns": ["clip_l14=clip_similarity"]},
            'DataComp has no "clip_l14". Known: clip_b32_similarity',
        ),
        ({"columns": ["clip_l14_similarity_score=clip_sim"]}, 'there is no "clip_sim"; did you mean "clip_'),
        ({"columns": ["uid=text"]}, 'DataComp has no "uid"'),
        ({"features": ["l14_img=clip_image"]}, 'there is no "clip_image"; did you mean "clip_img"?'),
        ({"features": ["clip_img=clip_img"]}, 'DataComp has no "clip_img"'),
        ({"subset": "strict"}, "no subset strict; known: main"),
    ],
)
def test_names_that_are_not_there(
    emoji_run: Path, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(SynthgenError) as caught:
        to_datacomp(emoji_run, tmp_path / "dc", **keys)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert not (tmp_path / "dc").exists()


def test_a_pool_that_is_not_finished(run_copy: Path, tmp_path: Path) -> None:
    storage.remove(next(run_copy.glob("pool/*_stats.json")))
    with pytest.raises(FolderError, match="1 of 2 shards of the pool are not there yet"):
        to_datacomp(run_copy, tmp_path / "dc")
