"""Budget of a check: how much it asks, in counts, and when it ends at last."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

from sightline.contract.errors import UserError

BUDGET_S = 4.0
"""Seconds of a usual processor for the measurements of one check, if its caller states none."""


@dataclass(frozen=True)
class Budget:
    """How much a check asks: `seconds` of a usual processor, of which passes are counted, and when it ends at last.

    With `is_patient`, slow networks get as many passes as those of 15 ms do. `ends_s` is a time of this process' clock.
    """

    seconds: float
    is_patient: bool = True
    ends_s: float = math.inf

    @classmethod
    def allow(cls, budget_s: float | None, *, otherwise_s: float = BUDGET_S) -> Budget:
        """Allow the processor time that a caller states, from now on; without it, counts alone decide.

        Raises UserError for what is no number of seconds, 0 or more.
        """
        if budget_s is not None and not (isinstance(budget_s, int | float) and budget_s >= 0):
            raise UserError(f"check: budget_s: found {budget_s!r:.40}, allowed are seconds, 0 or more")
        return cls(otherwise_s) if budget_s is None else cls(budget_s, ends_s=time.process_time() + budget_s)

    @property
    def allowed_s(self) -> float:
        """Processor time that is left of what the caller allows."""
        return max(self.ends_s - time.process_time(), 0.0)

    def divide(self, number: int) -> list[Budget]:
        """Divide what is allowed by the number of subjects."""
        share_s = self.allowed_s / number
        ends = [
            self.ends_s - (number - 1 - place) * share_s if share_s < math.inf else math.inf for place in range(number)
        ]
        return [dataclasses.replace(self, seconds=self.seconds / number, ends_s=end_s) for end_s in ends]


USUAL = Budget(BUDGET_S)
"""Budget of a caller who states none."""
