"""The loader: which samples a rank's next batch has, read and put together by worker processes.

A batch is planned by numbers alone (`plan`), so order and augmentation are functions of seed and epoch;
the workers of a DataLoader read what is planned.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import FolderError, SynthgenError, WorkError
from synthgen.loader.indexing import Indexes
from synthgen.loader.locating import ShardFile, Source, identity
from synthgen.loader.plan import Places, Plan
from synthgen.loader.samples import Sample, read_fields
from synthgen.reinforcement import How, Reinforcement, densify

log = logging.getLogger(__name__)
MOST_NAMED = 20
"""Skipped samples that are logged one by one."""


class Skipped(NamedTuple):
    """A sample that could not be read: its source, shard and key ("row 17" where that is lost), and why."""

    source: str
    shard: str
    key: str
    reason: str


class Read(NamedTuple):
    """What a worker hands over: the fields of a batch, samples by source, those skipped, what went wrong."""

    fields: tuple[Any, ...] = ()
    counts: Mapping[str, int] = {}
    skipped: Sequence[Skipped] = ()
    error: SynthgenError | None = None


@dataclass
class Reader:
    """Reads planned batches; what a worker process needs, and all that it has."""

    sources: list[Source]
    indexes: list[Indexes]
    fields: Sequence[str]
    transform: Callable[..., Any] | None
    batch_transform: Callable[..., Any] | None
    tokenizer: Callable[[list[str]], Any] | None
    classes: dict[int, str]
    seed: int
    views: list[Reinforcement | None]
    """Of each source, the views that are replayed and what a teacher said of them."""
    soft: How
    is_refilled: bool
    """Whether a good sample of the batch, of the same prompt if there is one, takes the place of one that is
    skipped.
    """

    def __getitems__(self, places: Places) -> Read:
        try:
            return self._read(places)
        except SynthgenError as wrong:  # raised in a worker, it would come with the lines of a traceback
            return Read(error=wrong)

    def _read(self, places: Places) -> Read:
        import torch

        samples, holes = list[dict[str, Any]](), list[tuple[int, dict[str, Any]]]()
        skipped, counts = list[Skipped](), Counter[str]()
        with torch.random.fork_rng(devices=[]):
            for epoch, place, number, shard, row, group in places.tolist():
                source, of = self.sources[number], {"source": number, "positive": group}
                key = self.indexes[number][shard].key(row) or f"row {row}"
                try:
                    sample = Sample(key, self.indexes[number].read(shard, row), self.labels)
                    seed_torch(self.seed, epoch, place)
                    values = self._values(sample, self.views[number])
                except WorkError as reason:
                    holes.append((len(samples) + len(holes), of))
                    skipped.append(Skipped(source.name, source.shards[shard].path, key, str(reason)))
                    continue
                counts[source.name] += 1
                samples.append(values | of)
            if samples and self.is_refilled:
                good = samples[:]
                for place, of in holes:
                    alike = (one for one in good if {name: one[name] for name in of} == of)
                    samples.insert(place, next(alike, good[0]))
            if not samples:
                error = WorkError(
                    f"no sample of a batch can be read: {skipped[0].shard}: {skipped[0].reason}"
                )
                return Read(skipped=skipped, error=error if self.is_refilled else None)
            seed_torch(self.seed, *places[0, :2].tolist(), "batch")
            return Read(self._together(samples), counts, skipped)

    def _values(self, sample: Sample, views: Reinforcement | None) -> dict[str, Any]:
        """The fields of a sample; one of its views at random in place of its image, where there are views."""
        import torch

        if views is None:
            values = read_fields(sample, self.fields, self.transform)
            if "probabilities" in self.fields:
                if not 0 <= sample.class_id < self.n_classes:
                    raise WorkError(f"class id {sample.class_id} is none of the {self.n_classes} classes")
                label = torch.tensor(sample.class_id)
                values["probabilities"] = torch.nn.functional.one_hot(label, self.n_classes).float()
            return values
        found = views.lookup(sample.uid)
        if found is None:
            raise WorkError(f"no views of it in {views.folder}")
        one = int(torch.randint(len(found.params), ()))
        pixels = views.settings.apply(sample.image, found.params[one])
        dense = densify(found.probs[one], found.ids[one], self.n_classes, self.soft)
        values = read_fields(sample, self.fields, self.transform, pixels)
        return values | {"probabilities": torch.from_numpy(dense)}

    @cached_property
    def labels(self) -> dict[str, int]:
        """The classes' ids by name."""
        return {name: k for k, name in self.classes.items()}

    @cached_property
    def n_classes(self) -> int:
        """Outputs that a network needs: the greatest class id and one."""
        return max(self.classes, default=-1) + 1

    def _together(self, samples: list[dict[str, Any]]) -> tuple[Any, ...]:
        batch = {name: stacked(name, [sample[name] for sample in samples]) for name in self.fields}
        if self.tokenizer is not None and "text" in batch:
            batch["text"] = self.tokenizer(batch["text"])
        if self.batch_transform is not None:
            label = "probabilities" if "probabilities" in batch else "class_id"
            batch["image"], batch[label] = self.batch_transform(batch["image"], batch[label])
        return tuple(batch.values())


def seed_torch(*numbers: int | str) -> None:
    """Seeds torch's generator on the CPU by what a sample is, so that its augmentation is the same wherever
    it is read.
    """
    import torch

    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=4).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest))


