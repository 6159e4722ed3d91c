"""Every optimiser in every number format, over its rates: which one fits the samples fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.doctor.overfit.fit_attempt import SHARES, FitCurve, FitSetup, fit
from sightline.doctor.overfit.optimizer_candidates import Candidate

__all__ = ["OptimizerResult", "document_of_curve", "document_of_verdict", "run_candidate"]


@dataclass(frozen=True)
class OptimizerResult:
    """One optimiser in one number format: an attempt for each rate, in the order in which they were tried."""

    optimizer: str
    precision: str
    curves: tuple[FitCurve, ...]
    num_trusted: int

    @property
    def best(self) -> FitCurve:
        """The attempt that got far fastest."""
        return min(self.curves, key=lambda curve: curve.order)

    @property
    def trusted(self) -> FitCurve:
        """The best attempt at a rate that may decide; where none of these was tried, the best."""
        return min(self.curves[: self.num_trusted or None], key=lambda curve: curve.order)

    @property
    def is_fitted(self) -> bool:
        return self.trusted.is_fitted


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
    """Try an optimiser at its rates, or at some of them; one that falls behind the best of them is ended early.

    `where` is printed beside the name; with `is_first_enough` no further rate is tried after one that fits. `asked`
    goes to every attempt.
    """
    curves: list[FitCurve] = []
    fastest: int | None = None
    chosen = candidate.rates if rates is None else tuple(rates)
    for rate in chosen:
        curve = fit(bench, candidate.name, candidate.make, rate, precision, until=fastest, **asked)
        curves.append(curve)
        steps = curve.steps_to(SHARES[-1])
        if is_first_enough and curve.is_fitted:
            break
        fastest = steps if steps is not None and (fastest is None or steps < fastest) else fastest
    trusted = sum(curve.rate in candidate.trusted for curve in curves)
    verdict = OptimizerResult(candidate.name, precision, tuple(curves), trusted)
    note(f"{candidate.name}{where}, {precision}: {_describe(verdict)}")
    return verdict


def _describe(verdict: OptimizerResult) -> str:
    best = verdict.best
    for share in reversed(SHARES):
        steps = best.steps_to(share)
        if steps is not None:
            return f"{share:g} of the way is left after {steps} steps at rate {best.rate:g}"
    broken = sum(curve.stop in ("not finite", "exploded") for curve in verdict.curves)
    outcome = "no rate came half the way" if not math.isnan(best.lowest) else "there is no way to the floor"
    return outcome + (f"; {broken} of {len(verdict.curves)} rates exploded" if broken else "")


def document_of_verdict(verdict: OptimizerResult) -> dict[str, Any]:
    """The JSON of an optimiser in a number format."""
    return {
        "optimizer": verdict.optimizer,
        "precision": verdict.precision,
        "is_fitted": verdict.is_fitted,
        "best_rate": verdict.best.rate,
        "steps_to": {f"{share:g}": verdict.best.steps_to(share) for share in SHARES},
        "rates": [document_of_curve(curve) for curve in verdict.curves],
    }


def document_of_curve(curve: FitCurve) -> dict[str, Any]:
    """The JSON of one attempt."""
    return {
        "rate": curve.rate,
        "steps_to": {f"{share:g}": curve.steps_to(share) for share in SHARES},
        "score": None if math.isnan(curve.score) else curve.score,
        "lowest_share": None if math.isnan(curve.lowest) else curve.lowest,
        "stop": curve.stop,
        "losses": list(curve.losses),
    }
