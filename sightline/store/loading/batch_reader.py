"""Batch reader: samples read by key, transformed and collated to batches."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.dataset import Dataset
from sightline.contract.draws import DeviceDraws, Draws
from sightline.contract.errors import ConfigError, DataError, RunError, UserError
from sightline.contract.types import Batch, Field, Sample, SampleKey
from sightline.store.loading.collation import batch_keys, collate
from sightline.store.loading.transform_pipeline import NamedTransform, TransformPipeline


class BatchReader:
    """Reader of batches of a data set with transforms; the same keys give the same bits, in any process.

    Raises ConfigError if a transform names a field that the data set does not have, or selects points and would not
    select the rows of another field of these points; DataError if the set's own `collate` drops a key of `info.fields`.
    `mixing_indices` are the indices of the training split, from which transforms that combine samples draw; `is_voting`
    tells that keys are those of passes of `evaluate.votes`, whose step is the number of the pass.
    """

    draw_keys = ("(draws)", "(draws of the step)")
    """Keys of a raw batch that no field can have."""

    def __init__(
        self,
        dataset: Dataset,
        transforms: Sequence[NamedTransform] = (),
        *,
        mixing_indices: np.ndarray | None = None,
        is_voting: bool = False,
    ) -> None:
        _assert_points_stay_whole(transforms, dataset.info.fields)
        _assert_pixels_move_together(transforms, dataset.info.fields)
        _assert_boxes_move_with_points(transforms, dataset.info.fields)
        self.dataset = dataset
        mixing_indices = None if dataset.get_batch is not None else mixing_indices
        read = None if mixing_indices is None else self._read_one  # else no reference cycle, which keeps files open
        arguments: Any = {"read": read, "mixing_indices": mixing_indices, "is_voting": is_voting}
        self._transform = TransformPipeline(transforms, dataset.info.fields, source="the data set", **arguments)
        self._fields = {**dataset.info.fields, **self._transform.added}
        for name in dataset.info.features[:1]:  # the concatenation is collated like each feature
            self._fields["features"] = self._fields[name]

    @property
    def keys(self) -> frozenset[str]:
        """Keys of every batch."""
        return batch_keys(self._fields, self.dataset.info.features)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts stated by the transforms, which override those of the data set."""
        return self._transform.facts

    @property
    def fields(self) -> Mapping[str, Field]:
        """Fields of a sample after the transforms, with the collation of each."""
        return self._fields

    @property
    def has_transforms(self) -> bool:
        """True if there are transforms."""
        return len(self._transform) > 0

    @property
    def transforms(self) -> TransformPipeline:
        """The transforms, composed."""
        return self._transform

    def __call__(self, keys: Sequence[SampleKey]) -> Batch:
        get_batch, combine = self.dataset.get_batch, self.dataset.collate
        if get_batch is not None:
            with self._convert_errors(keys):
                batch = _as_tensors(get_batch(keys))
            return self._with_features(_concatenate_added(self._transform(batch, keys), self._transform.added))
        samples = []
        for key in keys:
            sample = self._transform(self._read_one(key), [key])
            samples.append(_lower(self._with_features(sample)))
        if combine is not None:
            indices = {"sample_index": torch.tensor([key.index for key in keys], dtype=torch.int64)}
            return self._check_keys({**indices, **combine(samples)})
        return collate(samples, keys, self._fields)

    @property
    def can_finish(self) -> bool:
        """True if whole batches are read, and all that their transforms draw depends on keys."""
        return self.dataset.get_batch is not None and not self._transform.mixes

    def read_raw(self, keys: Sequence[SampleKey]) -> Batch:
        """Read a batch without transforms, for `finish`: with the keys of its draws."""
        get_batch = self.dataset.get_batch
        assert get_batch is not None
        with self._convert_errors(keys):
            batch = _as_tensors(get_batch(keys))
        return {**batch, **self.make_draw_keys(keys)}

    def reads_index_alone(self, keys: Sequence[SampleKey]) -> bool:
        """Return True if the samples of these keys depend on their index: the set reads nothing else of a key."""
        get_batch = self.dataset.get_batch
        assert get_batch is not None
        read: set[str] = set()

        class NotedKey(SampleKey):
            def __getattribute__(self, name: str) -> Any:
                if not name.startswith("__"):
                    read.add(name)
                return super().__getattribute__(name)

        with self._convert_errors(keys):
            get_batch([NotedKey(key.index, key.epoch, key.seed, key.step) for key in keys])
        return read <= {"index"}

    def make_draw_keys(self, keys: Sequence[SampleKey]) -> Batch:
        """Return what the draws of a batch depend on, by the names of `draw_keys`."""
        return dict(zip(self.draw_keys, Draws.for_samples(keys).keys, strict=True))

    def finish(self, raw: Batch) -> Batch:
        """Transform a batch of `read_raw` on its device; what no transform reads may be missing."""
        batch = {name: value for name, value in raw.items() if name not in self.draw_keys}
        draws = DeviceDraws(*(raw[name] for name in self.draw_keys))
        for index in range(len(self._transform)):
            batch = self._transform.apply_one(index, batch, (), draws)
        return self._with_features(_concatenate_added(batch, self._transform.added))

    def read_sample(self, key: SampleKey) -> Sample:
        """Read one sample after all transforms, with the key `features` if there are any, as batches have it."""
        *_, (_, batch) = self.batch_stages(key)
        return _lower(self._with_features(batch))

    def sample_stages(self, key: SampleKey) -> Iterator[tuple[str, Sample]]:
        """Yield a sample as the data set returns it, with an empty name, and after each transform, with its name.

        The last one is what batches contain, bit for bit.
        """
        yield from ((name, _lower(batch)) for name, batch in self.batch_stages(key))

    def batch_stages(self, key: SampleKey) -> Iterator[tuple[str, Batch]]:
        """Yield the same as `sample_stages`, each a batch of one, as transforms receive it."""
        if (get_batch := self.dataset.get_batch) is not None:
            with self._convert_errors([key]):
                batch = _as_tensors(get_batch([key]))
        else:
            batch = self._read_one(key)
        yield "", batch
        yield from self._transform.apply_stepwise(batch, [key])

    def _read_one(self, key: SampleKey) -> Batch:
        """Read a sample of the data set as a batch of one."""
        with self._convert_errors([key]):
            return _lift(_as_tensors(self.dataset[key]))

    @contextlib.contextmanager
    def _convert_errors(self, keys: Sequence[SampleKey]) -> Iterator[None]:
        """Convert any exception raised while reading into a DataError that names the samples."""
        try:
            yield
        except (UserError, RunError):
            raise
        except Exception as error:
            samples = f"sample {keys[0].index}" if len(keys) == 1 else f"samples {keys[0].index} to {keys[-1].index}"
            reason = " ".join(str(error).split())
            raise DataError(f"{type(self.dataset).__name__}: {samples}: {type(error).__name__}: {reason}") from error

    def _check_keys(self, batch: Batch) -> Batch:
        """Check that the batch of a set's own collate has all keys to which models and losses are bound."""
        missing = sorted(self.keys - batch.keys())
        if missing:
            raise DataError(
                f"{type(self.dataset).__name__}.collate gives {', '.join(sorted(batch))}, but info.fields promises "
                f"'{missing[0]}' in every batch; add it, or take it out of info.fields"
            )
        return batch

    def _with_features(self, batch: Batch) -> Batch:
        """Add the key `features`: the feature fields, concatenated along the last dimension."""
        if not self.dataset.info.features:
            return batch
        return {**batch, "features": torch.cat([batch[name] for name in self.dataset.info.features], dim=-1)}


