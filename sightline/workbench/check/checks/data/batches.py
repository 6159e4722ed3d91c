"""Checks of a batch's fields: missing, misaligned, not finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.members import DataMembers, TaskMembers, TransformMembers
from sightline.contract.schema import suggest
from sightline.contract.types import Batch, Dataset, Field, SampleKey
from sightline.engine.batch_stream import BatchLoader
from sightline.engine.build import DataSubset
from sightline.store.loading.batch_reader import array_leaves
from sightline.workbench.check.context import Context, check, splits
from sightline.workbench.check.core.dry_run import NUM_SAMPLES, step_keys
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.core.sample_statistics import broken_field, read_samples
from sightline.workbench.check.core.transform_steps import get_transform

_diagnose = functools.partial(diagnose, __file__)
_NOT_READ_BY_NAME = ("sample_index", "offsets")


@check("missing-batch-keys", "preflight", config_path="data")
def missing_batch_keys(context: Context) -> list[Fault]:
    """Every declared field is in every sample, and every declared key is in the training batches.

    Finds: Keys that a data set declares and its samples lack, and keys of a plugin's set that nothing reads.
    """
    missing = [*_missing_field_faults(context)] or [*_missing_key_faults(context)]
    return missing or [*_unread_faults(context)]


def _missing_field_faults(context: Context) -> Iterator[Fault]:
    for survey in context.statistics:
        offered = sorted(survey.fields)
        for name, missing in survey.absent.items():
            yield broken_field(
                survey,
                name,
                "always there" if len(missing) < survey.num_sampled else "there",
                sample=missing[0],
                measured=", ".join(offered) or "nothing",
                detail=f"; {len(missing)} of {survey.num_sampled} samples lack '{name}'",
                suggestion=suggest(name, offered),
            )


def _missing_key_faults(context: Context) -> Iterator[Fault]:
    """Find keys that the reader declares and its batches lack: a collate or transform lost them."""
    batch, declared = context.dry_run.batch, context.built.data.train.reader.keys
    for name in sorted(declared - batch.keys()) if batch else ():
        words = {"name": name, "present": ", ".join(sorted(batch)), "declared": ", ".join(sorted(declared))}
        yield _diagnose("lost", evidence={"field": name}, **words)


def _unread_faults(context: Context) -> Iterator[Fault]:
    dry_run, dataset = context.dry_run, context.built.data.train.dataset
    if not dry_run.is_sound or type(dataset).__module__.startswith("sightline."):  # our sets serve several tasks
        return
    by_metrics = {name for meter in context.built.selection_evaluator.metrics for name in meter.update.names}
    by_name = dry_run.batch_reads | by_metrics | TaskMembers.extra_batch_keys.get(context.built.job.task)
    if "features" in by_name:  # these fields travel inside it
        by_name |= set(dataset.info.features)
    reads = dry_run.batch.keys() & by_name
    unread = [
        name
        for name in sorted(dry_run.batch.keys() - reads)
        if name not in _NOT_READ_BY_NAME and not name.endswith("_mask")
    ]
    if unread:
        yield _diagnose("unread", names=", ".join(map(repr, unread)), read=", ".join(sorted(reads)))


def is_read(context: Context, field: str) -> bool:
    """Return True if the first step, a metric or a transform that adds fields reads a field, or if no step succeeds."""
    dry_run, train = context.dry_run, context.built.data.train
    read = dry_run.batch_reads | {n for meter in context.built.selection_evaluator.metrics for n in meter.update.names}
    is_feature = "features" in read and field in train.dataset.info.features
    makers = [bound for bound in train.reader.transforms.functions if TransformMembers.adds.get(get_transform(bound))]
    is_taken = any(field in bound.names for bound in makers)  # others take a field only to move it along
    return not dry_run.is_sound or field in read or is_feature or is_taken


_MAX_SHOWN = 8


@check(
    "broken-offsets",
    "preflight",
    each=splits,
    causes=("data.layout", "cfg.contract", "data.padding"),
    config_path="data",
    expected="int64 (S+1,): 0, then the sum of all sizes up to each cloud; so the last is the number of points",
    action="mend `collate` or `get_batch` of the data set; fields with collate='concatenate' need neither",
)
def broken_offsets(context: Context, part: DataSubset) -> Fault | None:
    """Offsets start at 0, never fall, end with the number of points, and match the sizes of samples read alone.

    Finds: Offsets of a ragged batch that are not cumulative cloud sizes: not from 0, falling, not up to all points.
    """
    is_own_collate = _has_own_collate(part)
    if part.split == "train":
        reader, batch = context.built.job.stream.reader, context.dry_run.batch
        keys = step_keys(context.built.job, step=0)[: context.dry_run.num_samples]
    elif is_own_collate and "offsets" in part.reader.keys:
        reader, keys = part.reader, [SampleKey(int(i), 0, context.config.seed) for i in part.indices[:NUM_SAMPLES]]
        batch = _read(reader, keys)
    else:
        return None  # this package's collate computes offsets from the lengths
    fields = part.reader.fields
    for name in _list_offsets_names(fields, batch):
        fault = next(_find_faults(batch, name, _count_rows(fields, batch, name), len(keys)), None)
        sample = None
        if fault is None and is_own_collate:
            fault, sample = _compare_with_single_reads(reader, keys, batch[name], name)
        if fault is not None:
            values = batch[name].flatten().tolist() if isinstance(batch[name], Tensor) else [str(batch[name])]
            shown = ", ".join(map(str, values[:_MAX_SHOWN])) + (", .." if len(values) > _MAX_SHOWN else "")
            return Fault(
                f"offsets do not split a batch into its clouds: {fault}",
                sample=sample,
                measured=f"{fault}; {name} = [{shown}]",
                evidence={"field": name, "offsets": values[:64]},
            )
    return None


def _read(reader: BatchLoader, keys: Sequence[SampleKey]) -> Batch:
    try:
        return reader(keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return {}


def _has_own_collate(part: DataSubset) -> bool:
    """Return True if the data set builds its batches itself, without this package's collate."""
    return any(member.get(part.dataset) is not None for member in (DataMembers.collate, DataMembers.get_batch))


