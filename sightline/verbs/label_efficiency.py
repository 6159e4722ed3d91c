"""`sightline label-efficiency`: scratch against pre-trained at several shares of the labels, resumable run by run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sightline import registry
from sightline.chart import render_svg
from sightline.config import RunConfig
from sightline.engine.build import build_metrics, build_part
from sightline.engine.selection import with_mode
from sightline.errors import UserError
from sightline.studies import launching
from sightline.verbs.common import config_of, load_document, write_document, write_file
from sightline.verbs.fine_tuning import assert_same_source, from_scratch, from_source
from sightline.verbs.label_table import COLUMNS, STARTS, Cell, Row, Start, panel_of, rows_of, shown, told_fraction
from sightline.verbs.output import note, show_table
from sightline.verbs.train import Terminal

__all__ = ["Options", "label_efficiency"]

NAME = "label_efficiency"
_SET_HERE = {
    "seed": "give --seeds",
    "data.fraction": "give --fractions",
    "data.fraction_seed": "a run draws its labels by its own seed",
    "evaluate.select": "nothing of so few labels is held out",
    "evaluate.every": "the last weights alone are scored",
}
"""What cells are told apart by, or all have in common."""

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

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


def label_efficiency(options: Options) -> int:
    """Run every cell that is not done, and compare; the exit code of the first run that did not come to its end."""
    config, cells = _plan(options)
    sizes = {cell.fraction: _num_samples(options, cell) for cell in cells if cell.seed == 0 and cell.start == "scratch"}
    facts = build_part(_read(options, cells[0].overrides), "train").dataset.info.facts
    config = with_mode(config, build_metrics(config, facts))
    assert config.evaluate.mode is not None, "with_mode sets it"
    done: list[Cell] = []
    code = 0
    assert config.init is not None, "checked when the cells were planned"
    for number, cell in enumerate(cells, start=1):
        assert_same_source(cell.path, config.init.source)
        labels = f"{told_fraction(cell.fraction)} of the labels"
        note(f"run {number} of {len(cells)}: {labels}, {cell.start}, seed {cell.seed}")
        code = launching.train(_request_of(cell, options), Terminal())
        if code:
            note(f"{number - 1} of {len(cells)} runs are done; the same command goes on with {cell.path}")
            break
        done.append(dataclasses.replace(cell, value=_figure(cell, config.evaluate.metric)))
        _write(options, config, rows_of(done, sizes, mode=config.evaluate.mode), cells=done)
    rows = rows_of(done, sizes, mode=config.evaluate.mode)
    show_table(
        f"{config.name}: {config.evaluate.metric} of the last weights on the test part", COLUMNS, map(shown, rows)
    )
    if done:
        note(f"written: {options.out / NAME}.json, {options.out / NAME}.svg")
        write_document(options.json, _document(options, config, rows, done))
    return code


# --- what there is to run --------------------------------------------------------------------------------------------


def _plan(options: Options) -> tuple[RunConfig, list[Cell]]:
    """The fine-tuning config, and every cell in order; each cell's config has been read. Raises UserError."""
    fractions = _numbers(options.fractions, "--fractions", float)
    if list(fractions) != sorted(set(fractions)) or not all(0 < each <= 1 for each in fractions):
        raise UserError(
            f"--fractions {options.fractions}: give shares above 0, at most 1, each once and in rising order"
        )
    _assert_free(options)
    seeds = _one_each(options.seeds, "--seeds", fractions)
    epochs = [None] * len(fractions) if options.epochs is None else _one_each(options.epochs, "--epochs", fractions)
    config = _read(options, _of_source(options))
    if config.init is None:
        raise UserError(f"label-efficiency: {options.config} has no init; say what to start from with --from RUN")
    if "fraction" not in registry.data.entry(config.data).arguments:
        raise UserError(
            f"label-efficiency: the data set '{config.data.name}' has no argument 'fraction' to take less of"
        )
    cells = [
        _cell(options, config, fraction, start, seed, num_epochs)
        for fraction, num_seeds, num_epochs in zip(fractions, seeds, epochs, strict=True)
        for seed in range(num_seeds)
        for start in reversed(STARTS)  # the pre-trained one first: what is wrong with its weights shows at once
    ]
    for cell in cells:
        _read(options, cell.overrides)
    return config, cells


