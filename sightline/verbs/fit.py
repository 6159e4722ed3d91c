"""`sightline fit`: can a network learn a few samples by its recipe, and if not, why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sightline.commands.prove import FitOptions
from sightline.config import RunConfig
from sightline.contract.errors import UserError
from sightline.doctor.finding import Finding
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import start_world
from sightline.runs.output_files import write_document
from sightline.verbs.output import count_findings, load_config, print_note, show_findings, show_table, sort_findings
from sightline.workbench.fit.fit import SECONDS, STEPS, Attempt, fit_samples
from sightline.workbench.fit.grid import GridRow, fit_grid
from sightline.workbench.fit.ladder import climb, parse_rungs
from sightline.workbench.fit.trace import MODEL, Snapshot, judge_expectations, look_at_layers

_FOR_RUNGS = ("samples", "grid", "trace")
"""Options that `--grow` does without: its rungs are the numbers of samples."""


def fit(options: FitOptions) -> int:
    """Over-fit a few samples and show the findings; exit code 1 if any is an error (with `strict`, a warning)."""
    for name in _FOR_RUNGS:
        if options.grow is not None and getattr(options, name) not in (None, False):
            raise UserError(f"--{name}: is not taken with --grow, whose rungs are numbers of samples; leave it out")
    rungs = None if options.grow is None else parse_rungs(options.grow)
    config = load_config(options.config, options.overrides, options.plugins)
    document: dict[str, Any] = {}
    if rungs is None:
        found, document["fit"] = _fit(options, config)
    else:
        found, document["ladder"] = _grow(options, config, rungs)
    findings = sort_findings(found)
    show_findings(findings, is_verbose=True)
    counts, code = count_findings(config.name, findings, is_strict=options.strict)
    write_document(options.json, {"findings": [finding.to_dict() for finding in findings], **counts, **document})
    return code


@contextmanager
def _built(options: FitOptions, config: RunConfig) -> Iterator[TrainingSetup]:
    with start_world(device=options.device, timeout_s=config.distributed.timeout_s) as world:
        yield build(config, world)


def _limits(options: FitOptions) -> dict[str, Any]:
    return {"steps": options.steps or STEPS, "seconds": SECONDS if options.seconds is None else options.seconds}


def _fit(options: FitOptions, config: RunConfig) -> tuple[list[Finding], dict[str, Any]]:
    """Over-fit a few samples, and show a row for each attempt, each optimiser and format, and each layer."""
    look = look_at_layers if options.trace or config.expect else None
    with _built(options, config) as built:
        result = fit_samples(built, options.samples, print_note, **_limits(options), look=look)
        grid = fit_grid(built, result, print_note, **_limits(options)) if options.grid else ()
    num = f"{len(result.samples.indices)} samples"
    if result.attempts:
        heading = ("optimiser", "rate", "fitted after", "lowest loss", config.evaluate.metric, "end")
        show_table(f"{config.name}: {num}", heading, map(_attempt_row, result.attempts), unbroken="optimiser")
    if grid:
        rates = [f"{attempt.rate:g}" for attempt in grid[0].attempts]
        columns = ("optimiser", "numbers", *rates, "best rate", "steps to a tenth", "way left", "end")
        show_table(f"{config.name}: steps to a tenth of the way, by rate", columns, map(_grid_row, grid))
    snapshots = dict(zip(("first", "last"), result.best.looks if result.best else (), strict=False))
    if options.trace:
        for snapshot in snapshots.values():
            _show_layers(config, snapshot)
    judged = {
        name: snapshot for name, snapshot in snapshots.items() if name == "first" or result.verdict != "stopped by time"
    }
    findings = [*result.findings, *(judge_expectations(config, judged) if judged else ())]
    document = result.to_dict()
    document |= {"grid": [row.to_dict() for row in grid]} if grid else {}
    document |= {"trace": [snapshot.to_dict() for snapshot in snapshots.values()]} if options.trace else {}
    print_note(f"{num}: {_VERDICTS[result.verdict]}")
    return findings, document


_VERDICTS = {
    "fitted": "fitted",
    "not yet": "not fitted yet",
    "stopped by time": "not decided, stopped by time",
    "not fitted": "NOT FITTED",
}


def _attempt_row(tried: Attempt) -> Sequence[Any]:
    score = "" if math.isnan(tried.score) else f"{tried.score:.4g}"
    after = "no" if tried.fitted_after is None else f"{tried.fitted_after} steps"
    return [tried.optimizer, f"{tried.rate:g}", after, f"{min(tried.losses):.4g}", score, tried.stop]


def _grid_row(row: GridRow) -> Sequence[Any]:
    """List the steps of each rate, or what it had left or ended by, and the figures of the best one."""
    best = row.best
    cells = [_format_steps(attempt) for attempt in row.attempts]
    steps = "" if best.fitted_after is None else best.fitted_after
    return [row.optimizer, row.precision, *cells, f"{best.rate:g}", steps, f"{max(best.shares[-1], 0):.3g}", best.stop]


def _format_steps(tried: Attempt) -> str:
    if tried.fitted_after is not None:
        return str(tried.fitted_after)
    return f"{tried.shares[-1]:.2g} left" if tried.stop == "steps" else tried.stop


def _show_layers(config: RunConfig, snapshot: Snapshot) -> None:
    """Show a row for each layer without inner ones, and for the model."""
    columns = ("layer", "kind", "shape", "mean", "std", "zeros", "gradient", "of weights")
    rows = [
        [
            row.layer if row.call == 1 else f"{row.layer} (call {row.call})",
            row.kind,
            "x".join(map(str, row.shape)),
            *(f"{value:.3g}" for value in (row.mean, row.std, row.zeros, row.gradient)),
            "" if row.weight_gradient is None else f"{row.weight_gradient:.3g}",
        ]
        for row in snapshot.layers
        if row.is_leaf or row.layer == MODEL
    ]
    after = "before the first step" if snapshot.step == 0 else f"after {snapshot.step} steps"
    show_table(f"{config.name}: layers {after}", columns, rows, droppable=("kind", "shape"))


def _grow(options: FitOptions, config: RunConfig, rungs: Sequence[int | str]) -> tuple[list[Finding], dict[str, Any]]:
    """Climb from few samples to the task, up to the first rung that fails."""
    with _built(options, config) as built:
        climbed = climb(built, rungs, print_note, **_limits(options))
    return [finding for rung in climbed for finding in rung.findings], {"rungs": [rung.to_dict() for rung in climbed]}
