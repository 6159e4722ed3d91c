"""Growth of time and memory with points, neighbours and batch size, one size at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import geometry, networks
from benchmarks.case import BenchmarkCase, BenchmarkResult
from sightline.contract.errors import UserError
from sightline.draw.charts import ChartPanel, Series, render_svg

AXES = ("points", "neighbours", "batch")


@dataclass(frozen=True)
class Family:
    """Computation with a case for each value along an axis."""

    title: str
    suite: str
    values: dict[str, tuple[int, ...]]
    case: Callable[[str, int], BenchmarkCase]


def _make_family(
    title: str, suite: str, base: dict[str, int], values: dict[str, tuple[int, ...]], make: Callable[..., BenchmarkCase]
) -> Family:
    return Family(title, suite, values, lambda axis, value: _without_peers(make(**(base | {axis: value}))))


def _without_peers(case: BenchmarkCase) -> BenchmarkCase:
    variants = tuple(form for form in case.variants if form.name == "sightline")
    return dataclasses.replace(case, variants=variants)


POWERS = (512, 1024, 2048, 4096, 8192, 16_384)
FAMILIES = (
    _make_family(
        "nearest neighbours",
        "geometry",
        {"batch": 4, "points": 1024, "channels": 3, "neighbours": 20},
        {"points": POWERS[:-1], "neighbours": (5, 10, 20, 40, 80), "batch": (1, 2, 4, 8, 16, 32)},
        geometry.neighbour_case,
    ),
    _make_family(
        "farthest-point sampling, a quarter",
        "geometry",
        {"batch": 4, "points": 1024},
        {"points": POWERS, "batch": (1, 2, 4, 8, 16, 32)},
        lambda *, batch, points: geometry.sampling_case(batch=batch, points=points, samples=points // 4),
    ),
    _make_family(
        "ball query, 256 centres",
        "geometry",
        {"batch": 4, "points": 1024, "centres": 256, "neighbours": 32},
        {"points": POWERS, "neighbours": (8, 16, 32, 64, 128), "batch": (1, 2, 4, 8, 16, 32)},
        geometry.ball_case,
    ),
    _make_family(
        "DGCNN training step",
        "models",
        {"batch": 4, "points": 512, "neighbours": 20},
        {"points": (256, 512, 1024, 2048), "neighbours": (5, 10, 20, 40, 80), "batch": (2, 4, 8, 16)},
        networks.dgcnn_case,
    ),
)


@dataclass(frozen=True)
class GrowthCase:
    """Benchmark case of a family at one value along an axis."""

    family: str
    axis: str
    value: int
    case: BenchmarkCase


def growth_cases(suites: Sequence[str], axis: str, *, is_quick: bool) -> list[GrowthCase]:
    """List the cases along an axis, or along `all` axes; with `is_quick` only the two smallest values of each.

    Raises UserError for an unknown axis, and for a suite without such cases.
    """
    if axis not in (*AXES, "all"):
        raise UserError(f"--grow: found '{axis}', allowed are {', '.join(AXES)}, all")
    available = {family.suite for family in FAMILIES}
    selected = available if not suites or "all" in suites else set(suites)
    if not selected <= available:
        raise UserError(
            f"--grow is for {', '.join(sorted(available))}; found {', '.join(sorted(selected - available))}"
        )
    return [
        GrowthCase(family.title, case_axis, value, family.case(case_axis, value))
        for family in FAMILIES
        if family.suite in selected
        for case_axis in (AXES if axis == "all" else (axis,))
        for value in family.values.get(case_axis, ())[: 2 if is_quick else None]
    ]


def fit_exponent(series: Series) -> float:
    """Fit the exponent p of the power law c x^p: 1 if a double size takes double time. NaN for a single point.

    Source: least squares on logarithms.
    """
    if len(series.points) < 2:
        return math.nan
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in series.points), strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def panels(places: Sequence[GrowthCase], results: Sequence[BenchmarkResult]) -> list[list[ChartPanel | None]]:
    """Make the panels: per family a row for time and a row for memory, with a column for each axis."""
    results_by_name = {result.name.rpartition("/")[0]: result for result in results}
    families = list(dict.fromkeys(growth_case.family for growth_case in places))
    axes = [axis for axis in AXES if any(growth_case.axis == axis for growth_case in places)]
    rows: list[list[ChartPanel | None]] = []
    for family in families:
        for title, read in (("CPU seconds", _seconds), ("peak MiB", _mebibytes)):
            rows.append([_make_panel(places, results_by_name, family, axis, title, read) for axis in axes])
    return rows


def render_growth(rows: Sequence[Sequence[ChartPanel | None]]) -> str:
    """Render the panels as SVG, as wide as the longest of their titles."""
    return render_svg(rows, panel_width=360)


def describe_growth(rows: Sequence[Sequence[ChartPanel | None]]) -> list[tuple[str, ...]]:
    """Describe each curve: quantity, axis, implementation, first and last value, and exponent."""
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


def _make_panel(
    family_cases: Sequence[GrowthCase],
    results: dict[str, BenchmarkResult],
    family: str,
    axis: str,
    title: str,
    read: Callable[[BenchmarkResult], tuple[float | None, float | None]],
) -> ChartPanel | None:
    lines: dict[str, list[tuple[float, float]]] = {"textbook": [], "sightline": []}
    for growth_case in family_cases:
        if (growth_case.family, growth_case.axis) != (family, axis) or growth_case.case.name not in results:
            continue
        for name, value in zip(lines, read(results[growth_case.case.name]), strict=True):
            if value:  # a peak that was not measured, or too small to be seen, has no place on a logarithmic axis
                lines[name].append((growth_case.value, value))
    series = tuple(Series(name, tuple(points)) for name, points in lines.items())
    return ChartPanel(f"{family}: {title}", axis, series) if any(line.points for line in series) else None


def _seconds(result: BenchmarkResult) -> tuple[float, float]:
    return result.baseline_seconds.cpu, result.seconds.cpu


def _mebibytes(result: BenchmarkResult) -> tuple[float | None, float | None]:
    sizes = (result.baseline_peak_bytes, result.peak_bytes)
    baseline, variant = (None if size is None else size / 2**20 for size in sizes)
    return baseline, variant
