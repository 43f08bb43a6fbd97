"""Recipes that make no images curate what was imported: annotate, select, reshard, report, verify, show."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_import import HEX, coco, datacomp, images, img2dataset, picture, tree, webdataset

import synthgen
from synthgen import recipe, shards
from synthgen.cli import main
from synthgen.errors import FolderError, RecipeError
from synthgen.importing.forms import Keys
from synthgen.inspection import verify
from synthgen.intake import bring
from synthgen.opening import open_job

CURATES = """
name = "chosen"

[[annotate]]
name = "clip"
use = "clip"

[[annotate]]
name = "image"
use = "image"

[[select]]
use = "range"
column = "{column}"
minimum = {minimum}

[reshard]
shard_size = 5
"""


def write(path: Path, column: str = "image_luma", minimum: float = 0.0, more: str = "") -> Path:
    path.mkdir(exist_ok=True)
    (path / "recipe.toml").write_text(more + CURATES.format(column=column, minimum=minimum))
    return path


def plain(path: Path, more: str = "") -> Path:
    path.mkdir(exist_ok=True)
    (path / "recipe.toml").write_text(f'name = "own"\n{more}')
    return path


def final(root: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(root.glob("final/main/*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_a_pool_is_curated_by_the_scores_that_came_with_it(tmp_path: Path) -> None:
    source = datacomp(tmp_path / "pool")
    before = tree(source)
    root = bring([source], tmp_path / "out", columns=["similarity=clip_l14_similarity_score"], workers=1)
    own = write(tmp_path / "recipe", "similarity", 0.35)
    assert synthgen.run(own, root, workers=1) == root
    samples = final(root)
    assert sorted(samples) == sorted(HEX[k] for k in (4, 5, 6, 7))
    with tarfile.open(source / "shards" / "00000001.tar") as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for k in range(4):
        key = f"{10_000 + k:012d}"
        assert samples[HEX[4 + k]] == {suffix: held[f"{key}.{suffix}"] for suffix in ("jpg", "json", "txt")}
    assert tree(source) == before
    assert verify(root) == []
    assert not list(root.glob("pool/*.tar"))
    table = pq.read_table(root / "annotations" / "clip" / "00000001.parquet")
    assert table["clip_similarity"].null_count == 0  # it has captions, and no labels
    for name in ("clip_label_similarity", "clip_margin", "clip_rank", "clip_top1"):
        assert table[name].null_count == len(table)
    card = (root / "final" / "main" / "README.md").read_text()
    assert "| pool | unknown |" in card
    assert "synthetic" not in card
    assert not (root / "final" / "main" / "classes.txt").exists()
    page = (root / "report" / "index.html").read_text()
    assert "similarity" in page
    assert page.count("<img") >= 4


def test_what_a_source_lacks_is_added_where_it_is_known(tmp_path: Path) -> None:
    source = webdataset(tmp_path / "web")
    root = bring([source], tmp_path / "out", workers=1)
    synthgen.run(write(tmp_path / "recipe"), root, workers=1)
    rows = {
        row["uid"]: row for path in root.glob("pool/*.parquet") for row in pq.read_table(path).to_pylist()
    }
    samples = final(root)
    assert len(samples) == 8
    for uid, members in samples.items():
        told = json.loads(members["json"])
        assert set(members) == {"png", "cls", "json"}
        assert members["cls"] == str(rows[uid]["class_id"]).encode()
        assert told["uid"] == uid
        assert (told["class_name"], told["key"]) == (rows[uid]["class_name"], rows[uid]["key"])
        assert None not in told.values()
    folder = images(tmp_path / "birds", "owl/a.jpg", "cat/b.jpg")
    root = bring([folder], tmp_path / "two", workers=1)
    synthgen.run(write(tmp_path / "recipe"), root, workers=1)
    assert {(m["jpg"], m["cls"], tuple(m)) for m in final(root).values()} == {
        (picture(0), b"1", ("jpg", "cls", "json")), (picture(1), b"0", ("jpg", "cls", "json")),
    }  # fmt: skip
    assert (root / "final" / "main" / "classes.txt").read_text() == "cat\nowl\n"
    told = pq.read_table(root / "annotations" / "clip" / "00000000.parquet")
    assert told["clip_similarity"].null_count == 2  # it has labels, and no captions
    assert told["clip_rank"].null_count == 0
    features = np.load(root / "annotations" / "clip" / "00000000.npz")
    assert np.isnan(features["clip_txt"]).all()
    assert not np.isnan(features["clip_img"]).any()
    loader = synthgen.open_loader(root / "final" / "main" / "train", batch_size=2)
    assert sorted(int(label) for _, batch in loader for label in batch) == [0, 1]


def test_each_json_that_is_made_has_the_same_keys(tmp_path: Path) -> None:
    images(tmp_path / "birds", *(f"{k}.jpg" for k in range(4)))
    values = [(0, 0.5, 1, "x"), (1, "", 2, ""), (0, 1.5, "", "y"), (1, 2.5, 4, "z")]
    lines = ["image,y,score,n,note", *(f"{k}.jpg,{y},{a},{b},{c}" for k, (y, a, b, c) in enumerate(values))]
    (tmp_path / "birds" / "m.csv").write_text("\n".join([*lines, "none.jpg,,,,"]) + "\n")
    for copy in (False, True):
        table, output = tmp_path / "birds" / "m.csv", tmp_path / str(copy)
        root = bring([table], output, keys=Keys("image", "y"), copy=copy, workers=1)
        assert shards.imported(root)[0].partial == ["score", "n"]
        synthgen.run(plain(tmp_path / "recipe"), root, workers=1)
        told = [json.loads(members["json"]) for members in final(root).values()]
        assert len({tuple(one) for one in told}) == 1
        assert {(one["class_id"], one["note"]) for one in told} == {(0, "x"), (1, ""), (0, "y"), (1, "z")}


def test_a_source_of_a_joined_pool_that_moved_is_found(tmp_path: Path) -> None:
    first, second = webdataset(tmp_path / "web"), webdataset(tmp_path / "more")
    own = plain(tmp_path / "recipe")
    roots = [bring([source], tmp_path / f"of_{source.name}", workers=1) for source in (first, second)]
    for root in roots:
        synthgen.run(own, root, stages=("select",), workers=1)
    second.rename(tmp_path / "there")
    with pytest.raises(FolderError, match=r'source "more": .* --set sources.more.path='):
        synthgen.run(own, roots[0], stages=("reshard",), add=[str(roots[1])], workers=1)
    synthgen.run(
        own, roots[0], stages=("reshard",), add=[str(roots[1])], workers=1,
        settings=[f"sources.more.path={tmp_path / 'there'}"],
    )  # fmt: skip
    assert len(final(roots[0])) == 16


def test_images_of_a_coco_file_are_where_it_has_them(tmp_path: Path) -> None:
    source = coco(tmp_path / "coco")
    root = bring([source], tmp_path / "out", name="coco", workers=1)
    (tmp_path / "coco").rename(tmp_path / "there")
    moved = tmp_path / "there" / source.relative_to(tmp_path / "coco")
    keep = '[[select]]\nuse = "range"\ncolumn = "class_id"\nminimum = 0\n'
    own = plain(tmp_path / "recipe", f'{keep}[sources.coco]\npath = "{moved}"\n')
    synthgen.run(own, root, workers=1)
    assert len(final(root)) == 2


def test_a_source_that_moves_is_found_by_the_recipe(tmp_path: Path) -> None:
    source = webdataset(tmp_path / "web")
    root = bring([source], tmp_path / "out", workers=1)
    moved = tmp_path / "there"
    source.rename(moved)
    own = write(tmp_path / "recipe")
    with pytest.raises(FolderError, match=r'source "web": 000000.tar is not in .*; --set sources.web.path='):
        synthgen.run(own, root, workers=1)
    synthgen.run(own, root, settings=[f"sources.web.path={moved}"], workers=1)
    assert len(final(root)) == 8
    shutil.rmtree(root / "final")
    data = bytearray((moved / "000001.tar").read_bytes())
    table = pq.read_table(root / "pool" / "00000001.parquet")
    data[table["image_offset"][1].as_py() + 60] ^= 255
    (moved / "000001.tar").write_bytes(data)
    with pytest.raises(FolderError, match=r'"web": the image .*000001.tar: s1/0001 has other bytes'):
        synthgen.run(own, root, settings=[f"sources.web.path={moved}"], workers=1)
    (moved / "000001.tar").unlink()
    with pytest.raises(FolderError, match=r'source "web": 000001.tar is not in'):
        synthgen.run(own, root, settings=[f"sources.web.path={moved}"], workers=1)


def test_an_image_that_does_not_decode_is_annotated_by_what_needs_none(tmp_path: Path) -> None:
    """Whether something that looks at images is annotated with it or was before."""
    from test_import import archive

    data = bytearray(picture(3, "PNG", 64))
    at = data.index(b"IDAT") + 100
    data[at : at + 8] = bytes(8)
    captions = [("a.txt", b"a small owl"), ("b.txt", b"a small cat")]
    members = [("a.png", bytes(data)), captions[0], ("b.png", picture(4, "PNG")), captions[1]]
    source = archive(tmp_path / "web" / "0.tar", members).parent
    root = bring([source], tmp_path / "out", workers=1)
    own = write(tmp_path / "recipe")
    with (own / "recipe.toml").open("a") as file:
        file.write('[[annotate]]\nname = "said"\nuse = "language"\n')
    synthgen.run(own, root, workers=1)
    table = pq.read_table(root / "annotations" / "image" / "00000000.parquet")
    assert [value is None for value in table["image_luma"].to_pylist()] == [True, False]
    said = root / "annotations" / "said" / "00000000.parquet"
    assert pq.read_table(said)["said_words"].to_pylist() == [3, 3]
    beside = said.read_bytes()
    shutil.rmtree(said.parent)
    synthgen.run(own, root, workers=1)
    assert said.read_bytes() == beside
    assert [json.loads(members["json"])["key"] for members in final(root).values()] == ["b"]


def test_copies_are_found_whatever_their_files(tmp_path: Path) -> None:
    """A transparent image and one that a camera turned, in the pool and in an evaluation set."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    plain = Image.fromarray(pixels).resize((48, 64))
    turned = Image.Exif()
    turned[0x112] = 6
    alpha = Image.fromarray(np.tile(np.uint8([0, 255]), (64, 24)))
    for name in ("web/cat", "eval/cat"):
        (tmp_path / name).mkdir(parents=True)
        plain.save(tmp_path / name / "turned.png", exif=turned)
        Image.merge("RGBA", (*plain.split(), alpha)).save(tmp_path / name / "clear.png")
    root = bring([tmp_path / "web"], tmp_path / "out", workers=1)
    own = write(tmp_path / "recipe")
    with (own / "recipe.toml").open("a") as file:
        file.write('[[annotate]]\nname = "eval"\nuse = "references"\nsource = "sources.eval"\nper = ""\n')
        file.write(f"[sources.eval]\npath = '{tmp_path / 'eval'}'\n")
    synthgen.run(own, root, stages=("annotate",), workers=1)
    table = pq.read_table(root / "annotations" / "eval" / "00000000.parquet")
    assert table["eval_phash_distance"].to_pylist() == [0, 0]
    assert table["eval_max"].to_pylist() == pytest.approx([1, 1], abs=1e-6)
    size = pq.read_table(root / "annotations" / "image" / "00000000.parquet", columns=["image_width"])
    assert sorted(size["image_width"].to_pylist()) == [48, 64]


