"""What a dataset costs, before it is made: FLOPs against real calls and known models, what prompts lose,
bytes and seconds against real runs, and the disk that is too small.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from conftest import data_digests
from torch.utils.flop_counter import FlopCounterMode

import synthgen
from synthgen import costs, shards, storage
from synthgen.cli import main
from synthgen.data import Request
from synthgen.embedded import pipeline_folder
from synthgen.errors import FolderError, ModelError
from synthgen.generation import checkpoints, conditioning, flops, locating, models, sampling, tokens

TERA = 1e12
REQUEST = Request(
    uid="0" * 32, class_id=0, class_name="cat", text="a photo of a cat", negative="", group="",
    prompt_id="", axes={}, model="tiny", fingerprint="", seed=1, replicate=0, steps=3, guidance=3.0,
    scheduler="", dtype="float32", call="", width=0, height=0, turn=0,
)  # fmt: skip


# --- FLOPs ---


@pytest.mark.parametrize("change", [{}, {"guidance": 1.0}, {"steps": 7}, {"width": 128, "height": 64}])
def test_as_many_flops_as_the_real_call(change: dict[str, float]) -> None:
    request = dataclasses.replace(REQUEST, **change)  # type: ignore[arg-type]
    negative_prompts = 1 if request.guidance > 1 else 0
    assert _extra(pipeline_folder(), request) == negative_prompts


def test_a_scheduler_that_calls_twice_a_step_counts_twice() -> None:
    heun = dataclasses.replace(REQUEST, steps=4, scheduler="HeunDiscreteScheduler")
    euler = dataclasses.replace(heun, scheduler="EulerDiscreteScheduler")
    one, two = (flops.count_flops(pipeline_folder(), each).image for each in (euler, heun))
    assert 1.5 < two / one < 2


@pytest.mark.parametrize(
    "name",
    ["lcm", "sd3-without-t5", "flux", "flux2", "sana", "qwen-image", "z-image", "kandinsky22", "lumina2"],
)
def test_as_many_flops_as_the_real_call_of_each_kind(name: str, tiny_model: Callable[[str], Path]) -> None:
    """Masks, chat templates, priors, embedded guidance: whatever a family does besides its steps."""
    request = dataclasses.replace(REQUEST, width=64, height=64)
    more = _extra(tiny_model(name), request)
    if name in ("lcm", "flux", "flux2"):
        assert more == 0
    elif name in ("sana", "qwen-image"):  # read texts as long as they are, and a negative prompt is short
        assert 0 < more < 1
    else:
        assert more == 1


def test_a_part_with_a_name_of_old_is_no_hindrance(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers has no CLIPFeatureExtractor any more; diffusers loads what it became."""
    copy = Path(shutil.copytree(tiny_model("sd1-checked"), tmp_path / "copy"))
    index = copy / "model_index.json"
    told = json.loads(index.read_text()) | {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]}
    index.write_text(json.dumps(told))
    request = dataclasses.replace(REQUEST, width=64, height=64)
    assert flops.count_flops(copy, request) == flops.count_flops(tiny_model("sd1-checked"), request)


def test_both_stages_count(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    tiny_models.if2(tmp_path)
    second = {"num_inference_steps": 2, "guidance_scale": 4.0}
    request = dataclasses.replace(REQUEST, call=json.dumps({"upscaler": second}))
    assert _extra(tiny_model("if1"), request, tmp_path) == 1


@pytest.mark.parametrize("name", ["sd1", "sdxl", "lcm", "flux", "qwen-image", "if1"])
def test_fewer_steps_from_a_real_image(name: str, tiny_model: Callable[[str], Path]) -> None:
    request = dataclasses.replace(REQUEST, width=64, height=64, steps=10)
    changed = dataclasses.replace(request, strength=0.3, source_uid="1")
    assert _extra(tiny_model(name), changed) <= 1
    more = flops.count_flops(tiny_model(name), request).image
    less = flops.count_flops(tiny_model(name), changed).image
    assert (less < more) == (name != "lcm")  # which runs all its steps


def _extra(folder: Path, request: Request, upscaler: Path | None = None) -> float:
    """What a real call makes more than was counted, in prompts: it reads the negative prompt too."""
    counted = flops.count_flops(folder, request, upscaler=upscaler)
    second = {"upscaler": locating.Upscaler(upscaler, "")} if upscaler else {}
    pipeline = models.load(folder, device="cpu", dtype="float32", **second)  # type: ignore[arg-type]
    for one in (pipeline, pipeline.upscaler) if upscaler else (pipeline,):
        for part in one.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)  # torch's counter does not like a weight that is an argument
    ours = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops._attention}
    photo = np.zeros((50, 70, 3), np.uint8)
    pipeline = conditioning.changing(pipeline, (64, 64)) if request.strength else pipeline
    with FlopCounterMode(display=False, custom_mapping=ours) as real:
        (made,) = sampling.call(pipeline, [request], (lambda _: photo) if request.strength else None)
    assert (counted.height, counted.width) == made.image.shape[:2]
    more = real.get_total_flops() - counted.image - counted.prompt
    # a negative prompt that is shorter, or has no instruction before it, is less
    assert 0 <= more <= counted.prompt
    return more / counted.prompt


