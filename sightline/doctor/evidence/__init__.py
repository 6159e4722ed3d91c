"""Evidence about a subject: measurements that name what they need, made once, and why one is missing.

A measurement is a function whose arguments are the names of other measurements, or of what is given: the `subject` of
a check, the `trace` of a loop. Rules name measurements in the same way, and never measure themselves. What cannot be
measured must reach the verdict: a measurement that does not apply raises `NotApplicableError`, one that fails is
recorded with its error, and one that the budget does not afford is left out, and said.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import math
import pkgutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sightline.doctor.attempts import MissingError, attempt
from sightline.instrument.work import WorkCounter

logger = logging.getLogger(__name__)

SLOW_S = 0.015
"""Processor time of a pass forward and backward that is slow: slower networks get as many passes as those of it do."""
_LONG_S = 10.0
"""Time of a check of which the user is told, unasked."""
_FIRST = "passed"
"""Measurement that runs the first batch; those that cost passes are afforded by its time."""
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Measurement:
    """One measurement: an intervention and the response that it reads.

    `passes` is its cost beyond that of what it reads, in passes forward and backward of one batch.
    """

    name: str
    passes: float
    run: Callable[..., Any]
    reads: tuple[str, ...]


MEASUREMENTS: dict[str, tuple[Measurement, ...]] = {}
"""Measurements by the names of their functions: one for each kind of subject that they can be made of."""


def measure(*, passes: float = 0.0) -> Callable[[Function], Function]:
    """Declare a measurement; its function's arguments name what it reads.

    Those of one name measure the same of other kinds of subjects, from which they read other things.
    """

    def declare(function: Function) -> Function:
        made = Measurement(function.__name__, passes, function, list_arguments(function))
        others = MEASUREMENTS.get(made.name, ())
        assert all(each.reads != made.reads for each in others), f"two measurements are called '{made.name}'"
        MEASUREMENTS[made.name] = (*others, made)
        return function

    return declare


def list_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """List the names of a function's arguments."""
    return tuple(inspect.signature(function).parameters)


def import_all(package: str) -> None:
    """Import the modules of a package, whose declarations fill the tables."""
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)