def test_only_what_a_rule_keeps_is_annotated_though_a_source_lacks_its_column(tmp_path: Path) -> None:
    """A sample without a value passes no rule; nor does one of features that nobody made in its shard."""
    for name, header in (("one", "filename,score"), ("two", "filename")):
        images(tmp_path / name, "a.jpg", "b.jpg")
        lines = [f"{file},{k}" if name == "one" else file for k, file in enumerate(("a.jpg", "b.jpg"))]
        (tmp_path / name / "list.csv").write_text("\n".join([header, *lines]) + "\n")
    tables = [tmp_path / name / "list.csv" for name in ("one", "two")]
    root = tmp_path / "out"
    for name, table in zip(("one", "two"), tables, strict=True):
        bring([table], root, name=name, keys=Keys("filename"), workers=1)
    on = """
[[select]]
subset = "some"
use = "range"
column = "score"
minimum = 0.5

[[annotate]]
name = "groups"
use = "clusters"
features = "clip_img"
count = 3
"""
    own = write(tmp_path / "recipe")
    text = (own / "recipe.toml").read_text().replace('use = "clip"\n', 'use = "clip"\non = "some"\n')
    (own / "recipe.toml").write_text(text + on)
    synthgen.run(own, root, stages=("annotate",), workers=1)

    def found(name: str, column: str) -> list[bool]:
        paths = sorted((root / "annotations" / name).glob("0*.parquet"))
        return [value is not None for path in paths for value in pq.read_table(path)[column].to_pylist()]

    assert found("clip", "clip_similarity").count(True) == 0  # no caption
    assert sorted(len(list(root.glob(f"annotations/clip/0000000{k}.npz"))) for k in (0, 1)) == [0, 1]
    assert found("groups", "groups_id").count(True) == 1
    none = [f"select.1.minimum={9}", "annotate.clip.name=c", "annotate.2.features=c_img", "annotate.2.name=g"]
    synthgen.run(own, root, stages=("annotate",), workers=1, settings=none)
    assert found("g", "g_id") == [False] * 4


