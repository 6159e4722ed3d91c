"""Merging of findings: one list for all processes, with symptoms listed under the error that explains them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sightline.doctor.finding import SEVERITIES, Finding, finding_from_dict
from sightline.engine.distributed import World

_SET_COMPARISONS = ("dataset-mismatch",)
"""Codes that compare two splits; they are listed after findings that name the faulty split."""


@functools.cache
def _read_explanations() -> dict[str, dict[str, list[str]]]:
    """Read explanations.json: by condition and code of an error, the codes of findings that the error explains.

    The conditions: always, or of the same layer, first cause or field. A code that others explain comes after theirs.
    """
    path = Path(__file__).with_name("explanations.json")
    tables: dict[str, dict[str, list[str]]] = json.loads(path.read_text(encoding="utf-8"))
    groups = tables.pop("groups")

    def expand(words: Iterable[str]) -> list[str]:
        parts = (expand(groups[word[1:]]) if word.startswith("@") else [word] for word in words)
        return [code for part in parts for code in part]

    return {name: {code: expand(words) for code, words in table.items()} for name, table in tables.items()}


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity; findings that an error explains are listed in its evidence only."""
    remaining = _join_parts(findings)
    merged: list[Finding] = []
    for code in _read_explanations()["always"]:
        for cause in [finding for finding in remaining if finding.severity == "error" and finding.code == code]:
            symptoms = [finding for finding in remaining if finding is not cause and _is_explained(finding, cause)]
            remaining = [finding for finding in remaining if finding is not cause and finding not in symptoms]
            merged.append(
                _add_evidence(cause, "explains", [f"[{symptom.code}] {symptom.summary}" for symptom in symptoms])
            )
    return sorted(
        [*merged, *remaining],
        key=lambda finding: (SEVERITIES.index(finding.severity), finding.code in _SET_COMPARISONS),
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


def _set_rank(finding: Finding, rank: int) -> Finding:
    return finding if rank == 0 else dataclasses.replace(finding, where=dataclasses.replace(finding.where, rank=rank))


def _is_explained(finding: Finding, cause: Finding) -> bool:
    layer, field = cause.where.layer, cause.evidence.get("field")
    conditions = {
        "always": True,
        "same cause": finding.cause in (cause.cause, *cause.alternatives),
        "same layer": layer is not None and finding.where.layer == layer,
        "same field": field is not None and finding.evidence.get("field") == field,
    }
    tables = _read_explanations()
    return any(holds and finding.code in tables[name].get(cause.code, ()) for name, holds in conditions.items())


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
