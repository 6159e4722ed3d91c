"""`sightline sweep`: search the best values of config keys, with any number of workers."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.commands.look import SweepOptions
from sightline.contract.dataset import Dataset
from sightline.contract.errors import join_some
from sightline.runs.output_files import assert_writable, write_document
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import SeriesReporter
from sightline.workbench.study.sweep import NAME, Sweep

_MAX_REASONS = 3


class _TrialReporter(SeriesReporter):
    """Reporter without figures of the test part: a sweep that shows them invites to choose by them."""

    def evaluation(self, document: Mapping[str, Any], *, title: str, dataset: Dataset) -> None:
        """Print nothing."""


def sweep(options: SweepOptions) -> int:
    """Run trials until none is left, print the table, and return 0, 1 without a finished trial, or a signal's code."""
    assert_writable(options.out / f"{NAME}.json", option="--out")
    planned = Sweep(options, _TrialReporter())
    for line in planned.notes:
        print_note(f"warning: {line}")
    document, code = planned()
    _show(document, options.plugins)
    print_note(f"written: {options.out / NAME}.json")
    write_document(options.json, document)
    return code


def _show(document: Mapping[str, Any], plugins: Sequence[Path]) -> None:
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
