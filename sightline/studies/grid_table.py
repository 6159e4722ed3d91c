"""Statistics of a grid of runs: mean and spread over seeds, paired differences with intervals, and the plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sightline.chart import ChartPanel, Series

__all__ = ["grid_panel", "grid_rows", "paired_differences", "student_t"]

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
