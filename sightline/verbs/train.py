"""`sightline train`: a training run that reports to the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.doctor.core.finding import Finding
from sightline.engine.session import StopRequest
from sightline.training import launch_run
from sightline.training.launch_run import TrainRequest
from sightline.training.train_run import Reporter
from sightline.verbs.common import write_document
from sightline.verbs.output import print_note, show_evaluation, show_findings

__all__ = ["TerminalReporter", "TrainRequest", "train"]


class TerminalReporter(Reporter):
    """Prints what a run reports, and writes its figures to `json` where that is asked for."""

    def __init__(self, json: Path | None = None) -> None:
        self._json = json

    def note(self, text: str) -> None:
        """A line on standard error."""
        print_note(text)

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
    return launch_run.launch_training(request, TerminalReporter(request.json), stop=StopRequest())
