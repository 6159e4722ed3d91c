"""Step of the azimuth from one column of a turning sensor to the next, measured within the rings of its scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MIN_STEP_RAD, _MAX_STEP_RAD = 2 * math.pi / 16384, 2 * math.pi / 90
"""Smallest and largest step that is looked for: sensors on the market have 360 to 4,500 columns in a turn."""
_NUM_TRIED = 2600
"""Number of steps that are tried, 0.2 % apart from each other."""
_MAX_DIFFERENCES = 1500
"""Number of differences with which each step is tried."""
_MIN_DIFFERENCES = 50
"""Number of differences below which no step is measured."""
_DUPLICATE_RAD = 1e-4
"""Difference up to which two points of a ring are returns of one pulse."""
_MIN_COHERENCE = 0.3
"""Mean cosine below which azimuths have no step: 0.41 for points that are off by 0.15 steps, one standard deviation."""
_SAME_COHERENCE = 0.8
"""Share of the largest coherence at which a step counts as one: fractions of the step are as coherent as the step."""
_MAX_MULTIPLE = 3
"""Differences of more steps than this are not averaged: a drift of the step makes their number uncertain."""


@dataclass(frozen=True)
class AzimuthStep:
    """Measured step: `step_rad` is its mean over all rings; `jitter` the standard deviation of a point, in steps."""

    step_rad: float
    jitter: float

    @property
    def columns_per_turn(self) -> float:
        """The number of columns of a full turn."""
        return 2 * math.pi / self.step_rad


def ring_differences(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Compute the differences (D,) in rad, all positive, of azimuths that follow each other within a ring.

    `points` (N, 3) are in the sensor's frame, in any order; `ring` (N,) are whole numbers. Differences of returns of
    one pulse, and of half a turn or more, are left out.
    """
    azimuth = np.arctan2(points[:, 1].astype(np.float64), points[:, 0].astype(np.float64))
    order = np.lexsort((azimuth, ring))
    differences = np.diff(azimuth[order])
    is_same_ring = np.diff(ring[order]) == 0
    return differences[is_same_ring & (differences > _DUPLICATE_RAD) & (differences < math.pi)]


def measure_step(scans: Sequence[np.ndarray]) -> AzimuthStep | None:
    """Measure the step of a sensor by the differences (D,) of azimuths, in rad, of its scans; None if there is none.

    Missing columns make multiples of the step, so that the largest step is sought at which the mean of
    cos(2 pi d / step) is as high as at any other. It is then refined: the sum of the differences of up to three steps,
    divided by their number of steps, in which the errors of single points cancel. If differences of two of these steps
    or more are the most frequent ones, files round azimuths to the ticks of an encoder, as those of an HDL-64E do to
    0.09 degrees: the step is then the mean of the differences of that number of ticks, and of one more or less.
    """
    differences = np.concatenate([np.zeros(0), *scans])
    if len(differences) < _MIN_DIFFERENCES:
        return None
    chosen = differences[np.linspace(0, len(differences) - 1, min(_MAX_DIFFERENCES, len(differences))).astype(np.int64)]
    tried = np.geomspace(_MIN_STEP_RAD, _MAX_STEP_RAD, _NUM_TRIED)
    coherence = np.array([_coherence(chosen, step) for step in tried])
    if coherence.max() < _MIN_COHERENCE:
        return None
    last = int(np.flatnonzero(coherence >= _SAME_COHERENCE * coherence.max())[-1])
    first = max(0, last - _PEAK_WIDTH)
    step = float(tried[first + int(coherence[first : last + 1].argmax())])
    for _ in range(_NUM_REFINEMENTS):
        multiples = np.rint(differences / step)
        is_used = multiples <= _MAX_MULTIPLE
        step = float(differences[is_used].sum() / max(1.0, multiples[is_used].sum()))
    deviations = differences[is_used] / step - multiples[is_used]
    jitter = float(np.median(np.abs(deviations)) / _MEDIAN_OF_NORMAL / math.sqrt(2))
    counts = np.bincount(multiples[multiples <= _MAX_TICKS].astype(np.int64), minlength=4)
    if (most := int(counts.argmax())) < 2:
        return AzimuthStep(step, jitter)
    other = most - 1 if most + 1 >= len(counts) or counts[most - 1] >= counts[most + 1] else most + 1
    ticks = (most * counts[most] + other * counts[other]) / (counts[most] + counts[other])
    return AzimuthStep(step * float(ticks), math.hypot(jitter, _STD_OF_ROUNDING) / float(ticks))


_MAX_TICKS = 32
"""Largest number of ticks of an encoder from one column to the next."""
_STD_OF_ROUNDING = 12**-0.5
"""Standard deviation of a number rounded down to a whole one."""
_PEAK_WIDTH = 200
"""Number of tried steps, 40 %, below the last coherent one among which is the step itself."""
_NUM_REFINEMENTS = 3
_MEDIAN_OF_NORMAL = 0.6745
"""Median distance from the mean of normal numbers, in standard deviations."""


def _coherence(differences: np.ndarray, step: float) -> float:
    """Compute the mean cosine of differences (D,) as phases of the step; one of less than half a step counts -1."""
    cosines = np.cos(2 * math.pi / step * differences)
    return float(np.where(differences < step / 2, -1.0, cosines).mean())


def choose_width(columns_per_turn: float, turn: float, *, multiple: int) -> int:
    """Choose the number of columns for a share of a turn: the next multiple above what the sensor has there.

    A thousandth more than the sensor's columns is required, because pixels as wide as the sensor's step have borders at
    which rounding decides whether neighbours share a pixel.
    """
    return multiple * (math.floor(columns_per_turn * turn * _MARGIN / multiple) + 1)


_MARGIN = 1.001
