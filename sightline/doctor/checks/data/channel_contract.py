"""Samples that differ from what their data set declares: layout, width, type, range and unit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from sightline.doctor.checks.data.broken_fields import broken_field
from sightline.doctor.checks.data.label_range import COUNTED_BY
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import FieldStatistics, PartStatistics
from sightline.types import Field

__all__ = ["channel_contract"]

_SLACK = 2.0**-10  # of the largest bound: half precision rounds by 2^-11 of a value
_MIN_USED = 1 / 50  # of the declared range; a wrong unit (cm for m, mm for m) uses 1/100 or 1/1000 of it
_MIN_USED_BY_UNIT = {"mm": 1 / 200}
"""A camera that reaches 20 m sees a hand at 0.3 m, 1/67 of it; in centimetres it would be 1/670, in metres 1/67,000."""
_UNIT_FACTORS = {1000.0: "millimetres for metres", 0.001: "metres for millimetres", 255.0: "0..255 for 0..1"}


@check("G3", "channel-contract", "preflight")
def channel_contract(context: Context) -> list[Finding]:
    """Shape, type and range of each field are as declared; `in_channels` is the width of the model's input.

    Finds: Samples that differ from what their data set declares: layout, width, type, range and unit.
    """
    findings: list[Finding] = []
    for survey in context.statistics:
        for name, field in survey.part.dataset.info.fields.items():
            if name in survey.fields:
                findings += _field_findings(context, survey, name, field, survey.fields[name])
    return findings or [*_width_findings(context), *_image_findings(context)]


def _field_findings(
    context: Context, survey: PartStatistics, name: str, field: Field, statistics: FieldStatistics
) -> Iterator[Finding]:
    shape = next((shape for shape in statistics.shapes if not _is_shape_as_declared(field.shape, shape)), None)
    if shape is not None:
        yield _finding_shape(context, survey, name, field, shape)
    dtype = next(
        (d for d in statistics.dtypes if field.shape != "any" and _get_kind(d) != _get_kind(field.dtype)), None
    )
    if dtype is not None:
        yield broken_field(
            channel_contract,
            context,
            survey,
            name,
            "type",
            f"'{name}' is of type {dtype}, its Field declares {field.dtype}",
            sample=statistics.dtypes[dtype],
            measured=dtype,
            expected=field.dtype,
            action=f"convert '{name}' where it is read (and scale it, if 0..255 meant 0..1), or correct its Field",
        )
    if survey.part.dataset.info.facts.get(COUNTED_BY.get(name, "")) is None:  # classes are for `label-range`
        yield from _range_findings(context, survey, name, field, statistics)


def _finding_shape(
    context: Context, survey: PartStatistics, name: str, field: Field, shape: tuple[int, ...]
) -> Finding:
    is_transposed = len(shape) == 2 and _is_shape_as_declared(field.shape, shape[::-1])
    return broken_field(
        channel_contract,
        context,
        survey,
        name,
        "order of axes" if is_transposed else "shape",
        f"'{name}' has the shape {shape}" + (", its axes exchanged" if is_transposed else ""),
        sample=survey.fields[name].shapes[shape],
        measured=f"{shape}",
        expected=f"'{field.shape}' (axes as declared in the field)",
        action="transpose it where it is read: channels come last"
        if is_transposed
        else "correct the values that are read, or the Field",
    )


def _range_findings(
    context: Context, survey: PartStatistics, name: str, field: Field, statistics: FieldStatistics
) -> Iterator[Finding]:
    bounds = [bound for bound in (field.low, field.high) if bound is not None and math.isfinite(bound)]
    if not bounds or statistics.low > statistics.high:
        return
    largest = max(abs(bound) for bound in bounds)
    slack = _SLACK * largest if _get_kind(field.dtype) == "float" else 0.0
    is_low = field.low is not None and statistics.low < field.low - slack
    is_high = field.high is not None and statistics.high > field.high + slack
    span = f"{statistics.low:.6g} .. {statistics.high:.6g}"
    declared = f"{field.low} .. {field.high} {field.unit}".rstrip()
    if is_low or is_high:
        reach = max(abs(statistics.low), abs(statistics.high))
        unit = _guess_unit(reach / largest) if largest else ""
        yield broken_field(
            channel_contract,
            context,
            survey,
            name,
            "range",
            f"'{name}' exceeds its declared range{unit and f': {unit}?'}",
            sample=statistics.low_at if is_low else statistics.high_at,
            measured=f"{span}, {reach / largest:.4g} times the largest bound" if largest else span,
            expected=declared,
            action=f"bring '{name}' to {field.unit or 'the declared range'}, or correct its Field",
        )
        return
    reach = max(abs(statistics.low), abs(statistics.high))
    min_used = _MIN_USED_BY_UNIT.get(field.unit, _MIN_USED)
    if _get_kind(field.dtype) == "float" and 0 < reach < min_used * largest:
        yield broken_field(
            channel_contract,
            context,
            survey,
            name,
            "unit",
            f"'{name}' uses {reach / largest:.1g} of its declared range: another unit?",
            sample=statistics.high_at if abs(statistics.high) == reach else statistics.low_at,
            measured=f"{span}, {reach / largest:.4g} of the largest bound",
            expected=f"{declared}; at least {min_used:g} of it in use",
            action=f"check whether '{name}' is in {field.unit or 'the declared unit'}, or narrow its Field",
            severity="warning",
        )


def _width_findings(context: Context) -> Iterator[Finding]:
    """Find an `in_channels` that is not the width of `points` plus joined features, in samples or in a batch."""
    survey = context.statistics[0]
    info = survey.part.dataset.info
    declared = info.facts.get("in_channels")  # of its samples; transforms that make other channels state their own
    joined = info.features or (("features",) if "features" in info.fields else ())
    widths = {name: _get_width(survey, name) for name in ("points", *joined)}
    if not isinstance(declared, int) or None in widths.values():
        return
    measured = sum(width for width in widths.values() if width is not None)
    parts = " + ".join(f"{name} {width}" for name, width in widths.items())
    if measured != declared:
        yield broken_field(
            channel_contract,
            context,
            survey,
            "points",
            "width",
            f"the data set states in_channels {declared}, its samples have {measured}",
            sample=int(survey.part.indices[0]),
            measured=f"{parts} = {measured} channels{_describe_first_layer(context)}",
            expected=f"in_channels = {declared} (a fact of the data set)",
            action="state the width of points and features as in_channels, or correct the columns that are read",
        )
        return
    transformed = _count_batch_channels(context)
    if transformed is not None and transformed != declared:
        names = ", ".join(component.name for component in context.config.transforms.train) or "none"
        yield broken_field(
            channel_contract,
            context,
            survey,
            "points",
            "width",
            f"the data set states in_channels {declared}, its training batches have {transformed}",
            sample=int(survey.part.indices[0]),
            measured=f"{transformed} channels in a batch, {parts} = {measured}{_describe_first_layer(context)}",
            expected=f"in_channels = {declared} (a fact of the data set), as its samples have",
            action=f"look at what the transforms ({names}) or the set's own collate add to its features, or drop",
        )


def _image_findings(context: Context) -> Iterator[Finding]:
    """Find transforms whose images do not have the `in_channels` that they state."""
    part, image = context.built.data.train, context.dry_run.batch.get("image")
    stated = part.reader.facts.get("in_channels")
    if isinstance(stated, int) and isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] != stated:
        names = ", ".join(component.name for component in context.config.transforms.train)
        yield broken_field(
            channel_contract,
            context,
            context.statistics[0],
            "image",
            "width",
            f"the transforms state in_channels {stated}, their images have {image.shape[1]}",
            sample=int(part.indices[0]),
            measured=f"{image.shape[1]} channels in a batch{_describe_first_layer(context)}",
            expected=f"in_channels = {stated} (a fact of the transforms {names})",
            action="state as in_channels what the transform makes",
        )


def _count_batch_channels(context: Context) -> int | None:
    """Count the channels of `points` and, if present, `features` in the first batch; None for other layouts."""
    batch = context.dry_run.batch
    tensors = [batch[name] for name in ("points", "features") if name in batch]
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.ndim in (2, 3) for tensor in tensors):
        return None
    return sum(tensor.shape[-1] for tensor in tensors)


def _get_width(survey: PartStatistics, name: str) -> int | None:
    shapes = survey.fields[name].shapes if name in survey.fields else {}
    widths = {shape[-1] for shape in shapes if len(shape) == 2}
    return widths.pop() if len(widths) == 1 else None


def _describe_first_layer(context: Context) -> str:
    """Describe the first layer that declares an input width, for the message."""
    for name, module in context.built.job.model.named_modules():
        width = getattr(module, "in_features", None) or (name and getattr(module, "in_channels", None))
        if isinstance(width, int):
            return f"; the model's first layer '{name}' takes {width}"
    return ""


def _is_shape_as_declared(declared: str, shape: tuple[int, ...]) -> bool:
    """Return True if a shape matches a declaration such as "points 3": names match any size, "any" any shape."""
    if declared == "any":
        return True
    dimensions = declared.split()
    return len(dimensions) == len(shape) and all(
        not dimension.isdecimal() or int(dimension) == size for dimension, size in zip(dimensions, shape, strict=True)
    )


def _get_kind(dtype: str) -> str:
    """Return the kind of a dtype, regardless of its width: "float", "int", "uint" (uint8 alone) or "bool"."""
    name = dtype.rstrip("0123456789")
    return {"bfloat": "float", "uint": "int"}.get(name, name) if dtype != "uint8" else "uint"


def _guess_unit(ratio: float) -> str:
    for factor, description in _UNIT_FACTORS.items():
        if 0.5 * factor < ratio < 2 * factor:
            return description
    return ""
