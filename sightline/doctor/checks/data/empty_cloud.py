"""Clouds without points, in the data or after a transform; ragged batches do not show them otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sightline.data.loading.sample_arrays import array_leaves
from sightline.doctor.checks.data.broken_fields import broken_field
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, Severity
from sightline.doctor.core.sample_statistics import PartStatistics, read_samples
from sightline.types import SampleKey

__all__ = ["empty_cloud"]


@check(
    "G6",
    "empty-cloud",
    "preflight",
    expected="at least one point: an empty cloud has no neighbours, no mean and no prediction",
)
def empty_cloud(context: Context) -> list[Finding]:
    """Every sampled cloud has at least one point, before and after the training transforms.

    Finds: Clouds without points, in the data or after a transform; ragged batches do not show them otherwise.

    If scans become range images, an empty scan is only a note: its image is empty and its loss 0.
    """
    findings = [finding for survey in context.statistics for finding in _sample_findings(context, survey)]
    return findings or list(_batch_findings(context))


def _sample_findings(context: Context, survey: PartStatistics) -> Iterator[Finding]:
    points = survey.fields.get("points")
    empty = {shape: index for shape, index in points.shapes.items() if 0 in shape[:1]} if points is not None else {}
    for shape, index in empty.items():
        yield broken_field(
            empty_cloud,
            context,
            survey,
            "points",
            "any",
            f"a sample of the {survey.part.split} part has no points",
            sample=index,
            measured=f"points of the shape {shape}",
            severity=_get_severity(context),
            action="repair the sample where the data set reads it, or leave it out",
        )


def _batch_findings(context: Context) -> Iterator[Finding]:
    """Find clouds of the first training batch that are empty, and whether a transform emptied them."""
    batch = context.dry_run.batch
    offsets, points, index = batch.get("offsets"), batch.get("points"), batch.get("sample_index")
    if not isinstance(points, Tensor) or not isinstance(index, Tensor):
        return
    if isinstance(offsets, Tensor) and offsets.ndim == 1 and len(offsets) == len(index) + 1:
        empty = (offsets.diff() == 0).nonzero().flatten().tolist()
        measured = f"offsets [{', '.join(map(str, offsets[:8].tolist()))}] have equal neighbours at index "
    elif points.ndim == 3 and points.shape[1] == 0:
        empty, measured = [0], f"points of the shape {tuple(points.shape)}, first at row "
    else:
        return
    if not empty:
        return
    sample = int(index[empty[0]])
    stored = _count_stored_points(context, sample)
    names = ", ".join(component.name for component in context.config.transforms.train) or "none"
    is_stored = stored == 0
    yield empty_cloud.finding(
        context,
        "a cloud of a training batch has no points",
        causes=("data.corrupt_sample", "data.sampling") if is_stored else ("data.sampling", "data.corrupt_sample"),
        at="data" if is_stored else "transforms.train",
        split="train",
        sample=sample,
        measured=f"{measured}{empty[0]}: sample {sample}"
        + ("" if stored is None else f", which has {stored} points before the transforms ({names})"),
        action="repair the sample, or leave it out" if is_stored else "let the crop keep at least one point of a cloud",
        severity=_get_severity(context),
        evidence={"field": "points", "looked_at": f"{len(index)} samples of the first step"},
    )


def _get_severity(context: Context) -> Severity:
    return "note" if "range_image" in context.built.data.train.reader.keys else "error"


def _count_stored_points(context: Context, index: int) -> int | None:
    """Count the points of a training sample before any transform; None if it has no `points`."""
    sample = read_samples(context.built.data.train.dataset, [SampleKey(index, 0, context.config.seed)])[0]
    return next((len(tensor) for _, tensor in array_leaves(sample.get("points")) if tensor.ndim), None)
