"""Grid of runs of any config: all combinations of varied settings and seeds, resumable run by run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sightline import registry
from sightline.chart import render_svg
from sightline.config import RunConfig
from sightline.config.overrides import split_values
from sightline.doctor.overfit.variants import parse_variants
from sightline.engine.best_metric import resolve_mode
from sightline.engine.build import build_metrics, build_part
from sightline.engine.resume import assert_same_run
from sightline.errors import UserError
from sightline.runs.output_files import write_document, write_file
from sightline.runs.run_documents import load_document
from sightline.studies.grid_table import grid_panel, grid_rows, paired_differences
from sightline.studies.study_runs import StudyRun, StudySettings, run_cells
from sightline.training.run_configs import read_with_plugins, reread
from sightline.training.train_run import Reporter

__all__ = ["NAME", "FactorLevel", "GridStudy", "parse_factors"]

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
        modes = {_resolve_mode(config, self._metric) for config in by_config.values()}  # opens the data of each
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


def _resolve_mode(config: RunConfig, metric: str) -> Literal["max", "min"]:
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
