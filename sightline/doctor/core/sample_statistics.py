"""Samples read once for all checks of data: what each field holds, where its extremes and its first faults lie.

Labels are looked at sample by sample as well: which classes a cloud has, of which category it is, where they lie.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.data.boxes.records import BOX_FIELDS
from sightline.data.loading.sample_arrays import array_leaves
from sightline.engine.build import Data, DataSubset
from sightline.numba_kernels import compute_seconds
from sightline.optional_members import DataMembers
from sightline.types import Dataset, Sample, SampleKey

__all__ = [
    "FieldStatistics",
    "NonFinite",
    "PartStatistics",
    "SampleLabelCounts",
    "all_labels",
    "collect_statistics",
    "describe_position",
    "describe_sample",
    "distinct_parts",
    "evenly_spaced_keys",
    "parts_by_category",
    "read_samples",
]

_MOST_SAMPLES = 256
_MOST_SECONDS = 0.5  # of this thread's own time, which other load leaves as it is
_MOST_WAITED = 2.0  # by the clock on the wall: a disk may be slow
_CHUNK = 16
_MOST_VALUES = 4_096


class NonFinite(NamedTuple):
    """A number that is none: in which sample, in which leaf, at which position."""

    sample: int
    leaf: str
    position: tuple[int, ...]
    value: float


class SampleLabelCounts(NamedTuple):
    """The classes of one sample's targets, how many have each, and the mean place of the points that have it (K, 3).

    `category` is None where the sample has none, `means` where it has no label for each of its points.
    """

    sample: int
    category: int | None
    classes: np.ndarray
    counts: np.ndarray
    means: np.ndarray | None


@dataclass
class FieldStatistics:
    """What the sampled values of one field are; each place is the index of the first sample that shows it."""

    dtypes: dict[str, int] = field(default_factory=dict)
    shapes: dict[tuple[int, ...], int] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    low: float = float("inf")
    low_at: int = -1
    high: float = float("-inf")
    high_at: int = -1
    non_finite: NonFinite | None = None
    num_non_finite: int = 0

    def add(self, index: int, name: str, value: Any) -> None:
        """Take one sample's value of the field into account."""
        tensors = list(array_leaves(value, name))
        if isinstance(value, Tensor | np.ndarray | np.generic | int | float) and tensors:
            self.dtypes.setdefault(str(tensors[0][1].dtype).removeprefix("torch."), index)
            self.shapes.setdefault(tuple(tensors[0][1].shape), index)
        for leaf, tensor in tensors:
            self._add_numbers(index, leaf, tensor)

    def _add_numbers(self, index: int, leaf: str, tensor: Tensor) -> None:
        if tensor.is_complex() or tensor.numel() == 0:
            return
        if tensor.is_floating_point():
            is_finite = tensor.isfinite()
            if not bool(is_finite.all()):
                self._add_fault(index, leaf, tensor, is_finite)
                tensor = tensor[is_finite]
        elif tensor.dtype != torch.bool:
            tensor = tensor.long()  # torch cannot compare all of its unsigned types
            self._add_values(index, tensor)
        if tensor.numel() == 0:
            return
        low, high = float(tensor.min()), float(tensor.max())
        if low < self.low:
            self.low, self.low_at = low, index
        if high > self.high:
            self.high, self.high_at = high, index

    def _add_values(self, index: int, tensor: Tensor) -> None:
        if len(self.values) < _MOST_VALUES:
            low, high = int(tensor.min()), int(tensor.max())
            if high - low < tensor.numel():  # pixels: counting them takes a tenth of the time that sorting does
                found = (tensor.flatten() - low).bincount().nonzero().flatten() + low
            else:
                found = tensor.unique()
            for value in found.tolist():
                self.values.setdefault(value, index)

    def _add_fault(self, index: int, leaf: str, tensor: Tensor, is_finite: Tensor) -> None:
        self.num_non_finite += 1
        if self.non_finite is None:
            position = tuple((~is_finite).nonzero()[0].tolist())
            self.non_finite = NonFinite(index, leaf, position, float(tensor[position]))


