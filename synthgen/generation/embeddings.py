"""What a pipeline's text encoders make of prompts, kept: each different prompt is encoded once a worker,
alone, so that neither its neighbours nor the size of the micro-batch change it.

The cache takes the place of the pipeline's `encode_prompt` and returns what that does, so the pipeline's own
code decides which part goes where.
"""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from synthgen.data import Request
from synthgen.generation.families import family

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

MOST_BYTES = 4 << 30
"""On the CPU: a thousand prompts of FLUX, whose T5 makes 4 MB of one."""
GUIDED = "do_classifier_free_guidance"
Parts = dict[int, Any]
"""What `encode_prompt` returns for one prompt, by its places."""


class EmbeddingCache:
    """The cache of a pipeline. Once memory has asked for it, the text encoders are on the device only while
    the rest is not: to encode at once the prompts that `expect` was told of, as many as there is room for.

    Args:
        can_free: whether it may move the pipeline's parts; not where offload does.
    """

    def __init__(
        self,
        pipeline: "DiffusionPipeline",
        device: str,
        most_bytes: int = MOST_BYTES,
        *,
        can_free: bool = True,
    ) -> None:
        own = family(type(pipeline))
        self.freed, self._can_free = False, can_free
        self._negatives, self._no_negative = own.negatives, own.no_negative
        self._pipeline, self._device = pipeline, device
        self._encode = pipeline.encode_prompt
        self._signature = inspect.signature(self._encode)
        self._kept = OrderedDict[tuple[str, ...], Parts]()
        self._bytes, self._most_bytes = 0, most_bytes
        self._expected = list[tuple[str, str]]()
        pipeline.encode_prompt = self.encode_prompt

    def expect(self, requests: Sequence[Request]) -> None:
        """Says which prompts come next."""
        pairs = ((one.text, one.negative or self._no_negative) for one in requests)
        self._expected = list(dict.fromkeys(pairs))

    def forget(self) -> None:
        """Empties the cache."""
        self._kept.clear()
        self._bytes = 0

    def free(self) -> bool:
        """Moves the text encoders off the device; returns whether they were still there."""
        if self.freed or not self._can_free:
            return False
        self.freed = True
        _move(self._modules(encoders=True), "cpu")
        return True

    def move_rest(self, device: str) -> None:
        """Moves all but the text encoders."""
        _move(self._modules(encoders=False), device)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline's own returns, of prompts that were encoded alone."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name)
        if given.get("prompt") is None:  # a second stage is given what the first has read
            return self._encode(**given)
        texts, negatives = given.pop("prompt"), given.pop("negative_prompt", None) or ""
        guided = bool(given.pop(GUIDED, False) and self._negatives)
        texts = [texts] if isinstance(texts, str) else texts
        negatives = [negatives] * len(texts) if isinstance(negatives, str) else negatives
        rows = list(zip(texts, negatives, strict=True))
        self._expected = [row for row in self._expected if row[0] not in texts]
        kept = all(key in self._kept for row in rows for key in _keys(*row, given, guided))
        with contextlib.nullcontext() if kept or not self.freed else self._encoders_on_device():
            made = [self._encoded(*row, given, guided) for row in rows]
            if (
                self.freed and not kept
            ):  # no more than fit, or the first would be forgotten before they are used
                room = max(0, self._most_bytes // max(map(_bytes, made)) - len(rows))
                ahead, self._expected = self._expected[:room], self._expected[room:]
                for row in ahead:
                    self._encoded(*row, given, guided)
        device = given.get("device") or self._pipeline._execution_device
        return tuple(_joined([parts[place] for parts in made], device) for place in sorted(made[0]))

    def _encoded(self, text: str, negative: str, given: dict[str, Any], guided: bool) -> Parts:
        """The parts of one prompt, with its negative prompt where there is guidance."""
        keys = _keys(text, negative, given, guided)
        for key in keys:
            if key in self._kept:  # what is in use is not forgotten for the other
                self._kept.move_to_end(key)
        if guided and keys[1] not in self._kept:
            parts = self._encode(prompt=[text], negative_prompt=[negative], **{GUIDED: True}, **given)
            self._keep(keys[1], {place: parts[place] for place in self._negatives or ()})
        elif keys[0] not in self._kept:
            off = {GUIDED: False} if GUIDED in self._signature.parameters else {}
            parts = self._encode(prompt=[text], **off, **given)
        else:
            parts = None
        if parts is not None:
            self._keep(keys[0], dict(enumerate(parts)) | dict.fromkeys(self._negatives or ()))
        made: Parts = {}
        for key in keys:
            made |= self._kept[key]
        return made

    def _keep(self, key: tuple[str, ...], parts: Parts) -> None:
        self._bytes -= _bytes(self._kept.pop(key, {}))
        self._kept[key] = {place: _moved(part, "cpu") for place, part in parts.items()}
        self._bytes += _bytes(self._kept[key])
        while self._bytes > self._most_bytes and len(self._kept) > 2:  # two are in use
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])

    @contextlib.contextmanager
    def _encoders_on_device(self) -> Iterator[None]:
        """Changes places: on another device the encoders would make other bits."""
        encoders = self._modules(encoders=True)
        self.move_rest("cpu")
        _move(encoders, self._device)
        try:
            yield
        finally:
            _move(encoders, "cpu")
            self.move_rest(self._device)

    def _modules(self, *, encoders: bool) -> list["torch.nn.Module"]:
        import torch

        parts = self._pipeline.components.items()
        return [
            part
            for name, part in parts
            if isinstance(part, torch.nn.Module) and name.startswith("text_encoder") == encoders
        ]


def _keys(text: str, negative: str, given: dict[str, Any], guided: bool) -> list[tuple[str, ...]]:
    others = repr(sorted(given.items()))
    return [("prompt", text, others), *([("negative", negative, others)] if guided else [])]


def _move(modules: Sequence["torch.nn.Module"], device: str) -> None:
    import torch

    with torch.inference_mode(False):  # else weights come back as tensors that other kernels are chosen for
        for module in modules:
            module.to(device)


def _moved(part: Any, device: "torch.device | str") -> Any:
    if isinstance(part, list):  # one tensor a prompt, of its own length
        return [one.to(device) for one in part]
    return part if part is None else part.to(device)


def _bytes(parts: Parts) -> int:
    tensors = [one for part in parts.values() for one in (part if isinstance(part, list) else [part])]
    return sum(one.nbytes for one in tensors if one is not None)


def _joined(parts: list[Any], device: "torch.device | str") -> Any:
    """One part of several prompts as one; FLUX's positions are the same for all."""
    import torch

    if isinstance(parts[0], list):
        return _moved([one for part in parts for one in part], device)
    if parts[0] is None or len(parts[0]) != 1:
        return _moved(parts[0], device)
    return _moved(torch.cat(parts), device)
