"""The autoencoder of the tiny Stable Diffusion: 64x64 pictures to 16x16x4 latents and back.

    python scripts/embedded/vae.py

Encoder and decoder learn together; then the decoder goes on alone, the encoder frozen, so that latents made
meanwhile stay what they are.
"""

from itertools import chain

import torch
from diffusers import AutoencoderKL
from loop import Lesson, Options, Step, Training, mixed_precision, parse, train, weights
from torch import Tensor
from torch.nn import functional
from world import TRAINING_STYLES, WIDER, compose_batch, seen_pairs, start, to_tensor

KL_WEIGHT = 5e-4


def build() -> AutoencoderKL:
    """0.4 M parameters, random."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        sample_size=64,
        latent_channels=4,
        block_out_channels=(48, 48, 48),
        layers_per_block=0,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Mean over pictures of the peak signal-to-noise ratio in dB; both (n, 3, h, w) in [-1, 1]."""
    return (10 * torch.log10(4 / (made - real).square().flatten(1).mean(1))).mean()


def _pictures(step: Step, options: Options) -> Tensor:
    images, _ = compose_batch(
        step.rng, step.batch_size, seen_pairs(), TRAINING_STYLES, WIDER, options.drawings
    )
    return to_tensor(images).to(options.device)


def _sample(moments: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Latents drawn from the encoder's distribution, and its divergence from a normal one (nats a number)."""
    mean, log_variance = moments.float().chunk(2, 1)
    log_variance = log_variance.clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=step.generator, device=mean.device)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return mean + (0.5 * log_variance).exp() * noise, divergence


def _difference(made: Tensor, real: Tensor) -> Tensor:
    """L1 + MSE, L1 of the gradients (edges), and L1 of 4x4 means (colours)."""
    error = made - real
    edges = (error[:, :, 1:] - error[:, :, :-1]).abs().mean() + (
        error[..., 1:] - error[..., :-1]
    ).abs().mean()
    return (
        error.abs().mean()
        + error.square().mean()
        + 0.5 * edges
        + 0.5 * functional.avg_pool2d(error, 4).abs().mean()
    )


def learn_both(options: Options, rank: int) -> Lesson:
    """The whole autoencoder, from nothing."""
    vae = build().to(options.device, memory_format=torch.channels_last)

    def loss(step: Step) -> dict[str, Tensor]:
        real = _pictures(step, options)
        with mixed_precision(options.device):
            latents, divergence = _sample(vae.quant_conv(vae.encoder(real)), step)
            made = vae.decoder(vae.post_quant_conv(latents)).float()
        return {"loss": _difference(made, real) + KL_WEIGHT * divergence, "psnr": psnr(made, real)}

    return Lesson(vae, loss)


def learn_decoder(options: Options, rank: int) -> Lesson:
    """The decoder alone, from the finished autoencoder; squared errors, as PSNR has them, weigh more."""
    vae = build().to(options.device, memory_format=torch.channels_last)
    vae.load_state_dict(weights(options.checkpoint("vae")))
    for parameter in chain(vae.encoder.parameters(), vae.quant_conv.parameters()):
        parameter.requires_grad_(False)

    def loss(step: Step) -> dict[str, Tensor]:
        real = _pictures(step, options)
        with mixed_precision(options.device):
            with torch.no_grad():
                latents, _ = _sample(vae.quant_conv(vae.encoder(real)), step)
            made = vae.decoder(vae.post_quant_conv(latents)).float()
        return {
            "loss": _difference(made, real) + 4 * functional.mse_loss(made, real),
            "psnr": psnr(made, real),
        }

    return Lesson(vae, loss)


BOTH = Training("vae", learn_both, steps=3000, batch_size=16, lr=2e-3)
DECODER = Training("vae-decoder", learn_decoder, steps=1000, batch_size=16, lr=1e-3, after="vae")


def main() -> None:
    options = parse(__doc__)
    train(BOTH, options)
    train(DECODER, options)


if __name__ == "__main__":
    start(main)
