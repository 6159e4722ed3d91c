"""`sightline study` and `sightline sweep`: series of trainings, each with a table."""

from __future__ import annotations

import math
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.commands.look import StudyOptions, SweepOptions
from sightline.contract.dataset import Dataset
from sightline.contract.errors import UserError, assert_installed, join_some
from sightline.doctor.finding import Finding
from sightline.runs.output_files import assert_writable, write_document
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import TerminalReporter

_MAX_REASONS = 3


class SeriesReporter(TerminalReporter):
    """Reporter of a series of runs: lines and findings that repeat are printed once."""

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def note(self, text: str) -> None:
        """Print the lines that were not printed before."""
        for line in dict.fromkeys(text.split("\n")):
            if line not in self._printed:
                super().note(line)
        self._printed.update(text.split("\n"))

    def findings(self, findings: Sequence[Finding]) -> None:
        """Print the findings that were not printed before."""
        super().findings([finding for finding in findings if str(finding) not in self._printed])
        self._printed.update(map(str, findings))


class _TrialReporter(SeriesReporter):
    """Reporter without figures of the test part: a sweep that shows them invites to choose by them."""

    def evaluation(self, document: Mapping[str, Any], *, title: str, dataset: Dataset) -> None:
        """Print nothing."""


# --- study ------------------------------------------------------------------------------------------------------------


def study(options: StudyOptions) -> int:
    """Train all runs that are not done, and compare; return 0, 1 if one failed, or the exit code of a signal."""
    from sightline.workbench.series.study import NAME, Study

    if not options.configs:
        raise UserError("study: give a config, and what to vary")
    assert_writable(options.out / f"{NAME}.json", option="--out")
    planned = Study(options)
    for line in planned.notes:
        print_note(f"warning: {line}")
    document, code = planned(SeriesReporter())
    if document["rows"]:
        _show_study(document)
        print_note(f"written: {options.out / NAME}.json, {options.out / NAME}.svg")
    write_document(options.json, document)
    return code


def _show_study(document: Mapping[str, Any]) -> None:
    rows = [
        [*row["levels"].values(), len(row["values"]), row["mean"], _none_if_nan(row["std"]), row["min"], row["max"]]
        for row in document["rows"]
    ]
    title = f"{document['metric']} of the last weights on the test part ({document['mode']} is better)"
    show_table(title, (*document["factors"], "runs", "mean", "std", "lowest", "highest"), rows)
    verdict = {True: "beyond chance", False: "within chance", None: "one pair"}
    compared = [
        [
            f"{difference['factor']}: {difference['level']} less {difference['first']}",
            ", ".join(f"{name}={level}" for name, level in difference["others"].items()),
            difference["mean"],
            "" if math.isnan(difference["low"]) else f"{difference['low']:.4f} to {difference['high']:.4f}",
            verdict[difference["is_beyond_chance"]],
            f"{difference['num_better']} of {len(difference['pairs'])}",
        ]
        for difference in document["differences"]
    ]
    if compared:
        columns = ("difference", "at", "mean", "95 % interval", "it is", "better")
        show_table("paired by seed", columns, compared)


def _none_if_nan(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


# --- sweep ------------------------------------------------------------------------------------------------------------


def sweep(options: SweepOptions) -> int:
    """Run trials until none is left, print the table, and return 0, 1 without a finished trial, or a signal's code."""
    assert_installed("optuna", needed_by="sweep")
    from sightline.workbench.series.sweep import NAME, Sweep

    assert_writable(options.out / f"{NAME}.json", option="--out")
    planned = Sweep(options, _TrialReporter())
    for line in planned.notes:
        print_note(f"warning: {line}")
    document, code = planned()
    _show_sweep(document, options.plugins)
    print_note(f"written: {options.out / NAME}.json")
    write_document(options.json, document)
    return code


def _show_sweep(document: Mapping[str, Any], plugins: Sequence[Path]) -> None:
    part = "test part: test-selected" if document["part"] == "test" else "validation part"
    title = f"{document['metric']} on the {part} ({document['mode']} is better), {document['num_trials']} trials asked"
    keys = list(document["space"])
    rows = [
        (row["trial"], row["state"], row["value"], row["epoch"], *_list_values(row, keys), _locate(row))
        for row in document["trials"]
    ]
    show_table(title, ("trial", "state", "value", "epoch", *keys, "run"), rows)
    if document["num_running"]:
        print_note(f"trials that wait or run elsewhere: {document['num_running']}; the same command goes on with them")
    best = document["best"]
    if best is None:
        reasons = [row["reason"] or "its workers ended" for row in document["trials"] if row["state"] == "failed"]
        listed = join_some([*dict.fromkeys(reasons)], most=_MAX_REASONS, separator="; ")
        print_note(f"no trial is finished; {len(reasons)} failed{f': {listed}' if listed else ''}")
        if reasons and not document["num_running"]:
            is_over = len(document["trials"]) >= document["num_trials"]
            further = "ask for more by a larger --trials" if is_over else "the same command goes on"
            print_note(f"once the cause is mended, {further}")
        return
    figure = f"{document['metric']} {best['value']:.4f} at epoch {best['epoch']}"
    print_note(f"best: trial {best['trial']}, {figure}; its values, to paste:")
    sys.stdout.write(f"{shlex.join(best['overrides'])}\n")
    words = [document["config"], *document["overrides"]]
    flags = [word for plugin in plugins for word in ("--plugin", str(plugin))]
    print_note(f"train it again: {shlex.join(['sightline', 'train', *words, *best['overrides'], *flags])}")
    arms = ["--arm", "config=", "--arm", f"best={' '.join(best['overrides'])}"]  # read as YAML, not by a shell
    print_note(f"is it better? {shlex.join(['sightline', 'study', *words, *arms, *flags, '--out', 'DIR'])}")


def _locate(row: Mapping[str, Any]) -> str:
    """Return the folder of a trial, with its host if that is another one whose files are not here."""
    is_here = row["host"] in (None, socket.gethostname()) or Path(row["run"]).exists()
    return str(row["run"]) if is_here else f"{row['host']}:{row['run']}"


def _list_values(row: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    values = dict(override.split("=", 1) for override in row["overrides"])
    return [values.get(key, "") for key in keys]
