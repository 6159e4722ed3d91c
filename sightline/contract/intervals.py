"""Confidence intervals of figures from samples: shares, ratios of sums, and others, of which groups are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
"""Share of repetitions in which an interval contains what is estimated."""


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Compute the interval of a share, of which `right` of `total` > 0 independent samples are seen, within 0 to 1.

    Of few samples, and near 0 and 1, it covers the true share about as often as its level says.
    Source: Wilson 1927, the score interval.
    """
    share, normal = right / total, NormalDist().inv_cdf((1 + LEVEL) / 2)
    shrunk = 1 + normal**2 / total
    middle = (share + normal**2 / (2 * total)) / shrunk
    half = normal / shrunk * math.sqrt(share * (1 - share) / total + (normal / (2 * total)) ** 2)
    return (middle - half if right else 0.0), (middle + half if right < total else 1.0)


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float] | None:
    """Compute the interval of sum(numerators) / sum(denominators) over n samples (n,); None for fewer than two.

    The samples are independent and their denominators positive. Each is left out in turn: the spread of the n ratios
    gives the standard error, and Student's t of n - 1 degrees of freedom the width, so that few samples give a wide
    interval. Source: Tukey 1958 (the jackknife).
    """
    if len(denominators) < 2:
        return None
    above, below = numerators.sum(), denominators.sum()
    return jackknife_interval(float(above / below), (above - numerators) / (below - denominators))


def jackknife_interval(figure: float, without: np.ndarray) -> tuple[float, float] | None:
    """Compute the interval of a figure of samples from the figures without each of n groups of them; None for n < 2.

    Source: Tukey 1958; groups of equal size.
    """
    num_groups = len(without)
    if num_groups < 2:
        return None
    spread = math.sqrt((num_groups - 1) / num_groups * float(((without - without.mean()) ** 2).sum()))
    half = student_t(num_groups - 1) * spread
    return figure - half, figure + half


@dataclass(frozen=True, eq=False)
class LeftOutFigures:
    """K figures that are no ratio of sums over samples, such as an AP, and each without groups of its samples.

    `without` has for each figure an array (G,) of its values without one of G groups, `counts` the number of samples
    that it is about, and `num_samples` is the number of different ones. No figure is outside of `bounds`.
    """

    figures: Sequence[float]
    without: Sequence[np.ndarray]
    counts: Sequence[int]
    num_samples: int
    bounds: tuple[float, float]

    def intervals(self) -> list[dict[str, Any]]:
        """Compute the 95 % interval of each figure; its ends are None for fewer than two groups."""
        return [
            describe_jackknife(jackknife_interval(figure, without), count, self.bounds)
            for figure, without, count in zip(self.figures, self.without, self.counts, strict=True)
        ]


def describe_jackknife(
    ends: tuple[float, float] | None, num_samples: int, bounds: tuple[float, float]
) -> dict[str, Any]:
    """Describe an interval of a jackknife, cut at the bounds of the figure."""
    within = None if ends is None else (max(ends[0], bounds[0]), min(ends[1], bounds[1]))
    return describe_interval("jackknife, Student's t", within, num_samples)


def describe_interval(method: str, ends: tuple[float, float] | None, num_samples: int) -> dict[str, Any]:
    """Describe an interval as documents state it: `low`, `high`, `level`, `num_samples` and `method`."""
    low, high = (None, None) if ends is None else ends
    return {"low": low, "high": high, "level": LEVEL, "num_samples": num_samples, "method": method}


def student_t(degrees: int, *, confidence: float = LEVEL) -> float:
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
