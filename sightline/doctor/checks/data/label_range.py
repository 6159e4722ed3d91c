"""Labels that are not classes: raw ids, an undeclared ignore value, numbers that are not integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sightline.doctor.checks.data.broken_fields import broken_field
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import FieldStatistics, PartStatistics, all_labels, describe_position

__all__ = ["COUNTED_BY", "label_range"]

COUNTED_BY = {"label": "num_classes", "part": "num_parts", "category": "num_categories"}
"""Field with classes -> the fact with their number."""
_USUAL_IGNORES = (-100, -1, 255)


@check("G4", "label-range", "preflight")
def label_range(context: Context) -> list[Finding]:
    """Each label is an integer from 0 to num_classes - 1, or the declared ignore index.

    Finds: Labels that are not classes: raw ids, an undeclared ignore value, numbers that are not integers.
    """
    findings: list[Finding] = []
    for survey in context.statistics:
        facts = survey.part.dataset.info.facts
        for field, fact in COUNTED_BY.items():
            if field in survey.fields and isinstance(facts.get(fact), int):
                findings += _field_findings(context, survey, field, facts[fact], facts.get("ignore_index"))
    return findings


def _field_findings(
    context: Context, survey: PartStatistics, field: str, num_classes: int, ignore_index: int | None
) -> Iterator[Finding]:
    statistics = survey.fields[field]
    wrong_dtypes = [dtype for dtype in statistics.dtypes if not dtype.startswith(("int", "uint"))]
    if wrong_dtypes:
        yield _finding_dtype(context, survey, field, wrong_dtypes[0], statistics.dtypes[wrong_dtypes[0]])
        return
    values = _collect_values(survey, field, statistics)
    outside = {value: index for value, index in values.items() if value not in (*range(num_classes), ignore_index)}
    if outside:
        yield _finding_values(context, survey, field, num_classes, ignore_index, values, outside)
    elif ignore_index is not None and set(values) == {ignore_index}:
        yield _finding_all_ignored(context, survey, field, ignore_index)


def _collect_values(survey: PartStatistics, field: str, statistics: FieldStatistics) -> dict[int, int]:
    """Collect every value and the first sample that has it: of the sampled, or of all if one per sample."""
    values = dict(statistics.values)
    labels = all_labels(survey) if field == "label" else None
    if labels is not None:
        distinct, first = np.unique(labels, return_index=True)
        for value, row in zip(distinct.tolist(), first, strict=True):
            values.setdefault(int(value), int(survey.part.indices[row]))
    return values


def _finding_values(
    context: Context,
    survey: PartStatistics,
    field: str,
    num_classes: int,
    ignore_index: int | None,
    values: Mapping[int, int],
    outside: Mapping[int, int],
) -> Finding:
    value, index = next(iter(sorted(outside.items(), key=lambda item: item[1])))
    is_ignore = ignore_index is None and len(outside) == 1 and value in _USUAL_IGNORES
    inside = len(values) - len(outside)
    remedy = f"map raw ids to classes in the data set (it shows the {len(values)} values {sorted(values)[:12]})"
    if is_ignore:
        remedy = f"state the fact ignore_index: {value} if these targets are to be left out, or map them to classes"
    return broken_field(
        label_range,
        context,
        survey,
        field,
        "class or ignored" if is_ignore else "class",
        f"'{field}' has the value {value}, which is not a class",
        sample=index,
        measured=f"{value}",
        detail=f"{describe_position(survey, field, index, value)}; {len(outside)} such values, {inside} within range",
        expected=f"0 .. {num_classes - 1} ({num_classes} classes)"
        + (f" or the ignore index {ignore_index}" if ignore_index is not None else ""),
        action=remedy,
        evidence={"outside": sorted(outside)[:32]},
    )


def _finding_dtype(context: Context, survey: PartStatistics, field: str, dtype: str, index: int) -> Finding:
    return broken_field(
        label_range,
        context,
        survey,
        field,
        "type of classes",
        f"'{field}' is of type {dtype}, but classes are integers",
        sample=index,
        measured=dtype,
        expected="an integer type; losses gather by it (int64)",
        action="convert labels to int64 where the data set reads them",
    )


def _finding_all_ignored(context: Context, survey: PartStatistics, field: str, ignore_index: int) -> Finding:
    return broken_field(
        label_range,
        context,
        survey,
        field,
        "not always ignored",
        f"every '{field}' that was looked at is the ignore index, so nothing is learned from it",
        severity="warning",
        measured=f"only the value {ignore_index} in {survey.coverage_text}",
        expected="some targets that are classes",
        action="look at the map from raw ids to classes: it sends all of them to the ignore index",
    )
