"""Findings of several processes and splits, in one list."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from sightline.doctor.finding import Finding, finding_from_dict
from sightline.engine.distributed import World


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


def join_parts(findings: Iterable[Finding]) -> list[Finding]:
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
