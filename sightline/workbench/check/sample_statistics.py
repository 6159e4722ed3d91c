"""Statistics of samples, read once for all checks of data.

Of each field its values, extremes and first faults; of labels the classes of each sample, and the counts of each class
in each split, over all samples where these are few or their labels are listed, else over some.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.dataset import Dataset
from sightline.contract.types import Sample, SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.engine.run_data import Data, DataSubset
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.loading.leaves import array_leaves, as_bytes

_MIN_SAMPLES, _MAX_SAMPLES = 4, 256
_MAX_SECONDS = 6.0  # CPU time of this thread, some four times what usual samples take; it ends a survey of slow ones
_NUM_READ = ((1 << 14, 2048, 256), (1 << 18, 256, 64), (1 << 22, 128, 16), (math.inf, 32, _MIN_SAMPLES))
"""Bytes of a sample, and how many of that size a survey reads, and a quick one: all machines read the same."""
_MAX_WAIT = 4  # times as much wall-clock time: a disk may be slow
_CHUNK_SIZE = 16
_MAX_VALUES = 4_096
_MIN_HASHED = 64
_MAX_LENGTH_ERROR = 0.1
UNIT_VECTOR = "unit vector"
"""Unit of a field of vectors (..., 3) of length 1."""


class NonFinite(NamedTuple):
    """NaN or infinite value, with its sample, its leaf and its position."""

    sample: int
    leaf: str
    position: tuple[int, ...]
    value: float


class SampleLabelCounts(NamedTuple):
    """Classes (K,) of one sample's targets and their counts (K,); `category` is None if the sample has none."""

    sample: int
    category: int | None
    classes: np.ndarray
    counts: np.ndarray


@dataclass
class FieldStatistics:
    """Statistics of one field's sampled values; dtypes, shapes and values map to the first sample that has them.

    `contents` are the hashes of arrays of at least 64 numbers, of which `num_hashed` were read. `padded` maps samples
    whose array of rows ends with equal ones, which no other row equals, to their number. Of fields of unit vectors,
    `num_zero` rows are 0, and `num_off` others of another length, of `num_vectors`.
    """

    dtypes: dict[str, int] = field(default_factory=dict)
    shapes: dict[tuple[int, ...], int] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    contents: dict[int, int] = field(default_factory=dict)
    num_hashed: int = 0
    padded: dict[int, int] = field(default_factory=dict)
    low: float = float("inf")
    high: float = float("-inf")
    non_finite: NonFinite | None = None
    num_non_finite: int = 0
    num_vectors: int = 0
    num_zero: int = 0
    num_off: int = 0

    def add_lengths(self, vectors: Tensor) -> None:
        """Count the lengths of vectors (..., 3) that are to be 1."""
        lengths = vectors.double().flatten(0, -2).norm(dim=1)
        is_zero = lengths <= _MAX_LENGTH_ERROR
        self.num_vectors += len(lengths)
        self.num_zero += int(is_zero.sum())
        self.num_off += int((~is_zero & ((lengths - 1).abs() > _MAX_LENGTH_ERROR)).sum())

    def add(self, index: int, name: str, value: Any) -> None:
        """Add one sample's value of the field."""
        tensors = list(array_leaves(value, name))
        if isinstance(value, Tensor | np.ndarray | np.generic | int | float) and tensors:
            self.dtypes.setdefault(str(tensors[0][1].dtype).removeprefix("torch."), index)
            self.shapes.setdefault(tuple(tensors[0][1].shape), index)
            if tensors[0][1].numel() >= _MIN_HASHED:
                self.contents.setdefault(hash(as_bytes(tensors[0][1]).tobytes()), index)
                self.num_hashed += 1
                if (count := count_padding(tensors[0][1])) > 0:
                    self.padded[index] = count
        for leaf, tensor in tensors:
            self._add_numbers(index, leaf, tensor)

    def _add_numbers(self, index: int, leaf: str, tensor: Tensor) -> None:
        if tensor.is_complex() or tensor.numel() == 0:
            return
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            tensor = tensor.long()  # torch cannot compare all of its unsigned types
        low, high = (bound.item() for bound in tensor.aminmax())  # NaN if any number is
        if tensor.is_floating_point():
            if not math.isfinite(low) or not math.isfinite(high):
                is_finite = tensor.isfinite()
                self._add_fault(index, leaf, tensor, is_finite)
                tensor = tensor[is_finite]
                if tensor.numel() == 0:
                    return
                low, high = (bound.item() for bound in tensor.aminmax())
        elif tensor.dtype != torch.bool:
            self._add_values(index, tensor, int(low), int(high))
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def _add_values(self, index: int, tensor: Tensor, low: int, high: int) -> None:
        if len(self.values) < _MAX_VALUES:
            if high - low < tensor.numel():  # pixels: counting is ten times as fast as sorting
                values = (tensor.flatten() - low).bincount().nonzero().flatten() + low
            else:
                values = tensor.unique()
            for value in values.tolist():
                self.values.setdefault(value, index)

    def _add_fault(self, index: int, leaf: str, tensor: Tensor, is_finite: Tensor) -> None:
        self.num_non_finite += 1
        if self.non_finite is None:
            position = tuple((~is_finite).nonzero()[0].tolist())
            self.non_finite = NonFinite(index, leaf, position, float(tensor[position]))


