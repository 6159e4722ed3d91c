"""Samples that are not what their data set promises: layout, width, type, range and unit."""

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
_FAR_INSIDE = 1 / 50  # a range used to a fiftieth: the next unit down (cm to m, mm to m) gives 1/100 or 1/1000
_FAR_INSIDE_OF = {"mm": 1 / 200}
"""A camera that reaches 20 m sees a hand at 0.3 m, 1/67 of it; in centimetres it would be 1/670, in metres 1/67,000."""
_UNIT_FACTORS = {1000.0: "millimetres for metres", 0.001: "metres for millimetres", 255.0: "0..255 for 0..1"}


@check("G3", "channel-contract", "preflight")
def channel_contract(context: Context) -> list[Finding]:
    """Shape, type and range of each field are as declared; `in_channels` is the width of what the model is given."""
    findings: list[Finding] = []
    for survey in context.statistics:
        for name, promise in survey.part.dataset.info.fields.items():
            if name in survey.fields:
                findings += _of_field(context, survey, name, promise, survey.fields[name])
    return findings or [*_of_width(context), *_of_image(context)]


def _of_field(
    context: Context, survey: PartStatistics, name: str, promise: Field, found: FieldStatistics
) -> Iterator[Finding]:
    shape = next((s for s in found.shapes if not _fits(promise.shape, s)), None)
    if shape is not None:
        yield _of_shape(context, survey, name, promise, shape)
    dtype = next((d for d in found.dtypes if promise.shape != "any" and _kind(d) != _kind(promise.dtype)), None)
    if dtype is not None:
        yield broken_field(
            channel_contract,
            context,
            survey,
            name,
            "type",
            f"'{name}' is of type {dtype}, declared is {promise.dtype}",
            sample=found.dtypes[dtype],
            measured=dtype,
            expected=promise.dtype,
            action=f"convert '{name}' where it is read (and scale it, if 0..255 meant 0..1), or correct its Field",
        )
    if survey.part.dataset.info.facts.get(COUNTED_BY.get(name, "")) is None:  # classes are for `label-range`
        yield from _of_range(context, survey, name, promise, found)


def _of_shape(context: Context, survey: PartStatistics, name: str, promise: Field, shape: tuple[int, ...]) -> Finding:
    is_turned = len(shape) == 2 and _fits(promise.shape, shape[::-1])
    return broken_field(
        channel_contract,
        context,
        survey,
        name,
        "order of axes" if is_turned else "shape",
        f"'{name}' has the shape {shape}" + (", its axes exchanged" if is_turned else ""),
        sample=survey.fields[name].shapes[shape],
        measured=f"{shape}",
        expected=f"'{promise.shape}' (axes as declared in the field)",
        action="transpose it where it is read: channels come last"
        if is_turned
        else "correct the values that are read, or the Field",
    )


def _of_range(
    context: Context, survey: PartStatistics, name: str, promise: Field, found: FieldStatistics
) -> Iterator[Finding]:
    bounds = [bound for bound in (promise.low, promise.high) if bound is not None and math.isfinite(bound)]
    if not bounds or found.low > found.high:
        return
    largest = max(abs(bound) for bound in bounds)
    slack = _SLACK * largest if _kind(promise.dtype) == "float" else 0.0
    is_low = promise.low is not None and found.low < promise.low - slack
    is_high = promise.high is not None and found.high > promise.high + slack
    span = f"{found.low:.6g} .. {found.high:.6g}"
    declared = f"{promise.low} .. {promise.high} {promise.unit}".rstrip()
    if is_low or is_high:
        reach = max(abs(found.low), abs(found.high))
        unit = _unit_guess(reach / largest) if largest else ""
        yield broken_field(
            channel_contract,
            context,
            survey,
            name,
            "range",
            f"'{name}' leaves its declared range{unit and f': {unit}?'}",
            sample=found.low_at if is_low else found.high_at,
            measured=f"{span}, {reach / largest:.4g} times the largest bound" if largest else span,
            expected=declared,
            action=f"bring '{name}' to {promise.unit or 'the declared range'}, or correct its Field",
        )
        return
    reach = max(abs(found.low), abs(found.high))
    least = _FAR_INSIDE_OF.get(promise.unit, _FAR_INSIDE)
    if _kind(promise.dtype) == "float" and 0 < reach < least * largest:
        yield broken_field(
            channel_contract,
            context,
            survey,
            name,
            "unit",
            f"'{name}' fills {reach / largest:.1g} of its declared range: another unit?",
            sample=found.high_at if abs(found.high) == reach else found.low_at,
            measured=f"{span}, {reach / largest:.4g} of the largest bound",
            expected=f"{declared}; at least {least:g} of it in use",
            action=f"check whether '{name}' is in {promise.unit or 'the declared unit'}, or narrow its Field",
            severity="warning",
        )


