"""Workers on a Ray cluster: one actor a GPU (without GPUs one a core), each running the same command as
a local worker. A node or actor that dies is replaced by Ray; the folder has to be on storage that all nodes
see.
"""

import contextlib
import io
import logging
import os
import runpy
import sys
from collections.abc import Sequence

from synthgen.errors import SynthgenError
from synthgen.workers.place import WORKER, Place


def run_workers(
    count: int | None, arguments: Sequence[str], place: Place, command: str
) -> list[tuple[int, str]]:
    """Runs `python -m synthgen <arguments> --share k/n` in `count` actors until all have ended.

    The cluster is that of RAY_ADDRESS, else one on this machine alone. Paths in `arguments` have to be
    absolute.

    Args:
        count: actors; None is one a GPU of the cluster, or one a core.
        command: what all of them belong to.

    Returns:
        The exit status and stderr of each.

    Raises:
        SynthgenError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise SynthgenError(
            'engine "ray" needs the package ray; install it with: pip install "synthgen-datasets[ray]"'
        ) from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = count or gpus or int(ray.cluster_resources()["CPU"])
        # an actor that dies, or whose node dies, is started elsewhere and its call made again
        actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=1, num_gpus=1 if gpus else 0)(
            _Actor
        )
        actors = [actor.remote() for _ in range(count)]
        shares = [f"{place.rank * count + k}/{place.world_size * count}" for k in range(count)]
        calls = [
            each.run.remote([*arguments, "--share", share], command)
            for each, share in zip(actors, shares, strict=True)
        ]
        results: list[tuple[int, str]] = ray.get(calls)
        return results
    finally:
        if started:
            ray.shutdown()


class _Actor:
    def run(self, arguments: Sequence[str], command: str) -> tuple[int, str]:
        """The exit status and stderr of one worker, in this process."""
        os.environ[WORKER] = f"{command} 0"
        sys.argv, errors = ["synthgen", *arguments], io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                runpy.run_module("synthgen", run_name="__main__", alter_sys=True)
            except SystemExit as end:
                return int(end.code or 0), errors.getvalue()
        return 0, errors.getvalue()
