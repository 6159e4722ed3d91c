"""`sightline study`: a grid of runs of any config, compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import UserError
from sightline.runs.output_files import assert_writable, write_document
from sightline.studies.grid import NAME, GridStudy, parse_factors
from sightline.studies.study_runs import StudySettings
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import TerminalReporter

__all__ = ["StudyOptions", "study"]


@dataclass(frozen=True)
class StudyOptions:
    """What the command line asked for."""

    configs: tuple[Path, ...]
    overrides: tuple[str, ...]
    out: Path
    vary: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: int = 3
    metric: str | None = None
    processes: int | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


def study(options: StudyOptions) -> int:
    """Run every cell that is not done, and compare; the exit code of the first run that did not come to its end."""
    if not options.configs:
        raise UserError("study: give a config, and what to vary")
    assert_writable(options.out / f"{NAME}.json", option="--out")
    setup = StudySettings(options.configs[0], options.plugins, options.device, options.processes)
    factors = parse_factors(options.configs, options.vary, options.arms)
    planned = GridStudy(
        setup, factors, options.out, num_seeds=options.seeds, overrides=options.overrides, metric=options.metric
    )
    for line in planned.notes:
        print_note(f"warning: {line}")
    document, code = planned(TerminalReporter())
    if document["rows"]:
        _show(document)
        print_note(f"written: {options.out / NAME}.json, {options.out / NAME}.svg")
        write_document(options.json, document)
    return code


def _show(document: Mapping[str, Any]) -> None:
    rows = [
        [*row["levels"].values(), len(row["values"]), row["mean"], _known(row["std"]), row["min"], row["max"]]
        for row in document["rows"]
    ]
    title = f"{document['metric']} of the last weights on the test part ({document['mode']} is better)"
    show_table(title, (*document["factors"], "runs", "mean", "std", "lowest", "highest"), rows)
    verdict = {True: "beyond chance", False: "within chance", None: "one pair"}
    compared = [
        [
            f"{each['factor']}: {each['level']} less {each['first']}",
            ", ".join(f"{name}={level}" for name, level in each["others"].items()),
            each["mean"],
            "" if math.isnan(each["low"]) else f"{each['low']:.4f} to {each['high']:.4f}",
            verdict[each["is_beyond_chance"]],
            f"{each['num_better']} of {len(each['pairs'])}",
        ]
        for each in document["differences"]
    ]
    if compared:
        columns = ("difference", "at", "mean", "95 % interval", "it is", "better")
        show_table("paired by seed", columns, compared)


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
