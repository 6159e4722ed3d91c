"""The figures of a grid of runs: mean and spread over seeds, differences paired by seed with their interval, a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sightline.chart import ChartPanel, Series

__all__ = ["grid_panel", "grid_rows", "paired_differences", "student_t"]

GridResults = Mapping[tuple[str, ...], Mapping[int, float]]
"""By a level of each factor the figures of the runs that are done, by seed; none is empty."""


def grid_rows(factors: Sequence[str], grid: GridResults) -> list[dict[str, Any]]:
    """A row a combination: `levels`, `values` by seed, `mean`, `std` of the sample (NaN of one), `min`, `max`."""
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
    """A level of a factor less its first, all else equal, over the seeds that both have; factor by factor.

    `low` and `high` bound the `mean` of the `pairs` with a confidence of 95 % (Student's t), NaN of a single pair;
    `is_beyond_chance` is whether they leave out zero. `num_better` counts pairs in which the level is the better one.
    """
    found = []
    for place, (name, first) in enumerate(zip(factors, firsts, strict=True)):
        for levels, values in grid.items():
            base = grid.get((*levels[:place], first, *levels[place + 1 :]), {})
            pairs = [values[seed] - base[seed] for seed in values if seed in base]
            if levels[place] == first or not pairs:
                continue
            mean = statistics.fmean(pairs)
            reach = math.nan
            if len(pairs) > 1:
                reach = student_t(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
            found.append(
                {
                    "factor": name,
                    "level": levels[place],
                    "first": first,
                    "others": {n: level for n, level in zip(factors, levels, strict=True) if n != name},
                    "pairs": pairs,
                    "mean": mean,
                    "low": mean - reach,
                    "high": mean + reach,
                    "is_beyond_chance": None if math.isnan(reach) else abs(mean) > reach,
                    "num_better": sum(pair > 0 if mode == "max" else pair < 0 for pair in pairs),
                }
            )
    return found


def student_t(degrees: int, *, confidence: float = 0.95) -> float:
    """The t that Student's distribution of so many degrees of freedom, 1 or more, stays within with this probability.

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
        within = 2 / math.pi * (angle + total) if is_odd else total
        low, high = (angle, high) if within < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def grid_panel(factors: Sequence[str], grid: GridResults, *, title: str) -> ChartPanel:
    """The means over the levels of one factor, a curve for each setting of the others, with the range of the seeds.

    That factor is the first whose levels are numbers above zero, or the first of all, its levels counted from 1.
    """
    columns = [list(dict.fromkeys(levels[place] for levels in grid)) for place in range(len(factors))]
    numbers = [[_number(level) for level in levels] for levels in columns]
    across = next((place for place, each in enumerate(numbers) if len(each) > 1 and all(x > 0 for x in each)), None)
    at, axis = {}, ""
    if across is not None:
        at, axis = dict(zip(columns[across], numbers[across], strict=True)), factors[across]
    elif factors:
        at = {level: float(place) for place, level in enumerate(columns[0], start=1)}
        axis = ", ".join(f"{place:g} = {level}" for level, place in at.items())
    curves: dict[str, dict[float, Mapping[int, float]]] = {}
    for levels, values in grid.items():
        own = across or 0
        words = [f"{n}={level}" for place, (n, level) in enumerate(zip(factors, levels, strict=True)) if place != own]
        curves.setdefault(", ".join(words) or "mean", {})[at[levels[own]] if at else 1.0] = values
    series = [
        Series(
            name,
            tuple((x, statistics.fmean(points[x].values())) for x in sorted(points)),
            tuple((min(points[x].values()), max(points[x].values())) for x in sorted(points)),
        )
        for name, points in curves.items()
    ]
    return ChartPanel(title, axis, tuple(series), y_scale="linear")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