def _write(folder: Path, kind: str, **parts: object) -> Path:
    """A pipeline folder without weights."""
    index: dict[str, object] = {"_class_name": kind}
    for name, part in parts.items():
        module = type(part).__module__.split(".")[0]
        index[name] = [module, type(part).__name__] if part is not None else [None, None]
        if isinstance(part, torch.nn.Module) and module == "transformers":
            part.config.save_pretrained(folder / name)  # type: ignore[union-attr]
        elif isinstance(part, torch.nn.Module):
            part.save_config(folder / name)  # type: ignore[operator]
        elif part is not None:
            part.save_pretrained(folder / name)  # type: ignore[attr-defined]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _encoder(width: int, layers: int, heads: int, kind: str = "CLIPTextModel") -> torch.nn.Module:
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
    )
    with torch.device("meta"):
        return getattr(transformers, kind)(config)  # type: ignore[no-any-return]


def _unet_and_vae(**unet: object) -> dict[str, torch.nn.Module]:
    import diffusers

    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        return {"unet": diffusers.UNet2DConditionModel(**unet), "vae": vae}


def _tokenizer() -> object:
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(pipeline_folder() / "tokenizer")
    tokenizer.model_max_length = 77
    return tokenizer


def sd15(folder: Path) -> Path:
    import diffusers

    return _write(
        folder,
        "StableDiffusionPipeline",
        **_unet_and_vae(sample_size=64, cross_attention_dim=768),
        text_encoder=_encoder(768, 12, 12),
        tokenizer=_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
    )


def sdxl(folder: Path) -> Path:
    import diffusers

    unet = _unet_and_vae(
        sample_size=128,
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return _write(
        folder,
        "StableDiffusionXLPipeline",
        **unet,
        text_encoder=_encoder(768, 12, 12),
        text_encoder_2=_encoder(1280, 32, 20, "CLIPTextModelWithProjection"),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
    )


@pytest.mark.parametrize(
    ("build", "steps", "guidance", "side", "image", "prompt"),
    [
        (sd15, 50, 7.5, 512, 82.8, 0.0131),
        (sdxl, 30, 5.0, 1024, 416.0, 0.111),
        (sdxl, 1, 0.0, 512, 4.1, 0.111),
    ],
)
def test_the_flops_of_known_models(
    build: Callable[[Path], Path],
    steps: int,
    guidance: float,
    side: int,
    image: float,
    prompt: float,
    tmp_path: Path,
) -> None:
    """TFLOP by hand: steps x 2 with guidance x the denoiser, and the VAE. There are no weights here, which
    would be gigabytes.
    """
    request = dataclasses.replace(REQUEST, steps=steps, guidance=guidance, width=side, height=side)
    counted = flops.count_flops(build(tmp_path), request)
    assert counted.image / TERA == pytest.approx(image, rel=0.02)
    assert counted.prompt / TERA == pytest.approx(prompt, rel=0.02)
    assert checkpoints.own_size(tmp_path) == ((512, 512) if build is sd15 else (1024, 1024))


@pytest.mark.parametrize("name", ["lcm", "sdxl", "sd3", "flux", "sana", "qwen-image", "kandinsky22", "if1"])
def test_the_size_that_is_guessed_is_what_the_pipeline_makes(
    name: str, tiny_model: Callable[[str], Path]
) -> None:
    counted = flops.count_flops(tiny_model(name), dataclasses.replace(REQUEST, steps=2))
    assert checkpoints.own_size(tiny_model(name)) == (counted.width, counted.height)


def test_what_cannot_be_counted_says_why(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder(), tmp_path / "model"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 7}))
    with pytest.raises(ModelError, match=r"model: cannot be counted \(RuntimeError: "):
        flops.count_flops(folder, REQUEST)


