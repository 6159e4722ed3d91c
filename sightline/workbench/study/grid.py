"""Grid of runs of any config: all combinations of varied settings and seeds, resumable run by run.

Statistics of a grid of runs: mean and spread over seeds, paired differences with intervals, and the plot.
"""

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

from sightline.config import RunConfig
from sightline.config.overrides import parse_variants, split_values
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.engine.build import build_metrics, build_part
from sightline.engine.records import resolve_mode
from sightline.engine.resume import assert_same_run
from sightline.runs.run_directory import load_document, write_document, write_file
from sightline.training.train_run import Reporter, read_with_plugins, reread
from sightline.workbench.study.study_runs import StudyRun, StudySettings, run_cells

GridResults = Mapping[tuple[str, ...], Mapping[int, float]]
"""Values of finished runs by seed, for each combination of levels; none is empty."""


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


def student_t(degrees: int, *, confidence: float = 0.95) -> float:
    """Compute the two-sided critical value of Student's t distribution for `degrees` >= 1 degrees of freedom.

    Source: Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4, solved by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        term, total, is_odd = 1.0, 0.0, degrees % 2
        for power in range(is_odd, degrees - 1, 2):
            total += term * math.cos(angle) ** power
            term *= (power + 1) / (power + 2)
        total *= math.sin(angle)
        probability = 2 / math.pi * (angle + total) if is_odd else total
        low, high = (angle, high) if probability < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def grid_panel(factors: Sequence[str], grid: GridResults, *, title: str) -> ChartPanel:
    """Plot the means over the levels of one factor, a curve per setting of the others, with the range over seeds.

    The factor on the x axis is the first whose levels are positive numbers, else the first one, with levels counted
    from 1.
    """
    columns = [list(dict.fromkeys(levels[index] for levels in grid)) for index in range(len(factors))]
    numbers = [[_number(level) for level in levels] for levels in columns]
    numeric_factor = next(
        (i for i, values in enumerate(numbers) if len(values) > 1 and all(x > 0 for x in values)), None
    )
    position, x_title = {}, ""
    if numeric_factor is not None:
        position, x_title = (
            dict(zip(columns[numeric_factor], numbers[numeric_factor], strict=True)),
            factors[numeric_factor],
        )
    elif factors:
        position = {level: float(index) for index, level in enumerate(columns[0], start=1)}
        x_title = ", ".join(f"{index:g} = {level}" for level, index in position.items())
    curves: dict[str, dict[float, Mapping[int, float]]] = {}
    for levels, values in grid.items():
        x_factor = numeric_factor or 0
        setting = [
            f"{n}={level}" for index, (n, level) in enumerate(zip(factors, levels, strict=True)) if index != x_factor
        ]
        curves.setdefault(", ".join(setting) or "mean", {})[position[levels[x_factor]] if position else 1.0] = values
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


NAME = "study"
"""Name of the files of table and plot, without extension."""


class FactorLevel(NamedTuple):
    """Level of a factor: its overrides, or its config."""

    overrides: tuple[str, ...] = ()
    config: Path | None = None


Factors = Mapping[str, Mapping[str, FactorLevel]]
"""Varied factors: name to levels by label; the other levels are compared with the first."""


class _Run(NamedTuple):
    """Cell of the grid with its level labels and seed."""

    labels: tuple[str, ...]
    seed: int
    cell: StudyRun
    setup: StudySettings
    config: RunConfig


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


class GridStudy:
    """Planned grid of runs: all configs are read and the folder is checked to be this study's. A call runs it."""

    def __init__(
        self,
        setup: StudySettings,
        factors: Factors,
        out: Path,
        *,
        num_seeds: int = 3,
        overrides: tuple[str, ...] = (),
        metric: str | None = None,
    ) -> None:
        """`metric` is compared, by default `evaluate.metric` of the configs. Raises UserError for what cannot run."""
        self._out, self._factors, self._overrides = out, factors, overrides
        self._plan: dict[str, Any] = {
            "factors": {name: list(levels) for name, levels in factors.items()},
            "seeds": num_seeds,
        }
        self._assert_same_study()
        read = read_with_plugins(setup.config, overrides, setup.plugins)  # the plugins, for all
        self.notes = read.notes
        grid = itertools.product(itertools.product(*(levels.items() for levels in factors.values())), range(num_seeds))
        self._runs = [self._make_run(setup, dict(levels), seed) for levels, seed in grid]
        for run, other in itertools.combinations([run for run in self._runs if run.seed == 0], 2):
            if run.config == other.config:
                both = f"'{', '.join(run.labels)}' and '{', '.join(other.labels)}'"
                raise UserError(f"study: {both} are one and the same config; leave one out")
        metrics = {metric or run.config.evaluate.metric for run in self._runs}
        if len(metrics) > 1:
            raise UserError(f"study: the configs evaluate by {', '.join(sorted(metrics))}; name one with --metric")
        self._metric = metrics.pop()
        for run in self._runs:
            if (run.cell.path / "config.yaml").exists() and assert_same_run(run.cell.path, run.config, read.plugins):
                raise UserError(
                    f"{run.cell.path}: was trained for fewer epochs than this study needs; give another --out"
                )
        by_config = {run.setup.config: run.config for run in self._runs}
        modes = {resolve_metric_mode(config, self._metric) for config in by_config.values()}  # opens the data of each
        if len(modes) > 1:
            raise UserError(f"study: for some configs a higher {self._metric} is better, for others a lower one")
        self._mode = modes.pop()

    def __call__(self, reporter: Reporter) -> tuple[dict[str, Any], int]:
        """Run all unfinished cells; return the document of the finished ones, and an exit code.

        The document and a plot are written to the folder of the study after each run.
        """
        done: dict[int, Mapping[str, Any]] = {}

        def record_finished(index: int, metrics: Mapping[str, Any]) -> None:
            done[index] = metrics
            self._write(done)

        self._write(done)  # marks the folder as this study's
        cells = [(run.cell, run.setup, ", ".join((*run.labels, f"seed {run.seed}"))) for run in self._runs]
        code = run_cells(cells, reporter, record_finished, keeps_going=True)
        return self._write(done), code

    def _make_run(self, setup: StudySettings, levels: Mapping[str, FactorLevel], seed: int) -> _Run:
        config_path = next((level.config for level in levels.values() if level.config is not None), setup.config)
        all_overrides = [*self._overrides, *(override for level in levels.values() for override in level.overrides)]
        keys = [override.partition("=")[0].strip() for override in all_overrides]
        if "seed" in keys:
            raise UserError("study: found an override of seed; the seeds of all runs are 0 to N - 1, give --seeds N")
        for key in keys:
            if keys.count(key) > 1:
                options = " and ".join(self._find_options(key, levels))
                raise UserError(f"study: {key} is given twice on the command line: {options}; keep one")
        all_overrides.append(f"seed={seed}")
        config = reread(config_path, all_overrides)
        data_arguments = registry.data.entry(config.data).arguments
        if "fraction_seed" in data_arguments and "data.fraction_seed" not in keys:  # a run samples its labels, too
            all_overrides.append(f"data.fraction_seed={seed}")
            config = reread(config_path, all_overrides)
        names = [_file_name(name, label) for name, label in zip(self._factors, levels, strict=True)]
        source = None if config.init is None else config.init.source
        cell = StudyRun(self._out.joinpath(*names, f"seed_{seed}"), tuple(all_overrides), source)
        return _Run(tuple(levels), seed, cell, dataclasses.replace(setup, config=config_path), config)

    def _find_options(self, key: str, levels: Mapping[str, FactorLevel]) -> list[str]:
        """List the command-line options that set a key."""
        overrides_by_option = [(f"for all runs ({override})", override) for override in self._overrides]
        for (name, labels), (label, level) in zip(self._factors.items(), levels.items(), strict=True):
            option = f"--arm {label}" if name == "arm" and label in labels else f"--vary {name}"
            overrides_by_option += [(f"{option} ({override})", override) for override in level.overrides]
        return [
            option_text for option_text, override in overrides_by_option if override.partition("=")[0].strip() == key
        ]

    def _assert_same_study(self) -> None:
        """Raise UserError if the folder has a study of other factors, or one with more levels or seeds."""
        path = self._out / f"{NAME}.json"
        if not path.exists() or next(self._out.rglob("config.yaml"), None) is None:  # nothing was trained
            return
        stored = load_document(path)
        stored_factors, factors = stored["factors"], self._plan["factors"]
        is_part = list(stored_factors) == list(factors) and all(
            set(stored_factors[name]) <= set(factors[name]) for name in stored_factors
        )
        if not is_part or stored["seeds"] > self._plan["seeds"]:
            stored_settings = "; ".join(f"{name}: {', '.join(levels)}" for name, levels in stored_factors.items())
            raise UserError(
                f"{path}: has a study of other settings ({stored_settings}; {stored['seeds']} seeds), which this one "
                "does not contain; name all of them or give another --out"
            )

    def _write(self, done: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Write table and plot of the finished runs, and return the document."""
        grid: dict[tuple[str, ...], dict[int, float]] = {}
        runs = [(self._runs[index], metrics) for index, metrics in done.items()]
        for run, metrics in runs:
            if metrics[self._metric] is not None:  # nothing to count gives no figure
                grid.setdefault(run.labels, {})[run.seed] = float(metrics[self._metric])
        names, firsts = list(self._factors), [next(iter(levels)) for levels in self._factors.values()]
        document = {
            "configs": sorted({str(run.setup.config) for run in self._runs}),
            "overrides": list(self._overrides),
            **self._plan,
            "metric": self._metric,
            "mode": self._mode,
            "rows": grid_rows(names, grid),
            "differences": paired_differences(names, firsts, grid, mode=self._mode),
            "runs": [
                {"run": str(run.cell.path), "levels": list(run.labels), "seed": run.seed, "metrics": dict(metrics)}
                for run, metrics in runs
            ],
        }
        write_document(self._out / f"{NAME}.json", document)
        if grid:
            panel = grid_panel(names, grid, title=f"{self._metric}, {self._runs[0].config.data.name}")
            write_file(self._out / f"{NAME}.svg", render_svg([[panel]], panel_width=420))
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
