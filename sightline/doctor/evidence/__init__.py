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

    `passes` is its cost beyond that of what it reads, in passes forward and backward of one batch, `seconds` that of
    other work.
    """

    name: str
    passes: float
    seconds: float
    run: Callable[..., Any]
    reads: tuple[str, ...]


MEASUREMENTS: dict[str, tuple[Measurement, ...]] = {}
"""Measurements by the names of their functions: one for each kind of subject that they can be made of."""


def measure(*, passes: float = 0.0, seconds: float = 0.0) -> Callable[[Function], Function]:
    """Declare a measurement; its function's arguments name what it reads.

    Those of one name measure the same of other kinds of subjects, from which they read other things.
    """

    def declare(function: Function) -> Function:
        made = Measurement(function.__name__, passes, seconds, function, list_arguments(function))
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

    Counts decide what is asked, no clock: `budget_s` are seconds of a usual processor, a pass takes as many as its work
    does, and every machine, busy or slow, asks the same. With `is_patient`, as many passes as fit into it at 15 ms each
    are made in any case, so that what is asked does not depend on the size of a network; where these take longer, the
    time is logged beforehand. Nothing begins that would go on beyond `ends_s` of this process' clock.
    """

    given: Mapping[str, Any]
    budget_s: float
    is_patient: bool = False
    ends_s: float = math.inf
    seconds: dict[str, float] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)
    _chosen: dict[str, Measurement | None] = field(default_factory=dict)
    _spent: tuple[int, float] = (0, 0.0)
    _nominal_s: float | None = None

    def __post_init__(self) -> None:
        import_all(__name__)
        self._values |= self.given

    @property
    def num_known(self) -> int:
        """Number of measurements made so far, and of what is given."""
        return len(self._values)

    @property
    def gaps(self) -> list[str]:
        """What measurements left out of what they were to read, in words of the user: `gaps` of their values."""
        return [gap for value in self._values.values() for gap in getattr(value, "gaps", ())]

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
        """Return True for measurements that the rest of the budget affords, and that end in time."""
        names = [*names]
        if self.ends_s < math.inf and time.process_time() + self._expect_s(names) > self.ends_s:
            return False
        passes = self.count_passes(names)
        is_early = passes + self._spent_passes <= self._min_passes
        return passes == 0 or is_early or passes * self._pass_s <= self.left_s

    @property
    def _min_passes(self) -> float:
        """Passes that are made whatever they cost."""
        return self.budget_s / SLOW_S if self.is_patient else 0.0

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left: those of passes which were not made."""
        return max(self.budget_s - self._spent_passes * self._pass_s, 0.0)

    @property
    def _pass_s(self) -> float:
        """Seconds of a pass forward and backward, three times those of the first one, as a usual processor takes them.

        It is made once more to be counted, where no error of the counting can reach what is measured.
        """
        if self._nominal_s is None:
            self._nominal_s = 0.0
            with contextlib.suppress(MissingError):
                if self.offers((_FIRST,)):
                    self.get(_FIRST)
                    first, work = self._find(_FIRST), WorkCounter()
                    with work:
                        counted = attempt(_FIRST, first.run, {name: self.get(name) for name in first.reads})
                    self._nominal_s = SLOW_S if isinstance(counted, MissingError) else 3 * work.nominal_s
        return self._nominal_s

    def _expect_s(self, names: Iterable[str]) -> float:
        """Return the processor time that measurements will take here, as those before them have taken it.

        The slowest one is left out: the first that needs some part of torch imports it.
        """
        made = [(1.0, 3 * self.seconds.get(_FIRST, 0.0))]
        made += [(p, seconds) for name, seconds in self.seconds.items() if (p := self._find(name).passes)]
        made = sorted(made, key=lambda each: each[1] / each[0])[: max(1, len(made) - 1)]
        pass_s = sum(seconds for _, seconds in made) / sum(passes for passes, _ in made)
        return sum([self._find(name).seconds + self._find(name).passes * pass_s for name in names])

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
            cost_s, left_s = measurement.passes * self._pass_s, self.left_s
            if self.ends_s < math.inf:
                cost_s = max(cost_s, self._expect_s((measurement.name,)))
                left_s = min(left_s, max(self.ends_s - time.process_time(), 0.0))
            words = f"it would take some {cost_s:.1f} s of processor time, and {left_s:.1f} s are left"
            return MissingError("cost", words, source=measurement.name, cost_s=cost_s)
        started = time.process_time()
        value = attempt(measurement.name, measurement.run, read)
        self.seconds[measurement.name] = time.process_time() - started
        if measurement.name == _FIRST and 0 < self._min_passes < math.inf == self.ends_s:
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
