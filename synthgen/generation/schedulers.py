"""Schedulers: the checkpoint's own or another, with its settings, as one text: "EulerDiscreteScheduler", or
'EulerDiscreteScheduler {"timestep_spacing":"trailing"}'. That text is what a request says of it.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.errors import ModelError, nearest
from synthgen.generation.checkpoints import components, config, pipeline_class

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

GLOBAL_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""They draw noise that no seed of ours governs, by torchsde."""


def scheduler_name(folder: Path, scheduler: str = "") -> str:
    """The scheduler that is used, with its settings: the one asked for, else the checkpoint's own.

    Raises:
        ModelError: diffusers has no such scheduler, it knows no such setting, or it draws noise from a
            global generator.
    """
    import diffusers

    name, _, settings = scheduler.partition(" ")
    name, given = name or components(folder).get("scheduler", ""), json.loads(settings or "{}")
    known = [one for one in dir(diffusers) if one.endswith("Scheduler") and not one.startswith("Flax")]
    if scheduler and name not in known:
        raise ModelError(f'scheduler: unknown "{name}"{nearest(name, known)}')
    if given:
        allowed = list(inspect.signature(getattr(diffusers, name).__init__).parameters)[1:]
        for key in given:
            if key not in allowed:
                raise ModelError(f'scheduler: {name} has no setting "{key}"{nearest(key, allowed)}')
    if _draws_global_noise(folder, name, given):
        raise ModelError(
            f'scheduler: "{name}" draws noise from a global generator; choose one that takes seeds'
        )
    return f"{name} {settings}".strip()


def _draws_global_noise(folder: Path, name: str, given: Mapping[str, object]) -> bool:
    """Whether a scheduler with these settings draws noise that no seed of ours governs."""
    own = config(folder, "scheduler", "scheduler_config.json") | dict(given)
    stochastic = name == "FlowMatchEulerDiscreteScheduler" and own.get("stochastic_sampling")
    if name == "FlowMatchLCMScheduler" or stochastic:
        # of the pipelines with flow matching those with this method give each step the generators
        return not hasattr(pipeline_class(folder), "prepare_extra_step_kwargs")
    return name in GLOBAL_NOISE


def set_scheduler(pipeline: "DiffusionPipeline", scheduler: str) -> None:
    """Gives a pipeline another scheduler, or its own other settings; "" changes nothing.

    Raises:
        ModelError: it does not fit the checkpoint's configuration.
    """
    import diffusers

    if not scheduler:
        return
    name, _, settings = scheduler.partition(" ")
    kind = getattr(diffusers, name) if name else type(pipeline.scheduler)
    try:
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **json.loads(settings or "{}"))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"scheduler: {name} does not fit {type(pipeline).__name__} ({type(error).__name__}: {reason})"
        ) from error
