"""What an image costs, counted before the model is loaded: the pipeline makes one with weights that have
their real sizes and no values.

Of the model only configurations and tokenizers are read, so that it takes seconds and no memory, and every
family, guidance and number of steps is counted by the code that will run.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from synthgen.data import Request
from synthgen.errors import ModelError
from synthgen.generation.checkpoints import components, index, own_size, parts_given, pipeline_class
from synthgen.generation.conditioning import changing
from synthgen.generation.models import ENCODER, silence
from synthgen.generation.sampling import call
from synthgen.generation.schedulers import set_scheduler

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

VALUES = ("numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__index__")
"""Methods that ask a tensor for its values."""


class Flops(NamedTuple):
    """Floating-point operations, 2 for a multiplication with its addition: of reading one prompt by all text
    encoders (once, however many images are made of it), and of one image. And the size of this image.
    """

    prompt: int
    image: int
    width: int
    height: int


def count_flops(
    folder: Path, request: Request, *, safety_checker: bool = True, upscaler: Path | None = None
) -> Flops:
    """What a request costs the model in a folder, as `sampling` asks for it.

    Args:
        safety_checker: False leaves the checkpoint's out.
        upscaler: the folder of the second stage of DeepFloyd IF.

    Raises:
        ModelError: the pipeline cannot be made from its configurations, or does not take the request.
    """
    try:
        pipeline = _hollow(folder, parts_given(folder, safety_checker=safety_checker))
        set_scheduler(pipeline, request.scheduler)
        if upscaler:
            given = parts_given(upscaler, safety_checker=safety_checker, without=ENCODER)
            pipeline.upscaler = _hollow(upscaler, given)
        counter = _Counter([pipeline, pipeline.upscaler] if upscaler else [pipeline])
        real = None
        if request.strength:  # fewer steps; of an adapter nothing is counted, it adds about a percent
            pipeline, real = changing(pipeline, own_size(folder)), lambda _: np.zeros((8, 8, 3), np.uint8)
        with counter.counting():
            image = call(pipeline, [request], real)[0].image
    except ModelError:
        raise
    except Exception as error:  # whatever a pipeline does with tensors that have no values
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{folder}: cannot be counted ({type(error).__name__}: {reason})") from error
    return Flops(counter.prompt, counter.image, image.shape[1], image.shape[0])


def _hollow(folder: Path, given: Mapping[str, object]) -> "DiffusionPipeline":
    """The pipeline of a folder with fake weights: they say that they are on the CPU, and hold nothing."""
    import torch
    from diffusers import ModelMixin
    from torch._subclasses import FakeTensorMode

    silence()
    parts, fake = dict(given), FakeTensorMode(allow_non_fake_inputs=True)
    for name, own in _part_classes(folder).items():
        if name not in parts and issubclass(own, torch.nn.Module):
            with torch.device("meta"):
                if issubclass(own, ModelMixin):
                    part = own.from_config(own.load_config(folder / name))
                else:
                    config = own.config_class.from_pretrained(folder / name)
                    part = own(getattr(config, "encoder", config))  # T5Gemma's is of its decoder too
            parts[name] = _to_fake(part.eval(), fake)
    pipeline = pipeline_class(folder).from_pretrained(folder, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _part_classes(folder: Path) -> dict[str, Any]:
    """The classes of a pipeline's parts, of diffusers and transformers alone; without parts that have names
    of old, which are no models.
    """
    import diffusers
    import transformers

    homes = {"diffusers": diffusers, "transformers": transformers}
    found = index(folder)
    classes = {
        name: getattr(homes.get(found[name][0]) or getattr(diffusers.pipelines, found[name][0]), kind, None)
        for name, kind in components(folder).items()
    }
    return {name: kind for name, kind in classes.items() if kind}


def _to_fake(module: "torch.nn.Module", mode: Any) -> "torch.nn.Module":
    """The module with fake tensors on the CPU in place of those on the meta device; some models keep them in
    plain attributes and lists.
    """
    import torch
    from torch._subclasses import FakeTensor
    from torch.utils._pytree import tree_map

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_meta:
            return value
        made = FakeTensor(mode, value.detach(), torch.device("cpu"))
        is_weight = isinstance(value, torch.nn.Parameter)
        return torch.nn.Parameter(made, requires_grad=False) if is_weight else made

    for part in module.modules():
        for name, held in vars(part).items():  # its weights and buffers too
            vars(part)[name] = tree_map(fake, held)
    vars(module)["to"] = lambda *_, **__: module  # fakes cannot be moved, and SDXL changes the VAE's type
    return module


class _Counter:
    """Counts what runs while it is entered, the text encoders' part apart. A model that meets the same shapes
    again, as in each step, is not run again.
    """

    def __init__(self, pipelines: Sequence["DiffusionPipeline"]) -> None:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        ours = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        self._mode = FlopCounterMode(display=False, custom_mapping=ours)
        self._again, self._encoders = 0, dict[str, list[int]]()
        for name, part in [each for one in pipelines for each in one.components.items()]:
            if isinstance(part, torch.nn.Module):
                part.forward = self._watch(name, part.forward)

    def _watch(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[str, tuple[Any, int]] = {}
        is_encoder = "text_encoder" in name

        def call(*args: Any, **kwargs: Any) -> Any:
            shapes = "" if is_encoder else _shapes(args, kwargs)
            if shapes in known:
                output, flops = known[shapes]
                self._again += flops
                return output
            before = self._mode.get_total_flops()
            output = forward(*args, **kwargs)
            flops = self._mode.get_total_flops() - before
            if is_encoder:
                self._encoders.setdefault(name, []).append(flops)
            else:
                known[shapes] = output, flops
            return output

        return call

    @property
    def prompt(self) -> int:
        """The first calls of the encoders; later ones read the negative prompt, which is the same for all."""
        return sum(calls[0] for calls in self._encoders.values())

    @property
    def image(self) -> int:
        return self._mode.get_total_flops() + self._again - sum(map(sum, self._encoders.values()))

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with _no_values(), self._mode:
            yield


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The FLOPs of attention on a CPU, by shapes; torch's counter knows those of GPUs."""
    from torch.utils.flop_counter import sdpa_flop_count

    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


