"""Confidence intervals of figures from samples: of a share, and of a ratio of sums; Student's t."""

from __future__ import annotations

import math
from statistics import NormalDist

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
    num_samples = len(denominators)
    if num_samples < 2:
        return None
    above, below = numerators.sum(), denominators.sum()
    without = (above - numerators) / (below - denominators)
    spread = math.sqrt((num_samples - 1) / num_samples * float(((without - without.mean()) ** 2).sum()))
    middle, half = float(above / below), student_t(num_samples - 1) * spread
    return middle - half, middle + half


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