def _list_offsets_names(fields: Mapping[str, Field], batch: Batch) -> list[str]:
    names = {field.offsets for field in fields.values() if field.collate == "concatenate"}
    return sorted(name for name in {"offsets", *names} if name in batch)


def _count_rows(declared: Mapping[str, Field], batch: Mapping[str, Any], name: str) -> dict[str, int]:
    """Count the rows of each field that these offsets split; of `points` if no field declares a split."""
    fields = [key for key, field in declared.items() if field.collate == "concatenate" and field.offsets == name]
    fields = fields or (["points"] if name == "offsets" else [])
    return {key: len(batch[key]) for key in fields if isinstance(batch.get(key), Tensor) and batch[key].ndim > 0}


def _find_faults(batch: Batch, name: str, lengths: Mapping[str, int], num_samples: int) -> Iterator[str]:
    offsets = batch[name]
    if not isinstance(offsets, Tensor) or offsets.ndim != 1 or not len(offsets):
        yield f"'{name}' is not a list of numbers"
        return
    if offsets.is_floating_point() or offsets.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16):
        yield f"'{name}' is of type {str(offsets.dtype).removeprefix('torch.')}"
        return
    values = offsets.tolist()
    if values[0] != 0:
        yield f"'{name}' begins with {values[0]}, not with 0"
    falling_index = next((index for index in range(1, len(values)) if values[index] < values[index - 1]), None)
    if falling_index is not None:
        yield f"'{name}' falls from {values[falling_index - 1]} to {values[falling_index]} at index {falling_index}"
    if len(values) != num_samples + 1:
        yield f"'{name}' has {len(values)} numbers for {num_samples} samples"
    for key, length in lengths.items():
        if values[-1] != length:
            yield f"'{name}' ends with {values[-1]}, '{key}' has {length} rows"


def _compare_with_single_reads(
    reader: BatchLoader, keys: Sequence[SampleKey], offsets: Tensor, name: str
) -> tuple[str | None, int | None]:
    """Compare sizes in a batch with those of samples read alone; return the first fault and its sample, or None."""
    for key, size in zip(keys, offsets.diff().tolist(), strict=True):
        points = _read(reader, [key]).get("points")
        if isinstance(points, Tensor) and points.ndim == 2 and len(points) != size:
            return f"'{name}' gives sample {key.index} {size} points, read alone it has {len(points)}", key.index
    return None, None


