"""What the processes of one training must agree on."""

import os
from typing import TYPE_CHECKING

from torch import nn

from synthgen.errors import SynthgenError

if TYPE_CHECKING:
    from accelerate import Accelerator


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


def settled(network: nn.Module) -> nn.Module:
    """The network for evaluation, with the running statistics of the first process: each has its own."""
    from accelerate.utils import broadcast

    for buffer in network.buffers():
        buffer.copy_(broadcast(buffer.clone()))
    return network.eval()
