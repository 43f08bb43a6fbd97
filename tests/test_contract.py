"""What a run writes is what shards/README.md says, and adds up: recipe -> training batch. How it opens in
others' packages is in test_interop.py.
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

import synthgen
from synthgen import recipe
from synthgen.embedded import pipeline_folder
from synthgen.opening import open_job
from synthgen.uids import uid_strings

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset leaves files to the GC


def pool_rows(run: Path) -> list[dict[str, object]]:
    return [row for path in sorted(run.glob("pool/*.parquet")) for row in pq.read_table(path).to_pylist()]


def final_samples(run: Path) -> dict[str, dict[str, bytes]]:
    """Key -> suffix -> bytes of all splits, read with bare tarfile."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(run.glob("final/main/*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_every_number_adds_up(emoji_run: Path) -> None:
    rows = pool_rows(emoji_run)
    records = [json.loads(path.read_text()) for path in sorted(emoji_run.glob("pool/*_stats.json"))]
    assert len(rows) == 96 == sum(record["requested"] for record in records)
    assert sum(r["written"] + r["failed"] for r in records) == 96
    assert Counter(Counter(row["class_name"] for row in rows).values()) == {2: 48}
    funnel = json.loads((emoji_run / "subsets" / "main.json").read_text())
    verdicts = Counter(pq.read_table(emoji_run / "subsets" / "main.parquet")["verdict"].to_pylist())
    assert verdicts.total() == funnel["requested"] == 96
    assert verdicts["kept"] == funnel["kept"] == funnel["funnel"][-1]["after"]
    for number, stage in enumerate(funnel["funnel"][1:]):
        assert stage["before"] - stage["after"] == verdicts[f"select.{number} {stage['rule']}"]
    uids = uid_strings(np.load(emoji_run / "subsets" / "main.npy", allow_pickle=False))
    samples = final_samples(emoji_run)
    assert sorted(samples) == uids
    sizes = [json.loads(path.read_text()) for path in emoji_run.glob("final/main/*/sizes.json")]
    assert sum(count for split in sizes for count in split.values()) == len(uids)
    info = json.loads((emoji_run / "final" / "main" / "_info.json").read_text())["splits"]
    assert sum(split["num_samples"] for split in info.values()) == len(uids)
    page = (emoji_run / "report" / "index.html").read_text()
    for number in (96, funnel["kept"], *(split["num_samples"] for split in info.values())):
        assert f"<b>{number}</b>" in page


def test_labels_captions_and_provenance_belong_together(emoji_run: Path) -> None:
    rows = {str(row["uid"]): row for row in pool_rows(emoji_run)}
    classes = (emoji_run / "final" / "main" / "classes.txt").read_text().splitlines()
    for uid, members in final_samples(emoji_run).items():
        assert list(members) == ["webp", "txt", "cls", "json"]
        row, said = rows[uid], json.loads(members["json"])
        assert members["txt"].decode() == row["text"] == said["text"]
        assert int(members["cls"]) == row["class_id"] == said["class_id"]
        assert classes[int(members["cls"])] == row["class_name"] == said["class_name"]
        assert str(row["class_name"]) in str(row["text"])
        assert hashlib.sha256(members["webp"]).hexdigest() == row["sha256"] == said["sha256"]
        assert {key: said[key] for key in said} == {key: row[key] for key in said}
        assert None not in said.values()


