"""NaN or infinity in the data, before or after its transforms."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from sightline.data.loading.sample_arrays import array_leaves
from sightline.doctor.checks.data.broken_fields import broken_field
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import NonFinite, PartStatistics, read_samples
from sightline.types import Batch, Dataset, SampleKey

__all__ = ["non_finite_data", "sample_of_element"]


@check("G17", "non-finite-data", "preflight")
def non_finite_data(context: Context) -> list[Finding]:
    """All sampled values are finite, before the transforms and in a training batch after them.

    Finds: NaN or infinity in the data, before or after its transforms.
    """
    findings = [
        _finding_field(context, survey, name, statistics.non_finite, statistics.num_non_finite)
        for survey in context.statistics
        for name, statistics in survey.fields.items()
        if statistics.non_finite is not None and not _may_be_nan(survey.part.dataset, name, statistics.non_finite.value)
    ]
    reported = {finding.evidence["field"] for finding in findings}
    return findings + [finding for finding in _batch_findings(context) if finding.evidence["field"] not in reported]


def _may_be_nan(dataset: Dataset, name: str, value: float) -> bool:
    field = dataset.info.fields.get(name)
    return field is not None and field.may_be_nan and math.isnan(value)


def sample_of_element(batch: Batch, tensor: Tensor, position: tuple[int, ...]) -> int | None:
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


def _finding_field(context: Context, survey: PartStatistics, name: str, fault: NonFinite, count: int) -> Finding:
    dry_run = context.dry_run
    features = survey.part.dataset.info.features
    reads = dry_run.batch_reads | (set(features) if "features" in dry_run.batch_reads else set())
    is_read = name in reads or not dry_run.batch_reads
    return broken_field(
        non_finite_data,
        context,
        survey,
        name,
        "finite",
        f"'{name}' has {fault.value} in {count} of the samples looked at",
        severity="error" if is_read else "note",
        sample=fault.sample,
        measured=f"{fault.value} at {fault.leaf}{list(fault.position)}",
        joined="of",
        expected="finite numbers" + ("" if is_read else "; but neither model nor loss reads this field"),
        action="repair or leave out the sample where the data set reads it; mark missing values by a mask, not by NaN",
        evidence={"samples": count},
    )


def _batch_findings(context: Context) -> Iterator[Finding]:
    """Find non-finite values in the first training batch, of which the transforms may be the cause."""
    batch = context.dry_run.batch
    for key, value in batch.items():
        for leaf, tensor in array_leaves(value, key):
            is_unsound = ~tensor.isfinite()
            if _may_be_nan(context.built.data.train.dataset, key, math.nan):
                is_unsound &= ~tensor.isnan()
            if not bool(is_unsound.any()):
                continue
            position = tuple(is_unsound.nonzero()[0].tolist())
            yield _finding_leaf(context, key, leaf, tensor, position)
            break


def _finding_leaf(context: Context, key: str, leaf: str, tensor: Tensor, position: tuple[int, ...]) -> Finding:
    names = ", ".join(component.name for component in context.config.transforms.train) or "none"
    index = sample_of_element(context.dry_run.batch, tensor, position)
    is_stored = index is not None and _is_stored(context, index)
    causes = ("data.corrupt_sample", "data.normalisation") if is_stored else ("data.normalisation", "model.numerics")
    return non_finite_data.finding(
        context,
        f"'{key}' of a training batch has {float(tensor[position])}",
        causes=causes,
        at="data" if is_stored else "transforms.train",
        split="train",
        sample=index,
        measured=f"{float(tensor[position])} at {leaf}{list(position)}; before the transforms the sample "
        + ("has it too" if is_stored else "is finite"),
        expected=f"finite numbers after the transforms ({names})",
        action="repair or leave out the sample"
        if is_stored
        else "look for a division by zero in the transforms: a cloud of equal points, an empty crop",
        evidence={"field": key, "samples": f"{context.dry_run.num_samples} of the first step"},
    )


def _is_stored(context: Context, index: int) -> bool:
    """Return True if a training sample is not finite before any transform."""
    sample = read_samples(context.built.data.train.dataset, [SampleKey(index, 0, context.config.seed)])[0]
    return any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for _, tensor in array_leaves(sample))