def _assert_points_stay_whole(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raise ConfigError if a transform selects points but not the rows of a field of these points.

    Nor may one follow `score_all`, whose `nearest` contains indices of the selected points.
    """
    scored = ""
    rows = fields["points"].shape.split()[:1] if "points" in fields else []
    point_fields = {name for name, field in fields.items() if rows and field.shape.split()[:1] == rows}
    for name, transform in transforms:
        parameters = inspect.signature(transform.__call__).parameters
        selects = transform.chooses_points
        if selects and scored:
            raise ConfigError(
                f"transform '{name}' chooses points and cannot follow '{scored}' with score_all: the values for each "
                f"point of the whole cloud would be lost; put '{name}' before it, or take it out of transforms.evaluate"
            )
        scored = name if "nearest" in transform.adds else scored
        unselected = sorted(point_fields - set(parameters)) if selects else []
        if unselected:
            field_names = ", ".join(sorted(set(parameters) - {"draws", "points"}))
            raise ConfigError(
                f"transform '{name}' chooses points, and would leave '{unselected[0]}' of the data set unchanged, "
                "which has a row for each point: rows would belong to other points; the transform takes "
                f"{field_names}: use such a name, or a transform of your own"
            )


def _assert_pixels_move_together(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raise ConfigError if a transform moves the pixels but not a field in image coordinates."""
    image_fields = {name for name, field in fields.items() if field.frame == "image"}
    for name, transform in transforms:
        if not transform.moves_pixels:
            continue
        parameters = inspect.signature(transform.__call__).parameters
        if unmoved := sorted(image_fields - set(parameters)):
            raise ConfigError(
                f"transform '{name}' moves pixels but not '{unmoved[0]}' of the data set; flip_image, fit_image, "
                "cut_image and turn_image take both, or write a transform that does"
            )


def _assert_boxes_move_with_points(transforms: Sequence[NamedTransform], fields: Mapping[str, Field]) -> None:
    """Raise ConfigError if a transform moves the points but not the 3D boxes in their frame."""
    points, boxes = fields.get("points"), fields.get("boxes")
    if points is None or boxes is None or points.frame != boxes.frame:
        return
    for name, transform in transforms:
        if transform.moves_points and "boxes" not in inspect.signature(transform.__call__).parameters:
            raise ConfigError(
                f"transform '{name}' moves points but not the boxes around them; rotate, flip, scale and translate "
                "take both, or write a transform that does"
            )


def _as_tensors(value: Any) -> Any:
    """Convert NumPy arrays in a nested dict to tensors; one that torch does not share is copied.

    Those are read-only arrays, flipped ones (negative strides), and those of the other byte order.
    """
    if isinstance(value, np.ndarray):
        is_shared = value.flags.writeable and value.dtype.isnative and min(value.strides, default=0) >= 0
        return torch.from_numpy(value if is_shared else value.astype(value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, dict):
        return {name: _as_tensors(item) for name, item in value.items()}
    return value


def _concatenate_added(batch: Batch, added: Mapping[str, Field]) -> Batch:
    """Concatenate the stacked fields of transforms that are declared so, and add their offsets."""
    ragged = {name: batch[name] for name, field in added.items() if field.collate == "concatenate" and name in batch}
    offsets = {added[name].offsets: torch.arange(len(value) + 1) * value.shape[1] for name, value in ragged.items()}
    return {**batch, **{name: value.flatten(0, 1) for name, value in ragged.items()}, **offsets}


def _lift(sample: dict[str, Any]) -> Batch:
    """Add a batch dimension to a sample, so that transforms need one form only."""
    return {name: value.unsqueeze(0) if isinstance(value, Tensor) else value for name, value in sample.items()}


def _lower(batch: Batch) -> dict[str, Any]:
    """Remove the batch dimension of a batch of one."""
    return {name: value.squeeze(0) if isinstance(value, Tensor) else value for name, value in batch.items()}
