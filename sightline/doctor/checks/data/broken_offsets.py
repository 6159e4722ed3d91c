"""Offsets of a ragged batch that are not its clouds' sizes: not from 0, not rising, not up to all points."""

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

_MOST_SHOWN = 8


@check("G6", "broken-offsets", "preflight", causes=("data.layout", "cfg.contract", "data.padding"), config_path="data")
def broken_offsets(context: Context) -> list[Finding]:
    """Offsets begin with 0, never fall, end with the number of points, and are the sizes that samples have alone."""
    findings = []
    for part in distinct_parts(context.built.data):
        reader = context.built.job.stream.reader if part.split == "train" else part.reader
        finding = next(_of_part(context, part, reader), None)
        findings += [finding] if finding is not None else []
    return findings


def _of_part(context: Context, part: DataSubset, reader: BatchLoader) -> Iterator[Finding]:
    is_own = _combines_itself(part)
    if part.split == "train":
        keys, batch = step_keys(context.built.job, step=0), context.dry_run.batch
        keys = keys[: context.dry_run.num_samples]
    elif is_own and "offsets" in part.reader.keys:
        keys = [SampleKey(int(index), 0, context.config.seed) for index in part.indices[:NUM_SAMPLES]]
        batch = _read(reader, keys)
    else:
        return  # the collate of this package adds up lengths
    fields = part.reader.fields
    for name in _names_of(fields, batch):
        fault = next(_faults(batch, name, _lengths(fields, batch, name), len(keys)), None)
        sample = None
        if fault is None and is_own:
            fault, sample = _against_alone(reader, keys, batch[name], name)
        if fault is not None:
            yield _of_offsets(context, part, name, fault, sample, batch[name])


def _read(reader: BatchLoader, keys: Sequence[SampleKey]) -> Batch:
    try:
        return reader(keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return {}


def _combines_itself(part: DataSubset) -> bool:
    """Whether batches are made by the data set's own code, and not by this package's collate."""
    return any(member.get(part.dataset) is not None for member in (DataMembers.collate, DataMembers.get_batch))


def _names_of(known: Mapping[str, Field], batch: Batch) -> list[str]:
    declared = {field.offsets for field in known.values() if field.collate == "concatenate"}
    return sorted(name for name in {"offsets", *declared} if name in batch)


def _lengths(known: Mapping[str, Field], batch: Mapping[str, Any], name: str) -> dict[str, int]:
    """How many rows the fields have that these offsets split; `points` where no field declares a split."""
    fields = [key for key, field in known.items() if field.collate == "concatenate" and field.offsets == name]
    fields = fields or (["points"] if name == "offsets" else [])
    return {key: len(batch[key]) for key in fields if isinstance(batch.get(key), Tensor) and batch[key].ndim > 0}


def _faults(batch: Batch, name: str, lengths: Mapping[str, int], num_samples: int) -> Iterator[str]:
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
    falling = next((place for place in range(1, len(values)) if values[place] < values[place - 1]), None)
    if falling is not None:
        yield f"'{name}' falls from {values[falling - 1]} to {values[falling]} at place {falling}"
    if len(values) != num_samples + 1:
        yield f"'{name}' has {len(values)} numbers for {num_samples} samples"
    for key, length in lengths.items():
        if values[-1] != length:
            yield f"'{name}' ends with {values[-1]}, '{key}' has {length} rows"


def _against_alone(
    reader: BatchLoader, keys: Sequence[SampleKey], offsets: Tensor, name: str
) -> tuple[str | None, int | None]:
    """Sizes in a batch against those of the same samples read one by one."""
    for key, size in zip(keys, offsets.diff().tolist(), strict=True):
        alone = _read(reader, [key]).get("points")
        if isinstance(alone, Tensor) and alone.ndim == 2 and len(alone) != size:
            return f"'{name}' gives sample {key.index} {size} points, alone it has {len(alone)}", key.index
    return None, None


def _of_offsets(context: Context, part: DataSubset, name: str, fault: str, sample: int | None, offsets: Any) -> Finding:
    values = offsets.flatten().tolist() if isinstance(offsets, Tensor) else [str(offsets)]
    shown = ", ".join(map(str, values[:_MOST_SHOWN])) + (", .." if len(values) > _MOST_SHOWN else "")
    return broken_offsets.finding(
        context,
        f"offsets split a batch into its clouds wrongly: {fault}",
        split=part.split,
        sample=sample,
        measured=f"{fault}; {name} = [{shown}]",
        expected="int64 (S+1,): 0, then the sum of all sizes up to each cloud; so the last is the number of points",
        action="mend `collate` or `get_batch` of the data set; fields with collate='concatenate' need neither",
        evidence={"field": name, "offsets": values[:64]},
    )
