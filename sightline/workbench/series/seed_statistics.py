"""Statistics of one figure over seeds: a row for each setting, paired differences between levels, and a chart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sightline.contract.intervals import student_t
from sightline.draw.charts import ChartPanel, Series

GridResults = Mapping[tuple[str, ...], Mapping[int, float]]
"""Values of finished runs by seed, for each combination of levels; none is empty."""


def summarise(values: Iterable[float]) -> dict[str, float]:
    """Return `mean`, sample `std` (NaN for one value), `min` and `max`; all are NaN if a value is."""
    values = list(values)
    if any(map(math.isnan, values)):
        return dict.fromkeys(("mean", "std", "min", "max"), math.nan)
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values)}


def grid_rows(factors: Sequence[str], grid: GridResults) -> list[dict[str, Any]]:
    """Return a row for each combination: `levels`, `values` by seed, and their summary."""
    return [
        {
            "levels": dict(zip(factors, levels, strict=True)),
            "values": {str(seed): value for seed, value in values.items()},
            **summarise(values.values()),
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
            mean, std = (summarise(pairs)[key] for key in ("mean", "std"))
            half_width = math.nan
            if len(pairs) > 1:
                half_width = student_t(len(pairs) - 1) * std / math.sqrt(len(pairs))
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


def grid_panel(factors: Sequence[str], grid: GridResults, *, title: str) -> ChartPanel:
    """Plot the means over the levels of the first factor, a curve per setting of the others, with the range over seeds.

    Levels that are positive numbers lie at their value, others are counted from 1.
    """
    columns = list(dict.fromkeys(levels[0] if levels else "" for levels in grid))
    position, x_title = {level: _number(level) for level in columns}, factors[0] if factors else ""
    if not all(x > 0 for x in position.values()):
        position = {level: float(index) for index, level in enumerate(columns, start=1)}
        x_title = ", ".join(f"{index:g} = {level}" for level, index in position.items() if level)
    curves: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for levels, values in grid.items():
        setting = ", ".join(f"{n}={level}" for n, level in zip(factors[1:], levels[1:], strict=True))
        point = position[levels[0] if levels else ""], summarise(values.values())
        curves.setdefault(setting or "mean", []).append(point)
    series = []
    for name, points in curves.items():
        points.sort(key=lambda point: point[0])
        means = tuple((x, summary["mean"]) for x, summary in points)
        series.append(Series(name, means, tuple((summary["min"], summary["max"]) for _, summary in points)))
    return ChartPanel(title, x_title, tuple(series), y_scale="linear")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