@check("non-finite-data", "preflight")
def non_finite_data(context: Context) -> list[Fault]:
    """All sampled values are finite, before the transforms and in a training batch after them.

    Finds: NaN or infinity in the data, before or after its transforms.
    """
    stored = list(_stored_faults(context))
    reported = {fault.evidence["field"] for fault in stored}
    return stored + [fault for fault in _batch_faults(context) if fault.evidence["field"] not in reported]


def _may_be_nan(dataset: Dataset, name: str, value: float) -> bool:
    field = dataset.info.fields.get(name)
    return field is not None and field.may_be_nan and math.isnan(value)


def sample_of_element(batch: Mapping[str, Any], tensor: Tensor, position: tuple[int, ...]) -> int | None:
    """Return the sample index of an element of a batch tensor: by its row, or by the offsets of ragged fields."""
    indices = batch.get("sample_index")
    if indices is None or not position:
        return None
    if len(tensor) == len(indices):
        return int(indices[position[0]])
    offsets = batch.get("offsets")
    if isinstance(offsets, Tensor) and len(tensor) == int(offsets[-1]):
        return int(indices[int((offsets <= position[0]).sum()) - 1])
    return None


def _stored_faults(context: Context) -> Iterator[Fault]:
    dry_run = context.dry_run
    for survey in context.statistics:
        reads = dry_run.batch_reads | (
            set(survey.part.dataset.info.features) if "features" in dry_run.batch_reads else set()
        )
        for name, statistics in survey.fields.items():
            fault = statistics.non_finite
            if fault is None or _may_be_nan(survey.part.dataset, name, fault.value):
                continue
            is_read = name in reads or not dry_run.batch_reads
            yield broken_field(
                survey,
                name,
                "finite" if is_read else "finite, though unread",
                sample=fault.sample,
                measured=f"{fault.value} at {fault.leaf}{list(fault.position)}",
                joined="of",
                found=fault.value,
                number=statistics.num_non_finite,
                evidence={"samples": statistics.num_non_finite},
            )


class NonFiniteNumber(NamedTuple):
    """First NaN or infinity of a tensor in a batch: its key, leaf and position, and its sample if known."""

    key: str
    leaf: str
    position: tuple[int, ...]
    value: float
    sample: int | None
    num_bad: int
    size: int


def find_non_finite(
    batch: Mapping[str, Any], keys: Iterable[str], may_be_nan: Callable[[str], bool] = lambda key: False
) -> Iterator[NonFiniteNumber]:
    """Find the first number that is not finite of each tensor under these keys; NaN is allowed where declared."""
    for key in keys:
        for leaf, tensor in array_leaves(batch[key], key):
            is_unsound = ~tensor.isfinite()
            if may_be_nan(key):
                is_unsound &= ~tensor.isnan()
            if bool(is_unsound.any()):
                position = tuple(is_unsound.nonzero()[0].tolist())
                sample, num_bad = sample_of_element(batch, tensor, position), int(is_unsound.sum())
                yield NonFiniteNumber(key, leaf, position, float(tensor[position]), sample, num_bad, tensor.numel())


def _batch_faults(context: Context) -> Iterator[Fault]:
    """Find non-finite values in the first training batch, of which the transforms may be the cause."""
    batch, dataset = context.dry_run.batch, context.built.data.train.dataset
    names = ", ".join(component.name for component in context.config.transforms.train) or "none"
    for key in batch:
        number = next(find_non_finite(batch, [key], lambda name: _may_be_nan(dataset, name, math.nan)), None)
        if number is None:
            continue
        is_stored = number.sample is not None and _is_stored(context, number.sample)
        evidence = {"field": key, "samples": f"{context.dry_run.num_samples} of the first step"}
        words = {"key": key, "number": number, "position": list(number.position), "transforms": names}
        yield _diagnose("stored" if is_stored else "made", sample=number.sample, evidence=evidence, **words)


def _is_stored(context: Context, index: int) -> bool:
    """Return True if a training sample is not finite before any transform."""
    sample = read_samples(context.built.data.train.dataset, [SampleKey(index, 0, context.config.seed)])[0]
    return any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for _, tensor in array_leaves(sample))
