"""Findings of all processes as one list, and symptoms reported under the cause that explains them."""

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
_OF_BOTH_SETS = ("dataset-mismatch",)
"""What compares two sets comes after what names the one that is wrong."""
_FIRST_STEP = (*_STEP_AND_LOSS, "zero-learning-rate", "no-gradient")

_OF_METRICS = ("per-batch-metric", "absent-class-score")
_OF_LABELS = ("missing-category", "category-input", "untrained-class", "class-names")

# An error of the first check explains findings of the others; what may itself be explained comes later.
_EXPLAINS: dict[str, tuple[str, ...]] = {
    "empty-loader": (
        *(*_FIRST_STEP, "label-range", "channel-contract", "non-finite-data", "data-mutation"),
        *("empty-cloud", "label-outside-parts", *_OF_LABELS),
    ),
    "checkpoint-match": ("untrained-init", "feature-scale"),
    "missing-batch-keys": (*_FIRST_STEP, "missing-category"),
    "broken-offsets": (*_FIRST_STEP, *_OF_METRICS, "empty-cloud", "dataset-mismatch"),
    "empty-cloud": (*_FIRST_STEP, *_OF_METRICS, "dataset-mismatch"),
    "non-finite-data": _FIRST_STEP,
    "data-mutation": _OF_METRICS,
    "label-range": (*_FIRST_STEP, "untrained-class"),
    "label-outside-parts": (*_OF_LABELS, "first-evaluation"),
    "missing-category": (*_FIRST_STEP, "category-input"),
    "broken-boxes": (*_FIRST_STEP, *_OF_METRICS, "anchor-coverage", "unmatched-boxes", "prior-bias"),
    "channel-contract": (*_FIRST_STEP, "dataset-mismatch", "input-statistics", "projection-coverage"),
    "ignored-targets": ("initial-loss",),
    "class-weight-length": (*_STEP_AND_LOSS, *_OF_METRICS, "class-names"),
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
    """The gravest first. What an error explains is not reported again: it is listed in that error's evidence."""
    left = _joined(findings)
    merged: list[Finding] = []
    for code in _EXPLAINS:
        for cause in [f for f in left if f.severity == "error" and f.code == code]:
            symptoms = [f for f in left if f is not cause and _is_explained(f, cause)]
            left = [f for f in left if f is not cause and f not in symptoms]
            merged.append(_with(cause, "explains", [f"[{symptom.code}] {symptom.summary}" for symptom in symptoms]))
    return sorted([*merged, *left], key=lambda f: (_SEVERITIES.index(f.severity), f.code in _OF_BOTH_SETS))


def gather_findings(findings: Sequence[Finding], world: World) -> list[Finding]:
    """The findings of every process, the same list everywhere; one that several have is reported once. A collective."""
    if world.size == 1:
        return list(findings)
    texts = world.gather_text(json.dumps([f.to_dict() for f in findings], default=str), operation="findings")
    everyone: dict[tuple[str, str, str], Finding] = {}
    for rank, text in enumerate(texts):
        for document in json.loads(text):
            finding = finding_from_dict(document)
            key = (finding.code, finding.cause, str(finding.where))
            everyone.setdefault(key, _from_rank(finding, rank))
    return list(everyone.values())


def finding_from_dict(document: dict[str, Any]) -> Finding:
    """A finding from what `to_dict` gave."""
    return Finding(
        **{**document, "where": FindingLocation(**document["where"]), "alternatives": tuple(document["alternatives"])}
    )


def _from_rank(finding: Finding, rank: int) -> Finding:
    return finding if rank == 0 else dataclasses.replace(finding, where=dataclasses.replace(finding.where, rank=rank))


def _is_explained(finding: Finding, cause: Finding) -> bool:
    if finding.code in _EXPLAINS.get(cause.code, ()):
        return True
    field = cause.evidence.get("field")
    is_same_field = field is not None and finding.evidence.get("field") == field
    return is_same_field and finding.code in _SAME_FIELD.get(cause.code, ())


def _joined(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for the same fault of the same field in several parts of the data."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        field = finding.evidence.get("field")
        key = id(finding) if field is None else (finding.code, finding.cause, finding.severity, field)
        groups.setdefault(key, []).append(finding)
    return [_with(first, "also", [str(other.where) for other in others]) for first, *others in groups.values()]


def _with(finding: Finding, key: str, lines: Sequence[str]) -> Finding:
    """The finding with these lines among its evidence, if there are any."""
    return dataclasses.replace(finding, evidence={**finding.evidence, key: list(lines)}) if lines else finding
