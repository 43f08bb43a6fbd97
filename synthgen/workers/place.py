"""A worker's place among the workers: it decides the order of claims and the device, never the data."""

import os
import platform
from typing import NamedTuple, TypeVar

from synthgen.errors import SynthgenError, WorkError

Entry = TypeVar("Entry")
WORKER = "SYNTHGEN_WORKER"
"""Set in the processes that `run_workers` and Ray's actors start: the command that they belong to and the
process that they must not outlive (0: none).
"""
SETTLED = (0, 2, 130, 143)
"""Exit statuses of a worker after which another try would end in the same way: done, told what the user has
to mend, asked to stop. With any other it died.
"""
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # accelerate, torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Where launchers say which of how many processes this is, and which on its machine."""


class Place(NamedTuple):
    """This worker is number `rank` of `world_size`, and number `local_rank` on its machine."""

    rank: int
    world_size: int
    local_rank: int = 0

    def own_first(self, units: list[Entry]) -> list[Entry]:
        """Units in the order in which this worker looks at them: its own share, then the others'."""
        first = len(units) * self.rank // self.world_size
        return units[first:] + units[:first]


class Parent(NamedTuple):
    """What synthgen process started this worker; `pid` is None where none on this machine did."""

    command: str
    pid: int | None


def find_place(share: str = "") -> Place:
    """From `share` ("k/n", k from 0), else the launcher's variables, else 0 of 1.

    Raises:
        SynthgenError: `share` is not of that form.
    """
    launched = _launched() or Place(0, 1)
    if not share:
        return launched
    k, _, n = share.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise SynthgenError(f"--share {share}: k/n with k from 0 to n - 1 is wanted, such as 0/4")
    return Place(int(k), int(n), launched.local_rank)


def _launched() -> Place | None:
    for names in LAUNCHERS:
        values = [os.environ.get(name, "") for name in names]
        if values[0].isdecimal() and values[1].isdecimal():
            return Place(int(values[0]), int(values[1]), int(values[2] or 0))
    return None


def is_launched() -> bool:
    """Whether this process is one of several that a launcher, or `run_workers`, has started."""
    place = _launched()
    return WORKER in os.environ or "RANK" in os.environ or (place is not None and place.world_size > 1)


def find_parent() -> Parent | None:
    """What started this worker, if synthgen did."""
    if WORKER not in os.environ:
        return None
    command, pid = os.environ[WORKER].split()
    return Parent(command, int(pid) or None)


def say_made(unit: str) -> None:
    """Tells the supervisor, which reads a worker's stdout, that this life was of use."""
    print(unit, flush=True)


def find_command() -> str | None:
    """What is the same in all processes of a launch and in no other launch; None where this is unknown."""
    if parent := find_parent():
        return parent.command
    if os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none":
        return f"torch {os.environ['TORCHELASTIC_RUN_ID']} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"
    if "RANK" in os.environ:  # the launcher on this machine
        return f"launcher {platform.node()} {os.getppid()}"
    if "SLURM_JOB_ID" in os.environ:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return " ".join(["slurm", *(os.environ.get(name, "0") for name in names)])
    return None


def find_device(threads: int, local_rank: int = 0) -> str:
    """The torch device that Accelerate gives this process; on a CPU torch gets `threads` threads.

    Args:
        local_rank: which GPU, where no launcher that Accelerate knows has started this process.

    Raises:
        WorkError: the launcher started several processes and Accelerate sees one.
    """
    import torch
    from accelerate import PartialState

    launched, seen = os.environ.get("WORLD_SIZE", "1"), "1"
    try:
        state = PartialState(cpu=not torch.cuda.is_available())
        seen = str(state.num_processes)
    except ValueError as error:  # no address of the other processes
        seen = f"1 ({error})"
    if launched != seen:
        raise WorkError(
            f"WORLD_SIZE is {launched} and Accelerate sees {seen}; start with `accelerate launch` or "
            "`torchrun`, or without the variable and with --workers N"
        )
    if state.device.type == "cpu":
        torch.set_num_threads(threads)
    if state.device.type != "cuda":
        return str(state.device)
    # the same kernels each time: nothing chosen by timing, no sums in the order of arrival
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    if "RANK" not in os.environ:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return f"cuda:{torch.cuda.current_device()}"


def device_name(device: str) -> str:
    """What of a device decides the bits: the GPU's name, or which instructions the CPU has."""
    import torch

    if device.startswith("cuda"):
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return device.partition(":")[0]


def default_workers() -> int:
    """One a visible GPU; without GPUs one a core."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))
