"""How a model is run: which options change bits, and that none lets a row depend on its neighbours."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from conftest import data_digests
from test_families import asked, images, same

import synthgen
from synthgen import cli
from synthgen.data import Request
from synthgen.errors import FolderError, ModelError, OutOfMemoryError, SynthgenError
from synthgen.generation import models, sampling
from synthgen.generation.embeddings import EmbeddingCache
from synthgen.generation.options import Options
from synthgen.generation.sampling import sample

TinyModel = Callable[[str], Path]
WITH_CACHE = [name for name in tiny_models.FAMILIES if name != "kandinsky22"]
WITH_SLICES = [name for name in WITH_CACHE if name != "if1"]
SIX = ["sd1", "sdxl", "sd3", "flux", "pixart", "sana"]


def load(folder: Path, dtype: str = "float32", **options: Any) -> Any:
    return models.load(folder, device="cpu", dtype=dtype, options=Options(**options))


def made(pipeline: Any, requests: list[Request], batch_size: int = 4) -> list[npt.NDArray[np.float32]]:
    return images(sample(pipeline, requests, batch_size=batch_size))


@contextmanager
def encoder_calls(pipeline: Any) -> Iterator[list[int]]:
    """How many prompts each real call of the first text encoder was given."""
    calls: list[int] = []

    def count(module: Any, given: Any, named: Any) -> None:
        calls.append(len(given[0] if given else named["input_ids"]))

    encoder = pipeline.text_encoder
    handle = getattr(encoder, "model", encoder).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", WITH_CACHE)
def test_cached_rows_are_those_of_prompts_encoded_alone(name: str, dtype: str, tiny_model: TinyModel) -> None:
    """Bit for bit, whatever the neighbours; and what is cached is what the pipeline makes of one prompt."""
    four = [
        replace(one, negative="" if k % 2 or name in NO_NEGATIVE else "snow") for k, one in enumerate(asked())
    ]
    cached = load(tiny_model(name), dtype, embedding_cache=True)
    whole, again, turned = made(cached, four), made(cached, four), made(cached, four[::-1])[::-1]
    fresh = load(tiny_model(name), dtype, embedding_cache=True)
    last_first = made(fresh, four[::-1])[::-1]
    for others in (again, turned, last_first):
        assert all(map(same, whole, others))
    plain = load(tiny_model(name), dtype)
    assert all(same(*made(plain, [one], 1), *made(cached, [one], 1)) for one in four)


NO_NEGATIVE = {"lcm", "flux", "flux-schnell", "flux2", "flux2-klein", "sana-sprint"}


@pytest.mark.parametrize("name", SIX)
def test_each_prompt_is_encoded_once_and_alone(name: str, tiny_model: TinyModel) -> None:
    cached = load(tiny_model(name), embedding_cache=True)
    eight = [replace(one, seed=seed) for seed in (0, 9) for one in asked()]
    with encoder_calls(cached) as calls:
        made(cached, eight)
        made(cached, eight[::-1])
        assert calls == [1] * (4 if name == "flux" else 5)  # and the negative prompt, which all have
        made(cached, [replace(eight[0], text="a sea")], 1)
        assert len(calls) == (5 if name == "flux" else 6)
    plain = load(tiny_model(name))
    with encoder_calls(plain) as calls:
        made(plain, eight)
    assert sum(calls) >= len(eight)  # what this counts is there without the cache


def test_the_first_image_does_not_decide_how_others_are_encoded(tiny_model: TinyModel) -> None:
    """What is encoded depends on the other arguments too."""
    cached, plain = load(tiny_model("flux"), embedding_cache=True), load(tiny_model("flux"))
    one = asked()[1]
    short = replace(one, call=json.dumps({"max_sequence_length": 8}))
    (long_image,), (short_image,) = made(cached, [one], 1), made(cached, [short], 1)
    assert not same(long_image, short_image)
    assert same(short_image, *made(plain, [short], 1))


def test_a_skipped_layer_is_the_prompt_s_alone(tiny_model: TinyModel) -> None:
    one = replace(asked()[0], negative="snow", call=json.dumps({"clip_skip": 1}))
    cached, plain = (load(tiny_model("sdxl"), embedding_cache=on) for on in (True, False))
    assert same(*made(cached, [one], 1), *made(plain, [one], 1))
    assert not same(*made(cached, [one], 1), *made(cached, [replace(one, call="")], 1))


def test_a_full_cache_forgets_what_was_used_longest_ago(tiny_model: TinyModel) -> None:
    plain = load(tiny_model("sd1"))
    one = plain.encode_prompt(["a cat"], "cpu", 1, False)[0].nbytes
    cache = EmbeddingCache(plain, "cpu", most_bytes=3 * one)
    first, second, third, fourth = asked()
    with encoder_calls(plain) as calls:
        made(plain, [first, second], 2)  # two prompts and a negative one: full
        assert len(calls) == 3
        made(plain, [first], 1)
        made(plain, [third], 1)  # in the place of the second
        assert len(calls) == 4
        made(plain, [first], 1)
        assert len(calls) == 4
        made(plain, [second], 1)
        assert len(calls) == 5
    cache.forget()
    with encoder_calls(plain) as calls:
        whole = made(plain, [first, second, third, fourth])
    assert len(calls) >= 5
    assert all(map(same, whole, made(load(tiny_model("sd1"), embedding_cache=True), asked())))


def test_a_negative_prompt_in_use_is_not_forgotten(tiny_model: TinyModel) -> None:
    plain, want = load(tiny_model("sd1")), load(tiny_model("sd1"), embedding_cache=True)
    one = plain.encode_prompt(["a cat"], "cpu", 1, False)[0].nbytes
    EmbeddingCache(plain, "cpu", most_bytes=3 * one)
    prompts = [replace(each, negative=n) for each, n in zip(asked(), ["snow", "sea", "snow"], strict=False)]
    for each in prompts:  # the third's own embedding takes the place of one of the others
        assert same(*made(plain, [each], 1), *made(want, [each], 1))


def test_freed_encoders_read_ahead_what_there_is_room_for(tiny_model: TinyModel) -> None:
    """Each prompt once, though the cache holds less than all of them."""
    plain, cramped = (load(tiny_model("sd1"), embedding_cache=True) for _ in range(2))
    requests = [replace(asked()[0], text=f"a cat {n}", steps=1) for n in range(32)]
    batches = [requests[start : start + 4] for start in range(0, 32, 4)]
    cramped.embeddings._most_bytes = 24 * plain.encode_prompt(["a dog"], "cpu", 1, False)[0].nbytes
    cramped.embeddings.free()
    cramped.embeddings.expect(requests)
    with encoder_calls(cramped) as calls:
        found = [made(cramped, batch) for batch in batches]
    assert len(calls) == len(requests) + 1  # and the negative prompt
    assert all(all(map(same, made(plain, batch), rows)) for batch, rows in zip(batches, found, strict=True))


def test_where_memory_runs_out_the_encoders_go_first(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the whole shard is encoded at once, with the rest away, and the micro-batch stays whole."""
    cached = load(tiny_model("sd1"), embedding_cache=True)
    requests = [*asked(), *(replace(one, text=f"{one.text} at the sea") for one in asked())]
    want = [made(cached, requests[:4]), made(cached, requests[4:])]
    cached.embeddings.forget()
    real, moves = sampling.call, list[tuple[str, int]]()

    def cramped(pipeline: Any, filled: list[Request], real_image: Any) -> Any:
        if not pipeline.embeddings.freed:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(pipeline, filled, real_image)

    monkeypatch.setattr(sampling, "call", cramped)
    move_rest = cached.embeddings.move_rest
    with encoder_calls(cached) as calls:
        monkeypatch.setattr(
            cached.embeddings,
            "move_rest",
            lambda device: (moves.append((device, len(calls))), move_rest(device)),
        )
        cached.embeddings.expect(requests)
        found = [made(cached, requests[:4]), made(cached, requests[4:])]
    assert moves == [("cpu", 0), ("cpu", 9)]  # away before the first is encoded, back after the last
    assert all(map(same, want[0] + want[1], found[0] + found[1]))