def _of_width(context: Context) -> Iterator[Finding]:
    """`in_channels` = the widths of `points` and of the fields joined into `features`, of samples and of a batch."""
    survey = context.statistics[0]
    info = survey.part.dataset.info
    declared = info.facts.get("in_channels")  # of its samples; transforms that make other channels state their own
    joined = info.features or (("features",) if "features" in info.fields else ())
    widths = {name: _width(survey, name) for name in ("points", *joined)}
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
            measured=f"{parts} = {measured} channels{_first_layer(context)}",
            expected=f"in_channels = {declared} (a fact of the data set)",
            action="state the width of points and features as in_channels, or correct the columns that are read",
        )
        return
    transformed = _batch_width(context)
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
            measured=f"{transformed} channels in a batch, {parts} = {measured}{_first_layer(context)}",
            expected=f"in_channels = {declared} (a fact of the data set), as its samples have",
            action=f"look at what the transforms ({names}) or the set's own collate add to, or lose of, its features",
        )


def _of_image(context: Context) -> Iterator[Finding]:
    """Images that a transform makes have as many channels as it states."""
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
            f"the transforms say in_channels {stated}, their images have {image.shape[1]}",
            sample=int(part.indices[0]),
            measured=f"{image.shape[1]} channels in a batch{_first_layer(context)}",
            expected=f"in_channels = {stated} (a fact of the transforms {names})",
            action="state as in_channels what the transform makes",
        )


def _batch_width(context: Context) -> int | None:
    """The channels that the model is given in the first step: those of `points`, and of `features` where there are."""
    batch = context.dry_run.batch
    given = [batch[name] for name in ("points", "features") if name in batch]
    if not given or not all(isinstance(each, Tensor) and each.ndim in (2, 3) for each in given):
        return None
    return sum(each.shape[-1] for each in given)


def _width(survey: PartStatistics, name: str) -> int | None:
    shapes = survey.fields[name].shapes if name in survey.fields else {}
    widths = {shape[-1] for shape in shapes if len(shape) == 2}
    return widths.pop() if len(widths) == 1 else None


def _first_layer(context: Context) -> str:
    """The first layer with a width, for the message."""
    for name, module in context.built.job.model.named_modules():
        width = getattr(module, "in_features", None) or (name and getattr(module, "in_channels", None))
        if isinstance(width, int):
            return f"; the model's first layer '{name}' takes {width}"
    return ""


def _fits(declared: str, shape: tuple[int, ...]) -> bool:
    """Whether a shape matches words such as "points 3"; words stand for any number, "any" for any shape."""
    if declared == "any":
        return True
    words = declared.split()
    return len(words) == len(shape) and all(
        not word.isdecimal() or int(word) == size for word, size in zip(words, shape, strict=True)
    )


def _kind(dtype: str) -> str:
    """float, int, uint or bool: within one of these the width of a number changes no value that is in range."""
    name = dtype.rstrip("0123456789")
    return {"bfloat": "float", "uint": "int"}.get(name, name) if dtype != "uint8" else "uint"


def _unit_guess(ratio: float) -> str:
    for factor, words in _UNIT_FACTORS.items():
        if 0.5 * factor < ratio < 2 * factor:
            return words
    return ""
