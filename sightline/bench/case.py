"""Benchmark cases: inputs, implementations of one computation, and rules to compare their results."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ["BenchmarkCase", "Comparator", "ExactComparison", "Implementation", "Run", "implementation"]

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
