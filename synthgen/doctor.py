"""What each model of a recipe needs on this device, and which batch size is worth it: measured with the
recipe's own prompts. Like `preview` it sees a Job; it writes nothing into any run.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from synthgen.data import Request
from synthgen.errors import ModelError, OutOfMemoryError
from synthgen.generation.memory import VALUE_BYTES, free_bytes
from synthgen.generation.sampling import is_alone
from synthgen.generation.trials import Trial, try_batch
from synthgen.job import Job

if TYPE_CHECKING:
    from synthgen.tables.models import ModelTable

GAIN = 1.03
"""A batch twice as large has to make this much more a second; else images wait longer for nothing."""
ROOM = 0.9
"""A batch size is not recommended where its peak is more than this part of the memory: other prompts, other
processes and fragments need some too."""


class Finding(NamedTuple):
    """What was found about a model. `error` says why nothing could be tried; `batch_size` 0 is no advice."""

    model: str
    path: str
    device: str
    dtype: str
    weights_bytes: dict[str, int]
    free_bytes: int | None
    trials: list[Trial]
    stopped: str
    batch_size: int
    error: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "trials": [trial._asdict() for trial in self.trials]}


def examine(
    job: Job, *, most: int = 64, on_trial: Callable[[str, Trial], None] = lambda model, trial: None
) -> list[Finding]:
    """Tries batch sizes 1, 2, 4, ... of each model until memory runs out, two larger ones gain less than 3%,
    or `most` is reached.

    Args:
        on_trial: told the model and each trial, when it is done.

    Raises:
        SynthgenError: the recipe is wrong, or no model can be tried.
    """
    own: dict[str, list[Request]] = {table.id: [] for table in job.recipe.models}
    for request in job.requests.all():
        own[request.model].append(request)
    return [_examine(job, table, own[table.id], most, on_trial) for table in job.recipe.models]


def _examine(
    job: Job,
    table: "ModelTable",
    requests: Sequence[Request],
    most: int,
    on_trial: Callable[[str, Trial], None],
) -> Finding:
    job.drop()  # what the model before takes is not free
    counts = job.generators[table.id].need().parts
    sizes = {part: count * VALUE_BYTES[table.dtype] for part, count in counts.items()}
    free = free_bytes(job.device)
    found = Finding(table.id, table.path, job.device, table.dtype, sizes, free, [], "", 0, "")
    if not requests:
        return found._replace(error="no request of the plan is for it; raise quota.requests")
    try:
        trials, stopped = _try_sizes(job, table.id, requests, most, on_trial)
    except (ModelError, OutOfMemoryError) as error:
        return found._replace(error=str(error))
    return found._replace(trials=trials, stopped=stopped, batch_size=best_batch_size(trials, free))


def _try_sizes(
    job: Job, model: str, requests: Sequence[Request], most: int, on_trial: Callable[[str, Trial], None]
) -> tuple[list[Trial], str]:
    """The trials of a model, and why there are no more."""
    pipeline, batch_size, trials = job.pipeline(model), 1, list[Trial]()
    while batch_size <= most:
        trial = try_batch(pipeline, requests, batch_size, job.device, job.real_image)
        if trial is None:
            return trials, f"{batch_size} at once need more memory than there is"
        trials.append(trial)
        on_trial(model, trial)
        if is_alone(pipeline):
            return trials, f"{type(pipeline).__name__} is given one prompt a call"
        if len(trials) > 2:  # one alone may have been slowed by something else
            last = max(one.images_per_second for one in trials[-2:])
            if last < GAIN * max(one.images_per_second for one in trials[:-2]):
                return trials, f"{batch_size // 2} and {batch_size} at once gain less than {GAIN - 1:.0%}"
        batch_size *= 2
    return trials, f"{most} is as many as were asked for (--most)"


def best_batch_size(trials: Sequence[Trial], free: int | None) -> int:
    """The smallest that makes nearly as many images a second as any, and leaves some memory; 0 where there
    is none.
    """
    roomy = [one for one in trials if not free or not one.peak_bytes or one.peak_bytes <= ROOM * free]
    fastest = max((one.images_per_second for one in roomy or trials), default=0.0)
    return next((one.batch_size for one in roomy or trials if one.images_per_second * GAIN >= fastest), 0)


def lines_to_paste(job: Job, findings: Sequence[Finding]) -> list[str]:
    """What to add to the command, or write into the recipe: batch sizes that differ from the recipe's, and a
    size of shards that is a multiple of all.
    """
    advised = {one.model: one.batch_size for one in findings if one.batch_size}
    sizes = {table.id: advised.get(table.id, table.batch_size) for table in job.recipe.models}
    lines = [
        f"--set models.{table.id}.batch_size={sizes[table.id]}"
        for table in job.recipe.models
        if sizes[table.id] != table.batch_size
    ]
    multiple, shard_size = math.lcm(*sizes.values()), job.recipe.images.shard_size
    if shard_size % multiple:
        lines.append(f"--set images.shard_size={-(-shard_size // multiple) * multiple}")
    return lines
