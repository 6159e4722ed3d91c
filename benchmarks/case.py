"""Benchmark cases and their results, rules that compare results, and libraries of cases by suite.

A case has inputs and implementations of one computation; a library has the cases of one package, its home.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor

from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.draw.charts import ChartPanel

HOMES = ("sightline.workbench.bench", "benchmarks")
"""Packages whose module `suites` holds a `LIBRARY`: this one, and that of a checkout, which has all cases."""
CHECKOUT = "cases against textbook forms and other packages are in a checkout: python -m benchmarks"
"""Sentence for users of an installed package."""
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

    `name` is that of `bench --list`; `size` is the actual size, which in a smoke test is smaller than in the name.
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


# --- libraries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GrowthCase:
    """Benchmark case of a family at one value along an axis."""

    family: str
    axis: str
    value: int
    case: BenchmarkCase


@dataclass(frozen=True)
class Growth:
    """Cases along an axis of size, and functions that make panels and rows of their results."""

    list_cases: Callable[..., list[GrowthCase]]
    make_panels: Callable[[Sequence[GrowthCase], Sequence[BenchmarkResult]], list[list[ChartPanel | None]]]
    describe: Callable[[Sequence[Sequence[ChartPanel | None]]], list[tuple[str, ...]]]


@dataclass(frozen=True)
class CaseLibrary:
    """Benchmark cases by suite, and those of `--grow`, which only a checkout has."""

    suites: Mapping[str, Callable[[], list[BenchmarkCase]]]
    growth: Growth | None = None

    def all_cases(self) -> list[BenchmarkCase]:
        return [case for make in self.suites.values() for case in make()]

    def grown_cases(self, suites: Sequence[str], axis: str, *, is_quick: bool) -> list[GrowthCase]:
        """List the cases along an axis. Raises UserError in a library without them."""
        if self.growth is None:
            raise UserError(f"bench: --grow has no cases in the package; {CHECKOUT}")
        return self.growth.list_cases(suites, axis, is_quick=is_quick)

    def find(self, name: str) -> BenchmarkCase:
        """Return the case of that name."""
        grown = self.grown_cases((), "all", is_quick=False) if self.growth else []
        return next(case for case in [*self.all_cases(), *(item.case for item in grown)] if case.name == name)

    def select(self, suites: Sequence[str], pattern: str | None) -> list[BenchmarkCase]:
        """Select the cases of the named suites (of all for `all` or no name) whose name or last part matches.

        Raises UserError for an unknown suite, one whose cases only a checkout has, and if no case matches.
        """
        for name in suites:
            if name not in self.suites and name != "all":
                raise UserError(f"bench: there is no suite '{name}'{suggest(name, [*self.suites, 'all'])}")
        selected = list(self.suites) if not suites or "all" in suites else list(dict.fromkeys(suites))
        cases = {name: self.suites[name]() for name in selected}
        if empty := [name for name in suites if name in cases and not cases[name]]:
            raise UserError(f"bench: no case of {', '.join(empty)} is in the package; {CHECKOUT}")
        matching = [
            case for name in selected for case in cases[name] if pattern is None or _matches_pattern(case.name, pattern)
        ]
        if not matching:
            where = f"--list shows their names{'' if self.growth else f'; {CHECKOUT}'}"
            raise UserError(f"bench: no case of {', '.join(selected)} fits --case {pattern}; {where}")
        return matching


def load_library(home: str) -> CaseLibrary:
    """Import the cases of one of `HOMES`."""
    assert home in HOMES, home
    library: CaseLibrary = importlib.import_module(f"{home}.suites").LIBRARY
    return library


def _matches_pattern(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)
