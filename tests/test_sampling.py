"""The traps of text-to-image pipelines, each shown to be one, and that a request does not fall into it; and
what of a recipe is refused before anything is made.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from test_generation import REQUEST

import synthgen
from synthgen.data import Request
from synthgen.errors import ModelError, SynthgenError
from synthgen.generation import checkpoints, families, locating, models
from synthgen.generation.sampling import make_generator, sample
from synthgen.generation.tokens import token_counter

Find = Callable[[str], Path]
ONE_STEP = ["models.0.steps=1", "models.0.batch_size=2", "images.shard_size=2"]


def loaded(folder: Path, **more: Any) -> Any:
    return models.load(folder, device="cpu", dtype="float32", **more)


def asked(*texts: str, **more: Any) -> list[Request]:
    plain = replace(REQUEST, width=64, height=64, guidance=4.0, **more)
    return [replace(plain, text=text, seed=seed) for seed, text in enumerate(texts)]


# --- traps ---


def test_a_pipeline_that_writes_into_its_prompts(tiny_model: Find) -> None:
    pipeline, prompts = loaded(tiny_model("z-image")), ["a cat", "an owl"]
    pipeline(prompts, num_inference_steps=1, guidance_scale=0.0, width=64, height=64, output_type="np")
    assert prompts != ["a cat", "an owl"]
    requests = asked("a cat", "an owl")
    first, again = (sample(pipeline, requests, batch_size=2) for _ in range(2))
    assert all((one.image == other.image).all() for one, other in zip(first, again, strict=True))
    assert [request.text for request in requests] == ["a cat", "an owl"]


def test_a_pipeline_that_does_not_count_generators(tiny_model: Find) -> None:
    """Kandinsky lets two images start from one generator; of ours each has its own."""
    pipeline = loaded(tiny_model("kandinsky22"))
    size = {"num_inference_steps": 1, "width": 64, "height": 64, "output_type": "np"}
    pipeline(["a cat"], generator=[make_generator(0), make_generator(1)], **size)  # one too many: no error
    for negative in ("", "a red dog"):
        one, other = sample(pipeline, asked("a cat", "a cat", negative=negative), batch_size=2)
        alone = sample(pipeline, asked("a cat", "a cat", negative=negative)[1:], batch_size=1)[0]
        assert (one.image != other.image).any()
        assert (alone.image == other.image).all()


def test_pt_has_another_range(tiny_model: Find) -> None:
    pipeline = loaded(tiny_model("if1"))
    tensor = pipeline("a cat", num_inference_steps=2, output_type="pt", clean_caption=False).images
    assert tensor.min() < 0
    image = sample(pipeline, asked("a cat"), batch_size=1)[0].image
    assert image.min() >= 0
    assert image.max() <= 1


def test_a_negative_prompt_of_another_type(tiny_model: Find) -> None:
    pipeline = loaded(tiny_model("sd1"))
    with pytest.raises(TypeError, match="should be the same type"):
        pipeline(["a cat", "an owl"], negative_prompt="a dog", num_inference_steps=1)
    requests = [replace(asked("a cat")[0], negative=text) for text in ("a dog", "")]
    made = sample(pipeline, requests, batch_size=2)
    alone = [sample(pipeline, [request], batch_size=2)[0] for request in requests]
    assert all((one.image == other.image).all() for one, other in zip(made, alone, strict=True))
    assert (made[0].image != made[1].image).any()


def test_a_cache_between_steps_is_refused(tiny_model: Find) -> None:
    """FirstBlockCache looks at the mean of the whole batch, and keeps its state after an exception."""
    from diffusers import FirstBlockCacheConfig

    pipeline = loaded(tiny_model("flux"))
    sample(pipeline, asked("a cat"), batch_size=1)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match="its transformer caches between steps"):
        sample(pipeline, asked("a cat"), batch_size=1)


def test_an_exception_leaves_nothing_behind(tiny_model: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = loaded(tiny_model("flux"))
    before, forward = sample(pipeline, asked("a cat"), batch_size=1)[0].image, pipeline.transformer.forward
    calls = []

    def broken(*arguments: Any, **keys: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a fault in the second step")
        return forward(*arguments, **keys)

    monkeypatch.setattr(pipeline.transformer, "forward", broken)
    with pytest.raises(RuntimeError, match="second step"):
        sample(pipeline, asked("an owl"), batch_size=1)
    assert (sample(pipeline, asked("a cat"), batch_size=1)[0].image == before).all()


def test_one_prompt_a_call_where_neighbours_count(tiny_model: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = loaded(tiny_model("qwen-image"))
    forward, met = pipeline.transformer.forward, list[int]()

    def counted(hidden_states: torch.Tensor, *arguments: Any, **keys: Any) -> Any:
        met.append(len(hidden_states))
        return forward(hidden_states, *arguments, **keys)

    monkeypatch.setattr(pipeline.transformer, "forward", counted)
    assert len(sample(pipeline, asked("a cat", "an owl"), batch_size=4)) == 2
    assert set(met) == {1}
    with pytest.raises(ModelError, match="with --strict say batch_size = 1"):
        sample(pipeline, asked("a cat", "an owl"), batch_size=4, halve=False)


def test_several_images_of_a_prompt_are_several_prompts() -> None:
    from diffusers import SanaPipeline

    with pytest.raises(ModelError, match=r'"num_images_per_prompt" is decided by the key `quota.requests`'):
        families.check_call(SanaPipeline, {"num_images_per_prompt": 2})


# --- the recipe's own arguments ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "{ clip_skipp = 2 }",
            'call: StableDiffusionPipeline takes no "clip_skipp"; did you mean "clip_skip"?',
        ),
        ("{ guidance_scale = 2.0 }", 'call: "guidance_scale" is decided by the key `guidance` of the recipe'),
        ("{ eta = nan }", "call: strings, numbers, true, false, and lists and tables of them are wanted"),
        ("{ output_type = 'pt' }", 'call: "output_type" is decided by the key `images.format`'),
    ],
)
def test_an_argument_that_is_none_is_refused_before_anything(
    call: str, message: str, recipe_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SynthgenError) as caught:
        synthgen.run(recipe_folder, tmp_path / "run", settings=[f"models.0.call={call}"], limit=2, workers=1)
    assert str(caught.value).startswith(f"{recipe_folder / 'recipe.toml'}: models.")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_argument_decides_the_image_and_the_uid(recipe_folder: Path, tmp_path: Path) -> None:
    rows = {}
    for name, call in {"plain": "{}", "rescaled": "{ guidance_rescale = 0.7 }"}.items():
        run = synthgen.run(
            recipe_folder,
            tmp_path / name,
            settings=[*ONE_STEP, f"models.0.call={call}"],
            limit=2,
            workers=1,
            stages=("plan", "generate"),
        )
        rows[name] = pq.read_table(run / "pool" / "00000000.parquet").to_pylist()
    plain, rescaled = rows["plain"][0], rows["rescaled"][0]
    assert (plain["call"], rescaled["call"]) == ("", '{"guidance_rescale":0.7}')
    assert plain["uid"] != rescaled["uid"]
    assert plain["seed"] == rescaled["seed"]
    assert plain["sha256"] != rescaled["sha256"]


def test_a_size_is_given_as_a_tuple_where_one_is_wanted() -> None:
    from diffusers import StableDiffusionXLPipeline

    given = families.arguments(
        StableDiffusionXLPipeline,
        guidance=5.0,
        steps=1,
        width=0,
        height=0,
        negative=[""],
        call={"original_size": [512, 256], "timesteps": [999]},
    )
    assert (given["original_size"], given["timesteps"]) == ((512, 256), [999])


def test_a_call_that_reads_less_of_a_prompt(tiny_model: Find) -> None:
    folder = {"m": tiny_model("flux")}
    assert token_counter(folder)("a cat")["m"][1] == 512
    assert token_counter(folder, {"m": {"max_sequence_length": 64}})("a cat")["m"][1] == 64


# --- checkpoints ---


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "flux",
            {"width": 61},
            r"width = 61: FluxPipeline makes multiples of (4|8|16); say (60|56|48) or (64)",
        ),
        ("sana", {"height": 40}, "height = 40: SanaPipeline makes multiples of 32; say 32 or 64"),
        ("sd1", {"width": 4}, "width = 4: StableDiffusionPipeline makes multiples of 8; say 8"),
    ],
)
def test_a_size_that_would_not_come_out(
    name: str, size: dict[str, int], message: str, tiny_model: Find
) -> None:
    checkpoints.check(tiny_model(name), **dict.fromkeys(size, 64))
    with pytest.raises(ModelError, match=message):
        checkpoints.check(tiny_model(name), **size)


def with_variant(folder: Path, copy: Path) -> Path:
    """A copy of a folder with all its weights as fp16."""
    import shutil

    shutil.copytree(folder, copy)
    for path in copy.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    return copy


def test_the_variant_is_named_that_a_folder_has(tiny_model: Find, tmp_path: Path) -> None:
    folder = with_variant(tiny_model("sd1"), tmp_path / "copy")
    for refuses in (models.fingerprint, checkpoints.check, loaded):
        with pytest.raises(ModelError, match='has the weights of variant = "fp16" alone; add that'):
            refuses(folder)
    pipeline = loaded(folder, variant="fp16")
    made, other = (
        sample(each, asked("a cat"), batch_size=1) for each in (pipeline, loaded(tiny_model("sd1")))
    )
    assert (made[0].image == other[0].image).all()


@pytest.mark.parametrize("variant", ["fp8", "fp", "fp1"])
def test_a_variant_that_is_nowhere(variant: str, tiny_model: Find, tmp_path: Path) -> None:
    folder = with_variant(tiny_model("sd1"), tmp_path / "copy")
    for one, has in ((tiny_model("sd1"), "none"), (folder, '.*variant = "fp16"')):
        for refuses in (models.fingerprint, checkpoints.check):
            with pytest.raises(ModelError, match=f"has (no|the) weights of .*{has}"):
                refuses(one, variant=variant)


def test_a_variant_of_some_parts(tiny_model: Find, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(tiny_model("sd1"), tmp_path / "copy"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert loaded(copy, variant="fp16")
    with pytest.raises(ModelError, match='no weights of variant = "fp8"; variants that it has: "fp16"'):
        checkpoints.check(copy, variant="fp8")


def test_a_tokenizer_brings_no_code(
    tiny_model: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    copy = Path(shutil.copytree(tiny_model("sd1"), tmp_path / "copy"))
    path = copy / "tokenizer" / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (copy / "tokenizer" / "own.py").write_text("raise SystemExit('was run')")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("the user is asked"))
    with pytest.raises(ModelError, match=r"tokenizer: cannot be read: "):
        token_counter({"m": copy})


@pytest.mark.parametrize("part", ["unet", "tokenizer", "scheduler"])
def test_a_part_that_is_not_there(part: str, tiny_model: Find, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(tiny_model("sd1"), tmp_path / "copy"))
    shutil.rmtree(copy / part)
    with pytest.raises(ModelError, match=f"has no folder {part}, which model_index.json names"):
        checkpoints.check(copy)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionUpscalePipeline",
        "FluxFillPipeline",
        "WanPipeline",
        "StableDiffusionXLControlNetPipeline",
    ],
)
def test_a_pipeline_for_something_else(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ModelError, match=f"{name} does not make an image from text alone"):
        checkpoints.check(tmp_path)


def test_code_from_elsewhere_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MyOwnPipeline"}))
    with pytest.raises(
        ModelError, match="diffusers has no MyOwnPipeline, and code from elsewhere is not run"
    ):
        checkpoints.check(tmp_path)


def test_every_family_of_the_table_is_one_of_diffusers() -> None:
    """A name that diffusers changes would silently lose its facts."""
    import diffusers

    for name, own in families.FAMILIES.items():
        names = families.taken(getattr(diffusers, f"{name}Pipeline"))
        assert own.guidance in names
        assert not own.negative_with or own.negative_with in names
    assert (
        families.family(diffusers.StableDiffusionXLImg2ImgPipeline) is families.FAMILIES["StableDiffusionXL"]
    )
    assert families.family(diffusers.ChromaPipeline) is families.UNTESTED


# --- LoRAs, the second stage ---


def test_loras_that_are_refused(tiny_model: Find, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_models.lora(tmp_path / "one", tiny_model("sd1"))
    file = locating.locate_lora("one", folder=tmp_path)
    assert file.parent == tmp_path / "one"
    assert locating.locate_lora(f"one/{file.name}", folder=tmp_path) == file
    with pytest.raises(ModelError, match=r"does not fit StableDiffusionXLPipeline|changes nothing in"):
        loaded(tiny_model("sdxl"), loras=[locating.Lora(file)])
    with pytest.raises(ModelError, match="loras: KandinskyV22CombinedPipeline takes none"):
        loaded(tiny_model("kandinsky22"), loras=[locating.Lora(file)])
    (tmp_path / "one" / "second.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(
        ModelError, match=r"one \.safetensors file is wanted; there is .*name one with file = "
    ):
        locating.locate_lora("one", folder=tmp_path)
    assert (
        locating.locate_lora("one", folder=tmp_path, file="second.safetensors").name == "second.safetensors"
    )
    with pytest.raises(ModelError, match=r"no third; there is"):
        locating.locate_lora("one", folder=tmp_path, file="third")
    (tmp_path / "old.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"old\.bin: not \.safetensors; others are not loaded"):
        locating.locate_lora("old.bin", folder=tmp_path)
    with pytest.raises(ModelError, match=r'path = "none\.safetensors": no such file'):
        locating.locate_lora("none.safetensors", folder=tmp_path)


def test_of_a_hub_s_loras_one_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub as hub

    asked = list[str]()

    def snapshot(*_: object, allow_patterns: list[str], **__: object) -> str:
        asked.extend(allow_patterns)
        (tmp_path / allow_patterns[0]).write_bytes(b"")
        return str(tmp_path)

    there = ["README.md", "one.safetensors", "sub/three.safetensors", "two.safetensors"]
    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda *_, **__: there)
    monkeypatch.setattr(hub.HfApi, "snapshot_download", snapshot)
    with pytest.raises(
        ModelError,
        match=r"is wanted; there is one\.safetensors, sub/three\.safetensors, two\.safetensors; name",
    ):
        locating.locate_lora("org/name", folder=tmp_path)
    with pytest.raises(ModelError, match=r"no four\.safetensors; there is one"):
        locating.locate_lora("org/name", folder=tmp_path, file="four.safetensors")
    assert asked == []
    there.remove("two.safetensors")
    assert locating.locate_lora("org/name", folder=tmp_path).name == "one.safetensors"
    assert asked == ["one.safetensors"]


def test_a_run_with_a_lora(tiny_model: Find, recipe_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_models.lora(recipe_folder / "style", tiny_model("sd1"))
    shas = []
    for loras in ('["style"]', '[{ path = "style", weight = 0.5 }]', "[]"):
        settings = [*ONE_STEP, f"models.0.path={tiny_model('sd1')}", f"models.0.loras={loras}"]
        run = synthgen.run(
            recipe_folder, tmp_path / str(len(shas)), settings=settings, limit=2, workers=1,
            stages=("plan", "generate"),
        )  # fmt: skip
        row = pq.read_table(run / "pool" / "00000000.parquet").to_pylist()[0]
        shas.append((row["sha256"], row["fingerprint"]))
    assert len(set(shas)) == len({fingerprint for _, fingerprint in shas}) == 3


def test_a_run_with_both_stages_of_deepfloyd(tiny_model: Find, recipe_folder: Path, tmp_path: Path) -> None:
    second = f'{{ path = "{tiny_model("second-stage")}", steps = 2, guidance = 4.0, call.noise_level = 100 }}'
    settings = [*ONE_STEP, f"models.0.path={tiny_model('if1')}", f"models.0.upscaler={second}"]
    run = synthgen.run(
        recipe_folder, tmp_path / "run", settings=settings, limit=2, workers=1, stages=("plan", "generate")
    )
    row = pq.read_table(run / "pool" / "00000000.parquet").to_pylist()[0]
    assert json.loads(row["call"]) == {
        "upscaler": {"guidance_scale": 4.0, "noise_level": 100, "num_inference_steps": 2}
    }
    sides = [json.loads((tiny_model(name) / "unet" / "config.json").read_text())["sample_size"]
             for name in ("if1", "second-stage")]  # fmt: skip
    assert sides[0] < sides[1] == row["original_width"] == row["original_height"]
    with pytest.raises(
        ModelError,
        match=r"\.toml: models\.tiny: upscaler: \w+ after StableDiffusionPipeline; DeepFloyd IF alone",
    ):
        synthgen.run(
            recipe_folder, tmp_path / "other", settings=[f"models.0.upscaler={second}"], limit=2, workers=1
        )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loras=['none']", 'models.tiny: loras: path = "none": no such file'),
        (
            "upscaler={ path = './none', steps = 1, guidance = 1.0 }",
            'models.tiny.upscaler: path = "./none": no such',
        ),
    ],
)
def test_what_is_added_to_a_model_and_is_not_there(
    setting: str, message: str, recipe_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        synthgen.run(recipe_folder, tmp_path / "run", settings=[f"models.0.{setting}"], limit=2, workers=1)
    assert str(caught.value).startswith(f"{recipe_folder / 'recipe.toml'}: {message}")
    assert not (tmp_path / "run").exists()


def test_each_stage_has_its_part_of_an_image_and_of_the_fingerprint(tiny_model: Find, tmp_path: Path) -> None:
    import shutil

    folder, second = tiny_model("if1"), Path(shutil.copytree(tiny_model("second-stage"), tmp_path / "second"))
    upscaler = locating.Upscaler(second)
    pipeline = loaded(folder, upscaler=upscaler)
    assert pipeline.upscaler.text_encoder is None  # T5 is loaded once
    plain, *_ = asked("a cat")
    made = [
        sample(pipeline, [replace(plain, call=json.dumps({"upscaler": call}))], batch_size=1)[0].image
        for call in ({"num_inference_steps": 1}, {"num_inference_steps": 2}, {"num_inference_steps": 1})
    ]
    assert (made[0] != made[1]).any()
    assert (made[0] == made[2]).all()
    assert np.isfinite(made[0]).all()
    found = models.fingerprint(folder, upscaler=upscaler)
    assert found != models.fingerprint(folder)
    weights = second / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert models.fingerprint(folder, upscaler=upscaler) != found
