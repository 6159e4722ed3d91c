"""`sightline study` and `label-efficiency`: train and compare a grid of runs, or starts at several label fractions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sightline.commands.look import LabelEfficiencyOptions, StudyOptions
from sightline.errors import UserError
from sightline.runs.run_directory import assert_writable, write_document
from sightline.studies.grid import NAME as GRID_NAME
from sightline.studies.grid import GridStudy, parse_factors
from sightline.studies.label_efficiency import COLUMNS, LabelShare, LabelStudy, table_cells
from sightline.studies.label_efficiency import NAME as LABELS_NAME
from sightline.studies.study_runs import StudySettings
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import TerminalReporter

Number = TypeVar("Number", int, float)


def study(options: StudyOptions) -> int:
    """Train all runs that are not done, and compare; return 0, or the exit code of the first unfinished run."""
    if not options.configs:
        raise UserError("study: give a config, and what to vary")
    assert_writable(options.out / f"{GRID_NAME}.json", option="--out")
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
        print_note(f"written: {options.out / GRID_NAME}.json, {options.out / GRID_NAME}.svg")
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


# --- label-efficiency ------------------------------------------------------------------------------------------------


def label_efficiency(options: LabelEfficiencyOptions) -> int:
    """Train all runs that are not done, and compare; return 0, or the exit code of the first unfinished run."""
    assert_writable(options.out / f"{LABELS_NAME}.json", option="--out")
    setup = StudySettings(options.config, options.plugins, options.device, options.processes)
    study = LabelStudy(setup, _parse_shares(options), options.out, overrides=options.overrides, source=options.source)
    for line in study.notes:
        print_note(f"warning: {line}")
    result = study(TerminalReporter())
    config = result.config
    title = f"{config.name}: {config.evaluate.metric} of the last weights on the test part"
    show_table(title, COLUMNS, map(table_cells, result.rows))
    if result.rows:
        print_note(f"written: {options.out / LABELS_NAME}.json, {options.out / LABELS_NAME}.svg")
        write_document(options.json, result.document)
    return result.code


def _parse_shares(options: LabelEfficiencyOptions) -> list[LabelShare]:
    """Parse the label fractions with their seeds and epochs. Raises UserError for invalid ones."""
    fractions = _parse_numbers(options.fractions, "--fractions", float)
    if list(fractions) != sorted(set(fractions)) or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(
            f"--fractions {options.fractions}: give fractions above 0, at most 1, in ascending order without duplicates"
        )
    for override in options.overrides:
        if override.partition("=")[0].strip() == "train.epochs" and options.epochs is not None:
            raise UserError(f"label-efficiency: found {override!r} and --epochs {options.epochs}; give one of them")
    seeds = _parse_per_fraction(options.seeds, "--seeds", fractions)
    epochs = (
        [None] * len(fractions)
        if options.epochs is None
        else _parse_per_fraction(options.epochs, "--epochs", fractions)
    )
    return [LabelShare(*row) for row in zip(fractions, seeds, epochs, strict=True)]


def _parse_numbers(text: str, option: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between them") from None


def _parse_per_fraction(text: str, option: str, fractions: Sequence[float]) -> list[int]:
    numbers = _parse_numbers(text, option, int)
    if len(numbers) not in (1, len(fractions)) or min(numbers) < 1:
        raise UserError(f"{option} {text}: give one whole number from 1, or one for each of {len(fractions)} fractions")
    return numbers * len(fractions) if len(numbers) == 1 else numbers
