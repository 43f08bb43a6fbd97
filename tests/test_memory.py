"""What a model needs is counted from its files, and what does not fit is refused with the lines that help."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import synthgen
from synthgen.embedded import pipeline_folder
from synthgen.errors import ModelError
from synthgen.generation import locating, memory, models
from synthgen.generation.memory import Need, Setup, check, fitting, need, use

TinyModel = Callable[[str], Path]
SDXL = Need(
    parts={
        "unet": 2_567_463_684,
        "text_encoder_2": 694_659_841,
        "text_encoder": 123_060_480,
        "vae": 83_653_863,
    },
    largest_tensor=63_242_240,
    decoder=768 * 1024**2,
    denoiser=260 * 1024**2,
    cacheable=True,
)
"""Of the real weights, at 1024 x 1024."""
GB = 10**9


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_counted_without_loading(name: str, dtype: str, tiny_model: TinyModel) -> None:
    """To within 2%: some weights are not in the files (tied), or stay in float32."""
    counted = use(need(tiny_model(name)), Setup(dtype, 1)).weights
    pipeline = models.load(tiny_model(name), device="cpu", dtype=dtype)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    loaded = sum(tensor.nbytes for module in modules for tensor in module.parameters())
    assert loaded == pytest.approx(counted, rel=0.02)


def test_the_size_of_images_is_the_model_s_own(tiny_model: TinyModel) -> None:
    own, asked = need(pipeline_folder()), need(pipeline_folder(), width=128, height=64)
    assert asked.denoiser == 2 * own.denoiser == 2 * memory.DENOISER * 64 * 64
    assert need(tiny_model("sdxl")).denoiser == memory.DENOISER * 64 * 64
    assert need(tiny_model("if1")).decoder == 0


def test_a_second_stage_is_counted(tiny_model: TinyModel) -> None:
    one = need(tiny_model("if1")).parts
    both = need(tiny_model("if1"), upscaler=locating.Upscaler(tiny_model("second-stage"))).parts
    assert both.items() > one.items()
    assert set(both) - set(one) == {"upscaler.unet"}


def test_a_second_stage_as_it_is_downloaded(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Without the text encoder, which its index names all the same."""
    second = Path(shutil.copytree(tiny_model("second-stage"), tmp_path / "second"))
    for part in models.ENCODER:
        shutil.rmtree(second / part, ignore_errors=True)
    both = need(tiny_model("if1"), upscaler=locating.Upscaler(second)).parts
    assert both == need(tiny_model("if1"), upscaler=locating.Upscaler(tiny_model("second-stage"))).parts


def test_a_safety_checker_that_is_not_loaded_is_not_counted(tiny_model: TinyModel, tmp_path: Path) -> None:
    with_checker = need(tiny_model("if1")).parts
    assert set(need(tiny_model("if1"), safety_checker=False).parts) == set(with_checker) - {"safety_checker"}


@pytest.mark.parametrize(
    ("setup", "weights", "images"),
    [
        (Setup("float32", 8), 13.88, 25.77),
        (Setup("bfloat16", 8), 6.94, 12.88),
        (Setup("bfloat16", 1), 6.94, 1.61),
        (Setup("bfloat16", 8, embedding_cache=True), 5.30, 12.88),
        (Setup("bfloat16", 8, vae_slicing=True), 6.94, 4.36),
        (Setup("bfloat16", 8, offload="model"), 5.13, 12.88),
        (Setup("bfloat16", 8, offload="sequential"), 0.13, 12.88),
    ],
)
def test_what_a_setup_uses(setup: Setup, weights: float, images: float) -> None:
    assert use(SDXL, setup).weights / GB == pytest.approx(weights, abs=0.01)
    assert use(SDXL, setup).images / GB == pytest.approx(images, abs=0.01)


