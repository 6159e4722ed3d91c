"""Causes compete: of findings that are broken together, those that named planted bugs explain the others.

`causes.json` is measured, by `python -m tests.doctor.signatures`, from the planted bugs of the table of cases. A
finding counts there by its code and first cause: how often this was the true one, and beside which others it alone was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sightline.doctor.finding import SEVERITIES, Finding


class Signatures(NamedTuple):
    """Of each code with a cause, the share of planted bugs that it named, and the findings that are its symptoms."""

    sureness: dict[str, float]
    symptoms: dict[str, list[str]]


@functools.cache
def read_signatures() -> Signatures:
    """Read the measured table."""
    return Signatures(**json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, the likeliest cause of the gravest first; those that it explains are in its evidence alone."""
    table = read_signatures()
    waiting, merged = [*findings], list[Finding]()

    def place(finding: Finding) -> tuple[float, ...]:
        is_symptom = any(_explains(other, finding, table) for other in waiting if other is not finding)
        return SEVERITIES.index(finding.severity), is_symptom, -table.sureness.get(get_key(finding), 0.5)

    while waiting:
        first = min(waiting, key=place)
        symptoms = [each for each in waiting if each is not first and _explains(first, each, table)]
        waiting = [each for each in waiting if each is not first and each not in symptoms]
        texts = [f"[{each.code}] {each.summary}" for each in symptoms]
        merged.append(dataclasses.replace(first, evidence={**first.evidence, "explains": texts}) if texts else first)
    return merged


def _explains(cause: Finding, finding: Finding, table: Signatures) -> bool:
    """Return True where a finding that is as grave has the cause of another, which is about nothing else."""
    if cause.severity == "note" or SEVERITIES.index(cause.severity) > SEVERITIES.index(finding.severity):
        return False
    places, fields = zip(*map(_list_places, (cause, finding)), strict=True)
    if any(None not in pair and pair[0] != pair[1] for pair in (places, fields)):
        return False
    return get_key(finding) in table.symptoms.get(get_key(cause), ())


def get_key(finding: Finding) -> str:
    """Return code and first cause of a finding."""
    return f"{finding.code} {finding.cause}"


def _list_places(finding: Finding) -> tuple[str | None, Any]:
    """Return the loss and the field of a batch that a finding is about; None for one of another place."""
    path = finding.where.config_path or ""
    return path if path.startswith("losses.") else None, finding.evidence.get("field")
