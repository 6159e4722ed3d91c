"""Findings of a training in its folder, `findings.json`: of its start, then of its steps, what ended it first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline.contract.regular_files import parse_json, read_regular_file
from sightline.runs.run_directory import RunDirectory
from sightline.training.session import TrainingSession

if TYPE_CHECKING:
    from sightline.doctor.finding import Finding


def add_findings(directory: RunDirectory, *findings: Finding) -> None:
    """Write findings of a step after those that the run has."""
    if not directory.is_writer:
        return
    earlier_findings = parse_json(read_regular_file(directory.path / "findings.json"))
    directory.write_json("findings.json", [*earlier_findings, *(finding.to_dict() for finding in findings)])


def end_findings(session: TrainingSession, finding: Finding) -> None:
    """Write what ends a run before what was found in its training."""
    before = read_findings(session.directory, session.job.step + 1)
    session.directory.write_json("findings.json", [item.to_dict() for item in (finding, *before)])


def read_findings(directory: RunDirectory, step: int) -> tuple[Finding, ...]:
    """Read what earlier sessions of a run found in training up to a step."""
    from sightline.doctor.finding import finding_from_dict

    path = directory.path / "findings.json"
    documents = parse_json(read_regular_file(path)) if path.exists() else []
    earlier = [
        document
        for document in documents
        if document["phase"] == "runtime" and document["where"].get("step", 0) <= step
    ]
    return tuple(map(finding_from_dict, earlier))
