"""`sightline label-efficiency`: compare training from scratch with a pre-trained run at several label fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sightline.errors import UserError
from sightline.runs.output_files import assert_writable, write_document
from sightline.studies.label_efficiency import NAME, LabelShare, LabelStudy
from sightline.studies.label_table import COLUMNS, table_cells
from sightline.studies.study_runs import StudySettings
from sightline.verbs.output import print_note, show_table
from sightline.verbs.train import TerminalReporter

__all__ = ["LabelEfficiencyOptions", "label_efficiency"]

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LabelEfficiencyOptions:
    """Options of `sightline label-efficiency`."""

    config: Path
    overrides: tuple[str, ...]
    out: Path
    source: str | None = None
    fractions: str = "0.01,0.05,0.1,1"
    seeds: str = "3"
    epochs: str | None = None
    processes: int | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None


def label_efficiency(options: LabelEfficiencyOptions) -> int:
    """Train all runs that are not done, and compare; return 0, or the exit code of the first unfinished run."""
    assert_writable(options.out / f"{NAME}.json", option="--out")
    setup = StudySettings(options.config, options.plugins, options.device, options.processes)
    study = LabelStudy(setup, _parse_shares(options), options.out, overrides=options.overrides, source=options.source)
    for line in study.notes:
        print_note(f"warning: {line}")
    result = study(TerminalReporter())
    config = result.config
    title = f"{config.name}: {config.evaluate.metric} of the last weights on the test part"
    show_table(title, COLUMNS, map(table_cells, result.rows))
    if result.rows:
        print_note(f"written: {options.out / NAME}.json, {options.out / NAME}.svg")
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
