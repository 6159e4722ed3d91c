"""`sightline study`: train and compare a grid of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sightline.commands.look import StudyOptions
from sightline.contract.errors import UserError
from sightline.runs.output_files import assert_writable, write_document
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import SeriesReporter
from sightline.workbench.study.grid import NAME, GridStudy


def study(options: StudyOptions) -> int:
    """Train all runs that are not done, and compare; return 0, 1 if one failed, or the exit code of a signal."""
    if not options.configs:
        raise UserError("study: give a config, and what to vary")
    assert_writable(options.out / f"{NAME}.json", option="--out")
    planned = GridStudy(options)
    for line in planned.notes:
        print_note(f"warning: {line}")
    document, code = planned(SeriesReporter())
    if document["rows"]:
        _show(document)
        print_note(f"written: {options.out / NAME}.json, {options.out / NAME}.svg")
    write_document(options.json, document)
    return code


def _show(document: Mapping[str, Any]) -> None:
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
