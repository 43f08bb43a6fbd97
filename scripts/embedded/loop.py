"""The training loop of all embedded models: seeded, checkpointed, on CPU processes or on one GPU.

On a CPU every process has one thread and draws its own pictures; their weights are averaged every few steps
(local SGD), which beats one process with all threads. A run that was cut goes on from its last checkpoint;
on a CPU it ends with the same weights as one that was not. What a model must learn is not known here.
"""

import argparse
import json
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from timm.optim import muon
from timm.optim.muon import Muon
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from world import CACHE, fetch

from synthgen.errors import WorkError

AVERAGE_EVERY = 8  # steps between two averagings of the processes' weights
CHECKPOINTS = 40  # in a whole training
TABLE = re.compile("(token|position|positional)_embedding")
FLOAT32_NEWTON_SCHULZ = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


@dataclass(frozen=True)
class Options:
    """What the command line says. A training's outcome depends on all but `work`."""

    work: Path = CACHE.parent / "embedded"  # checkpoints, latents, logs
    drawings: Path = CACHE
    processes: int = 2
    device: str = "cpu"
    seed: int = 0
    steps: int | None = None  # None: as many as each model needs
    batch_size: int | None = None  # of each process; None: as each model needs

    def checkpoint(self, name: str) -> Path:
        return self.work / f"{name}.safetensors"


class Step(NamedTuple):
    """A step of a training: what its random choices come from, and how far the training is, in [0, 1)."""

    rng: np.random.Generator
    generator: torch.Generator  # on the device
    progress: float
    batch_size: int


# Measures of a batch; "loss" is what is minimised.
Loss = Callable[[Step], Mapping[str, Tensor]]


class Lesson(NamedTuple):
    """A model and its loss, as one process holds them. Parameters that need no gradient stay as they are."""

    model: nn.Module
    loss: Loss


class Training(NamedTuple):
    """How a model is trained. `prepare` is called in every process, seeded, with the options and the rank.

    Matrices and convolutions are trained with Muon (Jordan et al. 2024), its update scaled to AdamW's size
    (arXiv 2502.16982), so that one learning rate serves it and the NAdamW of biases, norms and embeddings.
    What is kept is not the last step's weights but a running mean of about the last tenth of the steps.
    """

    name: str
    prepare: Callable[[Options, int], Lesson]
    steps: int
    batch_size: int  # of each process
    lr: float  # the peak: linear warm-up over 5 %, then a cosine to 1 % of it
    weight_decay: float = 0.01
    after: str = ""  # the training whose weights this one builds upon


def parse(description: str | None) -> Options:
    """The options of a training script from its command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Options.work, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--drawings", type=Path, default=Options.drawings, metavar="DIR", help="npm's, fetched once"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default=Options.device,
        help="default: cpu; cuda was not tried yet",
    )
    parser.add_argument("--processes", type=count, help="default: 2; on a GPU 1")
    parser.add_argument("--seed", type=int, choices=range(1000), default=Options.seed, metavar="N")
    parser.add_argument("--steps", type=count, help="of each model; for a trial")
    parser.add_argument("--batch-size", type=count, help="of each process")
    known = vars(parser.parse_args())
    if known["processes"] is None:
        known["processes"] = Options.processes if known["device"] == "cpu" else 1
    if known["device"] != "cpu" and known["processes"] > 1:
        parser.error("--processes: one is allowed on a GPU")
    return Options(**known)


def count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'"{text}": a whole number from 1 is wanted')
    return int(text)


def train(training: Training, options: Options) -> Path:
    """Trains until done, from the last checkpoint if there is one; returns the checkpoint."""
    options.work.mkdir(parents=True, exist_ok=True)
    fetch(options.drawings)
    path, inputs = options.checkpoint(training.name), _inputs(training, options)
    facts = _facts(path) if path.exists() else {}
    if facts and facts["inputs"] != inputs:
        raise WorkError(
            f"{path}: was begun with {facts['inputs']}, not {inputs}; name another --work or remove that file"
        )
    if facts and facts["step"] == inputs["steps"]:
        print(json.dumps({"model": training.name, "done": str(path)}), flush=True)
    elif options.processes == 1:
        _work(0, training, options)
    else:
        _meeting(training, options).unlink(missing_ok=True)  # a killed run leaves it
        torch.multiprocessing.spawn(_work, (training, options), options.processes)
    return path


def weights(path: Path, part: str = "") -> dict[str, Tensor]:
    """The averaged weights (and counters) of a finished training, or of the part under this prefix.

    Raises:
        WorkError: it was not trained, or not to the end.
    """
    if not path.exists() or (facts := _facts(path))["step"] < facts["inputs"]["steps"]:
        raise WorkError(f"{path}: not trained to the end; run train.py first")
    prefix = f"average.{part}"
    with safe_open(path, "pt") as file:
        return {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118


@contextmanager
def mixed_precision(device: str) -> Iterator[None]:
    """bfloat16 where the hardware has it: on a CPU without, it is many times slower than float32."""
    # On a CPU the backward pass of the flash kernel is 4 to 6 times slower in bfloat16 than plain arithmetic.
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with torch.autocast(device, torch.bfloat16, enabled=fast_half(device)), attention:
        yield


def fast_half(device: str) -> bool:
    """True where arithmetic in bfloat16 is faster than in float32."""
    return device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)


def _meeting(training: Training, options: Options) -> Path:
    """Where the processes of a training find each other."""
    return options.work / f"{training.name}.meeting"


def digest(path: Path) -> str:
    """Tells the weights of a finished training from others, in 8 hex digits."""
    return f"{zlib.crc32(b''.join(t.numpy().tobytes() for t in weights(path).values())):08x}"


def _inputs(training: Training, options: Options) -> dict[str, Any]:
    """What decides a training's outcome, besides code and drawings."""
    return {
        "device": options.device,
        "after": digest(options.checkpoint(training.after)) if training.after else "",
        "steps": options.steps or training.steps,
        "batch_size": options.batch_size or training.batch_size,
        "processes": options.processes,
        "seed": options.seed,
    }


