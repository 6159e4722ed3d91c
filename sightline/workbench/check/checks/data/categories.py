"""Checks of the categories of objects and their parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sightline.workbench.check.context import Context, check, surveys
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import (
    PartStatistics,
    SampleLabelCounts,
    describe_position,
    describe_sample,
    parts_by_category,
)

_MIN_SAMPLES = 8  # 8 samples of one category by chance: 16 ^ -7, with as many shapes in each of ShapeNet's 16


@check("missing-category", "preflight", config_path="data")
def missing_category(context: Context) -> Iterator[Fault]:
    """Samples of a part set have a `category`, of more than one value, and each category a list of parts.

    Finds: Part sets whose category is missing, always the same, or numbered differently from the facts.
    """
    facts = context.built.data.facts
    table = parts_by_category(facts)
    if table is None:
        return
    for measured, summary, expected in itertools.islice(_iter_table_faults(facts, table), 1):
        yield Fault(
            summary,
            causes=("cfg.class_count", "data.label_mapping"),
            split="train",
            measured=measured,
            expected=expected,
            action="correct the facts of the data set",
            evidence={"looked_at": "the facts of the data set"},
        )
    yield from _sample_faults(facts, context.statistics[0], len(table))


def _iter_table_faults(facts: Mapping[str, Any], table: list[list[int]]) -> Iterator[tuple[str, str, str]]:
    """Yield what is measured, summary and expectation of a wrong number of lists, or classes not in exactly one."""
    for fact in ("num_categories", "category_names"):
        count = facts.get(fact)
        stated = count if isinstance(count, int) else None if count is None else len(count)
        if stated is not None and stated != len(table):
            yield (
                f"parts_of_category: {len(table)}; {fact}: {stated}",
                f"parts_of_category has {len(table)} categories, {fact} {stated}",
                f"as many lists of parts as categories, {stated}",
            )
    num_classes = facts.get("num_classes")
    owners: dict[int, list[int]] = {}
    for category, parts in enumerate(table):
        for part in parts:
            owners.setdefault(part, []).append(category)
    shared = [(part, ids) for part, ids in sorted(owners.items()) if len(ids) > 1]
    missing = [part for part in range(num_classes) if part not in owners] if isinstance(num_classes, int) else []
    unknown = [part for part in owners if isinstance(num_classes, int) and not 0 <= part < num_classes]
    faults = [f"part {part} belongs to the categories {', '.join(map(str, ids))}" for part, ids in shared[:3]]
    faults += [f"part {part} belongs to none" for part in missing[:3]]
    faults += [f"part {part} is not one of the {num_classes} classes" for part in unknown[:3]]
    if faults:
        yield (
            "; ".join(faults),
            f"parts_of_category does not partition the classes: {faults[0]}",
            f"each of the {num_classes} classes in exactly one category",
        )


def _sample_faults(facts: Mapping[str, Any], survey: PartStatistics, num_categories: int) -> Iterator[Fault]:
    field, evidence = survey.fields.get("category"), {"looked_at": survey.coverage_text}
    if field is None and survey.num_sampled:
        yield Fault(
            f"the facts state {num_categories} categories, but samples have no 'category'",
            causes=("cfg.contract", "data.missing_modality"),
            split="train",
            measured=f"samples have {', '.join(sorted(survey.fields))}",
            expected="the key 'category', one integer for each sample: models take its one-hot, metrics its parts",
            action="return 'category' from the data set and name it in info.fields, or take parts_of_category out",
            evidence=evidence,
        )
    elif field is not None and len(field.values) == 1 and survey.num_sampled >= _MIN_SAMPLES and num_categories > 1:
        category = _format_class(facts, "category_names", next(iter(field.values)))
        yield Fault(
            f"'category' is {category} in every sampled training sample",
            severity="warning",
            causes=("data.sampling", "data.label_mapping", "data.ordering"),
            split="train",
            measured=f"one value in {survey.coverage_text}",
            expected=f"several of the {num_categories} categories",
            action="return each sample's own category; for a set of one category alone, state num_categories: 1",
            evidence=evidence,
        )


class _Stray(NamedTuple):
    """Sample with labels outside its category; `fits` is the only other category that has all of them, if any."""

    labelling: SampleLabelCounts
    parts: list[int]
    fits: int | None


@check("label-outside-parts", "preflight", each=surveys, config_path="data")
def label_outside_parts(context: Context, survey: PartStatistics) -> Fault | None:
    """Each label of a part set is one of the parts of its sample's category, or the ignore index.

    Finds: Labels of points that are not among the parts of the object's category.
    """
    facts = survey.part.dataset.info.facts
    table = parts_by_category(facts)
    if table is None:
        return None
    survey = context.thorough_statistics(survey)
    strays = list(_iter_strays(survey, table))
    if not strays:
        return None
    first, *_ = strays
    index, category, part = first.labelling.sample, first.labelling.category, first.parts[0]
    assert category is not None
    total = sum(labelling.category == category for labelling in survey.labellings)
    num_strays = sum(stray.labelling.category == category for stray in strays)
    causes, action = _diagnose(strays, is_systematic=2 * num_strays > total and total > 1)
    name = _format_class(facts, "category_names", category)
    return Fault(
        f"a sample of category {name} has the part {_format_class(facts, 'class_names', part)}, which is not one of "
        "its parts"
        + (
            ""
            if first.fits is None
            else f"; all its parts are those of {_format_class(facts, 'category_names', first.fits)}"
        ),
        causes=causes,
        sample=index,
        measured=f"{part} in "
        f"{describe_sample(survey.part.dataset, index)}{describe_position(survey, 'label', index, part)}; "
        f"{num_strays} of {total} samples of this category and {len(strays)} of {len(survey.labellings)} in all are so",
        expected=f"the parts of {name}: {', '.join(map(str, table[category]))}",
        action=action,
        evidence={
            "field": "label",
            "category": category,
            "outside": first.parts[:32],
            "samples": [stray.labelling.sample for stray in strays[:32]],
            "looked_at": survey.coverage_text,
        },
    )


def _iter_strays(survey: PartStatistics, table: list[list[int]]) -> Iterator[_Stray]:
    all_parts = {part for parts in table for part in parts}
    for labelling in survey.labellings:
        if labelling.category is None or not 0 <= labelling.category < len(table):
            continue  # `missing-category` and `label-range` report these
        labels = set(labelling.classes.tolist()) & all_parts  # `label-range` reports others
        outside = sorted(labels - set(table[labelling.category]))
        if outside:
            fitting = [number for number, parts in enumerate(table) if labels <= set(parts)]
            yield _Stray(labelling, outside, fitting[0] if len(fitting) == 1 else None)


def _diagnose(strays: list[_Stray], *, is_systematic: bool) -> tuple[tuple[str, ...], str]:
    """Return the causes (likeliest first) and the action.

    A wrong numbering sends a category to one other; labels of other samples are those of several.
    """
    fits: dict[int | None, set[int]] = {}
    for stray in strays:
        if stray.fits is not None:
            fits.setdefault(stray.labelling.category, set()).add(stray.fits)
    first, is_varied = strays[0], len(fits) > 1 and sum(len(found) > 1 for found in fits.values()) > len(fits) / 2
    if is_systematic and not is_varied:
        return (
            ("data.label_mapping", "data.pairing"),
            "correct the numbering of labels or categories, or the fact parts_of_category: most samples "
            "of the category are affected",
        )
    if first.fits is not None or is_varied:
        return ("data.pairing", "data.label_mapping"), "pair the sample with its own labels, or category"
    return ("data.corrupt_sample", "data.label_mapping"), "repair the labels of this sample, or leave it out"


def _format_class(facts: Mapping[str, Any], fact: str, number: int) -> str:
    names = facts.get(fact) or ()
    return f"{number} ({names[number]})" if 0 <= number < len(names) else str(number)