@dataclass
class PartStatistics:
    """What was sampled of one part, field by field; `absent` names promised fields that a sample lacks.

    `boxed` are samples with boxes, without their pixels: `image_px` (2,) is how many rows and columns these have. The
    labels of ignored boxes are left out of `fields` and `labellings`: they are never read.
    """

    part: DataSubset
    num_sampled: int = 0
    fields: dict[str, FieldStatistics] = field(default_factory=dict)
    labellings: list[SampleLabelCounts] = field(default_factory=list)
    boxed: list[Sample] = field(default_factory=list)
    absent: dict[str, list[int]] = field(default_factory=dict)
    unreadable: tuple[int, Exception] | None = None

    @property
    def coverage_text(self) -> str:
        """How much was looked at, in words."""
        return f"{self.num_sampled} of {len(self.part.indices)} samples of the {self.part.split} part"

    @property
    def is_whole(self) -> bool:
        """Whether every sample was looked at."""
        return self.num_sampled == len(self.part.indices)


def collect_statistics(
    part: DataSubset,
    *,
    epoch: int = 0,
    seed: int = 0,
    most_samples: int = _MOST_SAMPLES,
    most_seconds: float = _MOST_SECONDS,
) -> PartStatistics:
    """Up to 256 samples, evenly spread over the part, as the data set gives them; half a second of work at most."""
    result = PartStatistics(part)
    started, began = compute_seconds(), time.perf_counter()
    for keys in _pieces(part, evenly_spaced_keys(part, epoch=epoch, seed=seed, most_samples=most_samples)):
        try:
            samples = read_samples(part.dataset, keys)
        except Exception as error:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            result.unreadable = _first_unreadable(part.dataset, keys) or (keys[0].index, error)
            break
        for key, sample in zip(keys, samples, strict=True):
            _note(result, key.index, sample)
        waited = _MOST_WAITED / _MOST_SECONDS * most_seconds
        if compute_seconds() - started > most_seconds or time.perf_counter() - began > waited:
            break
    return result


def _pieces(part: DataSubset, chunks: Iterator[list[SampleKey]]) -> Iterator[list[SampleKey]]:
    """What is read before the clock is looked at: samples that are read one by one may each be a whole building."""
    for keys in chunks:
        yield from [keys] if _serves_batches(part.dataset) else ([key] for key in keys)


def _note(result: PartStatistics, index: int, sample: Sample) -> None:
    if BOX_FIELDS.keys() <= sample.keys():
        pixels = {"image": None, "image_px": torch.tensor(sample["image"].shape[:2]), "sample_index": index}
        result.boxed.append({**sample, **pixels})
        sample = {**sample, "label": _of_counted(sample["label"], sample["is_ignored"])}
    for name, value in sample.items():
        if name != "sample_index":
            result.fields.setdefault(name, FieldStatistics()).add(index, name, value)
    labelling = _labelling(index, sample)
    if labelling is not None:
        result.labellings.append(labelling)
    for name in result.part.dataset.info.fields.keys() - sample.keys():
        result.absent.setdefault(name, []).append(index)
    result.num_sampled += 1


def _of_counted(label: Tensor, is_ignored: Tensor) -> Tensor:
    return label[~is_ignored] if label.shape == is_ignored.shape and is_ignored.dtype == torch.bool else label


def _labelling(index: int, sample: Sample) -> SampleLabelCounts | None:
    label, category = _whole_numbers(sample.get("label")), _whole_numbers(sample.get("category"))
    if label is None:
        return None
    kind = int(category) if category is not None and category.ndim == 0 else None
    if label.ndim == 0:
        return SampleLabelCounts(index, kind, label[None], np.ones(1, dtype=np.int64), None)
    classes, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    points = next((tensor for _, tensor in array_leaves(sample.get("points"))), None)
    means = None
    if points is not None and label.ndim == 1 and points.shape == (len(label), 3):
        axes = points.double().cpu().numpy().T
        sums = [np.bincount(place.ravel(), weights=values, minlength=len(classes)) for values in axes]
        means = np.stack(sums, axis=1) / counts[:, None]
    return SampleLabelCounts(index, kind, classes, counts, means)


