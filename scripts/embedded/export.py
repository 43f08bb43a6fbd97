"""Writes the trained weights, as fp16 safetensors, to where they ship.

    python scripts/embedded/export.py                   # synthgen/embedded/ and scripts/embedded/judge/
    python scripts/embedded/export.py -o /tmp/models    # elsewhere: pipeline/, clip/, judge/

What is averaged over the training's end is written, not the last step. The model cards are measure.py's.
"""

import argparse
import json
from pathlib import Path

import vae
from clip import configuration
from diffusers import StableDiffusionPipeline
from generator import build_text_encoder, build_unet, scheduler
from judge import WEIGHTS
from loop import Options, weights
from safetensors.torch import save_file
from tokenizer import folder
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.utils.logging import disable_progress_bar
from world import start

from synthgen.embedded import clip_folder, pipeline_folder


def export(options: Options, output: Path | None = None) -> None:
    """Writes all three models; `output` None: to where they ship.

    Raises:
        WorkError: a training is not there or not finished; nothing was written.
    """
    disable_progress_bar()
    for name in ("generator", "vae-decoder", "clip", "judge"):
        weights(options.checkpoint(name))
    pipeline = output / "pipeline" if output else pipeline_folder()
    clip = output / "clip" if output else clip_folder()
    judge = output / "judge" / WEIGHTS.name if output else WEIGHTS
    export_pipeline(options, pipeline)
    export_clip(options, clip)
    export_judge(options, judge)
    for path in [*pipeline.rglob("*.safetensors"), *clip.glob("*.safetensors"), judge]:
        path.chmod(0o644)  # safetensors writes them for the owner alone
    print(json.dumps({"exported": str(output or pipeline_folder().parent)}), flush=True)


def halves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}


def export_pipeline(options: Options, output: Path) -> None:
    """Everything that StableDiffusionPipeline.from_pretrained wants."""
    tokens = CLIPTokenizer.from_pretrained(folder(options))
    unet, text_encoder, autoencoder = build_unet(), build_text_encoder(tokens), vae.build()
    unet.load_state_dict(weights(options.checkpoint("generator"), "unet."))
    text_encoder.load_state_dict(weights(options.checkpoint("generator"), "text_encoder."))
    factor = weights(options.checkpoint("generator"), "scaling_factor")[""]
    # its encoder is that of "vae": only the decoder learnt on
    autoencoder.load_state_dict(weights(options.checkpoint("vae-decoder")))
    autoencoder.register_to_config(scaling_factor=round(float(factor), 4))
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokens,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (unet, text_encoder, autoencoder):
        part.half()
    pipeline.save_pretrained(output)
    # Else, without a dtype given, transformers would load float16 beside the others' float32.
    path = output / "text_encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def export_clip(options: Options, output: Path) -> None:
    """Everything that open_clip's `local-dir:` wants."""
    tokens = CLIPTokenizer.from_pretrained(folder(options))
    output.mkdir(parents=True, exist_ok=True)
    tokens.save_pretrained(output)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": configuration(tokens), "preprocess_cfg": preprocess}
    (output / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(halves(weights(options.checkpoint("clip"), "clip.")), output / "open_clip_model.safetensors")


def export_judge(options: Options, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves(weights(options.checkpoint("judge"))), output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Options.work, metavar="DIR", help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: where the weights ship")
    known = parser.parse_args()
    export(Options(work=known.work), known.output)


if __name__ == "__main__":
    start(main)
