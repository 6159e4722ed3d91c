"""How time and memory grow with the points of a cloud, with neighbours, and with the batch: one size at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sightline.bench.case import BenchmarkCase
from sightline.bench.geometry import ball_case, neighbour_case, sampling_case
from sightline.bench.models import dgcnn_case
from sightline.bench.runner import BenchmarkResult
from sightline.chart import ChartPanel, Series
from sightline.errors import UserError

__all__ = ["AXES", "Series", "all_cases", "describe_growth", "fit_exponent", "growth_cases", "panels"]

AXES = ("points", "neighbours", "batch")


@dataclass(frozen=True)
class Family:
    """One computation, and the case of it at each value along an axis."""

    title: str
    suite: str
    values: dict[str, tuple[int, ...]]
    case: Callable[[str, int], BenchmarkCase]


def _family(
    title: str, suite: str, base: dict[str, int], values: dict[str, tuple[int, ...]], make: Callable[..., BenchmarkCase]
) -> Family:
    return Family(title, suite, values, lambda axis, value: _without_peers(make(**(base | {axis: value}))))


def _without_peers(case: BenchmarkCase) -> BenchmarkCase:
    kept = tuple(form for form in case.variants if form.name == "sightline")
    return dataclasses.replace(case, variants=kept)


POWERS = (512, 1024, 2048, 4096, 8192, 16_384)
FAMILIES = (
    _family(
        "nearest neighbours",
        "geometry",
        {"batch": 4, "points": 1024, "channels": 3, "neighbours": 20},
        {"points": POWERS[:-1], "neighbours": (5, 10, 20, 40, 80), "batch": (1, 2, 4, 8, 16, 32)},
        neighbour_case,
    ),
    _family(
        "farthest-point sampling, a quarter",
        "geometry",
        {"batch": 4, "points": 1024},
        {"points": POWERS, "batch": (1, 2, 4, 8, 16, 32)},
        lambda *, batch, points: sampling_case(batch=batch, points=points, samples=points // 4),
    ),
    _family(
        "ball query, 256 centres",
        "geometry",
        {"batch": 4, "points": 1024, "centres": 256, "neighbours": 32},
        {"points": POWERS, "neighbours": (8, 16, 32, 64, 128), "batch": (1, 2, 4, 8, 16, 32)},
        ball_case,
    ),
    _family(
        "DGCNN training step",
        "models",
        {"batch": 4, "points": 512, "neighbours": 20},
        {"points": (256, 512, 1024, 2048), "neighbours": (5, 10, 20, 40, 80), "batch": (2, 4, 8, 16)},
        dgcnn_case,
    ),
)


@dataclass(frozen=True)
class GrowthCase:
    """A case, and where it stands: its family, the axis, and the value along it."""

    family: str
    axis: str
    value: int
    case: BenchmarkCase


def growth_cases(suites: Sequence[str], axis: str, *, is_quick: bool) -> list[GrowthCase]:
    """The cases along an axis, or along `all`; of each line the two smallest where `is_quick`.

    Raises UserError for an unknown axis and for a suite that has nothing that grows.
    """
    if axis not in (*AXES, "all"):
        raise UserError(f"bench: --grow: found '{axis}', allowed are {', '.join(AXES)}, all")
    there = {family.suite for family in FAMILIES}
    wanted = there if not suites or "all" in suites else set(suites)
    if not wanted <= there:
        raise UserError(f"bench: --grow is for {', '.join(sorted(there))}; found {', '.join(sorted(wanted - there))}")
    return [
        GrowthCase(family.title, each, value, family.case(each, value))
        for family in FAMILIES
        if family.suite in wanted
        for each in (AXES if axis == "all" else (axis,))
        for value in family.values.get(each, ())[: 2 if is_quick else None]
    ]


def all_cases() -> list[BenchmarkCase]:
    return [each.case for each in growth_cases((), "all", is_quick=False)]


def fit_exponent(series: Series) -> float:
    """p of the power law c x^p that fits best: 1 where twice as much takes twice as long. NaN for a single point.

    Source: least squares on logarithms.
    """
    if len(series.points) < 2:
        return math.nan
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in series.points), strict=True)
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread


def panels(places: Sequence[GrowthCase], results: Sequence[BenchmarkResult]) -> list[list[ChartPanel | None]]:
    """A row of panels for the time and one for the memory of each family, a column for each axis."""
    found = {result.name.rpartition("/")[0]: result for result in results}
    families = list(dict.fromkeys(place.family for place in places))
    axes = [axis for axis in AXES if any(place.axis == axis for place in places)]
    rows: list[list[ChartPanel | None]] = []
    for family in families:
        for title, read in (("CPU seconds", _seconds), ("peak MiB", _mebibytes)):
            rows.append([_panel(places, found, family, axis, title, read) for axis in axes])
    return rows


def describe_growth(rows: Sequence[Sequence[ChartPanel | None]]) -> list[tuple[str, ...]]:
    """A line for each curve: what, along which axis, which form, first and last value, and the exponent."""
    return [
        (
            panel.title,
            panel.x_title,
            series.name,
            f"{series.points[0][1]:.3g} to {series.points[-1][1]:.3g}",
            f"{series.points[0][0]:g} to {series.points[-1][0]:g}",
            f"{fit_exponent(series):.2f}",
        )
        for row in rows
        for panel in row
        if panel is not None
        for series in panel.series
        if series.points
    ]


def _panel(
    places: Sequence[GrowthCase],
    found: dict[str, BenchmarkResult],
    family: str,
    axis: str,
    title: str,
    read: Callable[[BenchmarkResult], tuple[float | None, float | None]],
) -> ChartPanel | None:
    lines: dict[str, list[tuple[float, float]]] = {"textbook": [], "sightline": []}
    for place in places:
        if (place.family, place.axis) != (family, axis) or place.case.name not in found:
            continue
        for name, value in zip(lines, read(found[place.case.name]), strict=True):
            if value:  # a peak that was not measured, or too small to be seen, has no place on a logarithmic axis
                lines[name].append((place.value, value))
    series = tuple(Series(name, tuple(points)) for name, points in lines.items())
    return ChartPanel(f"{family}: {title}", axis, series) if any(line.points for line in series) else None


def _seconds(result: BenchmarkResult) -> tuple[float, float]:
    return result.baseline_seconds.cpu, result.seconds.cpu


def _mebibytes(result: BenchmarkResult) -> tuple[float | None, float | None]:
    sizes = (result.baseline_peak_bytes, result.peak_bytes)
    before, after = (None if size is None else size / 2**20 for size in sizes)
    return before, after
