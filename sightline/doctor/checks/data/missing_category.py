"""Part sets whose category is missing, always the same, or numbered differently from the facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import PartStatistics, parts_by_category

__all__ = ["missing_category"]

_MIN_SAMPLES = 8  # 8 samples of one category by chance: 16 ^ -7, with as many shapes in each of ShapeNet's 16


@check("G6", "missing-category", "preflight", config_path="data")
def missing_category(context: Context) -> list[Finding]:
    """Samples of a part set have a `category`, of more than one value, and each category a list of parts.

    Finds: Part sets whose category is missing, always the same, or numbered differently from the facts.
    """
    facts = context.built.data.facts
    table = parts_by_category(facts)
    if table is None:
        return []
    survey = context.statistics[0]
    return [*_table_findings(context, facts, table), *_sample_findings(context, survey, len(table))]


def _table_findings(context: Context, facts: Mapping[str, Any], table: list[list[int]]) -> Iterator[Finding]:
    """Find a `parts_of_category` with a wrong number of lists, or with classes that are not in exactly one."""
    for fact, count in (
        ("num_categories", facts.get("num_categories")),
        ("category_names", facts.get("category_names")),
    ):
        stated = count if isinstance(count, int) else None if count is None else len(count)
        if stated is not None and stated != len(table):
            yield _finding_facts(
                context,
                f"parts_of_category has {len(table)} categories, {fact} {stated}",
                f"parts_of_category: {len(table)}; {fact}: {stated}",
                f"as many lists of parts as categories, {stated}",
            )
            return
    num_classes = facts.get("num_classes")
    owners: dict[int, list[int]] = {}
    for category, parts in enumerate(table):
        for part in parts:
            owners.setdefault(part, []).append(category)
    shared = [(part, ids) for part, ids in sorted(owners.items()) if len(ids) > 1]
    missing = [part for part in range(num_classes) if part not in owners] if isinstance(num_classes, int) else []
    unknown = [part for part in owners if isinstance(num_classes, int) and not 0 <= part < num_classes]
    if shared or missing or unknown:
        faults = [f"part {part} belongs to the categories {', '.join(map(str, ids))}" for part, ids in shared[:3]]
        faults += [f"part {part} belongs to none" for part in missing[:3]]
        faults += [f"part {part} is not one of the {num_classes} classes" for part in unknown[:3]]
        yield _finding_facts(
            context,
            f"parts_of_category does not partition the classes: {faults[0]}",
            "; ".join(faults),
            f"each of the {num_classes} classes in exactly one category",
        )


def _sample_findings(context: Context, survey: PartStatistics, num_categories: int) -> Iterator[Finding]:
    field = survey.fields.get("category")
    if field is None and survey.num_sampled:
        yield missing_category.finding(
            context,
            f"the facts state {num_categories} categories, but samples have no 'category'",
            causes=("cfg.contract", "data.missing_modality"),
            split="train",
            measured=f"samples have {', '.join(sorted(survey.fields))}",
            expected="the key 'category', one integer for each sample: models take its one-hot, metrics its parts",
            action="return 'category' from the data set and name it in info.fields, or take parts_of_category out",
            evidence={"looked_at": survey.coverage_text},
        )
    elif field is not None and len(field.values) == 1 and survey.num_sampled >= _MIN_SAMPLES and num_categories > 1:
        value = next(iter(field.values))
        names = context.built.data.facts.get("category_names") or ()
        category = f"{value} ({names[value]})" if 0 <= value < len(names) else str(value)
        yield missing_category.finding(
            context,
            f"'category' is {category} in every sampled training sample",
            severity="warning",
            causes=("data.sampling", "data.label_mapping", "data.ordering"),
            split="train",
            measured=f"one value in {survey.coverage_text}",
            expected=f"several of the {num_categories} categories",
            action="return each sample's own category; for a set of one category alone, state num_categories: 1",
            evidence={"looked_at": survey.coverage_text},
        )


def _finding_facts(context: Context, summary: str, measured: str, expected: str) -> Finding:
    return missing_category.finding(
        context,
        summary,
        causes=("cfg.class_count", "data.label_mapping"),
        split="train",
        measured=measured,
        expected=expected,
        action="correct the facts of the data set",
        evidence={"looked_at": "the facts of the data set"},
    )
