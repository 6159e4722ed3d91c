"""Inputs of a run, stored in its folder: fields, features, input spec of clouds and scans, folds, ranges of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import UserError
from sightline.contract.types import DataInfo, Field
from sightline.contract.validation import TypeAdapter, ValidationError
from sightline.runs.run_documents import load_document

INPUTS_FILE = "inputs.json"
CHECKS_FILE = "checks.json"
_FAR = 10.0
"""Times of a range, and of its reach, beyond which numbers are far outside."""


def inputs_document(info: DataInfo) -> dict[str, Any]:
    """Build the document of `inputs.json` from a data set's info."""
    return {
        "fields": {name: _field_to_plain(field) for name, field in info.fields.items()},
        "features": list(info.features),
        "clouds": None if info.clouds is None else dataclasses.asdict(info.clouds),
        "folds": None if info.folds is None else dataclasses.asdict(info.folds),
        "scans": None if info.scans is None else dataclasses.asdict(info.scans),
        **({} if info.dealing is None else {"split": dataclasses.asdict(info.dealing)}),
    }


def read_inputs(run: Path, facts: Mapping[str, Any]) -> DataInfo:
    """Read the info of a run's training data, whose `facts` are read, from the run directory alone.

    Raises UserError for a document that a run of this version does not write.
    """
    document = load_document(run / INPUTS_FILE)
    try:
        return TypeAdapter(DataInfo).validate_python({**document, "facts": facts, "dealing": document.get("split")})
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(
            f"{run / INPUTS_FILE}: is not a document of a run's inputs ({'.'.join(map(str, fault['loc']))}: "
            f"{fault['msg']}); make the run again"
        ) from None


def _field_to_plain(field: Field) -> dict[str, Any]:
    """Convert a field to values for JSON, with bounds as floats."""
    bounds = {name: None if (bound := getattr(field, name)) is None else float(bound) for name in ("low", "high")}
    return {**dataclasses.asdict(field), **bounds}


# --- ranges of numbers ------------------------------------------------------------------------------------------------
_FAR_BELOW = 20.0
"""Times that every sample's largest number exceeds that of a file of another scale: shares of 0 to 255, say."""


_BELOW = 0.5
"""Share of the largest number as far below 0 as which numbers are of both signs."""


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

    def describe_unlike(self, name: str, found: Range) -> str:
        """Describe numbers `found` in a field that have another scale, or other signs; "" where they are alike.

        It is about what is of one form in all sets, such as colours: a set has hardly any that is never below 0, if
        another's reach as far below as above.
        """
        if far := self.describe_far(name, found):
            return far
        below = [-each.low > _BELOW * abs(each.high) for each in (self, found)]
        above = [each.low >= 0 for each in (self, found)]
        sizes = [max(abs(each.low), abs(each.high)) for each in (self, found)]
        if (below[0] and above[1]) or (above[0] and below[1]) or sizes[0] > _FAR_BELOW * sizes[1] > 0:
            return f"{name}: {found.low:.4g} to {found.high:.4g}, in training {self.low:.4g} to {self.high:.4g}"
        return ""

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
