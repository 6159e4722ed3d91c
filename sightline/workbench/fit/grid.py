"""Grid of optimisers, number formats and learning rates: after how many steps each of them fits the same samples."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

from sightline.engine.build import TrainingSetup
from sightline.engine.device.numerics import Precision
from sightline.workbench.describe.trace import preserve_all_rng_states
from sightline.workbench.fit.fit import OWN, Attempt, Candidate, FitResult, Fitter, Note, make_candidate

RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Rates that fit one optimiser or another: four decades. The one nearest to the recipe's is replaced by it."""
FORMATS = ("float32", "float64")
_ALTERNATIVES = ("rmsprop", "adam", "sgd")
"""Optimisers beside the recipe's: the first two that it does not use."""


@dataclass(frozen=True)
class GridRow:
    """One optimiser in one number format: an attempt for each rate, in the order of the rates."""

    optimizer: str
    precision: str
    attempts: tuple[Attempt, ...]

    @property
    def best(self) -> Attempt:
        """The attempt that fitted after the fewest steps; without any, the one with the smallest share left."""
        return min(
            self.attempts,
            key=lambda attempt: (math.inf if attempt.fitted_after is None else attempt.fitted_after, attempt.rank),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "optimizer": self.optimizer,
            "precision": self.precision,
            "best_rate": self.best.rate,
            "fitted_after": self.best.fitted_after,
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }


def list_rates(recipe_rate: float) -> tuple[float, ...]:
    """List the rates of every row, in rising order."""
    nearest = min(RATES, key=lambda rate: abs(math.log(rate / recipe_rate)))
    return tuple(sorted(recipe_rate if rate == nearest else rate for rate in RATES))


def fit_grid(built: TrainingSetup, result: FitResult, note: Note, *, steps: int, seconds: float) -> tuple[GridRow, ...]:
    """Fit the samples of `result` by the recipe's optimiser and two others, in both formats, at the same rates.

    Every row may take a sixth of `seconds`, and what earlier ones left. Empty if the fit had no bounds of its loss.
    """
    if result.bounds is None or result.bounds.floor is None:
        return ()
    config, started = built.config.optimizer, time.process_time()
    fitter = Fitter(built, result.samples, result.bounds, steps, started, note)
    candidates = [fitter.recipe, *(make_candidate(name) for name in _ALTERNATIVES if name != config.name)][:3]
    rates = list_rates(fitter.recipe_rate)
    rows: list[GridRow] = []
    with preserve_all_rng_states():
        for precision in FORMATS:
            for candidate in candidates:
                ends_s = started + seconds * (len(rows) + 1) / (len(candidates) * len(FORMATS))
                rows.append(_fit_row(dataclasses.replace(fitter, ends_s=ends_s), candidate, precision, rates))
    return tuple(rows)


def _fit_row(fitter: Fitter, candidate: Candidate, precision: str, rates: tuple[float, ...]) -> GridRow:
    """Fit by one optimiser in one format, the middle rates first: time may run out."""
    is_own = candidate.name == OWN
    unit = fitter.recipe_rate if is_own else 1.0
    order = sorted(range(len(rates)), key=lambda index: abs(index - len(rates) // 2))
    factors = [rates[index] / unit for index in order]
    tried = fitter.try_rates(candidate, factors, Precision(precision), every=True)
    by_index = dict(zip(order, tried, strict=True))
    attempts = tuple(dataclasses.replace(by_index[index], rate=rate) for index, rate in enumerate(rates))
    name = f"{OWN} ({fitter.built.config.optimizer.name})" if is_own else candidate.name
    return GridRow(name, precision, attempts)
