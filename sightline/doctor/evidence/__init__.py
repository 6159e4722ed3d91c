"""Evidence about a subject: measurements that name what they need, made once, and why one is missing.

A measurement is a function whose arguments are the names of other measurements, or `subject`. Rules name measurements
in the same way, and never measure themselves. What cannot be measured must reach the verdict: a measurement that does
not apply raises `NotApplicableError`, one that fails is recorded with its error, and one that the budget does not
afford is left out, and said.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch

from sightline.contract.errors import summarise_error
from sightline.doctor.subject import Subject, preserve_random_state

_FIRST = "passed"
"""Measurement that runs the first batch; those that cost passes are afforded by its time."""
Function = TypeVar("Function", bound=Callable[..., Any])


class NotApplicableError(Exception):
    """A question that this subject does not have, with the reason in a few words: `no labels of classes`."""


class MissingError(Exception):
    """Evidence that is missing: it does not `apply`, it `failed`, or it would have `cost` more than the budget."""

    def __init__(self, kind: Literal["apply", "failed", "cost"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Measurement:
    """One measurement: an intervention and the response that it reads.

    `passes` is its cost beyond that of what it reads, in passes forward and backward of one batch.
    """

    name: str
    passes: float
    run: Callable[..., Any]
    reads: tuple[str, ...]


MEASUREMENTS: dict[str, Measurement] = {}
"""Measurements by the names of their functions."""


def measure(*, passes: float = 0.0) -> Callable[[Function], Function]:
    """Declare a measurement; its function's arguments name what it reads."""

    def declare(function: Function) -> Function:
        name = function.__name__
        assert name not in MEASUREMENTS, f"two measurements are called '{name}'"
        MEASUREMENTS[name] = Measurement(name, passes, function, list_arguments(function))
        return function

    return declare


def list_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """List the names of a function's arguments."""
    return tuple(inspect.signature(function).parameters)


def import_all(package: str) -> None:
    """Import the modules of a package, whose declarations fill the tables."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)


@dataclass
class Evidence:
    """Measurements of one subject, made on first use, within a budget of processor time.

    `given` are values that are known without a measurement, as those of a live loop, which has no subject unless its
    loss and its loader are given.
    """

    subject: Subject | None
    budget_s: float
    given: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import_all(__name__)
        nobody = MissingError("apply", "no loss and batches that can be asked")
        self._values |= {"subject": self.subject or nobody, **self.given}

    def get(self, name: str) -> Any:
        """Return a measurement. Raises MissingError where it does not apply, has failed, or is not afforded."""
        if name not in self._values:
            known = name in MEASUREMENTS
            self._values[name] = self._run(MEASUREMENTS[name]) if known else MissingError("apply", f"no {name}")
        value = self._values[name]
        if isinstance(value, MissingError):
            raise value
        return value

    def estimate_s(self, names: tuple[str, ...]) -> float:
        """Estimate the processor time of measurements that have not been made, with all that they read."""
        open_names = set(self._list_open(names))
        return sum(MEASUREMENTS[name].passes for name in open_names) * self._pass_s

    @cached_property
    def _pass_s(self) -> float:
        """Processor time of a pass forward and backward: three times that of the first one, forward."""
        try:
            self.get(_FIRST)
        except MissingError:
            return 0.0
        return 3 * self.seconds.get(_FIRST, 0.0)

    def _list_open(self, names: tuple[str, ...]) -> Iterator[str]:
        for name in names:
            if name not in self._values and name in MEASUREMENTS:
                yield name
                yield from self._list_open(MEASUREMENTS[name].reads)

    def _run(self, measurement: Measurement) -> Any:
        """Make a measurement, unless what it reads is missing, or it costs more than is left."""
        try:
            read = {name: self.get(name) for name in measurement.reads}
        except MissingError as missing:
            return missing
        cost_s = measurement.passes * self._pass_s if measurement.passes else 0.0
        left_s = self.budget_s - sum(self.seconds.values())
        if cost_s > max(left_s, 0.0):
            return MissingError(
                "cost", f"{measurement.name}: some {cost_s:.1f} s of processor time, {max(left_s, 0):.1f} left"
            )
        started = time.process_time()
        value = attempt(measurement.name, measurement.run, read)
        self.seconds[measurement.name] = time.process_time() - started
        return value


def attempt(name: str, run: Callable[..., Any], read: Mapping[str, Any]) -> Any:
    """Ask a question; return the answer, or a MissingError with the reason why there is none.

    The one place where any error of a user's parts is taken: models, losses, sets and the numbers in them may be of
    any kind. Random states are put back.
    """
    try:
        with preserve_random_state(), torch.enable_grad():
            return run(**read)
    except NotApplicableError as reason:
        return MissingError("apply", str(reason))
    except Exception as error:  # noqa: BLE001 - kept as the reason, which reaches the verdict
        return MissingError("failed", f"{name}: {summarise_error(error, max_length=160)}")
