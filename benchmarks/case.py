"""Benchmark cases and their results, and rules that compare results.

A case has inputs and implementations of one computation.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

Run = Callable[[], Any]
"""Function that is timed: takes no arguments and returns the result that is compared."""
Comparator = Callable[[Any, Any, Any], str | None]
"""Function (inputs, baseline's result, actual result) -> description of the difference, None if they agree."""


@dataclass(frozen=True)
class Implementation:
    """Implementation of a computation.

    `open(inputs)` is a context manager: it does the untimed work (layouts, models, processes), yields the function to
    time, and cleans up. `needs` names the optional package that the implementation requires.
    """

    name: str
    open: Callable[[Any], AbstractContextManager[Run]]
    compare: Comparator
    needs: str | None = None

    @property
    def is_present(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


@dataclass(frozen=True)
class ExactComparison:
    """Stricter comparison that runs first, on inputs that `narrow` makes insensitive to rounding."""

    narrow: Callable[[Any], Any]
    agrees: Comparator


@dataclass(frozen=True)
class BenchmarkCase:
    """Benchmark case: a baseline and variants of one computation on the same seeded inputs.

    `label` is formatted with `size`, the keyword arguments of `make`; `quick` are the sizes of a smoke test.
    """

    suite: str
    label: str
    size: Mapping[str, int]
    quick: Mapping[str, int]
    make: Callable[..., Any]
    baseline: Implementation
    variants: tuple[Implementation, ...]
    exactly: ExactComparison | None = None

    @property
    def name(self) -> str:
        return f"{self.suite}/{self.label.format(**self.size)}"

    @property
    def forms(self) -> tuple[Implementation, ...]:
        return (self.baseline, *self.variants)

    def inputs(self) -> Any:
        return self.make(**self.size)

    def smaller(self) -> BenchmarkCase:
        """Return the case with the sizes of a smoke test."""
        return dataclasses.replace(self, size={**self.size, **self.quick})


def implementation(
    name: str, function: Callable[[Any], Any], agrees: Comparator, *, needs: str | None = None
) -> Implementation:
    """Make an implementation from a function of the inputs, without preparation."""
    return Implementation(name, lambda inputs: nullcontext(partial(function, inputs)), agrees, needs)


# --- rules -----------------------------------------------------------------------------------------------------------


def equal(inputs: Any, expected: Tensor, actual: Tensor) -> str | None:
    """Compare two tensors exactly; return a description of the differences, or None."""
    if expected.shape != actual.shape:
        return f"shape {tuple(actual.shape)}, the baseline's is {tuple(expected.shape)}"
    differs = expected != actual
    if not differs.any():
        return None
    index = tuple(differs.nonzero()[0].tolist())
    return (
        f"{int(differs.sum())} of {actual.numel()} entries differ, first {index}: {actual[index]}, not "
        f"{expected[index]}"
    )


def allclose(tolerance: float) -> Comparator:
    """Make a rule: no error in a tensor, or a mapping of tensors, exceeds `tolerance` times its largest value."""

    def rule(inputs: Any, expected: Any, actual: Any) -> str | None:
        if not isinstance(expected, dict):
            expected, actual = {"answer": expected}, {"answer": actual}
        if expected.keys() != actual.keys():
            return f"it gives {sorted(actual)}, the baseline {sorted(expected)}"
        for name, expected_tensor in expected.items():
            actual_tensor = actual[name]
            if expected_tensor.shape != actual_tensor.shape:
                return f"{name}: shape {tuple(actual_tensor.shape)}, the baseline's is {tuple(expected_tensor.shape)}"
            error = float((actual_tensor.double() - expected_tensor.double()).abs().max())
            scale = float(expected_tensor.double().abs().max())
            if not error <= tolerance * scale:
                return (
                    f"{name}: off by {error:.2e} where the largest number is {scale:.2e}; "
                    f"allowed is {tolerance:g} of it"
                )
        return None

    return rule


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seconds:
    """CPU time (process, threads and finished child processes) and wall time, in seconds per call."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median, first and third quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Quartiles:
        """Compute quartiles, interpolated between neighbouring values; a single value is all three.

        Source: Hyndman and Fan 1996, definition 7.
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of one variant compared with its case's baseline: median seconds per call, ratios of CPU time.

    `name` is that of `--list`; `size` is the actual size, which in a smoke test is smaller than in the name.
    """

    name: str
    baseline: str
    ratio: Quartiles
    seconds: Seconds
    baseline_seconds: Seconds
    peak_bytes: int | None
    baseline_peak_bytes: int | None
    size: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a row of the JSON document."""
        return {
            "name": self.name,
            "baseline": self.baseline,
            "ratio": self.ratio.median,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "cpu_s": self.seconds.cpu,
            "baseline_cpu_s": self.baseline_seconds.cpu,
            "peak_bytes": self.peak_bytes,
            "baseline_peak_bytes": self.baseline_peak_bytes,
        }
