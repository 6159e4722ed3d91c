"""Study: all combinations of varied settings with every seed, each a training; statistics, table and plot of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sightline.commands.look import StudyOptions
from sightline.config import RunConfig
from sightline.config.overrides import parse_variants, split_values
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.intervals import student_t
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.engine.build import build_metrics
from sightline.engine.distributed import assert_device
from sightline.engine.launcher import resolve_num_processes
from sightline.engine.run_data import build_part
from sightline.runs.best_checkpoint import resolve_mode
from sightline.runs.output_files import write_document, write_file
from sightline.runs.run_files import is_run
from sightline.training.config_source import read_with_plugins, reread
from sightline.training.resume import assert_same_run
from sightline.training.train_result import Reporter
from sightline.workbench.study.study_runs import StudyRun, assert_same_inputs, digest_inputs, plan_run, run_all

NAME = "study"
"""Name of the files of table and plot, without extension."""
GridResults = Mapping[tuple[str, ...], Mapping[int, float]]
"""Values of finished runs by seed, for each combination of levels; none is empty."""


# --- statistics -------------------------------------------------------------------------------------------------------


def grid_rows(factors: Sequence[str], grid: GridResults) -> list[dict[str, Any]]:
    """Return a row per combination: `levels`, `values` by seed, `mean`, sample `std` (NaN for one), `min`, `max`."""
    return [
        {
            "levels": dict(zip(factors, levels, strict=True)),
            "values": {str(seed): value for seed, value in values.items()},
            "mean": statistics.fmean(values.values()),
            "std": statistics.stdev(values.values()) if len(values) > 1 else math.nan,
            "min": min(values.values()),
            "max": max(values.values()),
        }
        for levels, values in grid.items()
    ]


def paired_differences(
    factors: Sequence[str], firsts: Sequence[str], grid: GridResults, *, mode: Literal["max", "min"] = "max"
) -> list[dict[str, Any]]:
    """Compute paired differences, by seed, of each level from its factor's first level, all other factors equal.

    `low` and `high` are the 95 % confidence interval of the `mean` of the `pairs` (Student's t), NaN for a single pair;
    `is_beyond_chance`: the interval excludes zero. `num_better` counts the pairs in which the level is better.
    """
    differences = []
    for factor_index, (name, first) in enumerate(zip(factors, firsts, strict=True)):
        for levels, values in grid.items():
            base = grid.get((*levels[:factor_index], first, *levels[factor_index + 1 :]), {})
            pairs = [values[seed] - base[seed] for seed in values if seed in base]
            if levels[factor_index] == first or not pairs:
                continue
            mean = statistics.fmean(pairs)
            half_width = math.nan
            if len(pairs) > 1:
                half_width = student_t(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
            differences.append(
                {
                    "factor": name,
                    "level": levels[factor_index],
                    "first": first,
                    "others": {n: level for n, level in zip(factors, levels, strict=True) if n != name},
                    "pairs": pairs,
                    "mean": mean,
                    "low": mean - half_width,
                    "high": mean + half_width,
                    "is_beyond_chance": None if math.isnan(half_width) else abs(mean) > half_width,
                    "num_better": sum(pair > 0 if mode == "max" else pair < 0 for pair in pairs),
                }
            )
    return differences


def grid_panel(factors: Sequence[str], grid: GridResults, *, title: str) -> ChartPanel:
    """Plot the means over the levels of the first factor, a curve per setting of the others, with the range over seeds.

    Levels that are positive numbers lie at their value, others are counted from 1.
    """
    columns = list(dict.fromkeys(levels[0] if levels else "" for levels in grid))
    position, x_title = {level: _number(level) for level in columns}, factors[0] if factors else ""
    if not all(x > 0 for x in position.values()):
        position = {level: float(index) for index, level in enumerate(columns, start=1)}
        x_title = ", ".join(f"{index:g} = {level}" for level, index in position.items() if level)
    curves: dict[str, dict[float, Mapping[int, float]]] = {}
    for levels, values in grid.items():
        setting = ", ".join(f"{n}={level}" for n, level in zip(factors[1:], levels[1:], strict=True))
        curves.setdefault(setting or "mean", {})[position[levels[0] if levels else ""]] = values
    series = [
        Series(
            name,
            tuple((x, statistics.fmean(points[x].values())) for x in sorted(points)),
            tuple((min(points[x].values()), max(points[x].values())) for x in sorted(points)),
        )
        for name, points in curves.items()
    ]
    return ChartPanel(title, x_title, tuple(series), y_scale="linear")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# --- factors ----------------------------------------------------------------------------------------------------------


class FactorLevel(NamedTuple):
    """Level of a factor: its overrides, or its config."""

    overrides: tuple[str, ...] = ()
    config: Path | None = None


Factors = Mapping[str, Mapping[str, FactorLevel]]
"""Varied factors: name to levels by label; the other levels are compared with the first."""


def parse_factors(configs: Sequence[Path], vary: Sequence[str], arms: Sequence[str]) -> Factors:
    """Parse the factors of a command line: one per `--vary KEY=A,B`, one of all `--arm`s, and one of several configs.

    An arm is NAME="KEY=VALUE ...". Raises UserError for invalid texts.
    """
    factors: dict[str, list[tuple[str, FactorLevel]]] = {}
    if len(configs) > 1:
        factors["config"] = [(path.stem, FactorLevel(config=path)) for path in configs]
    parse_variants(vary)  # raises for a key that is varied twice
    for text in vary:
        level_overrides = [override for (override,) in parse_variants([text])]
        factors[text.partition("=")[0].strip()] = [(o.partition("=")[2], FactorLevel((o,))) for o in level_overrides]
    if arms:
        factors["arm"] = [_parse_arm(text) for text in arms]
    for name, levels in factors.items():
        if len(dict(levels)) < len(levels):
            raise UserError(f"study: {name} has a level twice: {', '.join(label for label, _ in levels)}")
    return {name: dict(levels) for name, levels in factors.items()}


def _parse_arm(text: str) -> tuple[str, FactorLevel]:
    name, equals, overrides = (part.strip() for part in text.partition("="))
    key_values = tuple(word for word in split_values(overrides, separator=" ") if word)
    if not equals or not name or not all("=" in word for word in key_values):
        raise UserError(f"--arm {text}: give NAME='KEY=VALUE KEY=VALUE ...', or NAME= for the unchanged config")
    return name, FactorLevel(key_values)


# --- the study --------------------------------------------------------------------------------------------------------


class _Cell(NamedTuple):
    """Cell of the grid: level labels and seed, its training, and its config."""

    labels: tuple[str, ...]
    seed: int
    run: StudyRun
    config: RunConfig


class GridStudy:
    """Planned grid of trainings: all configs are read and checked. A call runs it."""

    def __init__(self, options: StudyOptions) -> None:
        """Raise UserError for what cannot run."""
        assert_device(options.device)
        resolve_num_processes(options.processes)
        self._options, metric = options, options.metric
        self._factors = parse_factors(options.configs, options.vary, options.arms)
        read = read_with_plugins(options.configs[0], options.overrides, options.plugins)  # the plugins, for all
        self.notes = read.notes
        combinations = itertools.product(*(levels.items() for levels in self._factors.values()))
        grid = itertools.product(combinations, range(options.seeds))
        self._cells = cells = [self._make_cell(dict(levels), seed) for levels, seed in grid]
        for cell, other in itertools.combinations([cell for cell in cells if cell.seed == 0], 2):
            if cell.config == other.config:
                both = f"'{', '.join(cell.labels)}' and '{', '.join(other.labels)}'"
                raise UserError(f"study: {both} are one and the same config; leave one out")
        metrics = {metric or cell.config.evaluate.metric for cell in cells}
        if len(metrics) > 1:
            raise UserError(f"study: the configs evaluate by {', '.join(sorted(metrics))}; name one with --metric")
        self._metric = metrics.pop()
        inputs: dict[str, Mapping[str, str | None]] = {}
        for path, config in ((cell.run.path, cell.config) for cell in cells if is_run(cell.run.path)):
            if assert_same_run(path, config, read.plugins):
                raise UserError(f"{path}: was trained to an earlier end than this study needs; give another --out")
            key = str((config.data, config.init, config.teacher))  # of many runs it is the same
            inputs[key] = inputs.get(key) or digest_inputs(config)
            assert_same_inputs(path, config, inputs[key])
        by_config = {cell.run.request.config: cell.config for cell in cells}
        modes = {resolve_metric_mode(config, self._metric) for config in by_config.values()}  # opens the data of each
        if len(modes) > 1:
            raise UserError(f"study: for some configs a higher {self._metric} is better, for others a lower one")
        self._mode = modes.pop()

    def __call__(self, reporter: Reporter) -> tuple[dict[str, Any], int]:
        """Run all unfinished trainings; return the document of the finished ones, and an exit code.

        The document and a plot are written to the folder of the study after each run.
        """
        done: dict[int, Mapping[str, Any]] = {}
        failed: dict[int, str] = {}

        def record_finished(index: int, metrics: Mapping[str, Any]) -> None:
            done[index] = metrics
            self._write(done, failed)

        runs = [(", ".join((*cell.labels, f"seed {cell.seed}")), cell.run) for cell in self._cells]
        code = run_all(runs, reporter, record_finished, failed.__setitem__)
        return self._write(done, failed), code

    def _make_cell(self, levels: Mapping[str, FactorLevel], seed: int) -> _Cell:
        options = self._options
        config_path = next((level.config for level in levels.values() if level.config is not None), options.configs[0])
        all_overrides = [*options.overrides, *(override for level in levels.values() for override in level.overrides)]
        keys = [override.partition("=")[0].strip() for override in all_overrides]
        if "seed" in keys:
            raise UserError("study: found an override of seed; the seeds of all runs are 0 to N - 1, give --seeds N")
        all_overrides.append(f"seed={seed}")
        config = reread(config_path, all_overrides)
        data_arguments = registry.data.entry(config.data).arguments
        if "fraction_seed" in data_arguments and "data.fraction_seed" not in keys:  # a run samples its labels, too
            all_overrides.append(f"data.fraction_seed={seed}")
            config = reread(config_path, all_overrides)
        names = [_file_name(name, label) for name, label in zip(self._factors, levels, strict=True)]
        run = plan_run(
            config_path,
            options.out.joinpath(*names, f"seed_{seed}"),
            all_overrides,
            plugins=options.plugins,
            device=options.device,
            processes=options.processes,
        )
        return _Cell(tuple(levels), seed, run, config)

    def _write(self, done: Mapping[int, Mapping[str, Any]], failed: Mapping[int, str]) -> dict[str, Any]:
        """Write table and plot of the finished runs, and return the document."""
        grid: dict[tuple[str, ...], dict[int, float]] = {}
        finished = [(self._cells[index], metrics) for index, metrics in done.items()]
        for cell, metrics in finished:
            if metrics[self._metric] is not None:  # nothing to count gives no figure
                grid.setdefault(cell.labels, {})[cell.seed] = float(metrics[self._metric])
        names, firsts = list(self._factors), [next(iter(levels)) for levels in self._factors.values()]
        document = {
            "configs": sorted({str(cell.run.request.config) for cell in self._cells}),
            "overrides": list(self._options.overrides),
            "factors": {name: list(levels) for name, levels in self._factors.items()},
            "seeds": self._options.seeds,
            "metric": self._metric,
            "mode": self._mode,
            "rows": grid_rows(names, grid),
            "differences": paired_differences(names, firsts, grid, mode=self._mode),
            "runs": [
                {"run": str(cell.run.path), "levels": list(cell.labels), "seed": cell.seed, "metrics": dict(metrics)}
                for cell, metrics in finished
            ],
            "failed": [{"run": str(self._cells[index].run.path), "reason": reason} for index, reason in failed.items()],
        }
        write_document(self._options.out / f"{NAME}.json", document)
        if grid:
            panel = grid_panel(names, grid, title=self._metric)
            write_file(self._options.out / f"{NAME}.svg", render_svg([[panel]], panel_width=420))
        return document


def resolve_metric_mode(config: RunConfig, metric: str) -> Literal["max", "min"]:
    """Return "max" if a higher value is better, else "min". Raises ConfigError if no metric computes it."""
    if metric != config.evaluate.metric:
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, metric=metric, mode=None))
    facts = build_part(config, "train").dataset.info.facts
    mode = resolve_mode(config, build_metrics(config.metrics, facts)).evaluate.mode
    assert mode is not None, "with_mode sets it"
    return mode


def _file_name(name: str, label: str) -> str:
    """Return the folder name of a level; names that were changed or cut end in a digest, so that they stay distinct."""
    text = f"{name.rpartition('.')[2]}_{label}"
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:48]
    return plain if plain == text else f"{plain}_{hashlib.sha256(f'{name}={label}'.encode()).hexdigest()[:8]}"
