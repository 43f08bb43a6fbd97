"""The tiny open_clip: scores how well a picture shows what a caption says.

    python scripts/embedded/clip.py

Two fifths of the pictures are redrawn in styles that no vendor has (redraw.py); their captions name no style.
"""

import numpy as np
import open_clip
import torch
from loop import Lesson, Options, Step, Training, mixed_precision, parse, train
from redraw import redraw
from tokenizer import CONTEXT, folder
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer
from world import (
    BACKGROUNDS,
    HELD_OUT_STYLE,
    THINGS,
    TRAINING_STYLES,
    WIDER,
    caption,
    compose_batch,
    seen_pairs,
    start,
    to_tensor,
)

WIDTH = 192
REDRAWN = 0.4  # of the pictures


def configuration(tokens: CLIPTokenizer) -> dict[str, object]:
    """The `model_cfg` of open_clip_config.json."""
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": 64,
            # a list makes it a ModifiedResNet: in so short a training a ViT learns nothing
            "layers": [1, 2, 2, 1],
            "width": 24,
            "head_width": 64,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokens),
            "hf_tokenizer_name": "tiny",  # empty, open_clip would take its own tokenizer of 49,408 tokens
            "width": WIDTH,
            "heads": 6,
            "layers": 2,
            "pad_id": tokens.pad_token_id,
            "eos_id": tokens.eos_token_id,
            "pool_type": "argmax",  # the end of the text is the highest id
            "tokenizer_kwargs": {},
        },
    }


def build(tokens: CLIPTokenizer) -> open_clip.CLIP:
    """4.4 M parameters, random."""
    return open_clip.CLIP(**configuration(tokens))


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Other colour balance, a quarter blurred, half with noise; (n, 3, 64, 64) in [-1, 1]."""
    n, device = len(images), images.device

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    def some(share: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, device=device) < share

    images = images * (1 + 0.12 * normal(n, 3, 1, 1)) + 0.06 * normal(n, 3, 1, 1)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    images = torch.where(some(0.25), blurred, images)
    noise = normal(*images.shape) * 0.1 * torch.rand(n, 1, 1, 1, generator=generator, device=device)
    return (images + noise * some(0.5)).clamp(-1, 1)


def _contrast(images: Tensor, texts: Tensor, scale: Tensor, matches: Tensor) -> Tensor:
    """InfoNCE with several right answers: matches (n images, n texts), at least one a row and a column."""
    logits = scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    share = matches.float()
    to_text = -(functional.log_softmax(logits, 1) * share / share.sum(1, keepdim=True)).sum(1)
    to_image = -(functional.log_softmax(logits, 0) * share / share.sum(0, keepdim=True)).sum(0)
    return 0.5 * (to_text.mean() + to_image.mean())


def learn(options: Options, rank: int) -> Lesson:
    """Contrast of pictures and captions, helped by two heads that are thrown away: object and background."""
    tokens = CLIPTokenizer.from_pretrained(folder(options))
    parts = nn.ModuleDict(
        {
            "clip": build(tokens),
            "thing": nn.Linear(WIDTH, len(THINGS)),
            "background": nn.Linear(WIDTH, len(BACKGROUNDS)),
        }
    ).to(options.device)
    parts["clip"].visual.to(memory_format=torch.channels_last)

    def loss(step: Step) -> dict[str, Tensor]:
        redrawn = round(REDRAWN * step.batch_size)
        common = (seen_pairs(), TRAINING_STYLES, WIDER, options.drawings)
        plain, plain_labels = compose_batch(step.rng, step.batch_size - redrawn, *common)
        other, other_labels = compose_batch(step.rng, redrawn, *common, redraw)
        other_labels[:, 2] = HELD_OUT_STYLE  # like it, a style without a word
        numbers = np.concatenate([plain_labels, other_labels])
        captions = [caption(*(int(v) for v in row), step.rng) for row in numbers]
        ids = tokens([c.text for c in captions], padding="max_length", return_tensors="pt").input_ids
        named = torch.tensor([(c.names_background, c.names_style) for c in captions], device=options.device)
        labels = torch.from_numpy(numbers).to(options.device)
        images = _jitter(to_tensor(np.concatenate([plain, other])).to(options.device), step.generator)
        with mixed_precision(options.device):
            seen = parts["clip"].encode_image(images.contiguous(memory_format=torch.channels_last)).float()
            read = parts["clip"].encode_text(ids.to(options.device)).float()
        same = labels[:, None] == labels[None]  # (images, texts, 3)
        # A caption fits every picture that agrees in all that it mentions.
        matches = same[..., 0] & (same[..., 1] | ~named[:, 0]) & (same[..., 2] | ~named[:, 1])
        scale = parts["clip"].logit_scale.exp().clamp(max=100)
        guesses = parts["thing"](seen)
        thing_loss = functional.cross_entropy(guesses, labels[:, 0])
        background_loss = functional.cross_entropy(parts["background"](seen), labels[:, 1])
        return {
            "loss": _contrast(seen, read, scale, matches) + 0.3 * (thing_loss + background_loss),
            "accuracy": (guesses.argmax(1) == labels[:, 0]).float().mean(),
        }

    return Lesson(parts, loss)


CLIP = Training("clip", learn, steps=1400, batch_size=96, lr=1.5e-3, weight_decay=0.05)


def main() -> None:
    options = parse(__doc__)
    folder(options)  # before the processes, who would all make it
    train(CLIP, options)


if __name__ == "__main__":
    start(main)