def _shapes(args: object, kwargs: object) -> str:
    """What of the arguments of a model decides its work: shapes, options, and what masks leave."""
    import torch
    from torch._subclasses import FakeTensor
    from torch.utils._pytree import tree_leaves

    found: list[object] = []
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            found.append(tuple(leaf.shape))
            if leaf.ndim > 1 and not leaf.is_floating_point() and not isinstance(leaf, FakeTensor):
                found.append(hash(leaf.numpy().tobytes()))
        elif isinstance(leaf, str | int):
            found.append(leaf)
    return repr(found)


@contextlib.contextmanager
def _no_values() -> Iterator[None]:
    """Where the values of a fake tensor are asked for, as for the picture, there are zeros; where a real mask
    chooses of a fake tensor, its real indices do, so that the size is known.
    """
    import torch
    from torch._subclasses import FakeTensor
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Zeros(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if name in VALUES and isinstance(args[0], FakeTensor):
                return getattr(torch.zeros((), dtype=args[0].dtype).expand(args[0].shape), name)()
            return func(*args, **(kwargs or {}))

    class Masks(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.index.Tensor:
                indices: list[Any] = []
                for index in args[1]:
                    is_mask = index is not None and index.dtype == torch.bool
                    is_real = is_mask and not isinstance(index, FakeTensor)
                    indices += index.nonzero(as_tuple=True) if is_real else [index]
                args = (args[0], indices)
            return func(*args, **(kwargs or {}))

    with Zeros(), Masks():  # type: ignore[no-untyped-call]
        yield
