"""Data sets behind a program's loaders: which samples are read, how many, and what is kept of each."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from sightline.contract.errors import join_some
from sightline.contract.pytree import is_dense, tree_children, tree_map
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.forms.form import Batch, Form
from sightline.doctor.objects import find_read_generators, preserve_generators
from sightline.doctor.subject import Subject
from sightline.instrument.random_state import preserve_random_state, seed_all

_NUM_READ = ((1 << 12, 1000), (1 << 18, 400), (1 << 21, 64), (1 << 24, 16), (math.inf, 4))
"""Bytes of a sample, and how many samples of that size a measurement reads at most: all machines read the same."""
_MIN_READ, _MAX_BATCH_BYTES, _WAITS = 4, 1 << 26, 6
SEED = 11
"""Seed of the random numbers with which samples are read."""
Item = TypeVar("Item")


class Reading:
    """Reading of a program's samples: how many of them, by their bytes, and a clock that ends it.

    Counts decide what is read. A set that is slow is read in smaller numbers: up to where a measurement has taken
    `MAX_READING_S` of this thread's time, or six times as much of waiting. `gaps` says what was left out for it.
    """

    MAX_READING_S = 1.0

    def __init__(self, most_s: float = MAX_READING_S) -> None:
        self._most_s = most_s
        self._cut: dict[str, tuple[int, int]] = {}

    @property
    def gaps(self) -> list[str]:
        """What was left out of what was to be read, in one sentence."""
        left = [f"{most - num:,} of {most:,} {what}" for what, (num, most) in self._cut.items()]
        return [f"{join_some(left, most=4)}, slow to read"] if left else []

    def take(self, items: Sequence[Item], what: str, *, least: int = _MIN_READ) -> Iterator[Item]:
        """Yield what is read next; once the reading is over, the `least` of it. `what` they are is said then."""
        spent_s = waited_s = 0.0
        for number, item in enumerate(items):
            if number >= least and (spent_s > self._most_s or waited_s > _WAITS * self._most_s):
                self._note(what, number, len(items))
                return
            started_s, began_s = time.thread_time(), time.perf_counter()
            yield item
            if number:  # the first may import a part of torch
                spent_s += time.thread_time() - started_s
                waited_s += time.perf_counter() - began_s

    def _note(self, what: str, num: int, most: int) -> None:
        """Keep the largest part that was left out."""
        known = self._cut.get(what, (0, 0))
        self._cut[what] = max(known, (num, most), key=lambda each: each[1] - each[0])


@measure()
def program_reading(subject: Subject) -> Reading:
    """Begin to read what a program's loaders read."""
    return Reading()


class Peek(NamedTuple):
    """What is kept of a sample: a key of the bits of its inputs, these if they are less than four numbers, its class.

    The class is None for a target that is no whole number alone.
    """

    key: int
    few: list[float]
    label: int | None


