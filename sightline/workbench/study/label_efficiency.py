"""Label efficiency: training from scratch against pre-trained at several label fractions, resumable run by run.

Table and plot of label efficiency: runs from scratch and pre-trained, a row per fraction of the labels.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.engine.build import build_metrics, build_part
from sightline.engine.records import resolve_mode
from sightline.runs.run_directory import write_document, write_file
from sightline.training.train_run import Reporter, read_with_plugins, reread
from sightline.workbench.study.study_runs import StudyRun, StudySettings, init_override, run_cells, scratch_overrides

Start = Literal["scratch", "pretrained"]
STARTS: tuple[Start, ...] = ("scratch", "pretrained")
COLUMNS = (
    "labels",
    "samples",
    "runs",
    "scratch",
    "spread",
    "pre-trained",
    "spread",
    "difference",
    "against the spread",
    "ahead",
)


@dataclass(frozen=True)
class LabelRun:
    """Run of the study: fraction of the labels, start, seed and cell; and its metric once it is finished."""

    fraction: float
    start: Start
    seed: int
    cell: StudyRun
    value: float | None = None


@dataclass(frozen=True)
class LabelRow:
    """Row of the table: a fraction of the labels, its number of samples, the metrics of both starts, and a comparison.

    Metrics are in the order of the seeds; a run whose metric counted nothing has NaN, which no mean, spread or pair
    includes. A spread is the largest value minus the smallest, NaN for a single run. `is_beyond`: the improvement of
    the mean, pre-trained minus scratch (or the reverse if lower is better), exceeds the larger of both spreads; None if
    there is none. Two runs of one seed share labels and the order of samples, and form a pair: in `num_ahead` of
    `num_pairs` the pre-trained run is strictly better.
    """

    fraction: float
    num_samples: int
    scratch: tuple[float, ...]
    pretrained: tuple[float, ...]
    is_low_better: bool = False

    @property
    def is_complete(self) -> bool:
        return bool(_drop_nan(self.scratch) and _drop_nan(self.pretrained))

    @property
    def spread(self) -> float:
        return max(_spread(self.scratch), _spread(self.pretrained))

    @property
    def difference(self) -> float:
        return _mean(self.pretrained) - _mean(self.scratch)

    @property
    def is_beyond(self) -> bool | None:
        is_known = self.is_complete and not math.isnan(self.spread)
        gain = -self.difference if self.is_low_better else self.difference
        return gain > self.spread if is_known else None

    @property
    def num_pairs(self) -> int:
        return len(self._pairs)

    @property
    def num_ahead(self) -> int:
        return sum(
            pretrained < scratch if self.is_low_better else pretrained > scratch for scratch, pretrained in self._pairs
        )

    @property
    def _pairs(self) -> list[tuple[float, float]]:
        pairs = zip(self.scratch, self.pretrained, strict=False)  # an interrupted study ends in half a pair
        return [pair for pair in pairs if len(_drop_nan(pair)) == 2]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; NaN or None for those that are not known yet."""
        return {
            "fraction": self.fraction,
            "num_samples": self.num_samples,
            **{start: _statistics(getattr(self, start)) for start in STARTS},
            "difference": self.difference,
            "spread": self.spread,
            "is_beyond_spread": self.is_beyond,
            "num_ahead": self.num_ahead,
            "num_pairs": self.num_pairs,
        }


def label_rows(
    runs: Sequence[LabelRun], num_samples: Mapping[float, int], *, mode: Literal["max", "min"] = "max"
) -> list[LabelRow]:
    """Return a row per fraction with a finished run, in order."""
    values = {
        (fraction, start): tuple(
            run.value for run in runs if (run.fraction, run.start) == (fraction, start) and run.value is not None
        )
        for fraction in num_samples
        for start in STARTS
    }
    rows = [
        LabelRow(fraction, size, values[fraction, "scratch"], values[fraction, "pretrained"], mode == "min")
        for fraction, size in num_samples.items()
    ]
    return [row for row in rows if row.scratch or row.pretrained]


