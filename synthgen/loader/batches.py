"""The loader: which samples a rank's next batch has, read and put together by worker processes.

A batch is planned by numbers alone (`ordering`), so order and augmentation are functions of seed and epoch;
the workers of a DataLoader read what is planned.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from synthgen.errors import FolderError, SynthgenError, WorkError
from synthgen.loader.indexing import Indexes
from synthgen.loader.locating import Source
from synthgen.loader.ordering import group_order, interleaved, part_of_rank, pass_order
from synthgen.loader.samples import Sample, read_fields
from synthgen.reinforcement import How, Reinforcement, densify

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
Places = npt.NDArray[np.int64]
"""Samples of a batch, a row each: epoch, place in the epoch, source, shard, row, group."""
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
    """Whether a good sample of the batch takes the place of one that is skipped."""

    def __getitems__(self, places: Places) -> Read:
        try:
            return self._read(places)
        except SynthgenError as wrong:  # raised in a worker, it would come with the lines of a traceback
            return Read(error=wrong)

    def _read(self, places: Places) -> Read:
        import torch

        labels = {name: k for k, name in self.classes.items()}
        samples, skipped, counts = list[dict[str, Any]](), list[Skipped](), Counter[str]()
        with torch.random.fork_rng(devices=[]):
            for epoch, place, number, shard, row, group in places.tolist():
                source = self.sources[number]
                key = self.indexes[number][shard].key(row) or f"row {row}"
                try:
                    sample = Sample(key, self.indexes[number].read(shard, row), labels)
                    seed_torch(self.seed, epoch, place)
                    values = self._values(sample, self.views[number])
                except WorkError as reason:
                    skipped.append(Skipped(source.name, source.shards[shard].path, key, str(reason)))
                    continue
                counts[source.name] += 1
                samples.append(values | {"source": number, "positive": group})
            if samples and self.is_refilled:
                samples += samples[:1] * (len(places) - len(samples))
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
                values["probabilities"] = torch.eye(self.n_classes)[sample.class_id]
            return values
        found = views.lookup(sample.uid)
        if found is None:
            raise WorkError(f"no views of it in {views.folder}")
        one = int(torch.randint(len(found.params), ()))
        pixels = views.settings.apply(sample.image, found.params[one])
        dense = densify(found.probs[one], found.ids[one], self.n_classes, self.soft)
        values = read_fields(sample, self.fields, self.transform, pixels)
        return values | {"probabilities": torch.from_numpy(dense)}

    @property
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


@dataclass
class Loader:
    """Iterates over batches; each iteration is the next epoch. `len` counts the batches of this rank.

    Order and augmentation are a function of the seed and the epoch, not of workers or ranks: with R ranks,
    step s has the samples that one rank has with batches R times as large.
    """

    reader: Reader
    rows: list[list[npt.NDArray[np.int64]]]
    """Of each source, of each shard: the rows that are loaded."""
    per_pass: list[int]
    """Of each source, units: samples, or sets of `positives`."""
    ties: list[npt.NDArray[np.int64]]
    """Of each source, the group of each of its positions; used with `positives`."""
    per_epoch: list[int]
    """Of each source, units an epoch."""
    batch_size: int
    positives: int
    window: int
    """Samples that are shuffled among one another; 0 keeps the order."""
    is_mixed: bool
    workers: int
    rank: int
    world_size: int
    last: str
    pin_memory: bool
    counts: Counter[str] = field(default_factory=Counter)
    """Samples that came, by source, over all epochs."""
    skipped: Counter[Skipped] = field(default_factory=Counter)
    """Samples that could not be read, and how often that was met."""
    epoch: int = 0
    """The epoch of the current iteration, or of the next before the first."""

    def __post_init__(self) -> None:
        self._consumed, self._is_started = 0, False
        self._units = sum(self.per_epoch)
        self._step = self.batch_size // self.positives * self.world_size
        self._torch: Any = None
        if not len(self):
            have = self._units * self.positives
            raise FolderError(
                f"{', '.join(self.sources)}: {have} samples make no batch of {self.batch_size} on each of "
                f'{self.world_size} ranks; use a smaller batch_size, or last="keep"'
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
        whole, rest = divmod(self._units, self._step)
        return whole + (len(self._last(rest)) > 0)

    def _last(self, rest: int) -> range:
        """This rank's part of the places, from 0, of the last step of an epoch, which is not whole."""
        if self.last == "drop" or not rest:
            return range(0)
        if self.last == "equal":
            rest += -rest % self.world_size
        return range(*part_of_rank(0, rest, self.rank, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, from its beginning."""
        self.epoch, self._consumed, self._is_started = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as JSON can hold it: after the batch that it gave last. The same on all ranks,
        if they have taken as many batches.
        """
        return {
            "epoch": self.epoch,
            "consumed": min(self._consumed, self._units) * self.positives,
            "counts": dict(self.counts),
            **self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        """What decides the order."""
        return {
            "seed": self.reader.seed,
            "shuffle": self.window,
            "positives": self.positives,
            "samples": {
                name: [int(sum(map(len, rows))), units * self.positives]
                for name, rows, units in zip(self.sources, self.rows, self.per_epoch, strict=True)
            },
        }

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
        self.epoch, self._consumed = int(state["epoch"]), int(state["consumed"]) // self.positives
        self.counts, self._is_started = Counter(state["counts"]), False
        if self._consumed >= self._units:
            self.set_epoch(self.epoch + 1)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        if self._is_started:
            self.set_epoch(self.epoch + 1)
        self._is_started = True
        for read in self._reads():
            self._consumed += self._step
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
                batch_sampler=_Planned(self),  # type: ignore[arg-type]
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

    def planned(self) -> Iterator[Places]:
        """The rest of the epoch for this rank, a batch each time."""
        epoch, start = self.epoch, self._consumed
        source, positions = self._epoch(epoch)
        for first in range(start, self._units, self._step):
            rest = min(self._step, self._units - first)
            if rest == self._step:
                units = np.arange(*part_of_rank(first, first + rest, self.rank, self.world_size))
            else:
                units = (first + np.array(self._last(rest), np.int64)) % self._units
            if len(units):
                yield self._located(epoch, units, source[units], positions[units])

    def _epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The source of each unit of an epoch, shape (n,), and its positions in it, shape (n, positives)."""
        taken = [self._take(number, epoch * count, count) for number, count in enumerate(self.per_epoch)]
        whole = np.concatenate(taken)
        if not self.is_mixed:
            return np.repeat(np.arange(len(taken)), self.per_epoch), whole
        source = interleaved(self.per_epoch)
        positions = np.empty_like(whole)
        for number, own in enumerate(taken):
            positions[source == number] = own
        return source, positions

    def _take(self, number: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """`count` units of a source from `start` on, of its passes one after another."""
        turn, skip = divmod(start, self.per_pass[number])
        parts, have = [np.empty((0, self.positives), np.int64)], 0
        while have < count + skip:
            parts.append(self._pass(number, turn + len(parts) - 1))
            have += self.per_pass[number]
        return np.concatenate(parts)[skip : skip + count]

    def _pass(self, number: int, turn: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.reader.seed, number, turn]) if self.window else None
        if self.positives > 1:
            return group_order(self.ties[number], self.positives, rng)
        return pass_order([len(own) for own in self.rows[number]], rng, self.window)[:, None]

    def _located(
        self, epoch: int, units: npt.NDArray[np.int64], source: npt.NDArray[np.int64], positions: Places
    ) -> Places:
        """Where the samples of a batch lie."""
        places = np.empty((positions.size, 6), np.int64)
        places[:, 0] = epoch
        places[:, 1] = (units[:, None] * self.positives + np.arange(self.positives)).ravel()
        places[:, 2] = np.repeat(source, self.positives)
        flat, offset = positions.ravel(), 0
        for number, (ends, rows) in enumerate(self._places):
            own = places[:, 2] == number
            at = flat[own]
            places[own, 3] = np.searchsorted(ends, at, side="right")
            places[own, 4] = rows[at]
            places[own, 5] = offset + (self.ties[number][at] if self.positives > 1 else at)
            offset += len(rows)
        return places

    @cached_property
    def _places(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Of each source, where each shard ends and the row of each position."""
        return [(np.cumsum([len(own) for own in rows]), np.concatenate(rows)) for rows in self.rows]


class _Planned:
    """What the DataLoader asks for batches: each time the rest of the loader's epoch."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Places]:
        return self.loader.planned()


def _as_it_is(read: Read) -> Read:
    return read
