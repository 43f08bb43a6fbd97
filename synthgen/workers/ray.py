"""Workers on a Ray cluster: one actor a GPU (without GPUs one a core), each running the same command as
a local worker. A node or actor that dies is replaced by Ray; the folder has to be on storage that all nodes
see.
"""

import contextlib
import io
import logging
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from synthgen.errors import SynthgenError
from synthgen.workers.local import FRUITLESS_LIVES, POLL_SECONDS
from synthgen.workers.place import SETTLED, WORKER, Place

RESTARTS = 100
"""How often an actor is started again, wherever there is room."""


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
            'engine "ray" needs the package ray, which is not installed here: pip install ray'
        ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = not ray.is_initialized()
    if started:
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        if handler and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = count or gpus or int(ray.cluster_resources()["CPU"])
        # an actor whose process or node dies is started elsewhere, and its call made again; calls are not
        # counted, as each look for an actor that is not back yet is one
        actor = ray.remote(max_restarts=RESTARTS, max_task_retries=-1, num_cpus=1, num_gpus=1 if gpus else 0)(
            _Actor
        )

        def start(share: str) -> object:
            actors[share] = actor.remote()
            return actors[share].run.remote([*arguments, "--share", share], command)

        actors: dict[str, Any] = {}
        shares = [f"{place.rank * count + k}/{place.world_size * count}" for k in range(count)]
        calls = {start(share): share for share in shares}
        lives, results = Counter[str](), list[tuple[int, str]]()
        while calls:
            time.sleep(POLL_SECONDS)  # here, not in Ray's own waiting, which does not let signals through
            done, _ = ray.wait(list(calls), timeout=0)
            if not done:
                continue
            call = done[0]
            share = calls.pop(call)
            try:
                status, log = ray.get(call)
            except ray.exceptions.RayError as error:
                status, log = 2, str(error)
            ray.kill(actors.pop(share))  # what it had is free for actors that still wait for a place
            lives[share] += 1
            if status in SETTLED or lives[share] == FRUITLESS_LIVES:
                results.append((status, log))
            else:  # a fault of its device: only a new process can go on
                calls[start(share)] = share
        return results
    finally:
        if started:
            ray.shutdown()


class _Actor:
    def run(self, arguments: Sequence[str], command: str) -> tuple[int, str]:
        """The exit status and stderr of one worker, in this process."""
        os.environ[WORKER] = f"{command} 0"
        sys.argv, errors = ["synthgen", *arguments], io.StringIO()
        status = 0
        with contextlib.redirect_stderr(errors):
            try:
                runpy.run_module("synthgen", run_name="__main__", alter_sys=True)
            except SystemExit as end:
                status = int(end.code or 0)
        return status, errors.getvalue()