def test_a_model_that_only_fits_without_its_encoders_is_loaded(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    real, tried = StableDiffusionPipeline.to, list[str]()

    def full(self: Any, device: str, *arguments: Any, **named: Any) -> Any:
        tried.append(str(device))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, device, *arguments, **named)

    want = made(load(tiny_model("sd1"), embedding_cache=True), asked())
    monkeypatch.setattr(StableDiffusionPipeline, "to", full)
    cached = load(tiny_model("sd1"), embedding_cache=True)
    assert cached.embeddings.freed
    assert all(map(same, want, made(cached, asked())))
    tried.clear()
    with pytest.raises(OutOfMemoryError, match=r"^the weights need more memory than cpu has \(CUDA out of"):
        load(tiny_model("sd1"))


@pytest.mark.parametrize("name", WITH_SLICES)
def test_slices_make_what_is_decoded_alone(name: str, tiny_model: TinyModel) -> None:
    """So they change the bits of a micro-batch, and rows stay independent."""
    sliced, plain = load(tiny_model(name), vae_slicing=True), load(tiny_model(name))
    whole = made(sliced, asked())
    assert all(map(same, whole, made(sliced, asked()[::-1])[::-1]))
    assert all(
        np.abs(one - other).max() < 0.01 for one, other in zip(whole, made(plain, asked()), strict=True)
    )


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("embedding_cache", {"sdxl", "sd3"}),
        ("vae_slicing", {"sd1", "sdxl", "sd3", "flux", "pixart", "sana"}),
        ("channels_last", {"sd1", "sdxl", "sd3", "flux", "pixart", "sana"}),
    ],
)
def test_which_options_change_bits(option: str, changed: set[str], tiny_model: TinyModel) -> None:
    """Each does so somewhere: hence keys of the recipe, off unless asked for."""
    found = set()
    for name in SIX:
        four = made(load(tiny_model(name)), asked())
        other = load(tiny_model(name), **{option: True})
        rows = made(other, asked())
        assert all(map(same, rows, made(other, asked()[::-1])[::-1]))
        if not all(map(same, four, rows)):
            found.add(name)
    assert found
    assert found <= changed


