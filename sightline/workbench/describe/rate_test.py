"""Learning rate range test: real training steps at rates that grow from step to step, and what they suggest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.contract.errors import RunError, UserError
from sightline.draw.charts import ChartPanel, Series, render_svg
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.engine.records import StepRecord
from sightline.engine.train import NonFiniteGradientError, TrainState

LOWEST_RATE, HIGHEST_RATE = 1e-7, 10.0
NUM_STEPS, MIN_STEPS = 100, 20
RULE = (
    "a tenth of the rate at which the smoothed loss is lowest (minimum / 10: Howard and Gugger 2020, fastai, lr_find)"
)
_SMOOTHING = 0.9
"""Share of the earlier mean in the smoothed loss."""
_FALL, _RISE = 2.0, 3.0
"""Changes of the smoothed loss that count, of the standard deviation of the first losses between batches."""


@dataclass
class RateTest:
    """Losses of steps at `rates` that grow; a step's loss is that before its update.

    The first tenth of the steps, at rates that hardly move the weights, gives the loss at the `start` and the `spread`
    between batches. The loss has diverged once its exponential mean lies above the start by as much as it had fallen
    below, and by three spreads. Source of the test: Smith 2017, Cyclical Learning Rates, section 3.3.
    """

    rates: Sequence[float]
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    diverged_at: float | None = None
    reason: str = ""
    _mean: float = 0.0

    def add(self, loss: float) -> bool:
        """Add the loss of the next step, and return True if the loss has diverged."""
        self.losses.append(loss)
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        self.smoothed.append(self._mean / (1 - _SMOOTHING ** len(self.losses)))
        rise = max(self.start - min(self.smoothed), _RISE * self.spread, 1e-3 * abs(self.start))
        if len(self.losses) > self.num_first and self.smoothed[-1] > self.start + rise:
            self.diverged_at, self.reason = self.rates[len(self.losses) - 1], "the smoothed loss rose above its start"
        return self.diverged_at is not None

    def fail(self, reason: str) -> None:
        """End the test by a step that cannot be computed. Raises RunError for the first: no rate matters yet."""
        if not self.losses:
            raise RunError(
                f"the first step fails, before a learning rate matters: {reason}; `sightline check` says why"
            )
        self.diverged_at, self.reason = self.rates[len(self.losses)], reason

    @property
    def num_first(self) -> int:
        return max(5, len(self.rates) // 10)

    @property
    def start(self) -> float:
        return statistics.fmean(self.losses[: self.num_first])

    @property
    def spread(self) -> float:
        return statistics.pstdev(self.losses[: self.num_first])

    @property
    def best(self) -> int:
        """Step of the lowest smoothed loss."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__)

    @property
    def suggestion(self) -> float | None:
        """The suggested rate; None if the smoothed loss never fell by more than two spreads between batches."""
        fall = self.start - self.smoothed[self.best]
        is_lower = fall > max(_FALL * self.spread, 1e-3 * abs(self.start))
        return float(f"{self.rates[self.best] / 10:.2g}") if is_lower else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: curves of the steps taken, the suggestion and its rule."""
        return {
            "rates": list(self.rates[: len(self.losses)]),
            "losses": self.losses,
            "smoothed": self.smoothed,
            "start": self.start,
            "spread": self.spread,
            "best_rate": self.rates[self.best],
            "diverged_at": self.diverged_at,
            "reason": self.reason or None,
            "suggestion": self.suggestion,
            "rule": RULE,
        }

    def draw(self) -> str:
        """Draw an SVG of loss and smoothed loss over the rate, up to the loss that counts as diverged."""
        top = self.start + 2 * max(self.start - self.smoothed[self.best], _RISE * self.spread, 1e-3 * abs(self.start))
        curves = {"loss": self.losses, "smoothed loss": self.smoothed}
        series = [
            Series(name, tuple((rate, min(y, top)) for rate, y in zip(self.rates, values, strict=False)))
            for name, values in curves.items()
        ]
        if self.suggestion is not None:
            heights = (self.smoothed[self.best], top)
            series.append(Series(f"suggested: {self.suggestion:g}", tuple((self.suggestion, y) for y in heights)))
        panel = ChartPanel("total loss", "learning rate", tuple(series), "logarithmic", "linear")
        return render_svg([[panel]], panel_width=640, panel_height=360)


def make_rates(num_steps: int) -> list[float]:
    """Make rates that grow exponentially. Raises UserError for so few steps that neighbours have little in common."""
    if num_steps < MIN_STEPS:
        raise UserError(f"--steps {num_steps}: --find-rate raises the rate 10^8 times; give at least {MIN_STEPS} steps")
    growth = (HIGHEST_RATE / LOWEST_RATE) ** (1 / (num_steps - 1))
    return [LOWEST_RATE * growth**step for step in range(num_steps)]


def run_rate_test(job: TrainState, world: World, rates: Sequence[float], *, configured: float) -> RateTest:
    """Train a step at each of `rates`, from the state of `job`, until the loss diverges; `job` is changed.

    The steps are those of the loop: the groups of the optimiser keep the ratios of their rates to `configured`, that of
    the config. Raises RunError if the first step fails.
    """
    test = RateTest(rates)
    job.schedule = lambda step: rates[step] / configured
    job.num_steps = len(rates)

    def at_step(record: StepRecord, stop_requested: bool) -> bool:
        return test.add(record.losses["total"]) or stop_requested

    try:
        train(job, world, at_step)
    except UserError:
        raise
    except (NonFiniteGradientError, ValueError) as error:  # of numbers too large: operators refuse what is not finite
        test.fail(str(error))
    return test
