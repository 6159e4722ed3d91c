"""Samples that differ from what their data set declares: layout, width, type, range and unit."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from sightline.contract.types import Field
from sightline.workbench.check.context import Context, check, surveys
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain, is_within_factor
from sightline.workbench.check.core.sample_statistics import (
    FieldStatistics,
    PartStatistics,
    all_labels,
    broken_field,
    describe_position,
)

COUNTED_BY = {"label": "num_classes", "part": "num_parts", "category": "num_categories"}
"""Field with classes -> the fact with their number."""
_USUAL_IGNORES = (-100, -1, 255)


@check("label-range", "preflight", each=surveys)
def label_range(context: Context, survey: PartStatistics) -> Iterator[Fault]:
    """Each label is an integer from 0 to num_classes - 1, or the declared ignore index.

    Finds: Labels that are not classes: raw ids, an undeclared ignore value, numbers that are not integers.
    """
    facts = survey.part.dataset.info.facts
    for field, fact in COUNTED_BY.items():
        if field in survey.fields and isinstance(facts.get(fact), int):
            yield from _label_faults(survey, field, facts[fact], facts.get("ignore_index"))


def _label_faults(survey: PartStatistics, field: str, num_classes: int, ignore_index: int | None) -> Iterator[Fault]:
    statistics = survey.fields[field]
    wrong_dtypes = [dtype for dtype in statistics.dtypes if not dtype.startswith(("int", "uint"))]
    if wrong_dtypes:
        yield broken_field(
            survey,
            field,
            "type of classes",
            sample=statistics.dtypes[wrong_dtypes[0]],
            measured=wrong_dtypes[0],
            found=wrong_dtypes[0],
        )
        return
    values = _collect_values(survey, field, statistics)
    outside = {value: index for value, index in values.items() if value not in (*range(num_classes), ignore_index)}
    if outside:
        value, index = next(iter(sorted(outside.items(), key=lambda item: item[1])))
        is_ignore = ignore_index is None and len(outside) == 1 and value in _USUAL_IGNORES
        yield broken_field(
            survey,
            field,
            "class or ignored" if is_ignore else "class",
            sample=index,
            measured=f"{value}",
            detail=f"{describe_position(survey, field, index, value)}; {len(outside)} such values, "
            f"{len(values) - len(outside)} within range",
            found=value,
            allowed=f"0 .. {num_classes - 1} ({num_classes} classes)"
            + (f" or the ignore index {ignore_index}" if ignore_index is not None else ""),
            number=len(values),
            listed=sorted(values)[:12],
            evidence={"outside": sorted(outside)[:32]},
        )
    elif ignore_index is not None and set(values) == {ignore_index}:
        yield broken_field(
            survey,
            field,
            "not always ignored",
            measured=f"only the value {ignore_index} in {survey.coverage_text}",
        )


def _collect_values(survey: PartStatistics, field: str, statistics: FieldStatistics) -> dict[int, int]:
    """Collect every value and the first sample that has it: of the sampled, or of all if one per sample."""
    values = dict(statistics.values)
    labels = all_labels(survey) if field == "label" else None
    if labels is not None:
        distinct, first = np.unique(labels, return_index=True)
        for value, row in zip(distinct.tolist(), first, strict=True):
            values.setdefault(int(value), int(survey.part.indices[row]))
    return values


_SLACK = 2.0**-10  # of the largest bound: half precision rounds by 2^-11 of a value
_MIN_USED = 1 / 50  # of the declared range; a wrong unit (cm for m, mm for m) uses 1/100 or 1/1000 of it
_MIN_USED_BY_UNIT = {"mm": 1 / 200}
"""A camera that reaches 20 m sees a hand at 0.3 m, 1/67 of it; in centimetres it would be 1/670, in metres 1/67,000."""
_UNITS = tuple(
    Hypothesis("data.normalisation", text, partial(operator.mul, factor))
    for factor, text in (
        (1000.0, "millimetres for metres"),
        (0.001, "metres for millimetres"),
        (255.0, "0..255 for 0..1"),
    )
)


@check("channel-contract", "preflight")
def channel_contract(context: Context) -> list[Fault]:
    """Shape, type and range of each field are as declared; `in_channels` is the width of the model's input.

    Finds: Samples that differ from what their data set declares: layout, width, type, range and unit.
    """
    faults = [
        fault
        for survey in context.statistics
        for name, field in survey.part.dataset.info.fields.items()
        if name in survey.fields
        for fault in _field_faults(survey, name, field, survey.fields[name])
    ]
    return faults or [*_width_faults(context), *_image_faults(context)]


def _field_faults(survey: PartStatistics, name: str, field: Field, statistics: FieldStatistics) -> Iterator[Fault]:
    shape = next((shape for shape in statistics.shapes if not _is_shape_as_declared(field.shape, shape)), None)
    if shape is not None:
        is_transposed = len(shape) == 2 and _is_shape_as_declared(field.shape, shape[::-1])
        yield broken_field(
            survey,
            name,
            "order of axes" if is_transposed else "shape",
            sample=statistics.shapes[shape],
            measured=f"{shape}",
            shape=shape,
            declared=field.shape,
        )
    dtype = next(
        (d for d in statistics.dtypes if field.shape != "any" and _get_kind(d) != _get_kind(field.dtype)), None
    )
    if dtype is not None:
        yield broken_field(
            survey,
            name,
            "type",
            sample=statistics.dtypes[dtype],
            measured=dtype,
            found=dtype,
            declared=field.dtype,
        )
    if survey.part.dataset.info.facts.get(COUNTED_BY.get(name, "")) is None:  # classes are for `label-range`
        yield from _range_faults(survey, name, field, statistics)


def _range_faults(survey: PartStatistics, name: str, field: Field, statistics: FieldStatistics) -> Iterator[Fault]:
    bounds = [bound for bound in (field.low, field.high) if bound is not None and math.isfinite(bound)]
    if not bounds or statistics.low > statistics.high:
        return
    largest, is_float = max(abs(bound) for bound in bounds), _get_kind(field.dtype) == "float"
    slack = _SLACK * largest if is_float else 0.0
    is_low = field.low is not None and statistics.low < field.low - slack
    is_high = field.high is not None and statistics.high > field.high + slack
    span = f"{statistics.low:.6g} .. {statistics.high:.6g}"
    declared = f"{field.low} .. {field.high} {field.unit}".rstrip()
    reach = max(abs(statistics.low), abs(statistics.high))
    min_used = _MIN_USED_BY_UNIT.get(field.unit, _MIN_USED)
    if is_low or is_high:
        units = explain(reach, largest, _UNITS, likeness=is_within_factor(2)) if largest else []
        yield broken_field(
            survey,
            name,
            "range",
            sample=statistics.low_at if is_low else statistics.high_at,
            measured=f"{span}, {reach / largest:.4g} times the largest bound" if largest else span,
            guess=f": {units[0].text}?" if units else "",
            declared=declared,
            unit=field.unit or "the declared range",
        )
    elif is_float and 0 < reach < min_used * largest:
        yield broken_field(
            survey,
            name,
            "unit",
            sample=statistics.high_at if abs(statistics.high) == reach else statistics.low_at,
            measured=f"{span}, {reach / largest:.4g} of the largest bound",
            share=reach / largest,
            declared=declared,
            least=min_used,
            unit=field.unit or "the declared unit",
        )


def _width_faults(context: Context) -> Iterator[Fault]:
    """Find an `in_channels` that is not the width of `points` plus joined features, in samples or in a batch."""
    survey = context.statistics[0]
    info = survey.part.dataset.info
    declared = info.facts.get("in_channels")  # of its samples; transforms that make other channels state their own
    joined = info.features or (("features",) if "features" in info.fields else ())
    widths = {name: _get_width(survey, name) for name in ("points", *joined)}
    if not isinstance(declared, int) or None in widths.values():
        return
    stored = sum(width for width in widths.values() if width is not None)
    parts = " + ".join(f"{name} {width}" for name, width in widths.items())
    layer, transformed = _describe_first_layer(context), _count_batch_channels(context)
    words: dict[str, Any] = {"sample": int(survey.part.indices[0]), "declared": declared}
    if stored != declared:
        measured = f"{parts} = {stored} channels{layer}"
        yield broken_field(survey, "points", "width of samples", measured=measured, number=stored, **words)
    elif transformed is not None and transformed != declared:
        measured = f"{transformed} channels in a batch, {parts} = {stored}{layer}"
        words |= {"number": transformed, "transforms": _list_transforms(context) or "none"}
        yield broken_field(survey, "points", "width of batches", measured=measured, **words)


def _list_transforms(context: Context) -> str:
    return ", ".join(component.name for component in context.config.transforms.train)


def _image_faults(context: Context) -> Iterator[Fault]:
    """Find transforms whose images do not have the `in_channels` that they state."""
    part, image = context.built.data.train, context.dry_run.batch.get("image")
    stated = part.reader.facts.get("in_channels")
    if isinstance(stated, int) and isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] != stated:
        yield broken_field(
            context.statistics[0],
            "image",
            "width of images",
            sample=int(part.indices[0]),
            measured=f"{image.shape[1]} channels in a batch{_describe_first_layer(context)}",
            declared=stated,
            number=image.shape[1],
            transforms=_list_transforms(context),
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
