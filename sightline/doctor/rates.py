"""Rates of false alarms: in how many healthy programs a rule was asked, and in how many of these it gave an alarm.

`rates.json` is measured, by `python -m tests.doctor.rates LINES.jsonl --measure`, over programs that are sound by
construction. A rule that compares a statistic with a threshold has an error or a warning only where it was asked so
often, and was silent, that its rate is at most 0.5 % with 95 % certainty. Of what only whole runs have, which are not
drawn, the correct runs of the table are all that is known: such a rule has alarms while none of these has one.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

MAX_RATE = 0.005
"""Largest upper bound of the rate of a statistical rule that gives errors and warnings."""
_CERTAINTY = 0.95
_OF_RUNS = (
    "areas.",
    "parts.",
    "workbench.",
    "doctor.rules.outcomes.fallen_metric",
    "doctor.rules.outcomes.chance_figure",
)
"""Beginnings of the names of rules that judge what whole runs alone have: their config, sets, and figures."""


def sum_binomial(total: int, most: int, share: float) -> float:
    """Compute the probability of at most so many events among independent ones, each of the same share (0 to 1)."""
    if most >= total or share in (0.0, 1.0):
        return float(most >= total * share)
    logs = (
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        + k * math.log(share) + (total - k) * math.log1p(-share)
        for k in range(most + 1)
    )  # fmt: skip
    return min(math.fsum(map(math.exp, logs)), 1.0)


class Rate(NamedTuple):
    """Healthy programs in which a rule was asked, and those among them in which it gave an error or a warning."""

    asked: int
    alarms: int

    @property
    def bound(self) -> float:
        """Upper bound of the rate, which is exceeded in one of twenty measurements at most (Clopper and Pearson)."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            is_likely = sum_binomial(self.asked, self.alarms, middle) > 1 - _CERTAINTY
            low, high = (middle, high) if is_likely else (low, middle)
        return high

    @property
    def is_low(self) -> bool:
        """True where the rate is known to be low."""
        return self.asked > self.alarms and self.bound <= MAX_RATE


@functools.cache
def _read() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return document


def get_rate(name: str) -> Rate:
    """Return the measured rate of a rule, by its name; of one that was not asked 0 of 0."""
    return Rate(*_read()["rules"].get(name, (0, 0)))


def is_of_runs(name: str) -> bool:
    """Return True for a rule that judges what only whole runs have."""
    asked_by_runs = get_rate_of_runs(name).asked > 0
    return name.startswith(_OF_RUNS) or (asked_by_runs and not get_rate(name).asked)


def get_rate_of_runs(name: str) -> Rate:
    """Return the numbers of a rule over correct runs."""
    return Rate(*_read()["runs"].get(name, (0, 0)))


@functools.cache
def may_alarm(name: str) -> bool:
    """Return True for a statistical rule that gives errors and warnings."""
    is_silent = is_of_runs(name) and not get_rate_of_runs(name).alarms
    return get_rate(name).is_low or is_silent
