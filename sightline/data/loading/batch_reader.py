"""Keys to batches: whole batches from sets in memory, collated samples from others, transforms on either."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.binding import AvailableKeys, BoundFunction, bind
from sightline.data.loading.collate import batch_keys, collate
from sightline.draws import Draws
from sightline.errors import ConfigError, DataError, RunError, UserError
from sightline.optional_members import DataMembers, TransformMembers
from sightline.types import Batch, Dataset, Field, Sample, SampleKey, Transform

__all__ = ["BatchReader", "NamedTransform", "TransformPipeline"]

_Others = Callable[[int], list[Batch]]


class NamedTransform(NamedTuple):
    """A transform and its name in the config, which also names its stream of random numbers."""

    name: str
    apply: Transform


class TransformPipeline:
    """Transforms one after another, bound to the fields that they name; pure, whatever was transformed before.

    `added` are the fields that transforms add to those of the samples, `facts` what they state of them. A transform
    that takes `others` combines samples: it gets a function `(count) -> batches` that draws as many of the indices
    `others` for a sample and reads them by `read`, each as a batch of one changed by the transforms before; or None,
    from its `until_epoch` on. Raises ConfigError where a transform names a field that nobody offers, or takes others
    where samples are not trained on.
    """

    def __init__(
        self,
        transforms: Sequence[NamedTransform],
        fields: Collection[str],
        *,
        source: str,
        read: Callable[[SampleKey], Batch] | None = None,
        others: np.ndarray | None = None,
    ) -> None:
        self.added: dict[str, Field] = {}
        self.facts: dict[str, Any] = {}
        self._transforms: list[tuple[str, BoundFunction, int | None, bool]] = []
        self._read, self._indices = read, others
        for place, (name, transform) in enumerate(transforms):
            offer = AvailableKeys(source, {*fields, *self.added})
            bound = bind(transform.__call__, offer, owner=f"transform '{name}'", exclude=("draws", "others"))
            takes_others = _takes_others(bound)
            if others is None and takes_others:
                raise ConfigError(
                    f"transform '{name}' combines several samples of the training part; it belongs in transforms.train"
                )
            until_epoch = TransformMembers.until_epoch.get(transform)
            self._transforms.append((f"{place}.{name}", bound, until_epoch, takes_others))
            self.added |= TransformMembers.adds.get(transform)
            self.facts |= TransformMembers.facts.get(transform)

    def __call__(self, batch: Batch, keys: Sequence[SampleKey]) -> Batch:
        for _, changed in self.apply_each(batch, keys):
            batch = changed
        return batch

    def __len__(self) -> int:
        return len(self._transforms)

    def apply_each(self, batch: Batch, keys: Sequence[SampleKey]) -> Iterator[tuple[str, Batch]]:
        """The batch after each transform in turn, with the transform's name."""
        if not self._transforms:
            return
        draws = Draws.for_samples(keys)
        for place, (stream, bound, until_epoch, takes_others) in enumerate(self._transforms):
            own = draws.stream(stream)
            further = {"others": self._others(own, keys, place, until_epoch)} if takes_others else {}
            batch = {**batch, **bound.function(own, **further, **bound.select(batch))}
            yield stream.partition(".")[2], batch

    def _others(self, draws: Draws, keys: Sequence[SampleKey], place: int, until_epoch: int | None) -> _Others | None:
        """What reads further samples for the transform at a place; None where it combines nothing any more."""
        read, indices, (key,) = self._read, self._indices, keys
        assert read is not None
        assert indices is not None

        def others(count: int) -> list[Batch]:
            changed = []
            for chosen, seed in draws.stream("others").bits(count, 2)[0].tolist():
                # A seed of its own: elsewhere in this epoch the same sample is drawn otherwise.
                other = SampleKey(int(indices[chosen % len(indices)]), key.epoch, seed >> 1, key.step)
                batch = read(other)
                changed.append(
                    [batch, *(each for _, each in itertools.islice(self.apply_each(batch, [other]), place))][-1]
                )
            return changed

        return None if until_epoch is not None and key.epoch >= until_epoch else others


