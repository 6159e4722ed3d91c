"""Labels of points that are not among the parts of the object's category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import (
    PartStatistics,
    SampleLabelCounts,
    describe_position,
    describe_sample,
    parts_by_category,
)

__all__ = ["label_outside_parts"]


class _Stray(NamedTuple):
    """Sample with labels outside its category; `fits` is the only other category that has all of them, if any."""

    labelling: SampleLabelCounts
    parts: list[int]
    fits: int | None


@check("G4", "label-outside-parts", "preflight", config_path="data")
def label_outside_parts(context: Context) -> list[Finding]:
    """Each label of a part set is one of the parts of its sample's category, or the ignore index.

    Finds: Labels of points that are not among the parts of the object's category.
    """
    return [finding for survey in context.statistics for finding in _part_findings(context, survey)]


def _part_findings(context: Context, survey: PartStatistics) -> Iterator[Finding]:
    facts = survey.part.dataset.info.facts
    table = parts_by_category(facts)
    if table is None:
        return
    survey = context.thorough_statistics(survey)
    all_parts = {part for parts in table for part in parts}
    strays = []
    for labelling in survey.labellings:
        if labelling.category is None or not 0 <= labelling.category < len(table):
            continue  # `missing-category` and `label-range` report these
        labels = set(labelling.classes.tolist()) & all_parts  # `label-range` reports others
        outside = sorted(labels - set(table[labelling.category]))
        if outside:
            fitting = [number for number, parts in enumerate(table) if labels <= set(parts)]
            strays.append(_Stray(labelling, outside, fitting[0] if len(fitting) == 1 else None))
    if strays:
        yield _finding_strays(context, survey, table, strays)


def _finding_strays(
    context: Context, survey: PartStatistics, table: Sequence[Sequence[int]], strays: Sequence[_Stray]
) -> Finding:
    facts = survey.part.dataset.info.facts
    first = strays[0]
    index, category = first.labelling.sample, first.labelling.category
    assert category is not None
    total = sum(labelling.category == category for labelling in survey.labellings)
    num_strays = sum(stray.labelling.category == category for stray in strays)
    causes, detail, action = _diagnose(facts, first, is_systematic=2 * num_strays > total and total > 1)
    part = first.parts[0]
    return label_outside_parts.finding(
        context,
        f"a sample of category {_format_class(facts, 'category_names', category)} has the part "
        f"{_format_class(facts, 'class_names', part)}, which is not one of its parts{detail}",
        causes=causes,
        split=survey.part.split,
        sample=index,
        measured=f"{part} in "
        f"{describe_sample(survey.part.dataset, index)}{describe_position(survey, 'label', index, part)}; "
        f"{num_strays} of {total} samples of this category and {len(strays)} of {len(survey.labellings)} in all are so",
        expected=f"the parts of {_format_class(facts, 'category_names', category)}: "
        f"{', '.join(map(str, table[category]))}",
        action=action,
        evidence={
            "field": "label",
            "category": category,
            "outside": first.parts[:32],
            "samples": [stray.labelling.sample for stray in strays[:32]],
            "looked_at": survey.coverage_text,
        },
    )


def _diagnose(facts: Mapping[str, object], first: _Stray, *, is_systematic: bool) -> tuple[tuple[str, ...], str, str]:
    """Return the causes (likeliest first), a text on the category that the labels fit, and the action."""
    detail = (
        ""
        if first.fits is None
        else f"; all its parts are those of {_format_class(facts, 'category_names', first.fits)}"
    )
    if is_systematic:
        return (
            ("data.label_mapping", "data.pairing"),
            detail,
            "correct the numbering of labels or categories, or the fact parts_of_category: most samples "
            "of the category are affected",
        )
    if first.fits is not None:
        return (("data.pairing", "data.label_mapping"), detail, "pair the sample with its own labels, or category")
    return ("data.corrupt_sample", "data.label_mapping"), detail, "repair the labels of this sample, or leave it out"


def _format_class(facts: Mapping[str, object], fact: str, number: int) -> str:
    names = facts.get(fact) or ()
    return f"{number} ({names[number]})" if number < len(names) else str(number)  # type: ignore[arg-type, index]
