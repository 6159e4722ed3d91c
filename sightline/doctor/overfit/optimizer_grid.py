"""Grid of optimisers, number formats and learning rates: which fits the samples fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.doctor.overfit.fit_attempt import SHARES, FitCurve, FitSetup, fit
from sightline.doctor.overfit.optimizer_candidates import Candidate

__all__ = ["OptimizerResult", "curve_document", "run_candidate", "verdict_document"]


@dataclass(frozen=True)
class OptimizerResult:
    """Result of one optimiser in one number format: an attempt for each rate, in the order of trying."""

    optimizer: str
    precision: str
    curves: tuple[FitCurve, ...]
    num_trusted: int

    @property
    def best(self) -> FitCurve:
        """The best attempt, by `FitCurve.order`."""
        return min(self.curves, key=lambda curve: curve.order)

    @property
    def trusted_curve(self) -> FitCurve:
        """The best attempt at a trusted rate; the best of all if none of these was tried."""
        return min(self.curves[: self.num_trusted or None], key=lambda curve: curve.order)

    @property
    def is_fitted(self) -> bool:
        return self.trusted_curve.is_fitted


def run_candidate(
    bench: FitSetup,
    candidate: Candidate,
    precision: str,
    *,
    note: Callable[[str], None],
    rates: Sequence[float] | None = None,
    where: str = "",
    is_first_enough: bool = False,
    **asked: Any,
) -> OptimizerResult:
    """Try an optimiser at its rates, or at some of them; a rate slower than the fastest one is ended early.

    `where` is printed after the name; with `is_first_enough` no further rate is tried after one that fits. `asked` are
    options of every attempt.
    """
    curves: list[FitCurve] = []
    fastest: int | None = None
    tried_rates = candidate.rates if rates is None else tuple(rates)
    for rate in tried_rates:
        curve = fit(bench, candidate.name, candidate.make, rate, precision, until=fastest, **asked)
        curves.append(curve)
        steps = curve.steps_to(SHARES[-1])
        if is_first_enough and curve.is_fitted:
            break
        fastest = steps if steps is not None and (fastest is None or steps < fastest) else fastest
    num_trusted = sum(curve.rate in candidate.trusted_rates for curve in curves)
    verdict = OptimizerResult(candidate.name, precision, tuple(curves), num_trusted)
    note(f"{candidate.name}{where}, {precision}: {_describe(verdict)}")
    return verdict


def _describe(verdict: OptimizerResult) -> str:
    best = verdict.best
    for share in reversed(SHARES):
        steps = best.steps_to(share)
        if steps is not None:
            return f"{share:g} of the way is left after {steps} steps at rate {best.rate:g}"
    num_diverged = sum(curve.stop in ("not finite", "exploded") for curve in verdict.curves)
    outcome = "no rate came half the way" if not math.isnan(best.lowest) else "there is no way to the floor"
    return outcome + (f"; {num_diverged} of {len(verdict.curves)} rates exploded" if num_diverged else "")


def verdict_document(verdict: OptimizerResult) -> dict[str, Any]:
    """Convert the result of an optimiser in a number format to JSON."""
    return {
        "optimizer": verdict.optimizer,
        "precision": verdict.precision,
        "is_fitted": verdict.is_fitted,
        "best_rate": verdict.best.rate,
        "steps_to": {f"{share:g}": verdict.best.steps_to(share) for share in SHARES},
        "rates": [curve_document(curve) for curve in verdict.curves],
    }


def curve_document(curve: FitCurve) -> dict[str, Any]:
    """Convert one attempt to JSON."""
    return {
        "rate": curve.rate,
        "steps_to": {f"{share:g}": curve.steps_to(share) for share in SHARES},
        "score": None if math.isnan(curve.score) else curve.score,
        "lowest_share": None if math.isnan(curve.lowest) else curve.lowest,
        "stop": curve.stop,
        "losses": list(curve.losses),
    }