def stacked(name: str, values: list[Any]) -> Any:
    """The values of a field as one tensor; texts, bytes and targets stay a list."""
    import torch

    if isinstance(values[0], np.ndarray):
        values = [torch.from_numpy(value) for value in values]
    if isinstance(values[0], torch.Tensor):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise FolderError(
                f'field "{name}": shapes {sorted(shapes)[0]} and {sorted(shapes)[1]} make no batch; give a '
                "transform that makes all of one size, such as torchvision's v2.Resize((224, 224))"
            )
        return torch.stack(values)
    if all(isinstance(value, bool | int | float) for value in values):
        return torch.tensor(values)
    return values


def digest_of(shard_files: Sequence[ShardFile], rows: Sequence[npt.NDArray[np.int64]]) -> str:
    """16 hex digits of which shards these are, and which rows of them are loaded."""
    found = hashlib.blake2b(digest_size=8)
    for shard, own in zip(shard_files, rows, strict=True):
        found.update(identity(shard) + f"/{len(own)}/".encode() + own.astype("<i8").tobytes())
    return found.hexdigest()


@dataclass
class Loader:
    """Iterates over batches; each iteration is the next epoch. `len` counts the batches of this rank.

    Order and augmentation are a function of the seed and the epoch, not of workers or ranks: with R ranks,
    step s has the samples that one rank has with batches R times as large.
    """

    reader: Reader
    plan: Plan
    workers: int
    pin_memory: bool
    counts: Counter[str] = field(default_factory=Counter)
    """Samples that came, by source, over all epochs."""
    skipped: Counter[Skipped] = field(default_factory=Counter)
    """Samples that could not be read, and how often that was met."""
    epoch: int = 0
    """The epoch of the current iteration, or of the next before the first."""

    def __post_init__(self) -> None:
        self._consumed, self._is_started = 0, False
        self._planned = _Planned(self.plan)
        self._torch: Any = None
        if self.plan.last == "drop" and not len(self):
            have = self.plan.units * self.plan.positives
            raise FolderError(
                f"{', '.join(self.sources)}: {have} samples make no batch of {self.plan.batch_size} "
                f'on each of {self.plan.world_size} ranks; use a smaller batch_size, or last="keep"'
            )

    @property
    def sources(self) -> list[str]:
        """Their names; the field `source` of a sample is the place in this list."""
        return [source.name for source in self.reader.sources]

    @property
    def class_names(self) -> dict[int, str]:
        """The classes of all sources by id; empty where none says them."""
        return self.reader.classes

    def __len__(self) -> int:
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch: the rest of it, if its state has just been loaded."""
        if epoch == self.epoch and not self._is_started:
            return
        self.epoch, self._consumed, self._is_started = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as JSON can hold it: after the batch that it gave last. The same on all ranks,
        if they have taken as many batches.
        """
        return {
            "epoch": self.epoch,
            "consumed": min(self._consumed, self.plan.units) * self.plan.positives,
            "counts": dict(self.counts),
            **self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        """What decides the order."""
        return {
            "seed": self.plan.seed,
            "shuffle": self.plan.window,
            "positives": self.plan.positives,
            "samples": {
                name: [int(sum(map(len, rows))), units * self.plan.positives, digest]
                for name, rows, units, digest in zip(
                    self.sources, self.plan.rows, self.plan.per_epoch, self._digests, strict=True
                )
            },
        }

    @cached_property
    def _digests(self) -> list[str]:
        """Tells the samples of each source from others."""
        return [
            digest_of(source.shards, rows)
            for source, rows in zip(self.reader.sources, self.plan.rows, strict=True)
        ]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on after the batch at which `state_dict` was called: the next iteration gives the rest of that
        epoch. The number of ranks, of workers and the batch size may be others.

        Raises:
            FolderError: the state is of other samples or another order.
        """
        for name, now in self._settings().items():
            if state.get(name) != now:
                raise FolderError(
                    f"the loader's state: {name} was {state.get(name)}, and is {now}; open the loader as it "
                    "was, or begin anew"
                )
        self.epoch, self._consumed = int(state["epoch"]), int(state["consumed"]) // self.plan.positives
        self.counts, self._is_started = Counter(state["counts"]), False
        if self._consumed >= self.plan.units:
            self.set_epoch(self.epoch + 1)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        if self._is_started:
            self.set_epoch(self.epoch + 1)
        self._is_started = True
        self._planned.start = self.epoch, self._consumed
        for read in self._reads():
            self._consumed += self.plan.step
            self._note(read.skipped)
            if read.error is not None:
                raise read.error
            self.counts.update(read.counts)
            if read.fields:
                yield read.fields

    def _reads(self) -> Iterator[Read]:
        import torch

        if self._torch is None:
            self._torch = torch.utils.data.DataLoader(
                self.reader,  # type: ignore[arg-type]
                batch_sampler=self._planned,  # type: ignore[arg-type]
                num_workers=self.workers,
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                persistent_workers=self.workers > 0,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # else it draws from the caller's
            )
        yield from self._torch

    def _note(self, skipped: Sequence[Skipped]) -> None:
        for one in skipped:
            self.skipped[one] += 1
            if self.skipped[one] == 1 and len(self.skipped) <= MOST_NAMED:
                log.warning("%s: sample %s skipped: %s", one.shard, one.key, one.reason)
            elif self.skipped[one] == 1 and len(self.skipped) == MOST_NAMED + 1:
                log.warning("more samples are skipped; `loader.skipped` has all of them")


class _Planned:
    """What a DataLoader asks for batches. (It knows no Loader: of a circle, the workers would be ended by
    whichever process collects it.)
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.start = plan, (0, 0)

    def __iter__(self) -> Iterator[Places]:
        return self.plan.batches(*self.start)


def _as_it_is(read: Read) -> Read:
    return read
