"""Ranges of the numbers that a training reads, kept in its folder: inputs far outside of them are named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.validation import TypeAdapter, ValidationError
from sightline.runs.run_documents import load_document

CHECKS_FILE = "checks.json"
_FAR = 10.0
"""Times of a range, and of its reach, beyond which numbers are far outside."""
_FAR_BELOW = 20.0
"""Times that every sample's largest number exceeds that of a file of another scale: shares of 0 to 255, say."""


class Range(NamedTuple):
    """Least and largest of the finite numbers of a field, over the samples that were read.

    `reach` is the largest number of a sample, by size, in times of its median one; 0 where that is 0. `least` is the
    smallest of the largest numbers, by size, of samples that are not all 0; 0 where it is not known.
    """

    low: float
    high: float
    reach: float
    least: float = 0.0

    def join(self, other: Range | None) -> Range:
        """Return the range of both."""
        if other is None:
            return self
        least = min(filter(None, (self.least, other.least)), default=0.0)
        return Range(min(self.low, other.low), max(self.high, other.high), max(self.reach, other.reach), least)

    def describe_far(self, name: str, found: Range) -> str:
        """Describe numbers `found` in a field that are far outside of this range; "" where they are not."""
        margin = _FAR * max(self.high - self.low, abs(self.low), abs(self.high))
        for value in (found.high, found.low):
            if not self.low - margin <= value <= self.high + margin:
                return f"{name}: {value:.4g}, in training {self.low:.4g} to {self.high:.4g}"
        if found.reach > _FAR * self.reach > 0:
            times = f"the largest is {found.reach:.4g} times the median, in training at most {self.reach:.4g}"
            return f"{name}: lone numbers lie far outside of the others ({times})"
        if 0 < _FAR_BELOW * found.least < self.least:
            return f"{name}: at most {found.least:.4g}, in training every sample reaches {self.least:.4g} or more"
        return ""


def find_range(values: np.ndarray) -> Range | None:
    """Find the range of a sample's numbers; None without any that is finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return None
    sizes = np.abs(finite)
    median = float(np.median(sizes))
    largest = float(sizes.max())
    return Range(float(finite.min()), float(finite.max()), largest / median if median else 0.0, largest)


def read_ranges(run: Path) -> Mapping[str, Range]:
    """Read the ranges of the fields of samples, before any transform; none for a run that began without checks."""
    if not (run / CHECKS_FILE).exists():
        return {}
    reaching: Any = load_document(run / CHECKS_FILE).get("reaching") or {}
    try:
        return TypeAdapter(dict[str, Range]).validate_python(reaching.get("fields", {}))
    except (AttributeError, ValidationError):
        return {}  # a file that was changed by hand: nothing is known