def _facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `inputs`, `step`, `seconds` of training so far."""
    with safe_open(path, "pt") as file:
        return {k: json.loads(v) for k, v in file.metadata().items()}


def _work(rank: int, training: Training, options: Options) -> None:
    """One process of a training."""
    if options.device == "cpu":
        torch.set_num_threads(1)
    if not fast_half(options.device):  # timm has no option for it; bfloat16 takes 30 times as long here
        muon.zeropower_via_newtonschulz = FLOAT32_NEWTON_SCHULZ
    if options.processes > 1:
        store = dist.FileStore(str(_meeting(training, options)), options.processes)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", store=store, rank=rank, world_size=options.processes)
    name = zlib.crc32(training.name.encode())
    torch.manual_seed(options.seed + name)  # the same first weights in every process
    model, loss = training.prepare(options, rank)
    inputs = _inputs(training, options)
    total = inputs["steps"]
    named = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    tables = [p for k, p in named if TABLE.search(k)]  # their rows are learnt one by one
    optimizer = Muon(
        [
            {"params": [p for k, p in named if not TABLE.search(k)]},
            *([{"params": tables, "use_fallback": True}] if tables else []),
        ],
        lr=training.lr,
        weight_decay=training.weight_decay,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
        betas=(0.9, 0.98),
    )
    learnt = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    averages = {k: v.clone() for k, v in tensors.items()}
    path = options.checkpoint(training.name)
    step, seconds = 0, 0.0
    if path.exists():
        facts = _facts(path)
        step, seconds = facts["step"], facts["seconds"]
        _load(path, model, averages, optimizer)
    every = max(AVERAGE_EVERY, total // CHECKPOINTS // AVERAGE_EVERY * AVERAGE_EVERY)
    started, sums = time.monotonic() - seconds, dict[str, float]()
    while step < total:
        rng = np.random.default_rng((options.seed, name, step, rank))
        generator = torch.Generator(options.device).manual_seed(int(rng.integers(2**31)))
        warm = min(1.0, (step + 1) / (0.05 * total))
        for group in optimizer.param_groups:
            group["lr"] = training.lr * warm * (0.505 + 0.495 * math.cos(math.pi * step / total))
        measures = loss(Step(rng, generator, step / total, inputs["batch_size"]))
        optimizer.zero_grad(set_to_none=True)
        measures["loss"].backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        step += 1
        for key, value in measures.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if step % AVERAGE_EVERY == 0 or step == total:
            _mean(list(tensors.values()))
            kept = ((1 + step) / (10 + step)) ** AVERAGE_EVERY  # about arXiv 2312.02696, 3.1, with gamma = 8
            torch._foreach_lerp_(list(averages.values()), list(tensors.values()), 1 - kept)
        if step % every == 0 or step == total:
            # The optimizer's memory too is averaged, so that the file is all that any process needs to go on.
            _mean([v for p in learnt for v in optimizer.state[p].values() if torch.is_tensor(v)])
            if rank == 0:
                seconds = time.monotonic() - started
                number = (step - 1) % every + 1
                facts = {"inputs": inputs, "step": step, "seconds": seconds}
                _save(path, model, averages, optimizer, facts)
                line = {"model": training.name, "step": step, "of": total, "seconds": round(seconds)}
                line |= {key: round(value / number, 4) for key, value in sums.items()}
                print(json.dumps(line), flush=True)
                with path.with_suffix(".jsonl").open("a" if step > every else "w") as log:
                    log.write(json.dumps(line) + "\n")
            sums.clear()
    if options.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def _mean(tensors: list[Tensor]) -> None:
    """Replaces the tensors with their mean over all processes."""
    if not dist.is_initialized():
        return
    with torch.no_grad():
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _save(
    path: Path, model: nn.Module, averages: dict[str, Tensor], optimizer: Muon, facts: dict[str, Any]
) -> None:
    memory = {
        f"optimizer.{i}.{k}": v
        for i, state in optimizer.state_dict()["state"].items()
        for k, v in state.items()
        if torch.is_tensor(v)
    }
    state = model.state_dict()
    content = {f"model.{k}": v for k, v in state.items()}
    content |= {f"average.{k}": averages.get(k, v).clone() for k, v in state.items()} | memory
    new = path.with_suffix(".new")
    metadata = {k: json.dumps(v) for k, v in facts.items()}
    save_file({k: v.contiguous() for k, v in content.items()}, new, metadata)
    new.replace(path)


def _load(path: Path, model: nn.Module, averages: dict[str, Tensor], optimizer: Muon) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            kind, name = key.split(".", 1)
            tensor = file.get_tensor(key)
            if kind == "model":
                state[name] = tensor
            elif kind == "average" and name in averages:
                averages[name].copy_(tensor)
            elif kind == "optimizer":
                number, name = name.split(".", 1)
                param = params[int(number)]
                known = tensor if name == "step" else torch.empty_like(param).copy_(tensor)
                optimizer.state[param][name] = known
    model.load_state_dict(state)
