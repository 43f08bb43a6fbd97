"""Worker processes on this machine: started, waited for, stopped with their parent."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

STOP_SECONDS = 30


def run_workers(count: int, arguments: Sequence[str]) -> list[tuple[int, str]]:
    """Runs `python -m synthgen <arguments> --share k/n` in `count` processes and waits for all of them.

    Each sees one GPU, if there are any. When this process is stopped, so are they.

    Returns:
        The exit status and stderr of each.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(number) for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="synthgen-") as logs:
        processes = []
        try:
            for number in range(count):
                environment = os.environ | {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}
                with open(Path(logs) / str(number), "wb") as log:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "synthgen", *arguments, "--share", f"{number}/{count}"],
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
