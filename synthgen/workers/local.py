"""Worker processes on this machine: started, waited for, stopped with their parent."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from synthgen.workers.place import WORKER, Place

STOP_SECONDS = 30


def run_workers(count: int, arguments: Sequence[str], place: Place) -> list[tuple[int, str]]:
    """Runs `python -m synthgen <arguments> --share k/n` in `count` processes and waits for all of them.

    Each sees one of the visible GPUs, if there are any. `place` is this launch's among several, which they
    divide further. When this process is stopped, so are they.

    Returns:
        The exit status and stderr of each.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(k) for k in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    with tempfile.TemporaryDirectory(prefix="synthgen-") as logs:
        processes = []
        try:
            for number in range(count):
                environment = os.environ | {WORKER: "1"}
                if devices:
                    environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
                share = f"{place.rank * count + number}/{place.world_size * count}"
                with open(Path(logs) / str(number), "wb") as log:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "synthgen", *arguments, "--share", share],
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=log,
                        )
                    )
            statuses = [process.wait() for process in processes]
        finally:
            _stop(processes)
        return [
            (status, (Path(logs) / str(number)).read_text("utf-8", "replace"))
            for number, status in enumerate(statuses)
        ]


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