def count_padding(rows: Tensor) -> int:
    """Count the last rows (N, C) that are equal to one another and to no other row; 0 if the last is alone."""
    if rows.ndim != 2 or not rows.is_floating_point() or len(rows) < 2 or not torch.equal(rows[-1], rows[-2]):
        return 0
    is_equal = (rows == rows[-1]).all(dim=1)
    count = int(is_equal.sum())
    return count if count < len(rows) and bool(is_equal[-count:].all()) else 0


@dataclass
class PartStatistics:
    """Statistics of samples of one split, by field; `absent` maps promised fields to the samples that lack them.

    `boxed` are samples with boxes, without pixels; `image_px` (2,) is the image's height and width. The labels of
    ignored boxes are left out of `fields` and `labellings`, because they are never used.
    """

    part: DataSubset
    num_sampled: int = 0
    fields: dict[str, FieldStatistics] = field(default_factory=dict)
    labellings: list[SampleLabelCounts] = field(default_factory=list)
    boxed: list[Sample] = field(default_factory=list)
    absent: dict[str, list[int]] = field(default_factory=dict)
    unreadable: tuple[int, BaseException] | None = None

    @property
    def coverage_text(self) -> str:
        """Text of the number of samples that were read."""
        return f"{self.num_sampled} of {len(self.part.indices)} samples of the {self.part.split} part"

    @property
    def is_whole(self) -> bool:
        """True if every sample of the split was read."""
        return self.num_sampled == len(self.part.indices)


def collect_statistics(part: DataSubset, *, epoch: int = 0, seed: int = 0, is_quick: bool = False) -> PartStatistics:
    """Collect statistics of evenly spaced samples of a split, before transforms, as many as their size determines.

    Samples that are much slower to read than usual ones end a survey; four are read in any time.
    """
    result = PartStatistics(part)
    start_seconds, start_time = compute_seconds(), time.perf_counter()
    most_samples = _MAX_SAMPLES if is_quick else len(part.indices)
    chunks = evenly_spaced_keys(part, epoch=epoch, seed=seed, most_samples=most_samples)
    size = _MIN_SAMPLES if _serves_batches(part.dataset) else 1
    for keys in (chunk[start : start + size] for chunk in chunks for start in range(0, len(chunk), size)):
        samples = attempt("reading", read_samples, {"dataset": part.dataset, "keys": keys})
        if isinstance(samples, MissingError):
            result.unreadable = _find_unreadable(part.dataset, keys)
            break
        for key, sample in zip(keys, samples, strict=True):
            _add_sample(result, key.index, sample)
        waited_s = time.perf_counter() - start_time
        is_late = compute_seconds() - start_seconds > _MAX_SECONDS or waited_s > _MAX_WAIT * _MAX_SECONDS
        most = count_to_read(count_bytes(samples[-1]), is_quick=is_quick)
        if result.num_sampled >= (_MIN_SAMPLES if is_late else most):
            break
    return result


