"""Each family of text-to-image pipelines, as the real classes at tiny size: what is loaded, called, counted,
refused, and that a row never depends on its neighbours.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from PIL import Image
from test_generation import REQUEST

from synthgen.data import Request
from synthgen.errors import ModelError
from synthgen.generation import locating, models
from synthgen.generation.sampling import Sampled, picture, sample
from synthgen.generation.tokens import token_counter

ALL = [*tiny_models.FAMILIES, *tiny_models.UNTESTED]
UNGUIDED = {"flux-schnell"}
WITHOUT_NEGATIVE = {"lcm", "flux", "flux-schnell", "flux2", "flux2-klein", "sana-sprint"}
AROUND = {"flux2", "flux2-klein", "sana", "sana-sprint", "qwen-image", "z-image", "lumina2"}
"""They put words of their own around a prompt, which take some of the tokens that are read."""
TEXTS = (
    "a cat",
    "a photo of a red dog on green grass at the sea, with an owl and snow",
    "an owl",
    "a blue dog",
)


class Loaded(NamedTuple):
    """A family's pipeline, and its folder."""

    name: str
    folder: Path
    pipeline: Any


@pytest.fixture(scope="module", params=ALL)
def loaded(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Loaded:
    folder = tiny_model(request.param)
    return Loaded(request.param, folder, models.load(folder, device="cpu", dtype="float32"))


def asked(n: int = 4, **more: Any) -> list[Request]:
    """Requests of 64 x 64 pixels that differ in text, its length and seed."""
    plain = replace(REQUEST, width=64, height=64, guidance=4.0, **more)
    return [replace(plain, text=text, seed=seed) for seed, text in enumerate(TEXTS[:n])]


def images(made: list[Sampled]) -> list[npt.NDArray[np.float32]]:
    return [each.image for each in made]


def same(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return bool(np.array_equal(one, other))


def test_a_family_makes_images(loaded: Loaded) -> None:
    one, *_ = asked()
    four = [one, replace(one, text="a red dog"), replace(one, seed=9), replace(one, text="an owl", seed=9)]
    made = sample(loaded.pipeline, four[:3], batch_size=4)
    assert len(made) == 3
    for each in made:
        assert each.image.shape == (64, 64, 3)
        assert np.isfinite(each.image).all()
        assert each.image.min() >= 0
        assert each.image.max() <= 1
    first, other_text, other_seed = map(picture, made)
    assert {first.error, other_text.error, other_seed.error} == {""}
    assert not np.array_equal(first.image, other_text.image)
    assert not np.array_equal(first.image, other_seed.image)


def test_a_row_is_its_request_s_whatever_its_neighbours(loaded: Loaded) -> None:
    whole = images(sample(loaded.pipeline, asked(), batch_size=4))
    again = images(sample(loaded.pipeline, asked(), batch_size=4))
    turned = images(sample(loaded.pipeline, asked()[::-1], batch_size=4))[::-1]
    first, last = images(sample(loaded.pipeline, [asked()[0], asked()[3]], batch_size=4))
    assert all(map(same, whole, again))
    assert all(map(same, whole, turned))
    assert same(first, whole[0])
    assert same(last, whole[3])
    assert len({image.tobytes() for image in whole}) == 4


def test_guidance_and_negative_prompts_have_an_effect(loaded: Loaded) -> None:
    def made(**more: Any) -> npt.NDArray[np.float32]:
        return sample(loaded.pipeline, [replace(asked()[0], **more)], batch_size=1)[0].image

    assert same(made(guidance=1.0), made(guidance=7.0)) == (loaded.name in UNGUIDED)
    if loaded.name in WITHOUT_NEGATIVE:
        with pytest.raises(ModelError, match="negative"):
            made(negative="a red dog")
    else:
        assert not same(made(negative="a red dog"), made())


def test_a_neighbour_s_negative_prompt_is_its_own(loaded: Loaded) -> None:
    """Some pipelines double their batch, or take another path, where there is one."""
    if loaded.name in WITHOUT_NEGATIVE:
        pytest.skip("takes none")
    first, second, *_ = asked()
    plain = images(sample(loaded.pipeline, [first, second], batch_size=2))
    mixed = images(sample(loaded.pipeline, [first, replace(second, negative="a red dog")], batch_size=2))
    assert same(plain[0], mixed[0])
    assert not same(plain[1], mixed[1])


def test_tokens_are_counted_as_they_are_read(loaded: Loaded) -> None:
    """The last token within the limit changes the image, and none after it does."""
    counter = token_counter({"m": loaded.folder})
    tokens, limit = counter("a")["m"]
    last = next(word for word in ("the", "b") if counter(word)["m"][0] == tokens)

    def reads(n: int) -> bool:
        begun = "a " * (n - tokens)
        assert counter(begun + "a")["m"] == counter(begun + last)["m"] == (n, limit)
        made = [
            sample(loaded.pipeline, [replace(asked()[0], text=begun + word)], batch_size=1)[0].image
            for word in ("a", last)
        ]
        return not same(*made)

    assert reads(tokens)
    assert reads(limit) or loaded.name in AROUND
    assert not reads(limit + 1)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16(name: str, tiny_model: Callable[[str], Path]) -> None:
    pipeline = models.load(tiny_model(name), device="cpu", dtype="bfloat16")
    whole = images(sample(pipeline, asked(), batch_size=4))
    turned = images(sample(pipeline, asked()[::-1], batch_size=4))[::-1]
    assert all(map(same, whole, turned))
    assert all(np.isfinite(image).all() and image.std() > 0.01 for image in whole)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux2", "prx"])
def test_a_tiny_pipeline_is_the_same_each_time(
    name: str, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    (tiny_models.FAMILIES | tiny_models.UNTESTED)[name](tmp_path / name)
    assert models.fingerprint(tmp_path / name) == models.fingerprint(tiny_model(name))


@pytest.mark.parametrize(
    ("name", "scheduler", "steps"),
    [
        ("sdxl-turbo", "", 1),
        ("sdxl-turbo", "", 4),
        ("sdxl", "LCMScheduler", 4),
        ("sdxl", "EulerAncestralDiscreteScheduler", 2),
        ("lcm", "", 1),
    ],
)
def test_a_few_steps_without_guidance(
    name: str, scheduler: str, steps: int, tiny_model: Callable[[str], Path]
) -> None:
    """Turbo, Lightning and LCM models; noise is drawn at each step, from each image's own generator."""
    pipeline = models.load(tiny_model(name), device="cpu", dtype="float32", scheduler=scheduler)
    four = [replace(each, guidance=0.0, steps=steps) for each in asked()]
    whole = images(sample(pipeline, four, batch_size=4))
    turned = images(sample(pipeline, four[::-1], batch_size=4))[::-1]
    assert all(map(same, whole, turned))
    assert len({image.tobytes() for image in whole}) == 4


KNOWN = {
    "sd1": {"guidance_rescale": 0.7},
    "sdxl": {"original_size": [512, 512]},
    "flux": {"max_sequence_length": 32},
    "z-image": {"cfg_truncation": 0.1},
    "pixart": {"use_resolution_binning": True},  # which makes another size, then scales and crops
    "sana": {"use_resolution_binning": True},
    "kandinsky22": {"prior_num_inference_steps": 2},
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_call_takes_besides(name: str, tiny_model: Callable[[str], Path]) -> None:
    pipeline = models.load(tiny_model(name), device="cpu", dtype="float32")
    plain = asked(1)[0]
    call = json.dumps(KNOWN[name])
    made, other = (sample(pipeline, [each], batch_size=1) for each in (plain, replace(plain, call=call)))
    assert not same(made[0].image, other[0].image)
    with pytest.raises(ModelError, match=r'takes no "clip_skipp"'):
        sample(pipeline, [replace(plain, call='{"clip_skipp": 1}')], batch_size=1)


def test_flux_reads_a_negative_prompt_with_true_guidance(tiny_model: Callable[[str], Path]) -> None:
    pipeline = models.load(tiny_model("flux"), device="cpu", dtype="float32")
    plain = replace(asked(1)[0], call='{"true_cfg_scale": 4.0}')
    none, red, blue = (
        sample(pipeline, [replace(plain, negative=text)], batch_size=1)[0].image
        for text in ("", "a red dog", "a blue sea")
    )
    assert not same(none, red)
    assert not same(red, blue)


def test_the_safety_checker_is_the_checkpoint_s(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("sd1-checked")
    kept, dropped = (
        sample(models.load(folder, device="cpu", dtype="float32", safety_checker=keep), asked(), batch_size=4)
        for keep in (True, False)
    )
    assert any(each.flagged for each in kept)
    assert not any(each.flagged for each in dropped)
    for one, other in zip(kept, dropped, strict=True):
        assert picture(one).error == ("safety checker" if one.flagged else "")
        assert (one.image.max() == 0) == one.flagged
        assert picture(other).error == ""


UNFIT = {
    "inpainting": r"unet takes 9 channels, an image has 4 \(an inpainting model has 5 more\)",
    "without-text-encoder": "has no text_encoder",
    "without-weights": "text_encoder",
    "second-stage": "IFSuperResolutionPipeline does not make an image from text alone",
}


@pytest.mark.parametrize("name", tiny_models.WRONG)
def test_a_wrong_checkpoint_is_refused_with_its_reason(name: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=UNFIT[name]) as caught:
        models.load(tiny_model(name), device="cpu", dtype="float32")
    assert "\n" not in str(caught.value)


ALONE = {
    "cogview4": "a prompt's image changes with its neighbours",  # padded, with no mask
    "lumina2": "a prompt's image changes with its neighbours",  # padded, with a mask: by its last bits
    "prx": "two prompts a call fail",
}


@pytest.mark.parametrize("name", tiny_models.UNTESTED)
def test_an_untested_family_is_tried_and_told(
    name: str, tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "synthgen"):
        models.load(tiny_model(name), device="cpu", dtype="float32")
    (line,) = [record.getMessage() for record in caplog.records if "untested" in record.getMessage()]
    assert ("one prompt a call" in line) == (name in ALONE)
    assert ALONE.get(name, "untested family") in line


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
def test_a_known_family_is_not_called_untested(
    name: str, tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "synthgen"):
        models.load(tiny_model(name), device="cpu", dtype="float32")
    assert not [record for record in caplog.records if "untested" in record.getMessage()]


def test_an_ip_adapter_is_fit_for_its_pipeline(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    tiny_models.ip_adapter(tmp_path, tiny_model("sd1"))
    pipeline = models.load(tiny_model("sd1"), device="cpu", dtype="float32")
    options = {"weight_name": "ip-adapter.safetensors", "local_files_only": True}
    pipeline.load_ip_adapter(str(tmp_path), subfolder="models", **options)

    def made(shade: int, scale: float) -> npt.NDArray[np.float32]:
        pipeline.set_ip_adapter_scale(scale)
        reference = Image.new("RGB", (64, 64), (shade, 255 - shade, 0))
        options = {"generator": torch.Generator().manual_seed(0), "output_type": "np"}
        return pipeline("a cat", num_inference_steps=2, ip_adapter_image=reference, **options).images[0]  # type: ignore[no-any-return]

    assert same(made(0, 0.0), made(255, 0.0))
    assert not same(made(0, 1.0), made(255, 1.0))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_lora_changes_images_as_much_as_its_weight_says(
    name: str, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    tiny_models.lora(tmp_path, tiny_model(name))
    file = locating.locate_lora(str(tmp_path), folder=tmp_path)

    def made(*weights: float) -> npt.NDArray[np.float32]:
        loras = [locating.Lora(file, weight) for weight in weights]
        pipeline = models.load(tiny_model(name), device="cpu", dtype="float32", loras=loras)
        return sample(pipeline, asked(2), batch_size=2)[0].image

    none, zero, half, full = made(), made(0.0), made(0.5), made(1.0)
    assert np.abs(zero - none).max() < 1e-5
    assert np.abs(half - none).max() > 1 / 255
    assert np.abs(full - half).max() > 1 / 255
    prints = {models.fingerprint(tiny_model(name), loras=[locating.Lora(file, w)]) for w in (0.5, 1.0)}
    assert len({*prints, models.fingerprint(tiny_model(name))}) == 3


def test_both_stages_of_deepfloyd(tiny_model: Callable[[str], Path]) -> None:
    second = locating.Upscaler(tiny_model("second-stage"))
    pipeline = models.load(tiny_model("if1"), device="cpu", dtype="float32", upscaler=second)
    call = '{"upscaler": {"num_inference_steps": 2, "guidance_scale": 4.0}}'
    four = [replace(each, width=128, height=64, call=call) for each in asked()]
    whole = images(sample(pipeline, four, batch_size=4))
    turned = images(sample(pipeline, four[::-1], batch_size=4))[::-1]
    assert all(map(same, whole, turned))
    assert {image.shape for image in whole} == {(64, 128, 3)}
    unguided = replace(four[0], call=call.replace("4.0", "1.0"))
    assert not same(sample(pipeline, [unguided], batch_size=4)[0].image, whole[0])
    assert len({image.tobytes() for image in whole}) == 4