@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_compiled_blocks(name: str, tiny_model: TinyModel) -> None:
    pytest.importorskip("torch._inductor")
    try:
        compiled = load(tiny_model(name), compile=True)
    except ModelError as error:
        assert "install a C++ compiler" in str(error)  # noqa: PT017
        pytest.skip("no compiler here")
    whole, plain = made(compiled, asked()), made(load(tiny_model(name)), asked())
    assert all(map(same, whole, made(compiled, asked()[::-1])[::-1]))
    assert not all(map(same, whole, plain))  # it changes bits
    assert all(np.abs(one - other).max() < 0.01 for one, other in zip(whole, plain, strict=True))


def test_each_shape_is_compiled(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two models in a process, more than torch compiles unasked; traced alone, which takes less time."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    one = replace(asked()[0], steps=1)
    for name in ("sd1", "sd2"):
        compiled = load(tiny_model(name), compile=True)
        for size in range(1, 11):
            assert len(made(compiled, [one] * size, size)) == size
    torch._dynamo.reset()


def test_offload_that_a_pipeline_is_not_made_for_is_one_line(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(StableDiffusionPipeline, "model_cpu_offload_seq", None)  # as of VQDiffusionPipeline
    with pytest.raises(ModelError, match=r"^--offload model: StableDiff.* part by part \(Model CPU offload"):
        load(tiny_model("sd1"), offload="model")


@pytest.mark.filterwarnings("ignore")
def test_without_a_compiler_one_line_says_so(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    torch._dynamo.reset()
    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # it holds what was compiled before
    with pytest.raises(
        ModelError, match=r"^compile: torch cannot compile here \(.*remove the key$"
    ) as caught:
        load(tiny_model("sd1"), compile=True)
    assert "\n" not in str(caught.value)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [name for name in tiny_models.FAMILIES if name != "kandinsky22"])
def test_offload_changes_no_bit(name: str, tiny_model: TinyModel) -> None:
    """On a CPU: the hooks run, and move weights from the CPU to the CPU. What `model` moves needs no gradient
    any more, and a CPU's convolutions are chosen by that, so it is compared with weights that need none.
    """
    plain = load(tiny_model(name))
    four = made(plain, asked())
    assert all(map(same, four, made(load(tiny_model(name), offload="sequential"), asked())))
    for part in plain.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    assert all(map(same, made(plain, asked()), made(load(tiny_model(name), offload="model"), asked())))


def test_offload_and_the_cache_go_together(tiny_model: TinyModel) -> None:
    for way in ("model", "sequential"):
        both = load(tiny_model("sdxl"), embedding_cache=True, offload=way)
        assert not both.embeddings.free()  # nor does it move what offload moves
        assert len(made(both, asked())) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "kandinsky22",
            {"embedding_cache": True},
            "embedding_cache: how KandinskyV22CombinedPipeline encodes",
        ),
        (
            "kandinsky22",
            {"vae_slicing": True},
            "vae_slicing: KandinskyV22CombinedPipeline decodes no images in",
        ),
        ("if1", {"vae_slicing": True}, "vae_slicing: IFPipeline decodes no images in slices; remove the key"),
        ("pixart", {"compile": True}, "compile: diffusers names no blocks of PixArtSigmaPipeline to compile"),
        (
            "sd1",
            {"compile": True, "offload": "sequential"},
            "compile: not together with --offload sequential",
        ),
        ("kandinsky22", {"offload": "sequential"}, "--offload sequential: Kandinsky.*take --offload model"),
        ("prx", {"embedding_cache": True}, "embedding_cache: how PRXPipeline encodes prompts is not known"),
    ],
)
def test_what_a_family_cannot_do_is_one_line(
    name: str, options: dict[str, Any], message: str, tiny_model: TinyModel
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(tiny_model(name), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_the_cache_serves_a_pipeline_that_changes_images(name: str, tiny_model: TinyModel) -> None:
    def changed(**options: Any) -> list[npt.NDArray[np.float32]]:
        folder, how = tiny_model(name), Options(**options)
        pipeline = models.load(folder, device="cpu", dtype="float32", changes=True, options=how)
        assert ("embeddings" in vars(pipeline)) == how.embedding_cache
        four = [replace(one, steps=4, strength=0.5, source_uid="0" * 32) for one in asked()]
        made = [sample(pipeline, [one], batch_size=1, real=lambda request: real)[0] for one in four]
        return images(made)

    real = np.full((64, 64, 3), 128, np.uint8)
    assert all(map(same, changed(), changed(embedding_cache=True)))


def test_what_a_family_cannot_do_is_said_by_check(
    recipe_folder: Path, tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"models.0.path={tiny_model('kandinsky22')}", "models.0.vae_slicing=true"]
    given = [part for setting in settings for part in ("--set", setting)]
    assert cli.main(["check", str(recipe_folder), *given]) == 2
    assert "models.tiny: vae_slicing: KandinskyV22CombinedPipeline decodes no" in capsys.readouterr().err


SETTINGS = ["models.0.steps=1", "quota.requests=1", "models.0.batch_size=4", "images.shard_size=8"]


def test_an_option_on_a_folder_without_it_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    run = {"stages": ("plan", "generate"), "limit": 8, "workers": 1}
    cached = [*SETTINGS, "models.0.embedding_cache=true"]
    one, other = (synthgen.run("emoji", tmp_path / name, settings=cached, **run) for name in "ab")
    assert data_digests(one) == data_digests(other)
    before = data_digests(one)
    for settings, key in [
        (SETTINGS, "embedding_cache"),
        ([*cached, "models.0.vae_slicing=true"], "vae_slicing"),
        ([*cached, "models.0.channels_last=true"], "channels_last"),
        ([*cached, "models.0.compile=true"], "compile"),
    ]:
        with pytest.raises(FolderError, match=rf"models\.tiny\.{key}"):
            synthgen.run("emoji", one, settings=settings, **run)
    assert data_digests(one) == before


def test_offload_wants_a_gpu(tmp_path: Path) -> None:
    run = {"stages": ("plan", "generate"), "limit": 8, "workers": 1, "settings": SETTINGS}
    with pytest.raises(SynthgenError, match=r'--offload "disk": model or sequential is wanted'):
        synthgen.run("emoji", tmp_path / "a", offload="disk", **run)
    if not torch.cuda.is_available():
        with pytest.raises(
            ModelError, match="--offload model: there is no GPU to offload from; leave it out"
        ):
            synthgen.run("emoji", tmp_path / "b", offload="model", **run)
