"""`sightline train`: a training run that reports to the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.doctor.core.finding import Finding
from sightline.engine.session import StopRequest
from sightline.studies import launching
from sightline.studies.launching import TrainRequest
from sightline.studies.train_run import Reporter
from sightline.verbs.common import write_document
from sightline.verbs.output import note, show_evaluation, show_findings

__all__ = ["Terminal", "TrainRequest", "train"]


class Terminal(Reporter):
    """Prints what a run reports, and writes its figures to `json` where that is asked for."""

    def __init__(self, json: Path | None = None) -> None:
        self._json = json

    def note(self, text: str) -> None:
        """A line on standard error."""
        note(text)

    def findings(self, findings: Sequence[Finding]) -> None:
        """Warnings and errors in full; notes are in findings.json."""
        show_findings([finding for finding in findings if finding.severity != "note"])

    def evaluation(self, document: Mapping[str, Any], *, title: str, dataset: object) -> None:
        """Tables on standard output."""
        show_evaluation(document, title=title, dataset=dataset)

    def finished(self, document: Mapping[str, Any]) -> None:
        """The file of `--json`."""
        write_document(self._json, document)


def train(request: TrainRequest) -> int:
    """Train what a config describes; the exit code. A signal is heeded to the end of the process."""
    return launching.train(request, Terminal(request.json), stop=StopRequest())
