"""Real diffusers classes at tiny size: what is generated, what fails and with which reason."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL
from PIL import Image

import synthgen
from synthgen import recipe, tars
from synthgen.data import Request
from synthgen.embedded import pipeline_folder
from synthgen.errors import ModelError, OutOfMemoryError
from synthgen.generation import checkpoints, locating, models
from synthgen.generation.encoding import encode
from synthgen.generation.memory import need
from synthgen.generation.sampling import make_generator, picture, sample
from synthgen.generation.schedulers import scheduler_name
from synthgen.inspection import verify

REQUEST = Request(
    uid="0" * 32,
    class_id=0,
    class_name="cat",
    text="a cartoon of a cat on grass",
    negative="",
    group="",
    prompt_id="",
    axes={},
    model="tiny",
    fingerprint="",
    seed=5,
    replicate=0,
    steps=2,
    guidance=3.0,
    scheduler="",
    dtype="float32",
    call="",
    width=0,
    height=0,
    turn=0,
)


@pytest.fixture(scope="module")
def pipeline():  # type: ignore[no-untyped-def]
    return models.load(pipeline_folder(), device="cpu", dtype="float32")


def requests(n: int) -> list[Request]:
    return [replace(REQUEST, seed=k, text=f"a cartoon of a {'cat' if k % 2 else 'dog'}") for k in range(n)]


def test_a_picture_is_its_request_s_whatever_its_neighbours(pipeline) -> None:  # type: ignore[no-untyped-def]
    whole = [sampled.image for sampled in sample(pipeline, requests(4), batch_size=4)]
    turned = [sampled.image for sampled in sample(pipeline, requests(4)[::-1], batch_size=4)][::-1]
    padded = [sampled.image for sampled in sample(pipeline, requests(2), batch_size=4)]
    for images in (turned, padded):
        assert all((a == b).all() for a, b in zip(whole, images, strict=False))
    assert len({image.tobytes() for image in whole}) == 4  # type: ignore[union-attr]
    assert len(padded) == 2


def test_all_63_bits_of_a_seed_count() -> None:
    """torch's own seeding looks at 32 of them, which the first line shows."""
    seeds = [7, 7 + 2**32, 7 + 2**62, 8]
    first, second, *_ = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert torch.equal(first, second)
    ours = {tuple(torch.randn(8, generator=make_generator(seed)).tolist()) for seed in seeds}
    assert len(ours) == 4
    generator, twister = make_generator(7), random.Random(7)
    drawn = torch.randint(2**16, (1500,), generator=generator).tolist()
    assert drawn == [twister.getrandbits(32) % 2**16 for _ in drawn]
    assert make_generator(7).initial_seed() == 7


def test_all_seeds_and_starting_latents_of_a_plan_are_distinct(emoji_run: Path) -> None:
    rows = [row for path in emoji_run.glob("plan/*.parquet") for row in pq.read_table(path).to_pylist()]
    seeds = [row["seed"] for row in rows]
    latents = {torch.randn(4, 8, 8, generator=make_generator(seed)).numpy().tobytes() for seed in seeds}
    assert len(rows) == len(set(seeds)) == len(latents) == 96


def test_the_size_asked_for_is_the_size_made(pipeline) -> None:  # type: ignore[no-untyped-def]
    image = sample(pipeline, [replace(REQUEST, width=96, height=32)], batch_size=1)[0].image
    assert image.shape == (32, 96, 3)


def test_a_size_that_the_model_refuses_is_one_line(pipeline) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=r"StableDiffusionPipeline refuses the call: .*divisible by 8"):
        sample(pipeline, [replace(REQUEST, width=100, height=100)], batch_size=1)