@dataclass
class Evidence:
    """Measurements of what is `given`, by name, made on first use, within a budget of processor time.

    With `is_patient`, as many passes as fit into it at 15 ms each are made in any case, so that what is asked does not
    depend on the size of a network; where these take longer, the time is logged beforehand. With `is_counted`, no clock
    decides: the price of a pass is what its work takes a usual processor, so that every machine, busy or slow, asks the
    same.
    """

    given: Mapping[str, Any]
    budget_s: float
    is_patient: bool = False
    is_counted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)
    _chosen: dict[str, Measurement | None] = field(default_factory=dict)
    _spent: tuple[int, float] = (0, 0.0)
    _priced: tuple[int, float] = (-1, 0.0)
    _counted_s: float = 0.0

    def __post_init__(self) -> None:
        import_all(__name__)
        self._values |= self.given

    @property
    def num_known(self) -> int:
        """Number of measurements made so far, and of what is given."""
        return len(self._values)

    def offers(self, names: Iterable[str]) -> bool:
        """Return True if measurements begin from what is given; others are of another kind of subject."""
        return all(name in self.given or self._choose(name) is not None for name in names)

    def _choose(self, name: str) -> Measurement | None:
        """Choose the measurement of a name that begins from what is given."""
        if name not in self._chosen:
            made = MEASUREMENTS.get(name, ())
            self._chosen[name] = next((each for each in made if self.offers(each.reads)), None)
        return self._chosen[name]

    def _find(self, name: str) -> Measurement:
        """Return the measurement of a name, if it is of another kind of subject, too."""
        return self._chosen.get(name) or self._choose(name) or MEASUREMENTS[name][0]

    def get(self, name: str) -> Any:
        """Return a measurement. Raises MissingError where it does not apply, has failed, or is not afforded."""
        if name not in self._values:
            self._values[name] = self._run(self._find(name))
        value = self._values[name]
        if isinstance(value, MissingError):
            raise value
        return value

    def count_passes(self, names: Iterable[str]) -> float:
        """Return the cost of measurements in passes of one batch."""
        return sum([self._find(name).passes for name in names])

    @property
    def _spent_passes(self) -> float:
        """Passes of the measurements made so far."""
        if self._spent[0] != len(self.seconds):
            self._spent = len(self.seconds), self.count_passes(self.seconds)
        return self._spent[1]

    def affords(self, names: Iterable[str]) -> bool:
        """Return True for measurements that the rest of the budget affords, as passes have cost so far."""
        passes = self.count_passes(names)
        is_early = passes + self._spent_passes <= self._min_passes
        return passes == 0 or is_early or passes * self._pass_s <= self.left_s

    @property
    def _min_passes(self) -> float:
        """Passes that are made whatever they cost."""
        return self.budget_s / SLOW_S if self.is_patient else 0.0

    @property
    def left_s(self) -> float:
        """Processor time of the budget that is left; counted, that of passes which were not made."""
        spent_s = self._spent_passes * self._pass_s if self.is_counted else sum(self.seconds.values())
        return max(self.budget_s - spent_s, 0.0)

    @property
    def _pass_s(self) -> float:
        """Processor time of a pass forward and backward: three times that of the first one, forward, or as measured.

        The slowest measurement is left out: the first that needs some part of torch imports it.
        """
        if self._priced[0] == len(self.seconds):
            return self._priced[1]
        try:
            if self.offers((_FIRST,)):
                self.get(_FIRST)
        except MissingError:
            return 0.0
        if self.is_counted:
            return 3 * self._counted_s
        made = [(1.0, 3 * self.seconds.get(_FIRST, 0.0))]
        made += [(p, seconds) for name, seconds in self.seconds.items() if (p := self._find(name).passes)]
        made = sorted(made, key=lambda each: each[1] / each[0])[: max(1, len(made) - 1)]
        self._priced = len(self.seconds), sum(seconds for _, seconds in made) / sum(passes for passes, _ in made)
        return self._priced[1]

    def find_open(self, names: Iterable[str]) -> frozenset[str]:
        """Return the measurements among these, and among all that they read, that have not been made."""
        found, waiting = set[str](), [*names]
        while waiting:
            name = waiting.pop()
            if name not in self._values and name not in found:
                found.add(name)
                waiting.extend(self._find(name).reads)
        return frozenset(found)

    def _run(self, measurement: Measurement) -> Any:
        """Make a measurement, unless what it reads is missing, or it costs more than is left."""
        try:
            read = {name: self.get(name) for name in measurement.reads}
        except MissingError as missing:
            return missing
        if not self.affords((measurement.name,)):
            cost_s = measurement.passes * self._pass_s
            words = f"it would take some {cost_s:.1f} s of processor time, and {self.left_s:.1f} s are left"
            return MissingError("cost", words, source=measurement.name, cost_s=cost_s)
        is_counted = self.is_counted and measurement.name == _FIRST
        started, work = time.process_time(), WorkCounter()
        with work if is_counted else contextlib.nullcontext():
            value = attempt(measurement.name, measurement.run, read)
        self.seconds[measurement.name] = time.process_time() - started
        self._counted_s = work.nominal_s if is_counted else self._counted_s
        if measurement.name == _FIRST and 0 < self._min_passes < math.inf:
            self._say_time(measurement, read)
        return value

    def _say_time(self, first: Measurement, read: Mapping[str, Any]) -> None:
        """Log how long the passes may take, where they are beyond the budget by the first one and two more."""
        for _ in range(2):  # a first pass imports parts of torch, and another program may have had the cores
            if 3 * self.seconds[_FIRST] * self._min_passes <= self.budget_s:
                return
            started = time.process_time()
            attempt(first.name, first.run, read)
            self.seconds[_FIRST] = min(self.seconds[_FIRST], time.process_time() - started)
        most_s = 3 * self.seconds[_FIRST] * self._min_passes
        if most_s > self.budget_s:
            level = logging.WARNING if most_s > _LONG_S else logging.INFO
            words = (
                "a pass of the model takes some %.2g s: its check may take up to %.0f s of processor time; a smaller "
                "batch takes less"
            )
            logger.log(level, words, most_s / self._min_passes, most_s)