@dataclass(frozen=True)
class Source:
    """Data set with an index behind a loader, read in this process: up to `most` samples by a measurement.

    One that is read `by_lists` of indices has no samples but rows of batches: its sampler draws lists.
    """

    loader: Any
    form: Form
    reading: Reading
    what: str = "samples"
    most: int = 400
    by_lists: bool = False
    _peeks: dict[int, Peek] = field(default_factory=dict, compare=False)

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.loader.dataset)

    def read(self, index: int, seed: int) -> Batch:
        """Read a sample after the global random generators have been seeded."""
        sample = self.read_undivided(index, seed)
        return _take_only_row(self.form.split(sample)) if self.by_lists else self.divide(sample)

    def read_undivided(self, index: int, seed: int) -> Any:
        """Read a sample, or a batch of one, as the data set returns it."""
        seed_all(seed)
        return self.loader.dataset[[index] if self.by_lists else index]

    def peek(self, index: int) -> Peek:
        """Read a sample once for all that asks of its class, or whether another one is the same."""
        if index not in self._peeks:
            inputs, target = self.read(index, SEED)
            leaves = list_leaves(target)
            is_class = len(leaves) == 1 and leaves[0].numel() == 1 and not leaves[0].is_floating_point()
            label = int(leaves[0]) if is_class else None
            self._peeks[index] = Peek(hash(to_bytes(inputs)), _list_few(inputs), label)
        return self._peeks[index]

    def divide(self, sample: Any) -> Batch:
        """Divide a sample into inputs and target: as a batch of one, where a form is of what `collate_fn` returns.

        Tensors of one row are without that axis then.
        """
        collate = getattr(self.loader, "collate_fn", None)
        is_batch = not (getattr(self.loader, "batch_size", None) or getattr(self.loader, "batch_sampler", None))
        if collate is None or is_batch or (self.form.takes_samples and collate is default_collate):
            return self.form.split(sample)
        return _take_only_row(self.form.split(collate([sample])))

    def spread(self, count: int) -> list[int]:
        """List up to `count` indices over the data set, the first and the last among them: one of each of equal parts.

        Which one is drawn, since a set may be in an order that repeats: at equal distances, some classes never come.
        """
        count = min(count, self.size, self.most)
        shares = torch.rand(count, generator=torch.Generator().manual_seed(SEED)).tolist()
        bounds = [part * self.size // count for part in range(count + 1)] if count else []
        drawn = [low + int(share * (high - low)) for share, low, high in zip(shares, bounds, bounds[1:], strict=False)]
        return [0, *drawn[1:-1], self.size - 1] if count > 1 else drawn

    def take(self, indices: Sequence[int], *, least: int = _MIN_READ) -> Iterator[int]:
        """Yield the indices, as `Reading.take` does."""
        return self.reading.take(indices, self.what, least=least)

    def generators(self) -> list[Any]:
        """Return the random generators of the loader and of what the data set reads; not the global ones."""
        return find_read_generators(self.loader)

    def draw(self, count: int) -> list[int]:
        """List up to `count` indices that lie evenly over the data set, in a drawn order: its start is of all parts."""
        spread = self.spread(count)
        order = torch.randperm(len(spread), generator=torch.Generator().manual_seed(SEED)).tolist()
        return [spread[number] for number in order]

    def collate(self, count: int) -> Batch:
        """Collate up to `count` drawn samples, as the loader does; fewer of a set that is slow to read."""
        with preserve_generators(self.generators()):
            seed_all(SEED)
            samples = [self.loader.dataset[index] for index in self.take(self.draw(count))]
            return self.form.split(self.loader.collate_fn(samples))

    def list_samples(self, count: int) -> list[Any]:
        """List up to `count` samples as `collate_fn` gets them, each after the same seed."""
        samples = []
        for index in self.spread(count):
            seed_all(SEED)
            samples.append(self.loader.dataset[index])
        return samples


def _take_only_row(batch: Batch) -> Batch:
    taken: Batch = tree_map(batch, lambda _, tensor: tensor[0] if tensor.ndim and len(tensor) == 1 else tensor)
    return taken


def _draws_lists(loader: Any) -> bool:
    """Return True for a loader whose sampler draws a list of indices for each batch."""
    if getattr(loader, "batch_size", None) is not None or getattr(loader, "batch_sampler", None) is not None:
        return False
    with preserve_random_state(), preserve_generators(find_read_generators(loader)):
        return isinstance(next(iter(getattr(loader, "sampler", ())), None), list | tuple)


def list_leaves(tree: Any) -> list[Tensor]:
    """List the tensors, arrays and numbers of a nested sample as tensors, in their order."""
    if isinstance(tree, Tensor):
        return [tree.detach()] if is_dense(tree) else []
    if isinstance(tree, bool | int | float | np.number | np.ndarray):
        kind = np.asarray(tree).dtype.kind
        return [torch.as_tensor(np.array(tree))] if kind in "biuf" else []
    return [leaf for _, item in tree_children(tree) for leaf in list_leaves(item)]


def to_bytes(tree: Any) -> bytes:
    """Join the bits of the leaves of a nested sample."""
    return b"|".join(
        leaf.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for leaf in list_leaves(tree)
    )


def open_source(loader: Any, form: Form, reading: Reading, *, lacks: str) -> Source:
    """Read a sample of a loader's data set, which says how many are read. Raises NotApplicableError without an index.

    `lacks` names the argument that is the loader.
    """
    if loader is None:
        raise NotApplicableError(f"no {lacks} was given whose samples can be read", lacks=lacks)
    data = getattr(loader, "dataset", None)
    has_index = getattr(type(data), "__getitem__", Dataset.__getitem__) is not Dataset.__getitem__  # which raises
    if isinstance(data, IterableDataset) or not has_index or not hasattr(data, "__len__"):
        raise NotApplicableError("no data set with an index")
    what = "samples of the evaluation" if lacks == "evaluation" else "samples"
    source = Source(loader, form, reading, what, by_lists=_draws_lists(loader))
    with preserve_generators(source.generators()):
        sample = next(source.read_undivided(index, SEED) for index in source.take([0]))
    num_bytes = sum(leaf.nbytes for leaf in list_leaves(sample))
    return dataclasses.replace(source, most=next(count for size, count in _NUM_READ if num_bytes <= size))


def take_batches(batches: Iterable[Any], reading: Reading, *, most: int) -> Iterator[Any]:
    """Yield batches of a loader, fewer of large ones, and four of those that are slow to read."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    yield first
    num_bytes = sum(leaf.nbytes for leaf in list_leaves(first))
    most = max(_MIN_READ, min(most, _MAX_BATCH_BYTES // max(1, num_bytes))) - 1
    for _ in reading.take(range(most), "batches", least=_MIN_READ - 1):
        batch = next(batches, None)
        if batch is None:
            return
        yield batch


@measure()
def source(subject: Subject, program_reading: Reading) -> Source:
    """Open the data set of the training's loader."""
    return open_source(subject.loader, subject.form, program_reading, lacks="loader")


@measure()
def evaluation_source(subject: Subject, program_reading: Reading) -> Source:
    """Open the data set of the evaluation's loader."""
    return open_source(subject.evaluation_loader, subject.form, program_reading, lacks="evaluation")


def _list_few(inputs: Any) -> list[float]:
    """List the numbers of inputs of less than four; none of others."""
    leaves = list_leaves(inputs)
    return [float(n) for leaf in leaves for n in leaf.flatten()] if sum(leaf.numel() for leaf in leaves) < 4 else []
