"""`sightline train`: a training run with a reporter for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.commands.run import TrainOptions
from sightline.contract.dataset import Dataset
from sightline.doctor.finding import Finding
from sightline.engine.watchdog import report_failure
from sightline.runs.output_files import write_document
from sightline.training.launch import launch_training
from sightline.training.stop_request import StopRequest
from sightline.training.train_result import Reporter
from sightline.verbs.opening import TRAINING_LINE
from sightline.verbs.output import print_note, show_evaluation, show_findings


class TerminalReporter(Reporter):
    """Reporter that prints to the terminal and writes the final figures to `json` if it is given."""

    def __init__(self, json: Path | None = None) -> None:
        self._json = json

    def note(self, text: str) -> None:
        """Print a line to standard error."""
        print_note(text)

    def doing(self, describe: Callable[[], str] | None) -> None:
        """Show it on one line of a terminal, elsewhere on a line now and then."""
        if describe is None:
            TRAINING_LINE.close()
        else:
            TRAINING_LINE.show(describe)

    def findings(self, findings: Sequence[Finding]) -> None:
        """Print warnings and errors in full; notes are in findings.json."""
        show_findings([finding for finding in findings if finding.severity != "note"])

    def evaluation(self, document: Mapping[str, Any], *, title: str, dataset: Dataset) -> None:
        """Print the tables to standard output."""
        show_evaluation(document, title=title, dataset=dataset)

    def final_document(self, document: Mapping[str, Any]) -> None:
        """Write the file of `--json`."""
        write_document(self._json, document)


def train(options: TrainOptions) -> int:
    """Train what a config describes and return the exit code; signals are handled until the process ends."""
    try:
        code, findings = launch_training(options, TerminalReporter(options.json), stop=StopRequest())
    finally:
        TRAINING_LINE.close()
    if code == 1 and findings:
        report_failure("nothing was trained: see the errors above; --no-check trains without checks", exit_code=1)
    return code