def count_to_read(num_bytes: int, *, is_quick: bool) -> int:
    """Return how many samples of a size a survey reads."""
    return next(quick if is_quick else count for size, count, quick in _NUM_READ if num_bytes <= size)


def count_bytes(sample: Sample) -> int:
    """Count the bytes of a sample's numbers."""
    return sum(tensor.nbytes for value in sample.values() for _, tensor in array_leaves(value))


def _add_sample(result: PartStatistics, index: int, sample: Sample) -> None:
    if BOX_FIELDS.keys() <= sample.keys():
        pixels = {"image": None, "image_px": torch.tensor(sample["image"].shape[:2]), "sample_index": index}
        result.boxed.append({**sample, **pixels})
        sample = {**sample, "label": _drop_ignored(sample["label"], sample["is_ignored"])}
    for name, value in sample.items():
        if name != "sample_index":
            statistics = result.fields.setdefault(name, FieldStatistics())
            statistics.add(index, name, value)
            field = result.part.dataset.info.fields.get(name)
            if field is not None and field.unit == UNIT_VECTOR and isinstance(value, Tensor) and value.ndim > 1:
                statistics.add_lengths(value)
    labelling = _count_labels(index, sample)
    if labelling is not None:
        result.labellings.append(labelling)
    for name in result.part.dataset.info.fields.keys() - sample.keys():
        result.absent.setdefault(name, []).append(index)
    result.num_sampled += 1


def _drop_ignored(label: Tensor, is_ignored: Tensor) -> Tensor:
    return label[~is_ignored] if label.shape == is_ignored.shape and is_ignored.dtype == torch.bool else label


def _count_labels(index: int, sample: Sample) -> SampleLabelCounts | None:
    """Count the labels of one sample; None without integer labels."""
    label, category = _to_integers(sample.get("label")), _to_integers(sample.get("category"))
    if label is None:
        return None
    category_index = int(category) if category is not None and category.ndim == 0 else None
    if label.ndim == 0:
        return SampleLabelCounts(index, category_index, label[None], np.ones(1, dtype=np.int64))
    classes, counts = np.unique(label, return_counts=True)
    return SampleLabelCounts(index, category_index, classes, counts)


def _to_integers(value: Any) -> np.ndarray | None:
    """Convert a value to an array of integers; None if it is not an integer array."""
    tensors = [tensor for _, tensor in array_leaves(value)]
    if len(tensors) != 1 or isinstance(value, Mapping | list | tuple):
        return None
    is_number = not tensors[0].is_floating_point() and not tensors[0].is_complex() and tensors[0].dtype != torch.bool
    return tensors[0].long().cpu().numpy() if is_number else None


def _find_unreadable(dataset: Dataset, keys: Sequence[SampleKey]) -> tuple[int, BaseException] | None:
    """Return the first sample that cannot be read, with its error; the first one if only all together cannot."""
    for part in (*([key] for key in keys), keys):
        missing = attempt("reading", read_samples, {"dataset": dataset, "keys": part})
        if isinstance(missing, MissingError) and missing.__cause__ is not None:
            return part[0].index, missing.__cause__
    return None


def read_samples(dataset: Dataset, keys: Sequence[SampleKey]) -> list[Sample]:
    """Read samples before any transform; as rows of a batch if the data set reads batches of equal shapes."""
    if not _serves_batches(dataset) or dataset.get_batch is None:
        return [dataset[key] for key in keys]
    batch = dataset.get_batch(keys)
    return [{name: value[row] for name, value in batch.items()} for row in range(len(keys))]


def _serves_batches(dataset: Dataset) -> bool:
    is_stacked = all(promise.collate == "stack" for promise in dataset.info.fields.values())
    return dataset.get_batch is not None and is_stacked