@pytest.mark.parametrize(
    ("free", "setup", "device", "lines"),
    [
        (80, Setup("float32", 8), "cuda:0", None),
        (
            24,
            Setup("float32", 8),
            "cuda:0",
            [
                "--set models.xl.dtype=bfloat16",
                "--set models.xl.batch_size=2",
                "--set models.xl.vae_slicing=true",
            ],
        ),
        (
            24,
            Setup("float32", 1),
            "cuda:0",
            None,
        ),
        (
            16,
            Setup("bfloat16", 8),
            "cuda:0",
            ["--set models.xl.batch_size=4", "--set models.xl.vae_slicing=true", "--offload sequential"],
        ),
        (
            8,
            Setup("bfloat16", 8),
            "cuda:0",
            [
                "--set models.xl.batch_size=1 --set models.xl.embedding_cache=true",
                "--set models.xl.batch_size=1 --offload model",
                "--set models.xl.batch_size=4 --offload sequential",
                "--set models.xl.vae_slicing=true --offload sequential",
            ],
        ),
        (
            12,
            Setup("float32", 8),
            "cpu",
            [
                "--set models.xl.batch_size=2 --set models.xl.dtype=bfloat16",
                "--set models.xl.vae_slicing=true --set models.xl.dtype=bfloat16",
            ],
        ),
        (0.1, Setup("bfloat16", 1), "cuda:0", []),
    ],
)
def test_only_lines_that_make_it_fit(free: float, setup: Setup, device: str, lines: list[str] | None) -> None:
    size = int(free * GB)
    if lines is None:
        assert check(SDXL, setup, free=size, model="xl", device=device) == ""
        return
    found = fitting(SDXL, setup, free=size, model="xl", device=device)
    assert found == lines
    for line in found:  # each does, by the same arithmetic as the check
        changed = setup
        for option in line.removeprefix("--").split(" --"):
            key, _, value = (
                option.removeprefix("set models.xl.").replace("offload ", "offload=").partition("=")
            )
            typed: Any = {"true": True}.get(value, int(value) if value.isdecimal() else value)
            changed = changed._replace(**{key: typed})
        assert check(SDXL, changed, free=size, model="xl", device=device) == ""


def test_weights_that_do_not_fit_are_refused_and_a_guess_is_a_warning() -> None:
    with pytest.raises(ModelError) as caught:
        check(SDXL, Setup("float32", 8, vae_slicing=True), free=12 * GB, model="xl", device="cuda:0")
    assert str(caught.value) == (
        "models.xl: 13.9 GB of weights in float32 do not fit, cuda:0 has 12.0 GB free; add one of: "
        "--set models.xl.dtype=bfloat16; --offload sequential"
    )
    with pytest.raises(
        ModelError, match=r"do not fit, cuda:0 has 100 MB free; take a smaller model, or another"
    ):
        check(SDXL, Setup("bfloat16", 8), free=GB // 10, model="xl", device="cuda:0")
    assert check(SDXL, Setup("bfloat16", 8), free=16 * GB, model="xl", device="cuda:0") == (
        "models.xl: 6.9 GB of weights in bfloat16 and about 12.9 GB for 8 images at once may not fit, cuda:0 "
        "has 16.0 GB free; if it runs out, add one of: --set models.xl.batch_size=4; "
        "--set models.xl.vae_slicing=true; --offload sequential"
    )


def test_a_run_that_cannot_fit_ends_before_the_first_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's word is taken for it: only that is another here."""
    monkeypatch.setattr(memory, "_kernel_says", lambda file, what: 20_000_000)
    run = {"stages": ("plan", "generate"), "limit": 8, "workers": 1}
    with pytest.raises(
        ModelError, match=r": models\.tiny: 50 MB of weights in float32 do not fit, cpu has 20 MB"
    ) as caught:
        synthgen.run("emoji", tmp_path / "run", **run)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run" / "pool").glob("*.tar"))


def test_the_device_says_what_it_has() -> None:
    free = memory.free_bytes("cpu")
    assert free
    assert 10**8 < free < 10**13
    memory.reset_peak("cpu")
    before = memory.peak_bytes("cpu")
    held = torch.ones(50_000_000)
    assert before
    assert (memory.peak_bytes("cpu") or 0) - before > 0.9 * held.nbytes
    del held
    memory.reset_peak("cpu")
    assert (memory.peak_bytes("cpu") or 0) < before + 50_000_000
    assert memory.free_bytes("mps") is None
