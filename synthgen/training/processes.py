"""What the processes of one training must agree on."""

import logging
import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from synthgen.errors import SynthgenError

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


def require_all(accelerator: "Accelerator") -> None:
    """Makes sure that Accelerate sees all processes that were started; else each would train by itself.

    Raises:
        SynthgenError: it does not.
    """
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if accelerator.num_processes != launched:
        raise SynthgenError(
            f"WORLD_SIZE is {launched} and Accelerate sees {accelerator.num_processes}; on a CPU make it as "
            "Accelerator(cpu=True), and start it by `accelerate launch` or `torchrun`"
        )


def is_slow(accelerator: "Accelerator") -> bool:
    """Whether bf16 is computed by a CPU that has no instructions for it. Measured on AVX2, one thread: a step
    of the small network takes 10 times as long (26.5 ms an image, not 2.6), one of ResNet-18 11 times.
    """
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return False
    told = torch.cpu.get_capabilities()
    return not any(told.get(name, True) for name in ("avx512_bf16", "amx_bf16"))


def settled(network: nn.Module) -> nn.Module:
    """The network for evaluation, with the running statistics of the first process: each has its own."""
    from accelerate.utils import broadcast

    for buffer in network.buffers():
        buffer.copy_(broadcast(buffer.clone()))
    return network.eval()