def _drop_nan(values: Sequence[float]) -> list[float]:
    """Return the values that are not NaN."""
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    known = _drop_nan(values)
    return statistics.fmean(known) if known else math.nan


def _spread(values: Sequence[float]) -> float:
    known = _drop_nan(values)
    return max(known) - min(known) if len(known) > 1 else math.nan


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    known = _drop_nan(values)
    return {
        "values": list(values),
        "mean": _mean(values),
        "std": statistics.stdev(known) if len(known) > 1 else math.nan,
        "spread": _spread(values),
    }


def table_cells(row: LabelRow) -> list[Any]:
    """Return the cells of a row of the table."""
    sides = [_statistics(getattr(row, start)) for start in STARTS]
    figures = [side[key] for side in sides for key in ("mean", "spread")]
    verdict = {True: "beyond it", False: "within it", None: "nothing to compare"}[row.is_beyond]
    counts = [percent(row.fraction), row.num_samples, max(len(row.scratch), len(row.pretrained))]
    numbers = [None if math.isnan(figure) else figure for figure in (*figures, row.difference)]
    return [*counts, *numbers, verdict, f"{row.num_ahead} of {row.num_pairs}"]


def percent(fraction: float) -> str:
    """Format a fraction in percent."""
    return f"{100 * fraction:g} %"


def label_panel(rows: Sequence[LabelRow], *, title: str) -> ChartPanel:
    """Plot both starts over the fraction of labels: means, and the range from minimum to maximum over the seeds."""
    series = []
    for start, name in zip(STARTS, ("from scratch", "pre-trained"), strict=True):
        figures = [(row.fraction, known) for row in rows if (known := _drop_nan(getattr(row, start)))]
        points = tuple((100 * fraction, statistics.fmean(values)) for fraction, values in figures)
        series.append(Series(name, points, tuple((min(values), max(values)) for _, values in figures)))
    return ChartPanel(title, "labels, %", tuple(series), y_scale="linear")


NAME = "label_efficiency"
"""Name of the files of table and plot, without extension."""
_STUDY_KEYS = {
    "seed": "give seeds=N",
    "data.fraction": "give fractions=F,F",
    "data.fraction_seed": "a run samples its labels by its own seed",
    "evaluate.select": "with so few labels, nothing is held out",
    "evaluate.every": "only the last weights are evaluated",
}
"""Keys that the study sets for every run, and what to do instead."""


@dataclass(frozen=True)
class LabelShare:
    """Fraction of the labels, with the number of seeds per start and of epochs; None for those of the config."""

    fraction: float
    num_seeds: int = 3
    num_epochs: int | None = None


@dataclass(frozen=True)
class LabelResult:
    """Result of the finished runs: rows, document, and the exit code of the run that did not finish, or 0."""

    config: RunConfig
    rows: tuple[LabelRow, ...]
    document: dict[str, Any]
    code: int = 0


