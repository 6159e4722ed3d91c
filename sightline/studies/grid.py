"""A grid of runs of any config: every combination of varied settings, some seeds each, resumable run by run."""

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
"""Of the files of table and plot."""


class FactorLevel(NamedTuple):
    """One setting of a factor: the overrides that make it, or the config that it is."""

    overrides: tuple[str, ...] = ()
    config: Path | None = None


Factors = Mapping[str, Mapping[str, FactorLevel]]
"""What is varied: by its name the levels by their labels; the others are compared with the first."""


class _Run(NamedTuple):
    """A cell with its place in the grid."""

    labels: tuple[str, ...]
    seed: int
    cell: StudyRun
    setup: StudySettings
    config: RunConfig


def parse_factors(configs: Sequence[Path], vary: Sequence[str], arms: Sequence[str]) -> Factors:
    """The factors of a command line: `--vary KEY=A,B` each, all `--arm NAME="KEY=VALUE ..."` as one, several configs.

    Raises UserError for a text that names none.
    """
    found: dict[str, list[tuple[str, FactorLevel]]] = {}
    if len(configs) > 1:
        found["config"] = [(path.stem, FactorLevel(config=path)) for path in configs]
    parse_variants(vary)  # refuses a key that is varied twice
    for text in vary:
        chosen = [override for (override,) in parse_variants([text])]
        found[text.partition("=")[0].strip()] = [(each.partition("=")[2], FactorLevel((each,))) for each in chosen]
    if arms:
        found["arm"] = [_arm(text) for text in arms]
    for name, levels in found.items():
        if len(dict(levels)) < len(levels):
            raise UserError(f"study: {name} has a level twice: {', '.join(label for label, _ in levels)}")
    return {name: dict(levels) for name, levels in found.items()}


def _arm(text: str) -> tuple[str, FactorLevel]:
    name, equals, overrides = (part.strip() for part in text.partition("="))
    words = tuple(word for word in split_values(overrides, separator=" ") if word)
    if not equals or not name or not all("=" in word for word in words):
        raise UserError(f"--arm {text}: give NAME='KEY=VALUE KEY=VALUE ...', or NAME= for the config as it is")
    return name, FactorLevel(words)


class GridStudy:
    """A grid that is planned: every config is read, and what lies in the folder is of this study. Calling runs it."""

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
        """`metric` is compared, else the one that the configs evaluate by. Raises UserError for what cannot run."""
        self._out, self._factors, self._overrides = out, factors, overrides
        self._plan: dict[str, Any] = {
            "factors": {name: list(levels) for name, levels in factors.items()},
            "seeds": num_seeds,
        }
        self._assert_same_study()
        read = read_with_plugins(setup.config, overrides, setup.plugins)  # the plugins, for all
        self.notes = read.notes
        grid = itertools.product(itertools.product(*(levels.items() for levels in factors.values())), range(num_seeds))
        self._runs = [self._run(setup, dict(levels), seed) for levels, seed in grid]
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
                    f"{run.cell.path}: was trained for less long than is asked for here; give another --out"
                )
        by_config = {run.setup.config: run.config for run in self._runs}
        modes = {_mode_of(config, self._metric) for config in by_config.values()}  # opens the data of each
        if len(modes) > 1:
            raise UserError(f"study: of {self._metric} the configs evaluate by a high figure and by a low one")
        self._mode = modes.pop()

    def __call__(self, reporter: Reporter) -> tuple[dict[str, Any], int]:
        """Run every cell that is not done; the document of those that are, and an exit code.

        The document, and a plot, are written to the folder of the study after each run.
        """
        done: dict[int, Mapping[str, Any]] = {}

        def finished(place: int, metrics: Mapping[str, Any]) -> None:
            done[place] = metrics
            self._written(done)

        self._written(done)  # so that the folder is known to be this study's
        cells = [(run.cell, run.setup, ", ".join((*run.labels, f"seed {run.seed}"))) for run in self._runs]
        code = run_cells(cells, reporter, finished, keeps_going=True)
        return self._written(done), code

    def _run(self, setup: StudySettings, levels: Mapping[str, FactorLevel], seed: int) -> _Run:
        chosen = next((level.config for level in levels.values() if level.config is not None), setup.config)
        given = [*self._overrides, *(override for level in levels.values() for override in level.overrides)]
        keys = [override.partition("=")[0].strip() for override in given]
        if "seed" in keys:
            raise UserError("study: found an override of seed; the seeds of all runs are 0 to N - 1, give --seeds N")
        for key in keys:
            if keys.count(key) > 1:
                where = " and ".join(self._places_of(key, levels))
                raise UserError(f"study: {key} is given twice on the command line: {where}; keep one")
        given.append(f"seed={seed}")
        config = reread(chosen, given)
        takes = registry.data.entry(config.data).arguments
        if "fraction_seed" in takes and "data.fraction_seed" not in keys:  # a run draws its labels, too
            given.append(f"data.fraction_seed={seed}")
            config = reread(chosen, given)
        names = [_file_name(name, label) for name, label in zip(self._factors, levels, strict=True)]
        source = None if config.init is None else config.init.source
        cell = StudyRun(self._out.joinpath(*names, f"seed_{seed}"), tuple(given), source)
        return _Run(tuple(levels), seed, cell, dataclasses.replace(setup, config=chosen), config)

    def _places_of(self, key: str, levels: Mapping[str, FactorLevel]) -> list[str]:
        """Where the command line gives a key, in the words of its options."""
        given = [(f"for all runs ({override})", override) for override in self._overrides]
        for (name, labels), (label, level) in zip(self._factors.items(), levels.items(), strict=True):
            option = f"--arm {label}" if name == "arm" and label in labels else f"--vary {name}"
            given += [(f"{option} ({override})", override) for override in level.overrides]
        return [words for words, override in given if override.partition("=")[0].strip() == key]

    def _assert_same_study(self) -> None:
        """Raises UserError where the folder holds a study of something else, or one with more levels or seeds."""
        path = self._out / f"{NAME}.json"
        if not path.exists() or next(self._out.rglob("config.yaml"), None) is None:  # nothing was trained
            return
        held = load_document(path)
        before, now = held["factors"], self._plan["factors"]
        is_part = list(before) == list(now) and all(set(before[name]) <= set(now[name]) for name in before)
        if not is_part or held["seeds"] > self._plan["seeds"]:
            there = "; ".join(f"{name}: {', '.join(each)}" for name, each in before.items())
            raise UserError(
                f"{path}: holds a study of other settings ({there}; {held['seeds']} seeds), which this one does not "
                "contain; name all of them or give another --out"
            )

    def _written(self, done: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """The document of the runs that are done, as it was written."""
        grid: dict[tuple[str, ...], dict[int, float]] = {}
        runs = [(self._runs[place], metrics) for place, metrics in done.items()]
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


def _mode_of(config: RunConfig, metric: str) -> Literal["max", "min"]:
    """Whether a higher figure is better. Raises ConfigError where no metric of the config computes it."""
    if metric != config.evaluate.metric:
        config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, metric=metric, mode=None))
    facts = build_part(config, "train").dataset.info.facts
    mode = resolve_mode(config, build_metrics(config.metrics, facts)).evaluate.mode
    assert mode is not None, "with_mode sets it"
    return mode


def _file_name(name: str, label: str) -> str:
    """A folder's name for a level; names that a file system may hold to be equal end in a digest."""
    text = f"{name.rpartition('.')[2]}_{label}"
    plain = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:48]
    return plain if plain == text else f"{plain}_{hashlib.sha256(f'{name}={label}'.encode()).hexdigest()[:8]}"