def _whole_numbers(value: Any) -> np.ndarray | None:
    """The value as an array of integers; None where it is something else."""
    tensors = [tensor for _, tensor in array_leaves(value)]
    if len(tensors) != 1 or isinstance(value, Mapping | list | tuple):
        return None
    is_number = not tensors[0].is_floating_point() and not tensors[0].is_complex() and tensors[0].dtype != torch.bool
    return tensors[0].long().cpu().numpy() if is_number else None


def _first_unreadable(dataset: Dataset, keys: Sequence[SampleKey]) -> tuple[int, Exception] | None:
    for key in keys:
        try:
            read_samples(dataset, [key])
        except Exception as error:  # noqa: BLE001 - as above
            return key.index, error
    return None


def read_samples(dataset: Dataset, keys: Sequence[SampleKey]) -> list[Sample]:
    """Samples before any transform; rows of whole batches where the data set serves these with equal shapes."""
    if not _serves_batches(dataset):
        return [dataset[key] for key in keys]
    batch = dataset.get_batch(keys)  # type: ignore[attr-defined]
    return [{name: value[row] for name, value in batch.items()} for row in range(len(keys))]


def _serves_batches(dataset: Dataset) -> bool:
    is_stacked = all(promise.collate == "stack" for promise in dataset.info.fields.values())
    return DataMembers.get_batch.get(dataset) is not None and is_stacked


def all_labels(survey: PartStatistics) -> np.ndarray | None:
    """The label of every sample of a part, from the set's strata where these are its labels; None where they are not.

    Strata may be anything that splits should respect: they must be the labels of all samples that were looked at.
    """
    strata = DataMembers.strata.get(survey.part.dataset)
    if strata is None or not survey.labellings or set(survey.fields["label"].shapes) != {()}:
        return None
    if not all(int(strata[each.sample]) == int(each.classes[0]) for each in survey.labellings):
        return None
    return np.asarray(strata)[survey.part.indices]


def parts_by_category(facts: Mapping[str, Any]) -> list[list[int]] | None:
    """The parts of each category where labels are parts; a set that merely has parts states `num_parts`."""
    if "parts_of_category" not in facts or "num_parts" in facts:
        return None
    return [list(parts) for parts in facts["parts_of_category"]]


def describe_position(survey: PartStatistics, field: str, index: int, value: int) -> str:
    """Where a sample's field holds a value, as `, label[5]`; nothing where the field is one number."""
    sample = read_samples(survey.part.dataset, [SampleKey(index, 0, 0)])[0]
    for leaf, tensor in array_leaves(sample[field], field):
        hits = (tensor.long() == value).nonzero()
        if tensor.ndim and len(hits):
            return f", {leaf}{hits[0].tolist()}"
    return ""


def distinct_parts(data: Data) -> list[DataSubset]:
    """The parts of a run without those that are another one under a second name."""
    parts: list[DataSubset] = []
    for part in (data.train, data.selection, data.test):
        if not any(part.dataset is other.dataset and np.array_equal(part.indices, other.indices) for other in parts):
            parts.append(part)
    return parts


def describe_sample(dataset: Dataset, index: int) -> str:
    """A sample as a person finds it: its index, and its name or file where the data set has it."""
    name_of = DataMembers.name_of.get(dataset)
    return f"sample {index}" if name_of is None else f"sample {index} ({name_of(index)})"


def evenly_spaced_keys(
    part: DataSubset, *, epoch: int, seed: int, most_samples: int = _MOST_SAMPLES
) -> Iterator[list[SampleKey]]:
    """Keys of up to 256 samples in chunks, each spread over the whole part: reading cut short still saw all regions."""
    chosen = part.evenly_spaced_indices(most_samples)
    num_chunks = -(-len(chosen) // _CHUNK)
    for start in range(num_chunks):
        yield [SampleKey(int(index), epoch, seed) for index in chosen[start::num_chunks]]
