"""Deterministic batch sampling: the keys of a step are a function of (seed, step), so a resume needs one integer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey


@dataclass(frozen=True)
class BatchSampler:
    """Batch sampler: assigns the samples of a training split to steps, micro-batches and processes.

    Epoch e visits a permutation drawn from (seed, e); step i of it takes positions [i*B, (i+1)*B) and splits them into
    micro-batches x processes nearly equal parts. A shorter last batch keeps fewer micro-batches, so no part is empty.
    Raises ConfigError if the last batch has fewer samples than processes.
    """

    indices: np.ndarray
    batch_size: int
    seed: int
    micro_batches: int = 1
    tail: str = "keep"
    num_processes: int = 1
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tail = len(self.indices) % self.batch_size
        if len(self.indices) == 0:
            raise ConfigError("train: the training part holds no samples; see where its data set looked for them")
        if self.batch_size < self.num_processes:
            raise ConfigError(
                f"train.batch_size: {self.batch_size} samples a step cannot feed {self.num_processes} processes; "
                "it counts samples over all processes"
            )
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"train.tail: drop leaves no step: {len(self.indices)} samples are fewer than train.batch_size "
                f"{self.batch_size}; use a smaller batch or train.tail=keep"
            )
        if self.tail == "keep" and 0 < tail < self.num_processes:
            raise ConfigError(
                f"train.tail: the last batch of an epoch has {tail} sample(s) for {self.num_processes} processes; "
                "use train.tail=drop or another batch size"
            )

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of an epoch; a shorter last batch counts unless `tail` drops it."""
        num_full_batches, remainder = divmod(len(self.indices), self.batch_size)
        return num_full_batches + (1 if remainder and self.tail == "keep" else 0)

    def compute_epoch(self, step: int) -> int:
        """Return the epoch of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def smallest_part(self, step: int) -> int:
        """Return the number of samples in the smallest part of a step, which one process gets at once."""
        first = step % self.steps_per_epoch * self.batch_size
        num_samples = min(self.batch_size, len(self.indices) - first)
        return num_samples // self._num_micro_batches(num_samples) // self.num_processes

    def step_keys(self, step: int) -> list[list[list[SampleKey]]]:
        """Return the sample keys of a step, nested as micro-batches, processes, samples."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)[step_in_epoch * self.batch_size : (step_in_epoch + 1) * self.batch_size]
        num_micro = self._num_micro_batches(len(order))
        # Micro-batches first: where a batch is large enough for all of them, they hold the same samples on any number
        # of processes, and batch norm sees the same. (A short tail has fewer, and how many depends on the processes.)
        micro_batches = [np.array_split(micro, self.num_processes) for micro in np.array_split(order, num_micro)]
        return [
            [[SampleKey(int(i), epoch, self.seed, step) for i in part] for part in parts] for parts in micro_batches
        ]

    def first_keys(self, count: int) -> list[SampleKey]:
        """Return the keys of the first `count` samples of the first step, repeated if it has fewer."""
        keys = [key for parts in self.step_keys(0) for part in parts for key in part]
        return [keys[index % len(keys)] for index in range(count)]

    def _num_micro_batches(self, num_samples: int) -> int:
        return min(self.micro_batches, num_samples // self.num_processes)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            draws = Draws.for_samples([SampleKey(0, epoch, self.seed)]).stream("order of the epoch")
            self._orders.clear()
            self._orders[epoch] = self.indices[draws.permutation(len(self.indices))[0].numpy()]
        return self._orders[epoch]


def evaluation_keys(indices: np.ndarray, batch_size: int, *, epoch: int, seed: int) -> list[list[SampleKey]]:
    """Return the keys of an evaluated split in batches, in order, without padding; the last batch may be smaller."""
    starts = range(0, len(indices), batch_size)
    return [[SampleKey(int(i), epoch, seed) for i in indices[start : start + batch_size]] for start in starts]
