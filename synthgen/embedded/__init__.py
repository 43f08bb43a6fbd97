"""The tiny models that ship with synthgen, so that everything runs offline on a CPU (sources: NOTICE)."""

from pathlib import Path


def pipeline_folder() -> Path:
    """The tiny Stable Diffusion: 64 x 64 pictures of 48 objects; loads as a StableDiffusionPipeline."""
    return Path(__file__).parent / "pipeline"


def clip_folder() -> Path:
    """The tiny open_clip: loads as `local-dir:` model."""
    return Path(__file__).parent / "clip"