class BatchReader:
    """Reads batches of a data set and transforms them; the same keys give the same bits, in any process.

    Raises ConfigError where a transform names a field that the data set does not offer, or chooses points and would
    leave a field behind that has a row for each, and DataError where the set's own `collate` leaves out a key that
    `info.fields` promises. `others` are the indices of the part that is trained on, from which transforms that combine
    samples draw.
    """

    def __init__(
        self, dataset: Dataset, transforms: Sequence[NamedTransform] = (), *, mixing_indices: np.ndarray | None = None
    ) -> None:
        _assert_points_stay_whole(transforms, dataset.info.fields)
        _assert_pixels_move_together(transforms, dataset.info.fields)
        self.dataset = dataset
        mixing_indices = None if DataMembers.get_batch.get(dataset) is not None else mixing_indices
        read = None if mixing_indices is None else self._one  # a cycle of references would keep files that are let go
        form: Any = {"source": "the data set", "read": read, "others": mixing_indices}
        self._transform = TransformPipeline(transforms, dataset.info.fields, **form)
        self._fields = {**dataset.info.fields, **self._transform.added}
        for name in dataset.info.features[:1]:  # joined, they become a batch as each of them does
            self._fields["features"] = self._fields[name]

    @property
    def keys(self) -> frozenset[str]:
        """The keys of every batch."""
        return batch_keys(self._fields, self.dataset.info.features)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts that transforms state in the place of the data set's."""
        return self._transform.facts

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of a sample after the transforms, with the form in which they become a batch."""
        return self._fields

    @property
    def has_transforms(self) -> bool:
        """Whether samples are changed at all on their way."""
        return len(self._transform) > 0

    def __call__(self, keys: Sequence[SampleKey]) -> Batch:
        get_batch, combine = DataMembers.get_batch.get(self.dataset), DataMembers.collate.get(self.dataset)
        if get_batch is not None:
            with self._blamed(keys):
                batch = _as_tensors(get_batch(keys))
            return self._with_features(_joined(self._transform(batch, keys), self._transform.added))
        samples = []
        for key in keys:
            sample = self._transform(self._one(key), [key])
            samples.append(_lower(self._with_features(sample)))
        if combine is not None:
            indexed = {"sample_index": torch.tensor([key.index for key in keys], dtype=torch.int64)}
            return self._checked({**indexed, **combine(samples)})
        return collate(samples, keys, self._fields)

    def sample_stages(self, key: SampleKey) -> Iterator[tuple[str, Sample]]:
        """One sample as the data set gives it, under no name, and after each transform in turn, under its name.

        The last one is what batches are made of, bit for bit.
        """
        if (get_batch := DataMembers.get_batch.get(self.dataset)) is not None:
            with self._blamed([key]):
                batch = _as_tensors(get_batch([key]))
        else:
            batch = self._one(key)
        yield "", _lower(batch)
        for name, changed in self._transform.apply_each(batch, [key]):
            yield name, _lower(changed)

    def _one(self, key: SampleKey) -> Batch:
        """A sample as the data set gives it, as a batch of one."""
        with self._blamed([key]):
            return _lift(_as_tensors(self.dataset[key]))

    @contextlib.contextmanager
    def _blamed(self, keys: Sequence[SampleKey]) -> Iterator[None]:
        """Whatever reading fails of, it is an error of the data that names the samples."""
        try:
            yield
        except (UserError, RunError):
            raise
        except Exception as error:
            which = f"sample {keys[0].index}" if len(keys) == 1 else f"samples {keys[0].index} to {keys[-1].index}"
            reason = " ".join(str(error).split())
            raise DataError(f"{type(self.dataset).__name__}: {which}: {type(error).__name__}: {reason}") from error

    def _checked(self, batch: Batch) -> Batch:
        """The batch of a set's own collate, which must hold what models and losses were bound to."""
        missing = sorted(self.keys - batch.keys())
        if missing:
            raise DataError(
                f"{type(self.dataset).__name__}.collate gives {', '.join(sorted(batch))}, but info.fields promises "
                f"'{missing[0]}' in every batch; add it, or take it out of info.fields"
            )
        return batch

    def _with_features(self, batch: Batch) -> Batch:
        if not self.dataset.info.features:
            return batch
        return {**batch, "features": torch.cat([batch[name] for name in self.dataset.info.features], dim=-1)}


def _takes_others(transform: BoundFunction) -> bool:
    return "others" in inspect.signature(transform.function).parameters


def _assert_points_stay_whole(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raises ConfigError where a transform would choose points and not the rows of a field that belong to them.

    Nor may one follow `score_all`, whose `nearest` names rows of the points that were kept.
    """
    scored = ""
    rows = fields["points"].shape.split()[:1] if "points" in fields else []
    of_points = {name for name, field in fields.items() if rows and field.shape.split()[:1] == rows}
    for name, transform in transforms:
        taken = inspect.signature(transform.__call__).parameters
        chooses = TransformMembers.chooses_points.get(transform)
        if chooses and scored:
            raise ConfigError(
                f"transform '{name}' chooses points and cannot follow '{scored}' with score_all: the values for each "
                f"point of the whole cloud would be lost; put '{name}' before it, or take it out of transforms.evaluate"
            )
        scored = name if "nearest" in TransformMembers.adds.get(transform) else scored
        left = sorted(of_points - set(taken)) if chooses else []
        if left:
            known = ", ".join(sorted(set(taken) - {"draws", "points"}))
            raise ConfigError(
                f"transform '{name}' chooses points, and would leave '{left[0]}' of the data set behind, which has a "
                f"row for each of them: every row would belong to another point; it takes {known}: use such a name, or "
                "a transform of your own"
            )


def _assert_pixels_move_together(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raises ConfigError where a transform would move the pixels and not a field that lies among them."""
    lying = {name for name, field in fields.items() if field.frame == "image"}
    for name, transform in transforms:
        if not TransformMembers.moves_pixels.get(transform):
            continue
        taken = inspect.signature(transform.__call__).parameters
        if left := sorted(lying - set(taken)):
            raise ConfigError(
                f"transform '{name}' moves pixels and would leave '{left[0]}' of the data set where it "
                "was; flip_image, fit_image, cut_image and turn_image take both, or write a transform that does"
            )


def _as_tensors(value: Any) -> Any:
    """The same structure with NumPy arrays as tensors; an array that must not be written to is copied."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    if isinstance(value, dict):
        return {name: _as_tensors(each) for name, each in value.items()}
    return value


def _joined(batch: Batch, added: Mapping[str, Field]) -> Batch:
    """A stacked batch with those fields that transforms add to be concatenated in that form, beside their offsets."""
    ragged = {name: batch[name] for name, field in added.items() if field.collate == "concatenate" and name in batch}
    even = {added[name].offsets: torch.arange(len(value) + 1) * value.shape[1] for name, value in ragged.items()}
    return {**batch, **{name: value.flatten(0, 1) for name, value in ragged.items()}, **even}


def _lift(sample: dict[str, Any]) -> Batch:
    """A sample as a batch of one, so that transforms know one form only."""
    return {name: value.unsqueeze(0) if isinstance(value, Tensor) else value for name, value in sample.items()}


def _lower(batch: Batch) -> dict[str, Any]:
    return {name: value.squeeze(0) if isinstance(value, Tensor) else value for name, value in batch.items()}