# --- tokens ---


def test_what_a_prompt_loses_is_told(tmp_path: Path) -> None:
    folder = pipeline_folder()
    (found,) = tokens.lost_ends(folder, ["a cat", "a cat on grass " * 20 + "and in the end a dog"])
    (text, count, end), *more = found.texts
    assert not more
    assert text.endswith("a dog")
    assert (found.tokenizer, found.limit) == ("tokenizer", 32)
    assert end.endswith("and in the end a dog")
    assert text.replace(" ", "").startswith("acatongrass" * 5)
    reader = tokens.token_counter({"tiny": folder})
    assert reader(text)["tiny"] == (count, 32)
    kept = text[: -len(end)].strip()
    assert reader(kept)["tiny"] == (32, 32)


def test_no_length_of_a_prompt_is_missed() -> None:
    """The shortest texts that lose something are near the bound below which none is read."""
    words = [("x" * n + "é" * k).strip() for n in range(40) for k in range(3)]
    (found,) = tokens.lost_ends(pipeline_folder(), [word for word in words if word])
    count = tokens.token_counter({"tiny": pipeline_folder()})
    assert {text for text, *_ in found.texts} == {w for w in words if w and count(w)["tiny"][0] > 32}


# --- arithmetic ---


def test_hours_are_arithmetic() -> None:
    hours = costs.gpu_hours(989e12 * 0.4 * 3600, "bfloat16")
    assert hours["H100"] == pytest.approx(1)
    assert hours["A100"] == pytest.approx(989 / 312)
    assert costs.gpu_hours(1e18, "float32")["T4"] > costs.gpu_hours(1e18, "float16")["T4"]


def test_bytes_grow_with_the_image_and_the_format() -> None:
    jpg, webp = (costs.sample_bytes(kind, 1024, 1024) for kind in ("jpg", "webp"))
    assert 4 * costs.sample_bytes("jpg", 512, 512) == pytest.approx(jpg, rel=0.05)
    assert webp > 2 * jpg
    assert costs.sample_bytes("png", 1024, 1024, costs.Made(1, 123.0, 1.0, "cpu")) == 123.0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (9660, "9.66 kB"), (7.31e10, "73.1 GB"), (5e15, "5,000 TB")],
)
def test_bytes_are_spelt(number: float, text: str) -> None:
    assert costs.spell_bytes(number) == text


def test_cells_that_a_model_has_nothing_of_count() -> None:
    cells = {"cat": {"a": 2, "b": 1}, "dog": {"a": 3}}
    assert costs.count_cells(cells, "a") == (2, 2, 3)
    assert costs.count_cells(cells, "b") == (2, 0, 1)


# --- against runs ---


def test_finished_shards_calibrate(emoji_run: Path) -> None:
    made = costs.measure(emoji_run)["tiny"]
    records = [shards.read_record(emoji_run / "pool", stem) for stem in shards.records(emoji_run / "pool")]
    files = [path for path in (emoji_run / "pool").iterdir() if path.suffix in (".tar", ".parquet")]
    assert made.shards == len(records) == 2
    assert made.bytes * 96 == pytest.approx(sum(path.stat().st_size for path in files))
    assert made.seconds * 96 == pytest.approx(sum(record["seconds"] for record in records))
    assert costs.count_planned(emoji_run) == {"tiny": costs.Planned(96, 0)}
    by_constants = costs.sample_bytes("webp", 64, 64)
    assert by_constants == pytest.approx(made.bytes, rel=0.25)


