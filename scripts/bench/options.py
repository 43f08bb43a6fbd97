"""What each option of a model is worth, side by side in one process: images a second, the first micro-batch
(with what is compiled for it), peak memory, and which part of the images' bytes changes, by how many levels.

    python scripts/bench/options.py                                # the embedded model, 4 minutes on a CPU
    python scripts/bench/options.py --sdxl --divide 5 --size 256   # a small SDXL, 4 minutes on a CPU
    python scripts/bench/options.py --sdxl --dtype bfloat16        # the real size, random weights: on a GPU

No model is downloaded. Prompts repeat, as where a recipe asks for several images of each; the cache is
emptied before each round. On a CPU seconds are those of CPU time, and the peak is the process's, which keeps
what it had, so that only the first row tells.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging

from synthgen.data import Request
from synthgen.embedded import pipeline_folder
from synthgen.errors import ModelError, OutOfMemoryError
from synthgen.generation import memory, models
from synthgen.generation.options import Options, place
from synthgen.generation.probing import PICTURE
from synthgen.generation.sampling import free_memory, sample
from synthgen.workers.place import device_name

OPTIONS = ("embedding_cache", "vae_slicing", "channels_last", "compile")
WORDS = ("cat", "dog", "red house", "small boat on a lake", "tree", "blue car", "owl at night", "cup of tea")


def sdxl(divide: int, dtype: torch.dtype, device: str) -> Any:
    """A StableDiffusionXLPipeline of the real architecture, its widths and depths divided, random weights."""
    import diffusers
    import transformers as t

    tokenizer = t.CLIPTokenizer.from_pretrained(pipeline_folder() / "tokenizer", model_max_length=77)

    def text(kind: Any, heads: int, layers: int, act: str) -> Any:
        width = 64 * max(1, heads // divide)
        config = t.CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_attention_heads=width // 64,
            num_hidden_layers=max(2, layers // divide),
            hidden_act=act,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return kind(config)

    torch.manual_seed(0)
    with torch.device(device):
        first = text(t.CLIPTextModel, 12, 12, "quick_gelu")
        second = text(t.CLIPTextModelWithProjection, 20, 32, "gelu")
        heads = [max(1, number // divide) for number in (5, 10, 20)]
        unet = diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=[64 * number for number in heads],
            attention_head_dim=heads,  # the number of heads: the name is historical
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[max(1, number // divide) for number in (1, 2, 10)],
            cross_attention_dim=first.config.hidden_size + second.config.hidden_size,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=second.config.projection_dim + 6 * 256,
        )
        widths = [32 * max(1, number // divide) for number in (4, 8, 16, 16)]
        vae = diffusers.AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            scaling_factor=0.13025,
            sample_size=1024,
        )
    parts = {"text_encoder": first, "text_encoder_2": second, "unet": unet, "vae": vae}
    pipeline = diffusers.StableDiffusionXLPipeline(
        **{name: part.to(dtype).eval() for name, part in parts.items()},
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(
    build: Callable[[], Any],
    options: Options,
    requests: list[Request],
    batch_size: int,
    device: str,
    rounds: int,
) -> tuple[dict[str, Any], list[Any]]:
    """A row of the table, and the images."""
    free_memory()
    pipeline = build()
    place(pipeline, options, device)
    memory.reset_peak(device)
    start = time.perf_counter()
    sample(pipeline, requests[:batch_size], batch_size=batch_size, halve=False)
    first = time.perf_counter() - start
    rates = []
    clock = time.process_time if device == "cpu" else time.perf_counter  # other work there hurts less
    for _ in range(rounds):
        if options.embedding_cache:
            pipeline.embeddings.forget()
        made, start = [], clock()
        for begin in range(0, len(requests), batch_size):
            made += sample(pipeline, requests[begin : begin + batch_size], batch_size=batch_size, halve=False)
        rates.append(len(requests) / (clock() - start))
    row = {
        "images_per_second": max(rates),
        "first_batch_seconds": first,
        "peak_bytes": memory.peak_bytes(device),
    }
    return row, [np.round(each.image * 255) for each in made]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sdxl", action="store_true", help="SDXL with random weights, not the embedded model"
    )
    parser.add_argument("--divide", type=int, default=1, help="its widths and depths by this; 1 is real")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", type=int, default=0, help="of the images; 0 is the model's own")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--images", type=int, default=16, help="of a round, a multiple of batch-size")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-sizes", default="1,2,4,16", help="tried besides, without options")
    parser.add_argument("--repeats", type=int, default=4, help="images of each prompt")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest counts")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    given = parser.parse_args()
    diffusers_logging.set_verbosity_error()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)

    def build() -> Any:
        if given.sdxl:
            return sdxl(given.divide, getattr(torch, given.dtype), device)
        return models.load(pipeline_folder(), device="cpu", dtype=given.dtype)

    plain = replace(PICTURE, width=given.size, height=given.size, steps=given.steps, guidance=5.0)
    requests = [
        replace(plain, seed=seed, text=f"a photo of a {WORDS[seed // given.repeats % len(WORDS)]}")
        for seed in range(given.images)
    ]
    tries: list[tuple[str, Options, int]] = [("plain", Options(), given.batch_size)]
    tries += [(name, Options(**{name: True}), given.batch_size) for name in OPTIONS]
    tries.append(("all four", Options(**dict.fromkeys(OPTIONS, True)), given.batch_size))
    if device != "cpu":
        tries += [
            (f"--offload {way}", Options(offload=way), given.batch_size) for way in ("model", "sequential")
        ]
    tries += [(f"batch size {n}", Options(), int(n)) for n in given.batch_sizes.split(",") if n]
    rows, reference = [], []
    for name, options, batch_size in tries:
        try:
            row, images = measure(build, options, requests, batch_size, device, given.rounds)
        except (ModelError, OutOfMemoryError) as error:
            rows.append({"name": name, "error": str(error)})
            continue
        reference = reference or images
        differences = [np.abs(one - other) for one, other in zip(images, reference, strict=True)]
        row["changed"] = float(np.mean([(one > 0).mean() for one in differences]))
        row["levels"] = float(max(one.max() for one in differences))
        rows.append({"name": name, **row})
    where = device_name(device)
    if given.json:
        print(json.dumps({**vars(given), "device": where, "rows": rows}, indent=1))
        return
    print(f"{where}, {given.dtype}, {given.steps} steps, batch size {given.batch_size}")
    print(f"{'':<20} {'images/s':>9} {'first batch':>12} {'peak memory':>12} {'bytes changed':>14}")
    for row in rows:
        if "error" in row:
            print(f"{row['name']:<20} {row['error']}")
            continue
        peak = "unknown" if row["peak_bytes"] is None else memory.gigabytes(row["peak_bytes"])
        changed = f"{row['changed']:.2%}, {row['levels']:.0f}" if row["levels"] else "none"
        print(
            f"{row['name']:<20} {row['images_per_second']:>9.2f} {row['first_batch_seconds']:>10.1f} s "
            f"{peak:>12} {changed:>14}"
        )


if __name__ == "__main__":
    main()