def all_labels(survey: PartStatistics) -> np.ndarray | None:
    """Return the label of every sample of a split (N,) from the strata of the data set; None if strata are not labels.

    Strata may be any grouping for stratified splits: they must equal the labels of all samples that were read.
    """
    strata = survey.part.dataset.strata
    if strata is None or not survey.labellings or set(survey.fields["label"].shapes) != {()}:
        return None
    if not all(int(strata[labelling.sample]) == int(labelling.classes[0]) for labelling in survey.labellings):
        return None
    indices = survey.part.indices  # `empty-loader` reports those of another data set
    return np.asarray(strata)[indices[indices < len(strata)]]


def parts_by_category(facts: Mapping[str, Any]) -> list[list[int]] | None:
    """Return the parts of each category if labels are parts; None otherwise, also for sets with `num_parts`."""
    if "parts_of_category" not in facts or "num_parts" in facts:
        return None
    return [list(parts) for parts in facts["parts_of_category"]]


def distinct_parts(data: Data) -> list[DataSubset]:
    """Return the splits of a run without duplicates."""
    parts: list[DataSubset] = []
    for part in (data.train, data.selection, data.test):
        if not any(part.dataset is other.dataset and np.array_equal(part.indices, other.indices) for other in parts):
            parts.append(part)
    return parts


def describe_sample(dataset: Dataset, index: int) -> str:
    """Format a sample as its index, with its name or file if the data set has one."""
    name = dataset.sample_name(index)
    return f"sample {index}" if name == str(index) else f"sample {index} ({name})"


def evenly_spaced_keys(
    part: DataSubset, *, epoch: int, seed: int, most_samples: int = _MAX_SAMPLES
) -> Iterator[list[SampleKey]]:
    """Yield the keys of up to 256 samples in chunks that are each spread evenly over the split.

    If reading ends early, the samples still cover the whole split.
    """
    indices = part.evenly_spaced_indices(most_samples)
    num_chunks = -(-len(indices) // _CHUNK_SIZE)
    for start in range(num_chunks):
        yield [SampleKey(int(index), epoch, seed) for index in indices[start::num_chunks]]


def class_axis(logits: Tensor, label: Tensor) -> int | None:
    """Return the axis of `logits` without which it has the shape of `label` (the last of several); None without one."""
    axes = [
        axis
        for axis in range(logits.ndim)
        if logits.ndim == label.ndim + 1 and logits.shape[:axis] + logits.shape[axis + 1 :] == label.shape
    ]
    return axes[-1] if axes else None


class ClassCounts(NamedTuple):
    """Counts per class of a split: `targets` (points or samples) of the class, and `samples` that contain it.

    `looked_at` states how many samples were counted; `is_whole` is True if these were all samples. Of `num_labelled`
    samples with labels of points, `num_single` contain one class only.
    """

    split: str
    targets: np.ndarray
    samples: np.ndarray
    looked_at: str
    is_whole: bool
    num_single: int = 0
    num_labelled: int = 0


def count_classes(survey: PartStatistics) -> ClassCounts | None:
    """Count the classes of a split; None without class labels."""
    num_classes = survey.part.dataset.info.facts.get("num_classes")
    if not isinstance(num_classes, int) or not survey.labellings:
        return None
    split, size = survey.part.split, len(survey.part.indices)
    labels = all_labels(survey)
    if labels is not None:
        counts = np.bincount(labels[(labels >= 0) & (labels < num_classes)].astype(np.int64), minlength=num_classes)
        return ClassCounts(split, counts, counts, f"{size} of {size} samples of the {split} part", is_whole=True)
    targets, samples = np.zeros(num_classes, dtype=np.int64), np.zeros(num_classes, dtype=np.int64)
    ignored = survey.part.dataset.info.facts.get("ignore_index")
    num_single = num_labelled = 0
    for labelling in survey.labellings:
        is_class = (labelling.classes >= 0) & (labelling.classes < num_classes) & (labelling.classes != ignored)
        targets[labelling.classes[is_class]] += labelling.counts[is_class]
        samples[labelling.classes[is_class]] += 1
        if labelling.counts.sum() > 1:
            num_single += int(is_class.sum() == 1)
            num_labelled += 1
    return ClassCounts(split, targets, samples, survey.coverage_text, survey.is_whole, num_single, num_labelled)