def test_each_image_is_what_its_row_says_it_was_made_from(emoji_run: Path) -> None:
    """Made again with plain diffusers from the provenance alone: the same pixels. A swap of two would be
    found.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    samples = final_samples(emoji_run)
    chosen = [json.loads(samples[uid]["json"]) for uid in list(samples)[:20:2]]
    batch = chosen + chosen[:1] * (16 - len(chosen))  # the planned size; neighbours do not matter
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = pipeline(
        prompt=[said["text"] for said in batch],
        negative_prompt=[said["negative"] for said in batch],
        num_inference_steps=chosen[0]["steps"],
        guidance_scale=chosen[0]["guidance"],
        generator=[synthgen.make_generator(said["seed"]) for said in batch],
        output_type="np",
    ).images
    torch.set_num_threads(threads)
    for said, image in zip(chosen, images, strict=False):
        stored = np.asarray(Image.open(io.BytesIO(samples[said["uid"]]["webp"])))
        assert (stored == (image * 255).round().astype(np.uint8)).all()


def test_annotations_are_row_aligned(emoji_run: Path) -> None:
    for path in sorted(emoji_run.glob("pool/*.parquet")):
        uids = pq.read_table(path)["uid"].to_pylist()
        for annotation in sorted((emoji_run / "annotations").iterdir()):
            assert pq.read_table(annotation / path.name)["uid"].to_pylist() == uids
        features = np.load(emoji_run / "annotations" / "clip" / f"{path.stem}.npz", allow_pickle=False)
        assert {name: (array.dtype, array.shape) for name, array in features.items()} == {
            name: (np.dtype(np.float16), (len(uids), 192)) for name in ("clip_img", "clip_txt")
        }


def test_loader_gives_every_sample_once_and_another_order_each_epoch(emoji_run: Path) -> None:
    split = emoji_run / "final" / "main" / "train"
    plain = synthgen.open_loader(split, batch_size=16)
    images, _ = next(iter(plain))
    assert images.shape == (16, 3, 64, 64)
    assert images.dtype.is_floating_point
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    everything = [[int(k) for _, batch in plain for k in batch] for _ in range(2)]
    assert everything[0] == everything[1]
    assert len(everything[0]) == sum(json.loads((split / "sizes.json").read_text()).values())
    shuffled = synthgen.open_loader(split, batch_size=16, shuffle=True, seed=1)
    epochs = [[int(k) for _, batch in shuffled for k in batch] for _ in range(2)]
    again = [
        int(k) for _, batch in synthgen.open_loader(split, batch_size=16, shuffle=True, seed=1) for k in batch
    ]
    assert epochs[0] == again != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(everything[0])
    with pytest.raises(synthgen.SynthgenError, match="name one of its splits: train, val"):
        synthgen.open_loader(split.parent, batch_size=1)


def documented(text: str, heading: str) -> set[str]:
    """The names in the first column of the table under a heading of shards/README.md."""
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {
        name
        for line in part.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def test_the_format_page_lists_every_column_and_no_other(emoji_run: Path) -> None:
    text = (ROOT / "shards" / "README.md").read_text()
    axes = {"axis_style": "axis_*", "axis_background": "axis_*"}

    def written(path: str) -> set[str]:
        return {axes.get(name, name) for name in pq.read_schema(next(emoji_run.glob(path))).names}

    assert documented(text, "Plan") == written("plan/*.parquet")
    assert documented(text, "Pool") == written("pool/*.parquet")
    for name in ("clip", "image", "hashes"):
        assert documented(text, f"Annotation `{name}`") == written(f"annotations/{name}/*.parquet") - {
            "uid"
        } | ({"clip_img", "clip_txt"} if name == "clip" else set())
    assert documented(text, "Subsets") == written("subsets/*.parquet")
    sample = next(iter(final_samples(emoji_run).values()))
    assert documented(text, "Members") == {axes.get(key, key) for key in json.loads(sample["json"])}


def test_known_columns_are_those_of_a_run(emoji_run: Path) -> None:
    loaded = recipe.load(recipe.find("emoji"))
    known = set(recipe.known_columns(loaded)) - {"width", "height"}  # of the plan only
    found = set(pq.read_schema(next(emoji_run.glob("pool/*.parquet"))).names)
    for name in ("clip", "image", "hashes"):
        found |= set(pq.read_schema(next(emoji_run.glob(f"annotations/{name}/*.parquet"))).names)
    assert known == found


def test_curation_can_be_repeated_with_other_rules(emoji_run: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(emoji_run, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.glob("final/main/*/*")}
    settings = ["quota.requests=2", "select.0.minimum=0.2"]
    with pytest.raises(
        synthgen.SynthgenError, match=r"was made with select = \[0\] .*add --subset NEW .* or --replace"
    ):
        synthgen.run("emoji", run, stages=("select", "reshard"), settings=settings, workers=1)
    synthgen.run("emoji", run, stages=("select", "reshard"), settings=settings, subset="strict", workers=1)
    assert {path: path.read_bytes() for path in before} == before
    kept = synthgen.status(run)["subsets"]
    assert kept["strict"] < kept["main"]  # type: ignore[index]
    synthgen.run("emoji", run, stages=("select", "reshard"), settings=settings, replace=True, workers=1)
    assert synthgen.verify(run) == []
    assert synthgen.status(run)["subsets"]["main"] == kept["strict"]  # type: ignore[index]


def test_a_split_is_a_matter_of_the_sample_alone() -> None:
    from synthgen.resharding import split_of

    parts = {"train": 0.8, "val": 0.1, "test": 0.1}
    counts = Counter(split_of(f"{k:032x}", parts) for k in range(5000))
    assert {name: round(count / 5000, 1) for name, count in counts.items()} == parts
    assert split_of("x", {"only": 1.0}) == "only"


def test_oversampled_uids_get_keys_of_their_own(run_copy: Path) -> None:
    """DataComp's subset files may list a uid several times."""
    from synthgen import pipeline, storage

    path = run_copy / "subsets" / "main.npy"
    array = np.load(path, allow_pickle=False)
    np.save(path, np.sort(np.concatenate([array, array[:3], array[:1]]), order=["f0", "f1"]))
    funnel = storage.read_json(run_copy / "subsets" / "main.json")
    funnel["files"]["main.npy"] = storage.checksum(path)
    storage.replace(run_copy, run_copy / "subsets" / "main.json", storage.to_json(funnel))
    job = open_job("emoji", run_copy, settings=["quota.requests=2"])
    for file in [*run_copy.glob("final/main/*/*.*"), run_copy / "final" / "main" / "_stats.json"]:
        storage.remove(file)
    pipeline.work(job, ["reshard"])
    samples = final_samples(run_copy)
    first = uid_strings(array)[0]
    assert len(samples) == len(array) + 4
    assert samples[first] == samples[f"{first}-1"] == samples[f"{first}-2"]
    assert synthgen.verify(run_copy) == []
