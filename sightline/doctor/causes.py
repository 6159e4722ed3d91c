"""Causes compete: of findings that are broken together, those that named planted bugs explain the others.

`causes.json` is measured, by `python -m tests.doctor.signatures`, from the planted bugs of the table of cases: beside
which others a finding alone named the bug, more often than they did. A finding counts by its code and first cause.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.doctor.finding import SEVERITIES, Finding


@functools.cache
def read_symptoms() -> dict[str, list[str]]:
    """Read the measured table: of a finding, those that are its symptoms."""
    table: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, the gravest first, and causes before symptoms, which are in the evidence of the first alone."""
    table = read_symptoms()
    waiting, merged = [*findings], list[Finding]()

    def place(finding: Finding) -> tuple[int, bool]:
        is_symptom = any(_explains(other, finding, table) for other in waiting if other is not finding)
        return SEVERITIES.index(finding.severity), is_symptom

    while waiting:
        first = min(waiting, key=place)
        symptoms = [each for each in waiting if each is not first and _explains(first, each, table)]
        waiting = [each for each in waiting if each is not first and each not in symptoms]
        texts = [f"[{each.code}] {each.summary}" for each in symptoms]
        merged.append(dataclasses.replace(first, evidence={**first.evidence, "explains": texts}) if texts else first)
    return merged


def _explains(cause: Finding, finding: Finding, table: Mapping[str, Sequence[str]]) -> bool:
    """Return True where a finding that is as grave has the cause of another, which is about nothing else.

    Two that measured the same state one event: an error of a part ends both a step and an evaluation.
    """
    if cause.severity == "note" or SEVERITIES.index(cause.severity) > SEVERITIES.index(finding.severity):
        return False
    places, fields = zip(*map(_list_places, (cause, finding)), strict=True)
    if any(None not in pair and pair[0] != pair[1] for pair in (places, fields)):
        return False
    is_same = cause.measured == finding.measured != "" and cause.code != finding.code
    return is_same or get_key(finding) in table.get(get_key(cause), ())


def get_key(finding: Finding) -> str:
    """Return code and first cause of a finding."""
    return f"{finding.code} {finding.cause}"


def _list_places(finding: Finding) -> tuple[str | None, Any]:
    """Return the loss and the field of a batch that a finding is about; None for one of another place."""
    path = finding.where.config_path or ""
    return path if path.startswith("losses.") else None, finding.evidence.get("field")
