"""A batch size tried on a device: how many images a second, how much memory."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from synthgen.data import Request
from synthgen.errors import OutOfMemoryError
from synthgen.generation.conditioning import ReadImage
from synthgen.generation.memory import peak_bytes, reset_peak
from synthgen.generation.sampling import sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WARM_STEPS = 2
"""Of the call before the one that is timed: it compiles, and takes as much memory as a full one."""
LONG_SECONDS = 2.0
"""A call that is shorter is timed three times, and the shortest counts."""


class Trial(NamedTuple):
    """One micro-batch of the size; `peak_bytes` is None where the device does not say."""

    batch_size: int
    images_per_second: float
    seconds: float
    peak_bytes: int | None


def try_batch(
    pipeline: "DiffusionPipeline",
    requests: Sequence[Request],
    batch_size: int,
    device: str,
    real: ReadImage | None = None,
) -> Trial | None:
    """How a batch size does with the first of these requests, repeated where there are fewer; None where it
    needs more memory than there is.

    Args:
        real: reads the real images that requests are made from; None where there are none.
    """
    batch = [requests[number % len(requests)] for number in range(batch_size)]
    # of few steps a strength leaves none
    short = [one if one.strength else replace(one, steps=min(one.steps, WARM_STEPS)) for one in batch]
    cache = getattr(pipeline, "embeddings", None)
    times = list[float]()
    reset_peak(device)
    try:
        sample(pipeline, short, batch_size=batch_size, real=real, halve=False)
        while not times or (len(times) < 3 and times[0] < LONG_SECONDS):
            if cache:
                cache.forget()
            start = time.perf_counter()
            sample(pipeline, batch, batch_size=batch_size, real=real, halve=False)
            times.append(time.perf_counter() - start)
    except OutOfMemoryError:
        return None
    seconds = min(times)
    return Trial(batch_size, batch_size / seconds, seconds, peak_bytes(device))
