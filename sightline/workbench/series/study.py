"""Study: all combinations of varied settings with every seed, each a training, compared by one figure."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sightline.commands.look import StudyOptions
from sightline.commands.run import TrainOptions
from sightline.config import RunConfig
from sightline.config.overrides import parse_variants, split_values
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.draw.charts import render_svg
from sightline.engine.build import build_metrics
from sightline.engine.distributed import assert_device
from sightline.engine.launcher import resolve_num_processes
from sightline.engine.run_data import build_part
from sightline.runs.best_checkpoint import resolve_mode
from sightline.runs.output_files import write_document, write_file
from sightline.runs.run_files import assert_no_run
from sightline.training.config_source import read_with_plugins
from sightline.training.train_run import Reporter
from sightline.workbench.series.loop import Entry, Results, describe_failure, run_series
from sightline.workbench.series.seed_statistics import grid_panel, grid_rows, paired_differences
from sightline.workbench.series.training import Training, assert_same_runs

NAME = "study"
"""Name of the files of table and plot, without extension."""


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
        factors["arm"] = [parse_arm(text) for text in arms]
    for name, levels in factors.items():
        if len(dict(levels)) < len(levels):
            raise UserError(f"study: {name} has a level twice: {', '.join(label for label, _ in levels)}")
    return {name: dict(levels) for name, levels in factors.items()}


def parse_arm(text: str) -> tuple[str, FactorLevel]:
    """Parse NAME="KEY=VALUE ..." to the name and its level. Raises UserError for other texts."""
    name, equals, overrides = (part.strip() for part in text.partition("="))
    key_values = tuple(word for word in split_values(overrides, separator=" ") if word)
    if not equals or not name or not all("=" in word for word in key_values):
        raise UserError(f"--arm {text}: give NAME='KEY=VALUE KEY=VALUE ...', or NAME= for the unchanged config")
    return name, FactorLevel(key_values)


class _Cell(NamedTuple):
    """Cell of the grid: labels of its levels, and its seed."""

    labels: tuple[str, ...]
    seed: int


class Study:
    """Planned grid of trainings: all configs are read and checked. A call runs it."""

    def __init__(self, options: StudyOptions) -> None:
        """Raise UserError for what cannot run."""
        assert_device(options.device)
        resolve_num_processes(options.processes)
        assert_no_run(options.out)
        self._options = options
        self._factors = parse_factors(options.configs, options.vary, options.arms)
        combinations = itertools.product(*(levels.items() for levels in self._factors.values()))
        grid = itertools.product(map(dict, combinations), range(options.seeds))
        self.trainings = {_Cell(tuple(levels), seed): self._plan(levels, seed) for levels, seed in grid}
        self.notes = dict.fromkeys(note for training in self.trainings.values() for note in training.read.notes)
        configs = {cell.labels: planned.read.config for cell, planned in self.trainings.items() if cell.seed == 0}
        for (labels, config), (other_labels, other) in itertools.combinations(configs.items(), 2):
            if config == other:
                both = f"'{', '.join(labels)}' and '{', '.join(other_labels)}'"
                raise UserError(f"study: {both} are one and the same config; leave one out")
        metrics = {options.metric or config.evaluate.metric for config in configs.values()}
        if len(metrics) > 1:
            raise UserError(f"study: the configs evaluate by {', '.join(sorted(metrics))}; name one with --metric")
        self._metric = metrics.pop()
        assert_same_runs(self.trainings.values())
        by_source = {planned.command.config: planned.read.config for planned in self.trainings.values()}
        modes = {resolve_metric_mode(config, self._metric) for config in by_source.values()}  # opens the data of each
        if len(modes) > 1:
            raise UserError(f"study: for some configs a higher {self._metric} is better, for others a lower one")
        self._mode = modes.pop()

    def __call__(self, reporter: Reporter) -> tuple[dict[str, Any], int]:
        """Run all unfinished trainings; return the document of the finished ones, and an exit code.

        The document and a plot are written to the folder of the study after each run.
        """
        entries = []
        for number, (cell, training) in enumerate(self.trainings.items(), start=1):
            title = f"run {number} of {len(self.trainings)}: {', '.join((*cell.labels, f'seed {cell.seed}'))}"
            entries.append(Entry(cell, title, training.path, partial(training.train, reporter)))
        return run_series(entries, self._write, reporter)

    def _plan(self, levels: Mapping[str, FactorLevel], seed: int) -> Training:
        options = self._options
        source = next((level.config for level in levels.values() if level.config is not None), options.configs[0])
        overrides = [*options.overrides, *(override for level in levels.values() for override in level.overrides)]
        keys = {override.partition("=")[0].strip() for override in overrides}
        if "seed" in keys:
            raise UserError("study: found an override of seed; the seeds of all runs are 0 to N - 1, give --seeds N")
        overrides.append(f"seed={seed}")
        read = read_with_plugins(source, overrides, options.plugins)
        arguments = registry.data.entry(read.config.data).arguments
        if "fraction_seed" in arguments and "data.fraction_seed" not in keys:  # a run samples its labels, too
            overrides.append(f"data.fraction_seed={seed}")
            read = read_with_plugins(source, overrides, options.plugins)
        names = [_file_name(name, label) for name, label in zip(self._factors, levels, strict=True)]
        command = TrainOptions(
            config=source,
            overrides=tuple(overrides),
            out=options.out.joinpath(*names, f"seed_{seed}"),
            processes=options.processes,
            resume="auto",
            plugins=options.plugins,
            device=options.device,
        )
        return Training(read, command)

    def _write(self, results: Results[_Cell]) -> dict[str, Any]:
        """Write table and plot of the finished runs, and return the document."""
        grid: dict[tuple[str, ...], dict[int, float]] = {}
        runs = []
        for cell, metrics in results.finished.items():
            run = {"run": str(self.trainings[cell].path), "levels": list(cell.labels), "seed": cell.seed}
            runs.append({**run, "metrics": dict(metrics)})
            if metrics[self._metric] is not None:  # nothing to count gives no figure
                grid.setdefault(cell.labels, {})[cell.seed] = float(metrics[self._metric])
        names, firsts = list(self._factors), [next(iter(levels)) for levels in self._factors.values()]
        document = {
            "configs": sorted({str(training.command.config) for training in self.trainings.values()}),
            "overrides": list(self._options.overrides),
            "factors": {name: list(levels) for name, levels in self._factors.items()},
            "seeds": self._options.seeds,
            "metric": self._metric,
            "mode": self._mode,
            "rows": grid_rows(names, grid),
            "differences": paired_differences(names, firsts, grid, mode=self._mode),
            "runs": runs,
            "failed": [
                {"run": str(self.trainings[cell].path), "reason": describe_failure(error)}
                for cell, error in results.failed.items()
            ],
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
