"""Learning rates of an optimiser at its updates so far, and the steps of a scheduler: what a loop shows of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

LOW_RATE, TINY_RATE = 0.01, 1e-6
"""Shares of the highest rate below which a rate is low, and below which no update counts."""
_MAX_RISES = 1000


@dataclass
class Rates:
    """Learning rates of an optimiser since a schedule began: numbers of high, low, tiny ones and zeros in a row.

    `rate` is the last, `rises` are the rates in turn, while each is above the last, `last_rise` is the update of the
    last change. Once a loop `is_over`, which began with the optimiser, `base` is the rate that a schedule multiplies,
    and `left` the length of a warm-up by its steps so far, infinite where none says it.
    """

    optimizer: str
    rate: float = 0.0
    highest: float = 0.0
    num_updates: int = 0
    num_still: int = 0
    num_high: int = 0
    num_low: int = 0
    num_tiny: int = 0
    last_rise: int = 0
    rises: list[float] = field(default_factory=list)
    is_over: bool = False
    base: float = 0.0
    left: float = math.inf

    def add(self, rate: float, update: int, *, has_scheduler: bool) -> None:
        """Add the rate of an update; without a scheduler, rates down to the hundredth are steps by hand."""
        if self.rises and rate != self.rises[-1]:
            self.rises = [*self.rises, rate] if rate > self.rises[-1] and len(self.rises) <= _MAX_RISES else []
            self.last_rise = update
        elif not self.num_updates:
            self.rises = [rate]
        self.rate, self.num_updates = rate, update
        self.highest = max(rate, self.highest)
        low = LOW_RATE * self.highest
        is_high = rate > low * (1 + 1e-6) or (not has_scheduler and rate >= low * (1 - 1e-6))
        self.num_high += is_high
        self.num_low = 0 if is_high else self.num_low + (self.highest > 0)
        self.num_tiny = self.num_tiny + 1 if 0 < rate < TINY_RATE * self.highest else 0


class Stepped(NamedTuple):
    """Scheduler, its steps, the updates so far, and its length, if it has one.

    Once a loop `is_over`, `num_epochs` are its epochs, 0 where they are not known, if it has not named the scheduler.
    """

    name: str
    num_steps: int
    num_updates: int
    length: int | None = None
    is_over: bool = False
    num_epochs: int | None = None
