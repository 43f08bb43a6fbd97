"""A worker's place among the workers: it decides the order of claims and the device, never the data."""

import os
from typing import NamedTuple

from synthgen.errors import SynthgenError, WorkError

WORKER = "SYNTHGEN_WORKER"
"""Set in the processes that `run_workers` starts."""


class Place(NamedTuple):
    """This worker is number `rank` of `world_size`."""

    rank: int
    world_size: int


def find_place(share: str = "") -> Place:
    """From `share` ("k/n", k from 0), else accelerate's or torchrun's variables, else 0 of 1.

    Raises:
        SynthgenError: `share` is not of that form.
    """
    rank, world_size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not share:
        both = rank.isdecimal() and world_size.isdecimal()
        return Place(int(rank), int(world_size)) if both else Place(0, 1)
    k, _, n = share.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise SynthgenError(f"--share {share}: k/n with k from 0 to n - 1 is wanted, such as 0/4")
    return Place(int(k), int(n))


def is_launched() -> bool:
    """Whether this process is one of several that a launcher, or `run_workers`, has started."""
    return "RANK" in os.environ or WORKER in os.environ


def find_device(threads: int) -> str:
    """The torch device that Accelerate gives this process; on a CPU torch gets `threads` threads.

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
    return str(state.device)


def default_workers() -> int:
    """One a visible GPU; without GPUs one a core."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))
