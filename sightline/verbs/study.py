"""`sightline study`: train and compare a grid of runs, starts at several label fractions, or probes of several runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sightline.commands.look import StudyOptions
from sightline.contract.errors import UserError
from sightline.runs.run_directory import assert_writable, load_document, write_document
from sightline.verbs.output import print_note, show_table, split_options
from sightline.verbs.train import SeriesReporter, TerminalReporter
from sightline.workbench.probe.classifiers import split_words
from sightline.workbench.study.grid import NAME as GRID_NAME
from sightline.workbench.study.grid import GridStudy, parse_factors
from sightline.workbench.study.label_efficiency import COLUMNS, LabelShare, LabelStudy, table_cells
from sightline.workbench.study.label_efficiency import NAME as LABELS_NAME
from sightline.workbench.study.probe_suite import NAME as SUITE_NAME
from sightline.workbench.study.probe_suite import ProbeSuite, SuiteRequest
from sightline.workbench.study.study_runs import StudySettings

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
    document, code = planned(SeriesReporter())
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


# --- presets ---------------------------------------------------------------------------------------------------------


def run_preset(options: StudyOptions) -> int:
    """Run a ready-made study: starts at several label fractions, or probes of several runs."""
    preset = str(options.preset)
    for flag in options.list_flags(StudyOptions):
        if flag in ("--vary", "--arm", "--seeds", "--metric"):
            raise UserError(f"{flag}: is not an option of --preset {preset}; {_PRESET_OPTIONS[options.preset or '']}")
    return _study_labels(options) if preset == "labels" else _probe_runs(options)


_PRESET_OPTIONS = {
    "labels": "it takes from=RUN fractions=F,F,... seeds=N epochs=N",
    "probes": "it takes data=CONFIG finetune=CONFIG checkpoint=last random=1 cache=DIR",
}


def _study_labels(options: StudyOptions) -> int:
    """Train all runs that are not done, and compare; return 0, or the exit code of the first unfinished run."""
    if len(options.configs) != 1:
        raise UserError(f"study --preset labels: takes one config, {len(options.configs)} are given")
    values, overrides = split_options(options.overrides, ("from", "fractions", "seeds", "epochs"))
    assert_writable(options.out / f"{LABELS_NAME}.json", option="--out")
    setup = StudySettings(options.configs[0], options.plugins, options.device, options.processes)
    shares = _parse_shares(values, overrides)
    planned = LabelStudy(setup, shares, options.out, overrides=overrides, source=values.get("from"))
    for line in planned.notes:
        print_note(f"warning: {line}")
    result = planned(SeriesReporter())
    config = result.config
    title = f"{config.name}: {config.evaluate.metric} of the last weights on the test part"
    show_table(title, COLUMNS, map(table_cells, result.rows))
    if result.rows:
        print_note(f"written: {options.out / LABELS_NAME}.json, {options.out / LABELS_NAME}.svg")
        write_document(options.json, result.document)
    return result.code


def _parse_shares(values: Mapping[str, str], overrides: Sequence[str]) -> list[LabelShare]:
    """Parse the label fractions with their seeds and epochs. Raises UserError for invalid ones."""
    text = values.get("fractions", "0.01,0.05,0.1,1")
    fractions = _parse_numbers(text, "fractions", float)
    if list(fractions) != sorted(set(fractions)) or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"fractions={text}: give fractions above 0, at most 1, in ascending order without duplicates")
    for override in overrides:
        if override.partition("=")[0].strip() == "train.epochs" and "epochs" in values:
            raise UserError(f"study: found {override!r} and epochs={values['epochs']}; give one of them")
    seeds = _parse_per_fraction(values.get("seeds", "3"), "seeds", fractions)
    epochs: Sequence[int | None] = [None] * len(fractions)
    if "epochs" in values:
        epochs = _parse_per_fraction(values["epochs"], "epochs", fractions)
    return [LabelShare(*row) for row in zip(fractions, seeds, epochs, strict=True)]


def _parse_numbers(text: str, option: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}={text}: give numbers with commas between them") from None


def _parse_per_fraction(text: str, option: str, fractions: Sequence[float]) -> list[int]:
    numbers = _parse_numbers(text, option, int)
    if len(numbers) not in (1, len(fractions)) or min(numbers) < 1:
        raise UserError(f"{option}={text}: give one whole number from 1, or one for each of {len(fractions)} fractions")
    return numbers * len(fractions) if len(numbers) == 1 else numbers


def _probe_runs(options: StudyOptions) -> int:
    """Probe every run, fine-tune each on part segmentation if a config is given, and write one table.

    Returns 0, or the exit code of the first unfinished fine-tuning, such as 130 after an interrupt.
    """
    values, words = split_options(options.overrides, ("data", "finetune", "checkpoint", "random", "cache"))
    if (options.processes or 1) > 1:
        raise UserError("study --preset probes: runs in one process; by several: probe RUN --processes N")
    if len({run.resolve() for run in options.configs}) < len(options.configs):
        raise UserError("study --preset probes: a run is given twice")
    (num_random,) = _parse_per_fraction(values.get("random", "1"), "random", [1.0])
    paths = {name: Path(values[name]) if name in values else None for name in ("data", "cache", "finetune")}
    overrides, arguments = split_words(words)
    request = SuiteRequest(
        options.configs,
        options.out,
        tuple(overrides),
        tuple(arguments),
        checkpoint=values.get("checkpoint", "last"),
        num_random=num_random,
        plugins=options.plugins,
        device=options.device,
        **paths,
    )
    planned = ProbeSuite(request, TerminalReporter())
    code = planned()
    if code == 0:
        for row in planned.rows:
            figures = {name: value for name, value in row.metrics.items() if not name.endswith("_std")}
            rows = [[name, value, row.metrics.get(f"{name}_std")] for name, value in figures.items()]
            show_table(f"{row.who}, {row.data} ({row.source})", ("metric", "value", "std"), rows)
        table = options.out / SUITE_NAME
        print_note(f"table, protocols and their differences: {table}.md, {table}.json")
        write_document(options.json, load_document(Path(f"{table}.json")))
    return code
