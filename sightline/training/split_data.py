"""Split of a config's data for loops of the user's own: samples by integer index, and the batches of training."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, overload

from sightline.config import RunConfig, locate_errors
from sightline.contract.call_arguments import to_count
from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.contract.types import Batch, Field, Sample, SampleKey
from sightline.engine import run_data
from sightline.engine.batches.sampler import BatchSampler, evaluation_keys
from sightline.engine.batches.stream import read_batches

Augmentation = Literal["train", "evaluate", "none"]
"""Transforms of a split's samples: those of training, those of evaluation, or none."""


class SplitData:
    """Split of a data set, with its transforms: `data[3]` is a sample, `data[:8]` a batch, `len(data)` their number.

    A training sample is augmented differently in each `epoch`, an attribute that may be set; the same epoch gives the
    same bits. `facts` are those that a model is built with; `fields` declare the keys of a sample.
    """

    def __init__(
        self, part: run_data.DataSubset, facts: Mapping[str, Any], *, config: RunConfig, transforms: str
    ) -> None:
        self.part = part
        self.facts = facts
        self.epoch = 0
        self._config = config
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self.part.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Batch: ...
    def __getitem__(self, index: int | slice) -> Sample | Batch:
        if isinstance(index, slice):
            return self.part.reader([self._key(row) for row in range(*index.indices(len(self)))])
        return self.part.reader.read_sample(self._key(operator.index(index)))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        name, keys = self._config.data.name, ", ".join(self.part.reader.fields)
        return f"SplitData({name} {self.part.split}, {len(self)} samples of {keys}; transforms: {self._transforms})"

    @property
    def split(self) -> str:
        """The name of the split that is read."""
        return self.part.split

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of a sample: shape, dtype, unit and range of each."""
        return self.part.reader.fields

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label; empty if the data has none."""
        return tuple(self.facts.get("class_names", ()))

    def sample_name(self, index: int) -> str:
        """Return the data set's name of a sample, such as its file."""
        return self.part.sample_name(self._key(index).index)

    def loader(
        self, *, batch_size: int | None = None, shuffle: bool | None = None, workers: int = 0, drop_last: bool = False
    ) -> EpochLoader:
        """Make an iterable of batches; each pass over it is one epoch.

        The training split is shuffled, in the order of `sightline train`, any other is not, unless `shuffle` says
        otherwise. Without `batch_size`, it is the config's. `workers` processes read ahead.
        """
        train, evaluate = self._config.train, self._config.evaluate
        is_shuffled = self.split == "train" if shuffle is None else shuffle
        size = (
            (train.num_samples if self.split == "train" else evaluate.batch_size) if batch_size is None else batch_size
        )
        size = to_count(size, name="loader: batch_size", minimum=1)
        workers = to_count(workers, name="loader: workers", minimum=0)
        return EpochLoader(self, batch_size=size, shuffle=is_shuffled, workers=workers, drop_last=drop_last)

    def _key(self, index: int) -> SampleKey:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"sample {index} of {size}")
        return SampleKey(int(self.part.indices[index]), self.epoch, self._config.seed)

    def epoch_keys(self, epoch: int, *, batch_size: int, shuffle: bool, drop_last: bool) -> list[list[SampleKey]]:
        """List the keys of the batches of an epoch, as `sightline train` and `evaluate` do."""
        indices, seed = self.part.indices, self._config.seed
        if not shuffle:
            keys = evaluation_keys(indices, batch_size, epoch=epoch, seed=seed)
            return [batch for batch in keys if len(batch) == batch_size or not drop_last]
        if drop_last and len(indices) < batch_size:
            return []
        plan = BatchSampler(indices=indices, batch_size=batch_size, seed=seed, tail="drop" if drop_last else "keep")
        first = epoch * plan.steps_per_epoch
        return [plan.step_keys(step)[0][0] for step in range(first, first + plan.steps_per_epoch)]


class EpochLoader:
    """Batches of a split: every pass is the next epoch, from 0 on; `epoch` may be set, to go on somewhere."""

    def __init__(self, data: SplitData, *, batch_size: int, shuffle: bool, workers: int, drop_last: bool) -> None:
        self.data = data
        self.batch_size = batch_size
        self.epoch = 0
        self._is_shuffled = shuffle
        self._workers = workers
        self._drops_last = drop_last

    def __len__(self) -> int:
        num_full, rest = divmod(len(self.data), self.batch_size)
        return num_full + (1 if rest and not self._drops_last else 0)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        augmented = self._is_shuffled or self.data.split == "train"  # an evaluation always sees the same bits
        seen_epoch = epoch if augmented else 0
        keys = iter(
            self.data.epoch_keys(
                seen_epoch, batch_size=self.batch_size, shuffle=self._is_shuffled, drop_last=self._drops_last
            )
        )
        with contextlib.closing(read_batches(self.data.part.reader, keys, self._workers)) as batches:
            yield from batches

    def __repr__(self) -> str:
        order = "shuffled" if self._is_shuffled else "in order"
        return f"EpochLoader({len(self)} batches of {self.batch_size}, {order}, of {self.data!r})"


def load_split(config: RunConfig, split: str, transforms: Augmentation | None = None) -> SplitData:
    """Load a split of a config's data, with its transforms of training (for `train`) or of evaluation.

    A `validation` that the set itself lacks is held out of its training split, as in `sightline train`. Raises
    UserError for a split that there is not.
    """
    if transforms is not None and transforms not in get_args(Augmentation):
        reason = f"transforms: found {transforms!r}"
        raise UserError(f"{reason}{suggest(str(transforms), get_args(Augmentation))}")
    if not isinstance(split, str):
        raise UserError(f"split: found {split!r}, allowed is a name, as 'train'")
    chosen: Augmentation = transforms or ("train" if split == "train" else "evaluate")
    with locate_errors(config.origins):
        data = run_data.build_data(config)
        splits = (*data.train.dataset.info.split_sizes,)
        parts = {part.split: part for part in (data.test, data.selection, data.train)}
        if split not in parts and split in splits:
            parts[split] = run_data.build_part(config, split)
        if split not in parts:
            valid = [*parts, *(name for name in splits if name not in parts)]
            raise UserError(f"split: '{split}' is not a part of {config.data.name}{suggest(split, valid)}")
        part = run_data.read_with(config, parts[split], chosen, parts["train"])
    return SplitData(part, data.facts, config=config, transforms=chosen)
