"""Offsets of a ragged batch that are not cumulative cloud sizes: not from 0, falling, not up to all points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import NUM_SAMPLES, step_keys
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import distinct_parts
from sightline.engine.batch_stream import BatchLoader
from sightline.engine.build import DataSubset
from sightline.optional_members import DataMembers
from sightline.types import Batch, Field, SampleKey

__all__ = ["broken_offsets"]

_MAX_SHOWN = 8


@check("G6", "broken-offsets", "preflight", causes=("data.layout", "cfg.contract", "data.padding"), config_path="data")
def broken_offsets(context: Context) -> list[Finding]:
    """Offsets start at 0, never fall, end with the number of points, and match the sizes of samples read alone.

    Finds: Offsets of a ragged batch that are not cumulative cloud sizes: not from 0, falling, not up to all points.
    """
    findings = []
    for part in distinct_parts(context.built.data):
        reader = context.built.job.stream.reader if part.split == "train" else part.reader
        finding = next(_part_findings(context, part, reader), None)
        findings += [finding] if finding is not None else []
    return findings


def _part_findings(context: Context, part: DataSubset, reader: BatchLoader) -> Iterator[Finding]:
    is_own_collate = _has_own_collate(part)
    if part.split == "train":
        keys, batch = step_keys(context.built.job, step=0), context.dry_run.batch
        keys = keys[: context.dry_run.num_samples]
    elif is_own_collate and "offsets" in part.reader.keys:
        keys = [SampleKey(int(index), 0, context.config.seed) for index in part.indices[:NUM_SAMPLES]]
        batch = _read(reader, keys)
    else:
        return  # this package's collate computes offsets from the lengths
    fields = part.reader.fields
    for name in _list_offsets_names(fields, batch):
        fault = next(_find_faults(batch, name, _count_rows(fields, batch, name), len(keys)), None)
        sample = None
        if fault is None and is_own_collate:
            fault, sample = _compare_with_single_reads(reader, keys, batch[name], name)
        if fault is not None:
            yield _finding_offsets(context, part, name, fault, sample, batch[name])


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


def _finding_offsets(
    context: Context, part: DataSubset, name: str, fault: str, sample: int | None, offsets: Any
) -> Finding:
    values = offsets.flatten().tolist() if isinstance(offsets, Tensor) else [str(offsets)]
    shown = ", ".join(map(str, values[:_MAX_SHOWN])) + (", .." if len(values) > _MAX_SHOWN else "")
    return broken_offsets.finding(
        context,
        f"offsets do not split a batch into its clouds: {fault}",
        split=part.split,
        sample=sample,
        measured=f"{fault}; {name} = [{shown}]",
        expected="int64 (S+1,): 0, then the sum of all sizes up to each cloud; so the last is the number of points",
        action="mend `collate` or `get_batch` of the data set; fields with collate='concatenate' need neither",
        evidence={"field": name, "offsets": values[:64]},
    )