def _cell(
    options: Options, config: RunConfig, fraction: float, start: Start, seed: int, num_epochs: int | None
) -> Cell:
    given = from_scratch(config, options.overrides) if start == "scratch" else list(_of_source(options))
    given += [f"data.fraction={fraction!r}", f"seed={seed}", "evaluate.select=test"]
    given += [f"train.epochs={num_epochs}"] if num_epochs is not None else []
    given += [f"evaluate.every={num_epochs or config.train.epochs}"]
    if "fraction_seed" in registry.data.entry(config.data).arguments:
        given.append(f"data.fraction_seed={seed}")
    path = options.out / f"fraction_{fraction:g}" / f"{start}_seed_{seed}"
    return Cell(fraction, start, seed, path, tuple(given))


def _assert_free(options: Options) -> None:
    """Raises UserError for an override of what the cells of the table are told apart by."""
    for override in options.overrides:
        key = override.partition("=")[0].strip()
        if key in _SET_HERE:
            raise UserError(f"label-efficiency: found {override!r}; {key} is set for every run: {_SET_HERE[key]}")
        if key == "train.epochs" and options.epochs is not None:
            raise UserError(f"label-efficiency: found {override!r} and --epochs {options.epochs}; give one of them")


def _of_source(options: Options) -> tuple[str, ...]:
    """The overrides, with the run to start from among them where one was given."""
    return options.overrides if options.source is None else (*options.overrides, from_source(options.source))


def _read(options: Options, overrides: Sequence[str]) -> RunConfig:
    return config_of(options.config, overrides, options.plugins)[0]


def _numbers(text: str, option: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers with commas between them") from None


def _one_each(text: str, option: str, fractions: Sequence[float]) -> list[int]:
    numbers = _numbers(text, option, int)
    if len(numbers) not in (1, len(fractions)) or min(numbers) < 1:
        raise UserError(f"{option} {text}: give one whole number from 1, or one for each of {len(fractions)} fractions")
    return numbers * len(fractions) if len(numbers) == 1 else numbers


# --- one run ---------------------------------------------------------------------------------------------------------


def _request_of(cell: Cell, options: Options) -> launching.TrainRequest:
    return launching.TrainRequest(
        config=options.config,
        overrides=cell.overrides,
        out=cell.path,
        processes=options.processes,
        resume="auto",
        plugins=options.plugins,
        device=options.device,
    )


def _num_samples(options: Options, cell: Cell) -> int:
    return len(build_part(_read(options, cell.overrides), "train").indices)


def _figure(cell: Cell, metric: str) -> float:
    value = load_document(cell.path / "final.json")["metrics"][metric]
    return math.nan if value is None else float(value)


# --- what is kept ----------------------------------------------------------------------------------------------------


def _document(options: Options, config: RunConfig, rows: Sequence[Row], cells: Sequence[Cell]) -> dict[str, Any]:
    assert config.init is not None, "checked when the cells were planned"
    return {
        "config": str(options.config),
        "from": config.init.source,
        "data": config.data.name,
        "metric": config.evaluate.metric,
        "protocol": "last weights, test part scored once, all labels of a share train",
        "rows": [row.to_dict() for row in rows],
        "runs": [
            {"run": str(c.path), "fraction": c.fraction, "start": c.start, "seed": c.seed, "value": c.value}
            for c in cells
        ],
    }


def _write(options: Options, config: RunConfig, rows: Sequence[Row], *, cells: Sequence[Cell]) -> None:
    """Table and plot of what is done so far, in the folder of the runs."""
    write_document(options.out / f"{NAME}.json", _document(options, config, rows, cells))
    panel = panel_of(rows, title=f"{config.evaluate.metric}, {config.data.name}")
    write_file(options.out / f"{NAME}.svg", render_svg([[panel]]))