def _dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["plan", *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_a_dry_run_says_what_is_left_and_writes_nothing(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = data_digests(run_copy)
    text = _dry_run(capsys, "emoji", "-o", str(run_copy), "--set", "quota.requests=4")
    found = json.loads(_dry_run(capsys, "emoji", "-o", str(run_copy), "--set", "quota.requests=4", "--json"))
    assert data_digests(run_copy) == before
    assert (found["requests"], found["left"]) == (192, 96)
    (model,) = found["models"]
    assert (model["requests"], model["left"], model["prompts"]) == (192, 96, 192)
    assert model["cells"] == {"cells": 48, "least": 4, "most": 4}
    assert len(found["cells"]) == 48
    assert set(model["gpu_hours"]) == set(costs.PEAKS)
    assert found["pool_bytes"] == pytest.approx(96 * model["bytes_per_image"])
    assert f"by {model['made']['shards']} finished shards" in text
    assert "192 requests, 96 left to make" in text
    assert len(text.splitlines()) <= 20
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_a_larger_run_takes_what_a_pilot_says(tmp_path: Path) -> None:
    """Bytes to a few per cent; seconds depend on who else works here."""
    settings = ["models.0.steps=1", "images.shard_size=32", "quota.requests=1", "annotate=[]", "select=[]"]
    root, stages = tmp_path / "run", ("plan", "generate")
    synthgen.run("emoji", root, stages=stages, settings=settings, workers=1, limit=32)
    predicted = costs.measure(root)["tiny"].bytes * 48
    synthgen.run("emoji", root, stages=stages, settings=settings, workers=1)
    files = [path for path in (root / "pool").iterdir() if path.suffix in (".tar", ".parquet")]
    assert predicted == pytest.approx(sum(path.stat().st_size for path in files), rel=0.1)


def test_a_model_that_is_not_here_has_no_flops(
    recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe_folder / "recipe.toml"
    other = '[[models]]\nid = "far"\npath = "nobody/nothing"\nsteps = 4\nguidance = 0.0\n'
    path.write_text(path.read_text().replace("[[annotate]]", f"{other}\n[[annotate]]", 1))
    text = _dry_run(capsys, str(recipe_folder), "-o", str(tmp_path / "run"))
    assert "far: nobody/nothing: not on this machine; its FLOPs are known when it is" in text
    found = json.loads(_dry_run(capsys, str(recipe_folder), "-o", str(tmp_path / "run"), "--json"))
    tiny, far = found["models"]
    assert tiny["left"] + far["left"] == 288
    assert far["flops_per_image"] is None
    assert far["gpu_hours"] is None
    assert (far["width"], far["height"], far["is_guessed"]) == (1024, 1024, True)
    assert tiny["flops_per_image"] > 0
    assert not (tmp_path / "run").exists()


def test_a_quota_of_accepted_images_has_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quota = 'quota={ per = "class", accepted = 2, max_requests = 1000 }'
    arguments = ("emoji", "-o", str(tmp_path / "run"), "--set", quota)
    text = _dry_run(capsys, *arguments)
    found = json.loads(_dry_run(capsys, *arguments, "--json"))
    assert found["budget"] == 1000
    assert found["final_part"] * found["requests"] == pytest.approx(2 * 48)
    assert f"up to {1000 - found['requests']:,} more requests are made" in text


def test_lost_ends_are_shown(recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe_folder / "templates.txt").write_text(
        "a {style} of a {class} {background}, and after very many other words that nobody needs but that "
        "were written all the same by somebody who likes words, a green hat\n"
    )
    text = _dry_run(capsys, str(recipe_folder), "-o", str(tmp_path / "run"))
    assert "tokenizer reads 32; 288 of 288 prompts have more, up to" in text
    assert 'a green hat" (' in text


# --- too little disk ---


def test_too_little_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    large = ["--set", "models.0.width=131072", "--set", "models.0.height=131072"]
    assert main(["generate", "emoji", "-o", str(root), *large]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"synthgen: {root}: ")
    assert "are free there, and what is left to make takes about 5.99 TB; make room" in error
    assert not root.exists()
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 100_000)
    settings = ["models.0.steps=1", "quota.requests=1"]
    with pytest.raises(
        FolderError, match=r"100 kB are free there, and .* takes about 82 kB, and up to 82 kB"
    ):
        synthgen.run("emoji", root, limit=8, settings=settings, workers=1)
    stages = ("plan", "generate")
    synthgen.run("emoji", root, limit=8, settings=settings, workers=1, stages=stages)
    with pytest.raises(FolderError, match="takes about"):
        synthgen.run("emoji", root, settings=settings, workers=1, stages=stages)
    synthgen.run("emoji", root, settings=settings, workers=1, stages=stages, force=True)
    synthgen.run("emoji", root, settings=settings, workers=1, stages=stages)  # nothing is left


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert (storage.free_bytes(tmp_path / "a" / "b") or 0) > 0
    assert storage.free_bytes(Path("/proc/synthgen")) is None  # a file system that does not say
