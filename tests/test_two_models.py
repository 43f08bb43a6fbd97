"""One dataset by two models of different families, from the recipe to the final shards."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

import synthgen
from synthgen import tars
from synthgen.inspection import verify

CLASSES, QUOTA = ("cat", "dog", "owl"), 5
MODEL = """
[[models]]
id = "tiny_xl"
path = "../models/sdxl"
dtype = "float32"
width = 64
height = 64
steps = 2
guidance = 5.0
negative = "a blue photo"
batch_size = 4

"""


def test_two_families_share_a_dataset(
    recipe_folder: Path, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    (recipe_folder.parent / "models").mkdir()
    (recipe_folder.parent / "models" / "sdxl").symlink_to(tiny_model("sdxl"))
    recipe = recipe_folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[[annotate]]", MODEL + "[[annotate]]", 1))
    (recipe_folder / "classes.txt").write_text("\n".join(CLASSES))
    settings = [f"quota.requests={QUOTA}", "models.tiny.steps=2", "models.tiny.batch_size=4"]
    settings += ["images.shard_size=4", "select=[]", "annotate.clip.batch_size=4"]
    run = synthgen.run(recipe_folder, tmp_path / "run", settings=settings, workers=1)

    tables = [pq.read_table(path).to_pylist() for path in sorted(run.glob("pool/*.parquet"))]
    rows = {row["uid"]: row for table in tables for row in table}
    assert len(rows) == len(CLASSES) * QUOTA
    for table in tables:
        assert len({(row["model"], row["fingerprint"]) for row in table}) == 1
    made = Counter((row["class_name"], row["model"]) for row in rows.values())
    assert {name: made[name, "tiny"] + made[name, "tiny_xl"] for name in CLASSES} == dict.fromkeys(
        CLASSES, QUOTA
    )
    assert all(abs(made[name, "tiny"] - made[name, "tiny_xl"]) <= 1 for name in CLASSES)
    assert {(row["model"], row["negative"]) for row in rows.values()} == {
        ("tiny", ""),
        ("tiny_xl", "a blue photo"),
    }
    assert {(row["original_width"], row["original_height"]) for row in rows.values()} == {(64, 64)}
    assert len({row["sha256"] for row in rows.values()}) == len(rows)

    final = {}
    for path in sorted(run.glob("final/main/*/*.tar")):
        for key, members in tars.samples(path.read_bytes()):
            final[key] = json.loads(members["json"])
    assert {key: each["model"] for key, each in final.items()} == {
        key: row["model"] for key, row in rows.items()
    }
    assert verify(run) == []
