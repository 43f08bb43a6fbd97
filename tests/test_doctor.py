"""`synthgen doctor` tries batch sizes with the recipe's prompts, and writes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synthgen import cli, doctor
from synthgen.doctor import best_batch_size, examine, lines_to_paste
from synthgen.generation import sampling
from synthgen.generation.trials import Trial, try_batch
from synthgen.opening import open_job

FAST = ["models.0.steps=1", "quota.requests=1"]


def trial(batch_size: int, rate: float, peak: int | None = None) -> Trial:
    return Trial(batch_size, rate, batch_size / rate, peak)


@pytest.mark.parametrize(
    ("trials", "free", "best"),
    [
        ([(1, 1.0), (2, 1.9), (4, 3.0)], None, 4),
        ([(1, 1.0), (2, 1.9), (4, 1.92)], None, 2),  # 1% more is not worth it
        ([(1, 2.0), (2, 1.0)], None, 1),
        ([(1, 1.0, 5), (2, 2.0, 8), (4, 4.0, 10)], 10, 2),  # 4 would leave no room
        ([(1, 1.0, 20)], 10, 1),
        ([], None, 0),
    ],
)
def test_the_best_batch_size(trials: list[tuple[int, float]], free: int | None, best: int) -> None:
    assert best_batch_size([trial(*one) for one in trials], free) == best


def test_each_batch_size_is_tried_with_the_recipe_s_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    given = ["doctor", "emoji", "-o", str(root), "--most", "4", "--json"]
    assert cli.main([*given, *(part for setting in FAST for part in ("--set", setting))]) == 0
    printed = capsys.readouterr()
    (found,) = json.loads(printed.out)["models"]
    assert not root.exists()
    assert [one["batch_size"] for one in found["trials"]] == [1, 2, 4]
    for one in found["trials"]:
        assert one["images_per_second"] * one["seconds"] == pytest.approx(one["batch_size"])
        assert 10**8 < one["peak_bytes"] < 10**11
    assert found["weights_bytes"].keys() == {"unet", "vae", "text_encoder"}
    assert sum(found["weights_bytes"].values()) == pytest.approx(50_000_000, rel=0.1)
    assert "tiny: 1 at once" in printed.err


def test_it_prints_a_table_and_the_lines_to_paste(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["doctor", "emoji", "-o", str(tmp_path / "run"), "--most", "1", "--set", "images.shard_size=48"]
    assert cli.main([*given, *(part for setting in FAST for part in ("--set", setting))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: embedded on ")
    assert lines[1].startswith("weights in float32: 5")
    assert lines[2].split() == ["batch", "size", "images/s", "s", "a", "batch", "peak", "memory"]
    assert lines[3].split()[0] == "1"
    assert lines[4] == "stopped: 1 is as many as were asked for (--most)"
    assert lines[-1] == "  --set models.tiny.batch_size=1"


def test_shards_are_whole_numbers_of_micro_batches(tmp_path: Path) -> None:
    job = open_job("emoji", tmp_path / "run", settings=["images.shard_size=48"])
    found = doctor.Finding("tiny", "embedded", "cpu", "float32", {}, None, [], "", 32, "")
    assert lines_to_paste(job, [found]) == [
        "--set models.tiny.batch_size=32",
        "--set images.shard_size=64",
    ]
    assert lines_to_paste(job, [found._replace(batch_size=16)]) == []
    assert lines_to_paste(job, [found._replace(batch_size=0)]) == []


@pytest.mark.parametrize(
    ("rates", "tried", "stopped", "best"),
    [
        (
            {1: 1.0, 2: 1.9, 4: 3.6, 8: 3.7, 16: 3.5},
            [1, 2, 4, 8, 16],
            "8 and 16 at once gain less than 3%",
            4,
        ),
        ({1: 1.0, 2: 0.9, 4: 3.0, 8: 5.0, 16: 9.0}, [1, 2, 4, 8, 16], "16 is as many as were asked for", 16),
        ({1: 1.0, 2: 0.9, 4: 0.8}, [1, 2, 4], "2 and 4 at once gain less than 3%", 1),
    ],
)
def test_it_stops_where_larger_batches_gain_nothing(
    rates: dict[int, float],
    tried: list[int],
    stopped: str,
    best: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Times that a device might show, in place of its own."""
    monkeypatch.setattr(doctor, "try_batch", lambda pipeline, requests, n, *others: trial(n, rates[n]))
    (found,) = examine(open_job("emoji", tmp_path / "run", settings=FAST), most=16)
    assert [one.batch_size for one in found.trials] == tried
    assert found.stopped.startswith(stopped)
    assert found.batch_size == best


