"""Findings about fields whose values break their declaration, for all checks that look at single fields."""

from __future__ import annotations

from typing import Any

from sightline.doctor.context import Check, Context
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import PartStatistics, describe_sample

_CAUSES = {
    "shape": ("cfg.contract", "data.layout"),
    "order of axes": ("data.layout", "cfg.contract"),
    "width": ("cfg.contract", "data.layout"),
    "type": ("data.normalisation", "cfg.contract"),
    "type of classes": ("data.target_encoding", "data.label_mapping", "cfg.contract"),
    "range": ("data.normalisation", "data.corrupt_sample", "cfg.contract"),
    "unit": ("data.normalisation", "cfg.contract"),
    "class": ("data.label_mapping", "data.ignore_handling", "cfg.class_count"),
    "class or ignored": ("data.ignore_handling", "data.label_mapping", "cfg.class_count"),
    "not always ignored": ("data.ignore_handling", "data.label_mapping"),
    "finite": ("data.corrupt_sample", "data.normalisation", "data.missing_modality"),
    "any": ("data.corrupt_sample", "data.sampling"),
    "there": ("cfg.contract", "data.missing_modality"),
    "always there": ("data.missing_modality", "data.pairing"),
}
"""Property that a field lacks -> causes of the fault, the likeliest first."""


def broken_field(
    check: Check,
    context: Context,
    survey: PartStatistics,
    field: str,
    rule: str,
    summary: str,
    *,
    measured: str,
    sample: int | None = None,
    joined: str = "in",
    detail: str = "",
    evidence: dict[str, Any] | None = None,
    **fields: Any,
) -> Finding:
    """Build the finding about a field of a part, with the causes of the broken `rule`.

    If a `sample` shows the fault, `measured` is followed by the word `joined` and the sample's name; then by `detail`.
    """
    sample_text = "" if sample is None else f" {joined} {describe_sample(survey.part.dataset, sample)}"
    return check.finding(
        context,
        summary,
        causes=_CAUSES[rule],
        at="data",
        split=survey.part.split,
        sample=sample,
        measured=f"{measured}{sample_text}{detail}",
        evidence={"field": field, "looked_at": survey.coverage_text, **(evidence or {})},
        **fields,
    )
