"""A timed comparison as an object: what is fed in, the forms that answer, and when two answers are the same numbers."""

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
"""What is timed: no arguments, and the answer that is compared."""
Comparator = Callable[[Any, Any, Any], str | None]
"""(inputs, the baseline's answer, the answer found) -> in what they differ, None where they are the same numbers."""


@dataclass(frozen=True)
class Implementation:
    """One form of a computation.

    `open(inputs)` does what is not timed (layouts, models, processes) and gives the run; leaving it ends what it began.
    `needs` names the optional package without which the form is not there.
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
    """A stricter comparison made first: `narrow` turns the inputs into ones on which rounding decides nothing."""

    narrow: Callable[[Any], Any]
    agrees: Comparator


@dataclass(frozen=True)
class BenchmarkCase:
    """Forms of one computation on the same seeded inputs; the first of them is what the others are compared with.

    `label` is filled in from `size`, which `make` takes as keyword arguments; `quick` holds the sizes of a smoke test.
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
        """The same comparison at the sizes of a smoke test."""
        return dataclasses.replace(self, size={**self.size, **self.quick})


def implementation(
    name: str, function: Callable[[Any], Any], agrees: Comparator, *, needs: str | None = None
) -> Implementation:
    """A form that is a function of the inputs and has nothing to prepare."""
    return Implementation(name, lambda inputs: nullcontext(partial(function, inputs)), agrees, needs)
