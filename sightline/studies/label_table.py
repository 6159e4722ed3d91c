"""Runs from scratch beside pre-trained ones: a row for each share of the labels, the table, the plot."""

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
    """A cell with its key, the share of the labels, where it starts, and its seed; and its figure, once it is done."""

    fraction: float
    start: Start
    seed: int
    cell: StudyRun
    value: float | None = None


@dataclass(frozen=True)
class LabelRow:
    """A share of the labels: how many samples that is, the figures of either start by seed, and their comparison.

    A spread is the largest figure less the smallest, NaN of a single run. `is_beyond` is whether the difference of
    the means, pre-trained less scratch (the reverse where a low figure is the better one), is more than the larger of
    both spreads; None where there is none. Two runs of one seed share labels and the order of samples, and
    make a pair: `num_ahead` of `num_pairs` is in how many of them the pre-trained one is strictly the better.
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
        pairs = zip(self.scratch, self.pretrained, strict=False)  # a broken off comparison ends in half a pair
        return sum(given < without if self.is_low_better else given > without for without, given in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not known yet is null."""
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
    """A row for each share of which a run is done, in order."""
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
    """A row of the table."""
    sides = [_statistics(getattr(row, start)) for start in STARTS]
    figures = [side[key] for side in sides for key in ("mean", "spread")]
    verdict = {True: "beyond it", False: "within it", None: "nothing to compare"}[row.is_beyond]
    counts = [percent(row.fraction), row.num_samples, max(len(row.scratch), len(row.pretrained))]
    known = [None if math.isnan(figure) else figure for figure in (*figures, row.difference)]
    return [*counts, *known, verdict, f"{row.num_ahead} of {row.num_pairs}"]


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def label_panel(rows: Sequence[LabelRow], *, title: str) -> ChartPanel:
    """Both starts over the share of the labels: means, and from the smallest to the largest figure of the seeds."""
    series = []
    for start, name in zip(STARTS, ("from scratch", "pre-trained"), strict=True):
        figures = [(row.fraction, getattr(row, start)) for row in rows if getattr(row, start)]
        points = tuple((100 * fraction, statistics.fmean(values)) for fraction, values in figures)
        series.append(Series(name, points, tuple((min(values), max(values)) for _, values in figures)))
    return ChartPanel(title, "labels, %", tuple(series), y_scale="linear")
