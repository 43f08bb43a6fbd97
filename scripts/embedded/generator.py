"""The tiny Stable Diffusion's UNet and text encoder, trained together on the latents of vae.py.

    python scripts/embedded/generator.py

Both begin at random, so that the generator shares nothing with the CLIP that filters its pictures. The first
part of the training shows objects in narrow poses, which are learnt faster; the last part in all poses.
"""

import numpy as np
import torch
import vae
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from loop import Lesson, Options, Step, Training, digest, mixed_precision, parse, train, weights
from safetensors.torch import load_file, save_file
from tokenizer import CONTEXT, folder
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from world import NARROW, TRAINING_STYLES, WIDE, Pose, caption, compose_batch, seen_pairs, start, to_tensor

WIDTH = 192  # of the text encoder, and so of the cross attention
POSES = {"narrow": NARROW, "wide": WIDE}
NARROW_PART = 0.5  # of the training
PICTURES = {"narrow": 20_000, "wide": 32_000}  # each process encodes so many, once
WITHOUT_CAPTION = 0.1  # of the batch, for guidance
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def build_unet() -> UNet2DConditionModel:
    """11.0 M parameters, random."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers takes it as the number of heads
        norm_num_groups=16,
    )


def build_text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """1.1 M parameters, random."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            hidden_act="gelu",
            projection_dim=WIDTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++; made from this, DDIM and others too must not clip latents, which their default would."""
    made = DPMSolverMultistepScheduler(**NOISE, steps_offset=1)  # as the pipeline wants it
    made.register_to_config(clip_sample=False)
    return made


def encoder(options: Options) -> AutoencoderKL:
    """The trained autoencoder, its `scaling_factor` such that latents have variance 1."""
    model = vae.build().to(options.device, memory_format=torch.channels_last).eval()
    model.load_state_dict(weights(options.checkpoint("vae")))
    latents = _encode(model, np.random.default_rng((options.seed, 1)), 512, WIDE, options)[0]
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    return model


@torch.inference_mode()
def _encode(
    model: AutoencoderKL, rng: np.random.Generator, count: int, pose: Pose, options: Options
) -> tuple[Tensor, Tensor]:
    """Means of the latents of new pictures, float32 (count, 4, 16, 16), unscaled; their labels (count, 3)."""
    latents, labels = [], []
    for done in range(0, count, 64):
        n = min(64, count - done)
        images, numbers = compose_batch(rng, n, seen_pairs(), TRAINING_STYLES, pose, options.drawings)
        with mixed_precision(options.device):
            distribution = model.encode(to_tensor(images).to(options.device)).latent_dist
        latents.append(distribution.mean.float().cpu())
        labels.append(torch.from_numpy(numbers))
    return torch.cat(latents).contiguous(), torch.cat(labels)


def _cached(model: AutoencoderKL, part: str, count: int, options: Options, rank: int) -> dict[str, Tensor]:
    """Scaled latents of this process, float16, and their labels; kept in a file."""
    source = digest(options.checkpoint(GENERATOR.after))
    path = options.work / f"latents-{part}-{source}-{options.seed}-{count}-{rank}.safetensors"
    if not path.exists():
        rng = np.random.default_rng((options.seed, *part.encode(), rank + 1))
        latents, labels = _encode(model, rng, count, POSES[part], options)
        new = path.with_suffix(".new")
        save_file({"latents": (latents * model.config.scaling_factor).half(), "labels": labels}, new)
        new.replace(path)
    return load_file(path)


def _timesteps(step: Step, device: str) -> Tensor:
    """Half even over 0..999, half normal around 600, where what is shown gets decided; (batch,)."""
    even = torch.randint(0, 1000, (step.batch_size,), generator=step.generator, device=device)
    middle = 600 + 180 * torch.randn(step.batch_size, generator=step.generator, device=device)
    first = torch.rand(step.batch_size, generator=step.generator, device=device) < 0.5
    return torch.where(first, even, middle.round().long().clamp(0, 999))


def learn(options: Options, rank: int) -> Lesson:
    """v-prediction (arXiv 2202.00512) with a zero terminal signal (arXiv 2305.08891)."""
    tokens = CLIPTokenizer.from_pretrained(folder(options))
    parts = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokens)}).to(
        options.device
    )
    parts["unet"].to(memory_format=torch.channels_last)
    model = encoder(options)
    parts.register_buffer("scaling_factor", torch.tensor(model.config.scaling_factor))  # for export.py
    enough = (options.steps or GENERATOR.steps) * (options.batch_size or GENERATOR.batch_size)
    pool = {part: _cached(model, part, min(count, enough), options, rank) for part, count in PICTURES.items()}
    signal = DDPMScheduler(**NOISE).alphas_cumprod.to(options.device)

    def loss(step: Step) -> dict[str, Tensor]:
        part = pool["narrow" if step.progress < NARROW_PART else "wide"]
        chosen = torch.from_numpy(step.rng.integers(len(part["labels"]), size=step.batch_size))
        latents = part["latents"][chosen].to(options.device).float()
        labels = part["labels"][chosen].tolist()
        texts = [
            "" if step.rng.random() < WITHOUT_CAPTION else caption(*row, step.rng).text for row in labels
        ]
        ids = tokens(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        times = _timesteps(step, options.device)
        noise = torch.randn(latents.shape, generator=step.generator, device=options.device)
        keep, add = signal[times].sqrt().view(-1, 1, 1, 1), (1 - signal[times]).sqrt().view(-1, 1, 1, 1)
        noisy = (keep * latents + add * noise).contiguous(memory_format=torch.channels_last)
        with mixed_precision(options.device):
            states = parts["text_encoder"](ids.to(options.device)).last_hidden_state
            guess = parts["unet"](noisy, times, states).sample
        return {"loss": functional.mse_loss(guess.float(), keep * noise - add * latents)}

    return Lesson(parts, loss)


GENERATOR = Training("generator", learn, steps=5400, batch_size=48, lr=2e-3, after="vae")


def main() -> None:
    options = parse(__doc__)
    folder(options)  # before the processes, who would all make it
    train(GENERATOR, options)


if __name__ == "__main__":
    start(main)