class LabelStudy:
    """Planned label-efficiency study: all configs are read and checked. A call runs the unfinished runs."""

    def __init__(
        self,
        setup: StudySettings,
        shares: Sequence[LabelShare],
        out: Path,
        *,
        overrides: tuple[str, ...] = (),
        source: str | None = None,
    ) -> None:
        """`source` is the run to start from, by default that of the config. Raises UserError for what cannot run."""
        _assert_no_study_keys(overrides)
        self._setup = setup
        self._out = out
        self._scratch_overrides = overrides
        self._overrides = overrides if source is None else (*overrides, init_override(source))
        read = read_with_plugins(setup.config, self._overrides, setup.plugins)
        config, self.notes = read.config, read.notes
        if config.init is None:
            raise UserError(f"study: {setup.config} has no init; give the run to start from with from=RUN")
        if "fraction" not in registry.data.entry(config.data).arguments:
            raise UserError(f"study: the data set '{config.data.name}' has no argument 'fraction' to reduce its labels")
        self._source = config.init.source
        self._runs = [
            self._make_run(config, share, start, seed)
            for share in shares
            for seed in range(share.num_seeds)
            for start in reversed(STARTS)  # pre-trained first, so that faulty weights are noticed at once
        ]
        for run in self._runs:
            self._read_config(run)
        self._sizes = {
            run.fraction: len(build_part(self._read_config(run), "train").indices)
            for run in self._runs
            if run.seed == 0 and run.start == "scratch"
        }
        facts = build_part(self._read_config(self._runs[0]), "train").dataset.info.facts
        self._config = resolve_mode(config, build_metrics(config.metrics, facts))

    def __call__(self, reporter: Reporter) -> LabelResult:
        """Run all unfinished cells, and write table and plot to the folder of the study after each."""
        done: list[LabelRun] = []
        cells = [
            (run.cell, self._setup, f"{percent(run.fraction)} of the labels, {run.start}, seed {run.seed}")
            for run in self._runs
        ]

        def record_finished(index: int, metrics: Mapping[str, Any]) -> None:
            value = metrics[self._config.evaluate.metric]
            done.append(dataclasses.replace(self._runs[index], value=math.nan if value is None else float(value)))
            self._write(done)

        code = run_cells(cells, reporter, record_finished)
        return self._result(done, code)

    def _make_run(self, config: RunConfig, share: LabelShare, start: Start, seed: int) -> LabelRun:
        overrides = scratch_overrides(config, self._scratch_overrides) if start == "scratch" else list(self._overrides)
        overrides += [f"data.fraction={share.fraction!r}", f"seed={seed}", "evaluate.select=test"]
        overrides += [f"train.epochs={share.num_epochs}"] if share.num_epochs is not None else []
        overrides += [f"evaluate.every={share.num_epochs or config.train.epochs}"]
        if "fraction_seed" in registry.data.entry(config.data).arguments:
            overrides.append(f"data.fraction_seed={seed}")
        path = self._out / f"fraction_{share.fraction:g}" / f"{start}_seed_{seed}"
        return LabelRun(share.fraction, start, seed, StudyRun(path, tuple(overrides), self._source))

    def _read_config(self, run: LabelRun) -> RunConfig:
        return reread(self._setup.config, run.cell.overrides)

    def _result(self, done: Sequence[LabelRun], code: int = 0) -> LabelResult:
        rows = self._rows(done)
        return LabelResult(self._config, tuple(rows), self._document(rows, done), code)

    def _rows(self, done: Sequence[LabelRun]) -> list[LabelRow]:
        assert self._config.evaluate.mode is not None, "with_mode sets it"
        return label_rows(done, self._sizes, mode=self._config.evaluate.mode)

    def _document(self, rows: Sequence[LabelRow], done: Sequence[LabelRun]) -> dict[str, Any]:
        return {
            "config": str(self._setup.config),
            "from": self._source,
            "data": self._config.data.name,
            "metric": self._config.evaluate.metric,
            "protocol": "last weights, test part scored once, all labels of a share train",
            "rows": [row.to_dict() for row in rows],
            "runs": [
                {"run": str(r.cell.path), "fraction": r.fraction, "start": r.start, "seed": r.seed, "value": r.value}
                for r in done
            ],
        }

    def _write(self, done: Sequence[LabelRun]) -> None:
        rows = self._rows(done)
        write_document(self._out / f"{NAME}.json", self._document(rows, done))
        panel = label_panel(rows, title=f"{self._config.evaluate.metric}, {self._config.data.name}")
        if any(series.points for series in panel.series):
            write_file(self._out / f"{NAME}.svg", render_svg([[panel]]))


def _assert_no_study_keys(overrides: Sequence[str]) -> None:
    """Raise UserError for an override of a key that the study sets."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _STUDY_KEYS:
            raise UserError(f"study: found {override!r}; {key} is set for every run: {_STUDY_KEYS[key]}")