def test_it_stops_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampling.call

    def cramped(pipeline, filled, real_image):  # type: ignore[no-untyped-def]
        if len(filled) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(pipeline, filled, real_image)

    monkeypatch.setattr(sampling, "call", cramped)
    (found,) = examine(open_job("emoji", tmp_path / "run", settings=FAST))
    assert [one.batch_size for one in found.trials] == [1]
    assert found.stopped == "2 at once need more memory than there is"
    assert found.batch_size == 1


def test_a_model_with_one_prompt_a_call_has_one_batch_size(
    recipe_folder: Path, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    path = f"models.0.path={tiny_model('qwen-image')}"
    (found,) = examine(open_job(recipe_folder, tmp_path / "run", settings=[*FAST, path]))
    assert [one.batch_size for one in found.trials] == [1]
    assert found.stopped == "QwenImagePipeline is given one prompt a call"


MODEL = """
[[models]]
id = "{}"
path = "{}"
dtype = "float32"
steps = 1
guidance = 3.0

"""


@pytest.fixture
def more_models(recipe_folder: Path, tiny_model: Callable[[str], Path]) -> Path:
    """A recipe with two models beside the embedded one; the call of the second fails at its own size."""
    recipe = recipe_folder / "recipe.toml"
    tables = [MODEL.format(name, tiny_model(path)) for name, path in (("sd1", "sd1"), ("z", "z-image"))]
    recipe.write_text(recipe.read_text().replace("[[annotate]]", "".join(tables) + "[[annotate]]", 1))
    return recipe_folder


def test_each_model_is_examined_alone(
    more_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the one before takes memory, and what cannot be tried does not end the others."""
    job, loaded = open_job(more_models, tmp_path / "run", settings=["quota.requests=4"]), list[int]()
    monkeypatch.setattr(doctor, "free_bytes", lambda device: loaded.append(len(job._pipelines)))
    tiny, sd1, z = examine(job, most=1)
    assert loaded == [0, 0, 0]
    assert (tiny.batch_size, sd1.batch_size, z.batch_size) == (1, 1, 0)
    assert z.error.startswith("ZImagePipeline refuses the call")


def test_a_model_without_requests_is_not_tried(more_models: Path, tmp_path: Path) -> None:
    found = examine(open_job(more_models, tmp_path / "run", limit=1), most=1)
    assert sorted(bool(one.trials) for one in found) == [False, False, True]
    errors = {one.error for one in found if not one.trials}
    assert errors == {"no request of the plan is for it; raise quota.requests"}


def test_a_model_that_cannot_be_had_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["doctor", "emoji", "-o", str(tmp_path / "run"), "--set", "models.0.path=nobody/nothing"])
        == 2
    )
    assert 'path = "nobody/nothing": cannot be had' in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from synthgen.generation import memory

    monkeypatch.setattr(memory, "_kernel_says", lambda file, what: 20_000_000)
    assert cli.main(["doctor", "emoji", "-o", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().out
    assert "not tried: models.tiny: 50 MB of weights in float32 do not fit, cpu has 20 MB free" in printed
    assert "--set models.tiny.dtype=bfloat16" not in printed  # half of it does not fit either


def test_what_a_cache_holds_is_not_counted_as_speed(tmp_path: Path) -> None:
    """Each timed call encodes its prompts, as the first call of a run does."""
    job = open_job("emoji", tmp_path / "run", settings=[*FAST, "models.0.embedding_cache=true"])
    pipeline = job.pipeline("tiny")
    calls = []
    pipeline.text_encoder.register_forward_hook(lambda module, given, output: calls.append(1))
    try_batch(pipeline, job.requests.all()[:2], 2, "cpu")
    assert len(calls) >= 2 * 3
