"""Worker processes on this machine: started, started again when they die, stopped with their parent."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from synthgen.workers.place import SETTLED, WORKER, Place, default_workers

STOP_SECONDS = 60
POLL_SECONDS = 0.2
FRUITLESS_LIVES = 6
"""A worker that dies so many times in a row without having made a unit is not started again."""


class _Worker:
    """One place among the workers, and the process that has it now."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.arguments, self.environment = arguments, environment
        self.log, self.made = log, log.with_suffix(".made")
        self.fruitless_lives, self.settled = 0, False
        self.start()

    def start(self) -> None:
        with open(self.log, "wb") as log, open(self.made, "wb") as made:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "synthgen", *self.arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=made,
                stderr=log,
            )

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def is_over(self) -> bool:
        """Whether it has ended for good; if it died, it is started again."""
        status = self.process.poll()
        if self.settled or status is None:
            return self.settled
        # a worker prints what it has made
        self.fruitless_lives = 0 if self.made.stat().st_size else self.fruitless_lives + 1
        if status in SETTLED or self.fruitless_lives >= FRUITLESS_LIVES:
            self.settled = True
            return True
        why = f"signal {-status}" if status < 0 else f"status {status}, {last_words(self.said())}"
        logging.getLogger(__name__).warning(
            "worker %s died (%s); it is started again", self.arguments[-1], why
        )
        self.start()
        return False


def last_words(log: str) -> str:
    """The line in which a worker said why it ended; libraries may print after it."""
    lines = log.strip().splitlines() or ["a worker was killed"]
    if any(line.startswith("Timeout (") for line in lines):  # faulthandler's word
        return "a micro-batch took longer than --deadline"
    own = [line for line in lines if line.startswith("synthgen: ")]
    return (own or lines)[-1].removeprefix("synthgen: ")


def run_workers(
    count: int | None, arguments: Sequence[str], place: Place, command: str, *, uses_gpus: bool = True
) -> list[tuple[int, str]]:
    """Runs `python -m synthgen <arguments> --share k/n` in `count` processes until all have ended for good.

    A process that dies is started again, unless it dies several times without having made anything. Each
    sees one of the visible GPUs, if there are any. `place` is this launch's among several, which they divide
    further. When this process is stopped, so are they.

    Args:
        count: processes; None is one a visible GPU, or one a core.
        command: what all of them belong to.
        uses_gpus: whether each is to see one of the GPUs; without, torch is not even asked for them.

    Returns:
        The exit status and stderr of the last process of each place.
    """
    count = count or default_workers()
    devices = _visible_gpus() if uses_gpus else []
    with tempfile.TemporaryDirectory(prefix="synthgen-") as logs:
        workers: list[_Worker] = []
        try:
            for number in range(count):
                environment = os.environ | {WORKER: f"{command} {os.getpid()}"}
                if devices:
                    environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
                share = f"{place.rank * count + number}/{place.world_size * count}"
                own = [*arguments, "--share", share]
                workers.append(_Worker(own, environment, Path(logs) / str(number)))
            running = workers
            while running := [worker for worker in running if not worker.is_over()]:
                time.sleep(POLL_SECONDS)
        finally:
            _stop([worker.process for worker in workers])
        return [(worker.process.returncode, worker.said()) for worker in workers]


def _visible_gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(k) for k in range(torch.cuda.device_count())] if visible is None else visible.split(",")


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Lets them end their micro-batch, but not for ever."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
