"""Table and plot of label efficiency: runs from scratch and pre-trained, a row per fraction of the labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sightline.chart import ChartPanel, Series
from sightline.studies.study_runs import StudyRun

__all__ = ["COLUMNS", "STARTS", "LabelRow", "LabelRun", "Start", "label_panel", "label_rows", "percent", "table_cells"]

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

    A spread is the largest value minus the smallest, NaN for a single run. `is_beyond`: the improvement of the mean,
    pre-trained minus scratch (or the reverse if lower is better), exceeds the larger of both spreads; None if there is
    none. Two runs of one seed share labels and the order of samples, and form a pair: in `num_ahead` of `num_pairs` the
    pre-trained run is strictly better.
    """

    fraction: float
    num_samples: int
    scratch: tuple[float, ...]
    pretrained: tuple[float, ...]
    is_low_better: bool = False

    @property
    def is_complete(self) -> bool:
        return bool(self.scratch and self.pretrained)

    @property
    def spread(self) -> float:
        return max(_spread(self.scratch), _spread(self.pretrained))

    @property
    def difference(self) -> float:
        return statistics.fmean(self.pretrained) - statistics.fmean(self.scratch) if self.is_complete else math.nan

    @property
    def is_beyond(self) -> bool | None:
        is_known = self.is_complete and not math.isnan(self.spread)
        gain = -self.difference if self.is_low_better else self.difference
        return gain > self.spread if is_known else None

    @property
    def num_pairs(self) -> int:
        return min(len(self.scratch), len(self.pretrained))

    @property
    def num_ahead(self) -> int:
        pairs = zip(self.scratch, self.pretrained, strict=False)  # an interrupted study ends in half a pair
        return sum(
            pretrained < scratch if self.is_low_better else pretrained > scratch for scratch, pretrained in pairs
        )

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


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values) if len(values) > 1 else math.nan


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    return {
        "values": list(values),
        "mean": statistics.fmean(values) if values else math.nan,
        "std": statistics.stdev(values) if len(values) > 1 else math.nan,
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
    return f"{100 * fraction:g} %"


def label_panel(rows: Sequence[LabelRow], *, title: str) -> ChartPanel:
    """Plot both starts over the fraction of labels: means, and the range from minimum to maximum over the seeds."""
    series = []
    for start, name in zip(STARTS, ("from scratch", "pre-trained"), strict=True):
        figures = [(row.fraction, getattr(row, start)) for row in rows if getattr(row, start)]
        points = tuple((100 * fraction, statistics.fmean(values)) for fraction, values in figures)
        series.append(Series(name, points, tuple((min(values), max(values)) for _, values in figures)))
    return ChartPanel(title, "labels, %", tuple(series), y_scale="linear")