def test_an_image_that_is_not_finite_or_black_fails_with_its_reason(
    pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    decode = pipeline.vae.decode

    def spoilt(latents, **keys):  # type: ignore[no-untyped-def]
        decoded = decode(latents, **keys)
        decoded[0][1] = float("nan")
        decoded[0][2] = -1.0
        return decoded

    monkeypatch.setattr(pipeline.vae, "decode", spoilt)
    pictures = [picture(sampled) for sampled in sample(pipeline, requests(4), batch_size=4)]
    assert [each.error for each in pictures] == ["", "not finite", "black", ""]
    assert [each.image is None for each in pictures] == [False, True, True, False]


MESSAGES = {
    "CUDA out of memory. Tried to allocate 2.00 GiB.": torch.OutOfMemoryError,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": RuntimeError,
    "Triton Error [CUDA]: out of memory": RuntimeError,
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory": RuntimeError,
    "": MemoryError,
}


def cramp(pipeline, monkeypatch: pytest.MonkeyPatch, room: int, error: Exception) -> list[int]:  # type: ignore[no-untyped-def]
    """Lets the denoiser have room for so many images; returns the list of the batch sizes that it meets."""
    forward, met = pipeline.unet.forward, list[int]()

    def cramped(sample, *arguments, **keys):  # type: ignore[no-untyped-def]
        met.append(len(sample) // 2)  # guidance doubles it
        if met[-1] > room:
            raise error
        return forward(sample, *arguments, **keys)

    monkeypatch.setattr(pipeline.unet, "forward", cramped)
    return met


@pytest.mark.parametrize("message", MESSAGES)
def test_where_memory_runs_out_a_micro_batch_is_made_in_halves(
    pipeline, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:  # type: ignore[no-untyped-def]
    alone = [sample(pipeline, requests(6)[k : k + 2], batch_size=2) for k in (0, 2, 4)]
    met = cramp(pipeline, monkeypatch, 2, MESSAGES[message](message))
    halved = sample(pipeline, requests(6), batch_size=7)
    assert met == [7, 4, 2, 2, 2, 2, 2, 2]  # two steps each; the padding rows are not made
    assert [each.batch_size for each in halved] == [2] * 6
    expected = [each.image for pair in alone for each in pair]  # fresh generators: as if never tried before
    assert all((each.image == image).all() for each, image in zip(halved, expected, strict=True))


def test_memory_for_not_even_one_image_and_strictness(pipeline, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    met = cramp(pipeline, monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(OutOfMemoryError, match=r"^a micro-batch of 1 needs more memory than there is \(CUDA"):
        sample(pipeline, requests(4), batch_size=4)
    assert met == [4, 2, 1]
    with pytest.raises(OutOfMemoryError, match="lower batch_size, or drop --strict"):
        sample(pipeline, requests(4), batch_size=4, halve=False)
    cramp(pipeline, monkeypatch, 0, RuntimeError("another fault"))
    with pytest.raises(RuntimeError, match="another fault"):  # not every error is one of memory
        sample(pipeline, requests(4), batch_size=4)


def test_the_record_says_that_micro_batches_were_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthgen.generation import sampling

    call, tried = sampling.call, list[int]()

    def cramped(pipeline, filled, real):  # type: ignore[no-untyped-def]
        tried.append(len(filled))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(pipeline, filled, real)

    monkeypatch.setattr(sampling, "call", cramped)
    run = synthgen.run("emoji", tmp_path / "run", settings=SMALL, workers=1, stages=("plan", "generate"))
    assert tried == [5, *[3] * 8, *[5] * 6]  # remembered within a shard
    records = [json.loads((run / "pool" / f"{k:08d}_stats.json").read_text()) for k in range(3)]
    assert [record["smallest_batch"] for record in records] == [3, 5, 5]


def test_failed_rows_stay_in_the_pool_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    decode = AutoencoderKL.decode

    def spoilt(self, latents, **keys):  # type: ignore[no-untyped-def]
        decoded = decode(self, latents, **keys)
        decoded[0][0] = float("nan")
        return decoded

    monkeypatch.setattr(AutoencoderKL, "decode", spoilt)
    settings = ["models.0.steps=2", "models.0.batch_size=4", "images.shard_size=8", "select=[]"]
    run = synthgen.run("emoji", tmp_path / "run", settings=settings, limit=12, workers=1)
    rows = [row for path in sorted(run.glob("pool/*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["error"] for row in rows] == (["not finite"] + [None] * 3) * 3
    assert {key for key, value in rows[0].items() if value is None} == {
        "image_offset",
        "image_bytes",
        "sha256",
        "original_width",
        "original_height",
    }
    scores = [
        row
        for path in sorted(run.glob("annotations/clip/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert [row["clip_similarity"] is None for row in scores] == [row["error"] is not None for row in rows]
    features = np.load(run / "annotations" / "clip" / "00000000.npz")["clip_img"]
    assert np.isnan(features[[0, 4]]).all()
    assert not np.isnan(features[[1, 2, 3]]).any()
    funnel = json.loads((run / "subsets" / "main.json").read_text())
    assert (funnel["requested"], funnel["failed"], funnel["kept"]) == (12, 3, 9)
    assert synthgen.status(run)["failed_by_reason"] == {"not finite": 3}
    assert verify(run) == []


def test_too_many_failures_are_an_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKL

    from synthgen.cli import main

    monkeypatch.setattr(
        AutoencoderKL,
        "decode",
        lambda self, latents, **keys: (latents.new_zeros((len(latents), 3, 64, 64)) - 1,),
    )
    arguments = ["run", "emoji", "-o", str(tmp_path / "run"), "--limit", "4", "--workers", "1"]
    assert main([*arguments, "--set", "models.0.steps=1", "--set", "models.0.batch_size=4"]) == 1
    assert "4 of 4 images failed, more than max_failed = 0.01 allows" in capsys.readouterr().err


def test_a_fingerprint_knows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pipeline_folder(), tmp_path / "copy"))
    assert models.fingerprint(copy) == models.fingerprint(pipeline_folder())
    assert locating.locate(str(copy), folder=tmp_path) == locating.locate("copy", folder=tmp_path) == copy
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert models.fingerprint(copy) != models.fingerprint(pipeline_folder())


def test_a_fingerprint_knows_the_configuration_and_not_who_wrote_it(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pipeline_folder(), tmp_path / "copy"))
    config = copy / "scheduler" / "scheduler_config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"_diffusers_version": "9.9", "_name_or_path": "elsewhere"}))
    assert models.fingerprint(copy) == models.fingerprint(pipeline_folder())
    config.write_text(json.dumps(written | {"beta_end": 0.013}))
    assert models.fingerprint(copy) != models.fingerprint(pipeline_folder())


def test_a_fingerprint_knows_chat_templates_and_the_pipeline_s_settings(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_model("flux2-klein"), tmp_path / "copy"))
    prints = {models.fingerprint(copy)}
    template = copy / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "owl"))
    prints.add(models.fingerprint(copy))
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    prints.add(models.fingerprint(copy))
    assert len(prints) == 3


def test_a_fingerprint_knows_nothing_that_is_not_loaded(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """A clone has more files than a download, and the cache may have those of a variant too."""
    copy = Path(shutil.copytree(tiny_model("sdxl"), tmp_path / "copy"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    for more in ("diffusion_pytorch_model.fp16", "sdxl_lightning_4step_unet"):
        shutil.copy(weights, weights.with_name(f"{more}.safetensors"))
    for more in ("unet/diffusion_pytorch_model.safetensors.index.fp16.json", "vae/README.md"):
        (copy / more).write_text("{}")
    (copy / "text_encoder" / "generation_config.json").write_text('{"top_k": 5}')
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("XLPipeline", "XLImg2ImgPipeline"))
    assert models.fingerprint(copy) == models.fingerprint(tiny_model("sdxl"))


def test_of_shards_and_a_whole_file_the_fingerprint_has_what_is_loaded(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, folder = models.load(tiny_model("sd1"), device="cpu", dtype="float32"), tmp_path / "sharded"
    whole.save_pretrained(folder, max_shard_size="20KB")
    before = models.fingerprint(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not loaded")
    assert models.fingerprint(folder) == before
    shutil.copy(tiny_model("sd1") / "text_encoder" / "model.safetensors", folder / "text_encoder")
    shards = sorted((folder / "text_encoder").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        shard.write_bytes(b"not loaded")
    assert [file.name for file in checkpoints.weight_files(folder, "text_encoder", "")] == [
        "model.safetensors"
    ]
    assert need(folder) == need(tiny_model("sd1"))
    sharded = models.load(folder, device="cpu", dtype="float32")
    images = [sample(one, requests(1), batch_size=1)[0].image for one in (whole, sharded)]
    assert (images[0] == images[1]).all()
    lost = min((folder / "unet").glob("*-of-*.safetensors"))
    lost.unlink()
    with pytest.raises(
        ModelError, match=rf"has no {lost.name}, which diffusion_pytorch_model\.safetensors\.ind"
    ):
        models.fingerprint(folder)


def test_weights_changed_under_a_plan_are_refused(recipe_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pipeline_folder(), recipe_folder / "model"))
    settings = ["models.0.path=./model", "models.0.steps=1"]
    run = synthgen.run(
        recipe_folder, tmp_path / "run", stages=("plan",), settings=settings, limit=4, workers=1
    )
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="put those weights back"):
        synthgen.run(recipe_folder, run, stages=("generate",), settings=settings, limit=4, workers=1)
    assert not list(run.glob("pool/*"))


def test_only_safetensors(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pipeline_folder(), tmp_path / "copy"))
    for path in copy.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"no \.safetensors weights there; other formats are not loaded"):
        models.fingerprint(copy)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        locating.locate(str(tmp_path), folder=tmp_path)
    (tmp_path / "all.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is one file; a diffusers .*from_single_file\(FILE\)\.save_pretr"):
        locating.locate("./all.safetensors", folder=tmp_path)
    with pytest.raises(ModelError, match="no such model; "):
        locating.locate("checkpoints/all.safetensors", folder=tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "does not name a pipeline \\(JSONDecodeError"),
        ("{}", "does not name a pipeline \\(KeyError"),
        (
            '{"_class_name": ["pipeline", "Mine"]}',
            'is \\["pipeline", "Mine"\\]: code that comes with a model',
        ),
    ],
)
def test_an_index_that_names_no_pipeline(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ModelError, match=rf"model_index\.json: .*{message}"):
        checkpoints.check(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["models.0.path=stabilityai/sd-turbo"],
            'models.tiny: path = "stabilityai/sd-turbo": cannot be had (',
        ),
        (
            ["annotate.clip.model=ViT-L-14", "annotate.clip.pretrained=openai"],
            'annotate.clip: model = "ViT-L-14", pretrained = "openai": cannot be loaded (',
        ),
    ],
)
def test_a_hub_model_without_network_is_one_line(
    settings: list[str], message: str, recipe_folder: Path, tmp_path: Path
) -> None:
    """In a process of its own: the cache is empty, and the endpoint refuses (for CLIP, whose retries would
    take a minute, the hub is declared offline).
    """
    offline = "1" if "annotate" in message else "0"
    environment = os.environ | {"HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path / "cache")}
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "synthgen", "run", str(recipe_folder), "-o", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *overrides], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"synthgen: {recipe_folder / 'recipe.toml'}: {message}")
    for advice in ("local folder", "HF_ENDPOINT", "mirror", "HF_HOME"):
        assert advice in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_model_beside_the_user_and_not_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path looks like a hub id."""
    shutil.copytree(pipeline_folder(), tmp_path / "my" / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"relative to the folder of the recipe.*say {tmp_path}/my/model"):
        locating.locate("my/model", folder=tmp_path / "prompts")


def test_a_scheduler_by_name(pipeline) -> None:  # type: ignore[no-untyped-def]
    assert scheduler_name(pipeline_folder()) == "DPMSolverMultistepScheduler"
    with pytest.raises(ModelError, match='unknown "DDIMSchedular"; did you mean "DDIMScheduler"'):
        scheduler_name(pipeline_folder(), "DDIMSchedular")
    with pytest.raises(ModelError, match="draws noise from a global generator"):
        scheduler_name(pipeline_folder(), "DPMSolverSDEScheduler")
    other = models.load(
        pipeline_folder(), device="cpu", dtype="float32", scheduler="EulerAncestralDiscreteScheduler"
    )
    made = [sample(other, requests(2), batch_size=2)[0].image for _ in range(2)]
    assert (made[0] == made[1]).all()
    assert (made[0] != sample(pipeline, requests(2), batch_size=2)[0].image).any()


@pytest.mark.parametrize(
    "scheduler", ["FlowMatchLCMScheduler", 'FlowMatchEulerDiscreteScheduler {"stochastic_sampling":true}']
)
def test_a_pipeline_that_gives_a_scheduler_no_seeds(
    scheduler: str, tiny_model: Callable[[str], Path]
) -> None:
    """FLUX and SD3 do not, and Sana does; the call finds out too."""
    small = [replace(one, width=64, height=64) for one in requests(2)]
    for name in ("flux", "sd3"):
        with pytest.raises(ModelError, match="draws noise from a global generator"):
            scheduler_name(tiny_model(name), scheduler)
        other = models.load(tiny_model(name), device="cpu", dtype="float32", scheduler=scheduler)
        with pytest.raises(ModelError, match="draws noise from a global generator"):
            sample(other, small, batch_size=2)
    assert scheduler_name(tiny_model("sana"), scheduler) == scheduler
    seeded = models.load(tiny_model("sana"), device="cpu", dtype="float32", scheduler=scheduler)
    first, again = (sample(seeded, small, batch_size=2)[1].image for _ in range(2))
    assert (first == again).all()


def test_settings_of_a_scheduler() -> None:
    with pytest.raises(ModelError, match=r'no setting "timestep_spaces"; did you mean "timestep_spacing"'):
        scheduler_name(pipeline_folder(), 'DDIMScheduler {"timestep_spaces":"trailing"}')
    spaced = scheduler_name(pipeline_folder(), ' {"timestep_spacing":"trailing"}')
    assert spaced == 'DPMSolverMultistepScheduler {"timestep_spacing":"trailing"}'
    own, trailing, leading = (
        models.load(pipeline_folder(), device="cpu", dtype="float32", scheduler=text)
        for text in ("", spaced, spaced.replace("trailing", "leading"))
    )
    assert type(own.scheduler) is type(trailing.scheduler)
    assert trailing.scheduler.config.timestep_spacing == "trailing"
    images = [sample(one, requests(1), batch_size=1)[0].image for one in (trailing, leading)]
    assert (images[0] != images[1]).any()


def test_a_checkpoint_s_own_scheduler_may_not_draw_global_noise(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pipeline_folder(), tmp_path / "model"))
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("DPMSolverMultistepScheduler", "DPMSolverSDEScheduler"))
    with pytest.raises(ModelError, match="draws noise from a global generator"):
        scheduler_name(copy)


@pytest.mark.parametrize(("kind", "exact"), [("png", True), ("webp", True), ("jpg", False)])
def test_formats(kind: str, exact: bool) -> None:
    import io

    image = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    image[:20] = (255, 0, 0)  # red stays red: no channel is swapped
    data = encode(image, kind)
    assert data == encode(image, kind)
    read = np.asarray(Image.open(io.BytesIO(data)))
    assert (read == image).all() or not exact
    assert np.abs(read[:16].astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_run_in_another_format(kind: str, tmp_path: Path) -> None:
    settings = [f"images.format={kind}", "models.0.steps=1", "models.0.batch_size=4", "images.shard_size=4"]
    run = synthgen.run("emoji", tmp_path / "run", settings=settings, limit=4, workers=1)
    assert verify(run) == []
    _, members = next(tars.samples((run / "pool" / "00000000.tar").read_bytes()))
    assert list(members) == [kind, "txt", "cls", "json"]


def test_two_models_share_each_class(recipe_folder: Path, tmp_path: Path) -> None:
    path = recipe_folder / "recipe.toml"
    second = (
        '[[models]]\nid = "other"\npath = "embedded"\ndtype = "float32"\nsteps = 1\nguidance = '
        "1.0\nbatch_size = 16\n\n"
    )
    path.write_text(path.read_text().replace("[[annotate]]", second + "[[annotate]]", 1))
    settings = ["models.0.steps=1", "quota.requests=2"]
    run = synthgen.run(
        recipe_folder, tmp_path / "run", settings=settings, stages=("plan", "generate"), workers=1
    )
    rows = [row for table in sorted(run.glob("pool/*.parquet")) for row in pq.read_table(table).to_pylist()]
    assert {(row["class_name"], row["model"]) for row in rows} == {
        (category.name, model) for category in recipe.load(path).classes for model in ("tiny", "other")
    }
    assert len({row["seed"] for row in rows}) == len(rows) == 96
    for table in run.glob("pool/*.parquet"):
        assert len(set(pq.read_table(table)["model"].to_pylist())) == 1
