"""Merging of findings: one list for all processes, with symptoms listed under the error that explains them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.engine.distributed import World

__all__ = ["finding_from_dict", "gather_findings", "merge_findings"]

_SEVERITIES = ("error", "warning", "note")
_STEP_AND_LOSS = ("first-step", "first-evaluation", "non-finite", "initial-loss")
_SET_COMPARISONS = ("dataset-mismatch",)
"""Codes that compare two splits; they are listed after findings that name the faulty split."""
_FIRST_STEP = (*_STEP_AND_LOSS, "zero-learning-rate", "no-gradient")

_METRIC_CODES = ("per-batch-metric", "absent-class-score")
_LABEL_CODES = ("missing-category", "category-input", "untrained-class", "class-names")

# An error of the first check explains findings of the others; checks that others explain come later.
_EXPLAINS: dict[str, tuple[str, ...]] = {
    "empty-loader": (
        *(*_FIRST_STEP, "label-range", "channel-contract", "non-finite-data", "data-mutation"),
        *("empty-cloud", "label-outside-parts", *_LABEL_CODES),
    ),
    "checkpoint-match": ("untrained-init", "feature-scale"),
    "missing-batch-keys": (*_FIRST_STEP, "missing-category"),
    "broken-offsets": (*_FIRST_STEP, *_METRIC_CODES, "empty-cloud", "dataset-mismatch"),
    "empty-cloud": (*_FIRST_STEP, *_METRIC_CODES, "dataset-mismatch"),
    "non-finite-data": _FIRST_STEP,
    "data-mutation": _METRIC_CODES,
    "label-range": (*_FIRST_STEP, "untrained-class"),
    "label-outside-parts": (*_LABEL_CODES, "first-evaluation"),
    "missing-category": (*_FIRST_STEP, "category-input"),
    "broken-boxes": (*_FIRST_STEP, *_METRIC_CODES, "anchor-coverage", "unmatched-boxes", "prior-bias"),
    "channel-contract": (*_FIRST_STEP, "dataset-mismatch", "input-statistics", "projection-coverage"),
    "ignored-targets": ("initial-loss",),
    "class-weight-length": (*_STEP_AND_LOSS, *_METRIC_CODES, "class-names"),
    "class-names": ("untrained-class",),
    "negatives": ("initial-contrast",),
    "mismatched-views": ("mismatched-image", "initial-contrast"),
    "mismatched-image": ("initial-contrast",),
    "broken-codebook": (*_FIRST_STEP, "quantised-outputs", "rounding-gradient"),
    "unquantised-weights": ("quantised-outputs", "rounding-gradient"),
    "rounding-gradient": ("non-finite", "no-gradient", "zero-learning-rate"),
    "collapsed-features": ("initial-contrast", "no-gradient", "zero-learning-rate"),
    "first-step": ("first-evaluation", "initial-loss", "zero-learning-rate", "no-gradient"),
    "non-finite": ("initial-loss", "zero-learning-rate", "no-gradient"),
    "no-gradient": ("zero-learning-rate",),
    "per-batch-metric": ("absent-class-score",),
}
_SAME_FIELD: dict[str, tuple[str, ...]] = {
    "non-finite-data": ("channel-contract", "label-range"),
    "data-mutation": ("channel-contract",),
    "label-range": ("channel-contract",),
    "per-batch-metric": ("first-evaluation",),
}


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity; findings that an error explains are listed in its evidence only."""
    remaining = _join_parts(findings)
    merged: list[Finding] = []
    for code in _EXPLAINS:
        for cause in [finding for finding in remaining if finding.severity == "error" and finding.code == code]:
            symptoms = [finding for finding in remaining if finding is not cause and _is_explained(finding, cause)]
            remaining = [finding for finding in remaining if finding is not cause and finding not in symptoms]
            merged.append(
                _add_evidence(cause, "explains", [f"[{symptom.code}] {symptom.summary}" for symptom in symptoms])
            )
    return sorted(
        [*merged, *remaining],
        key=lambda finding: (_SEVERITIES.index(finding.severity), finding.code in _SET_COMPARISONS),
    )


def gather_findings(findings: Sequence[Finding], world: World) -> list[Finding]:
    """Gather the findings of all processes without duplicates; a collective, with the same result on every process."""
    if world.size == 1:
        return list(findings)
    texts = world.gather_text(json.dumps([f.to_dict() for f in findings], default=str), operation="findings")
    gathered: dict[tuple[str, str, str], Finding] = {}
    for rank, text in enumerate(texts):
        for document in json.loads(text):
            finding = finding_from_dict(document)
            key = (finding.code, finding.cause, str(finding.where))
            gathered.setdefault(key, _set_rank(finding, rank))
    return list(gathered.values())


def finding_from_dict(document: dict[str, Any]) -> Finding:
    """Build a finding from the output of `Finding.to_dict`."""
    return Finding(
        **{**document, "where": FindingLocation(**document["where"]), "alternatives": tuple(document["alternatives"])}
    )


def _set_rank(finding: Finding, rank: int) -> Finding:
    return finding if rank == 0 else dataclasses.replace(finding, where=dataclasses.replace(finding.where, rank=rank))


def _is_explained(finding: Finding, cause: Finding) -> bool:
    if finding.code in _EXPLAINS.get(cause.code, ()):
        return True
    field = cause.evidence.get("field")
    is_same_field = field is not None and finding.evidence.get("field") == field
    return is_same_field and finding.code in _SAME_FIELD.get(cause.code, ())


def _join_parts(findings: Iterable[Finding]) -> list[Finding]:
    """Join findings of the same fault and field in several splits into one."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        field = finding.evidence.get("field")
        key = id(finding) if field is None else (finding.code, finding.cause, finding.severity, field)
        groups.setdefault(key, []).append(finding)
    return [_add_evidence(first, "also", [str(other.where) for other in others]) for first, *others in groups.values()]


def _add_evidence(finding: Finding, key: str, lines: Sequence[str]) -> Finding:
    """Return the finding with the lines added to its evidence; unchanged if there are none."""
    return dataclasses.replace(finding, evidence={**finding.evidence, key: list(lines)}) if lines else finding