def test_classes_of_the_recipe_are_joined_by_name(tmp_path: Path) -> None:
    root = bring([images(tmp_path / "birds", "owl/a.jpg", "cat/b.jpg")], tmp_path / "out", workers=1)
    job = open_job(write(tmp_path / "recipe"), root)
    assert [(one.id, one.name) for one in job.classes] == [(0, "cat"), (1, "owl")]
    own = write(tmp_path / "named", more='classes = ["cat", "owl", "ant"]\n')
    assert [one.name for one in open_job(own, root).classes] == ["cat", "owl", "ant"]
    synthgen.run(own, root, workers=1)
    own = write(tmp_path / "other", more='classes = ["owl", "cat"]\n')
    with pytest.raises(
        RecipeError, match=r'recipe.toml: classes: "\w+" has id \d here, and id \d in the pool'
    ):
        synthgen.run(own, root, workers=1)
    own = write(tmp_path / "fewer", more='classes = ["cat"]\n')
    with pytest.raises(RecipeError, match=r'classes: "owl" is not there, and id 1 in the pool'):
        synthgen.run(own, root, workers=1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plan", "makes no images, as it has no [[prompts]], [[models]] and [quota]; `synthgen run` curates"),
        ("generate", "makes no images"),
        ("prompts", "makes no images"),
        ("doctor", "makes no images"),
        ("check --embed clip", "--embed clip: measures prompts"),
        ("run --set select.0.column=lum", 'select.0.column: unknown column "lum"'),
        ("run --set select.0.column=text", 'select.0.column: "text" holds text'),
        (
            "run -o nothing",
            "nothing was imported there; `synthgen import SOURCE -o nothing`",
        ),
        ("run --set quota.requests=3", 'missing key "prompts"; a recipe that makes images has [[prompts]], '),
    ],
)
def test_what_such_a_recipe_cannot(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bring([webdataset(tmp_path / "web")], "out", workers=1)
    write(tmp_path / "recipe")
    verb, *options = command.split()
    where = [] if "-o" in options else ["-o", "out"]
    assert main([verb, "recipe", *options, *where]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_check_status_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bring([img2dataset(tmp_path / "web")], tmp_path / "out", workers=1)
    own = write(tmp_path / "recipe")
    assert main(["check", str(own), "-o", str(root)]) == 0
    assert f"valid; makes no images, curates 8 samples in {root}" in capsys.readouterr().out
    assert main(["status", str(root)]) == 0
    assert "8 requested, 7 written, 1 failed" in capsys.readouterr().out
    assert main(["show", str(root), HEX[5]]) == 1  # it has no mark
    said = capsys.readouterr().out
    assert "00000001.tar: 000000010001: has no mark" in said
    assert "a cat, the 5th" in said


def test_an_import_that_is_not_finished_is_not_curated(tmp_path: Path) -> None:
    root = bring([webdataset(tmp_path / "web")], tmp_path / "out", workers=1)
    (root / "pool" / "00000001_stats.json").unlink()
    with pytest.raises(FolderError, match=r'the import of "web" is not finished \(1 of 2 shards are left\)'):
        synthgen.run(write(tmp_path / "recipe"), root, workers=1)
    with pytest.raises(FolderError, match=r'the import of "web" is not finished; repeat its command'):
        bring([images(tmp_path / "birds", "owl/a.jpg")], root, workers=1)
    bring([tmp_path / "web"], root, workers=1)
    synthgen.run(write(tmp_path / "recipe"), root, workers=1)


def test_a_table_as_a_source_of_a_recipe(tmp_path: Path) -> None:
    """`[sources.NAME]` reads what `import` reads."""
    from synthgen import sources
    from synthgen.data import Category

    images(tmp_path / "birds", "a.jpg", "b.jpg")
    (tmp_path / "birds" / "table.csv").write_text("file,kind\na.jpg,owl\nb.jpg,cat\n")
    classes = [Category(0, "cat", "cat"), Category(1, "owl", "owl")]
    table = tmp_path / "birds" / "table.csv"
    found = sources.open_source(table, "real", classes, image="file", label="kind")
    assert {name: len(uids) for name, uids in found.by_class.items()} == {"cat": 1, "owl": 1}
    assert recipe.load(
        write(tmp_path / "recipe") / "recipe.toml", ["sources.real={ path = 'x', image = 'y' }"]
    )
