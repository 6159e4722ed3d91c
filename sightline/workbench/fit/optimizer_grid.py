"""Grid of optimisers, number formats and learning rates: which fits the samples fastest.

Candidate optimisers: the recipe's own, and others at rates over four decades.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.engine.build import TrainingSetup
from sightline.workbench.fit.fit_attempt import SHARES, FitCurve, FitSetup, Make, fit

OWN = "recipe"
RATES = {
    "sgd": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "rmsprop": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "adam": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
}
"""Learning rates around the usual ones: four decades, one rate per decade."""
TRUSTED = (1.0, 0.1, 10.0)
"""Factors of the recipe's own rate, which was chosen for another batch and a schedule: any of these may fit."""
_MAX_RATE_RATIO = 1.5


@dataclass(frozen=True)
class Candidate:
    """Optimiser to try: `rates` in the order of trying; the first `num_trusted` decide if it fits."""

    name: str
    make: Make
    rates: tuple[float, ...]
    num_trusted: int

    @property
    def trusted_rates(self) -> tuple[float, ...]:
        return self.rates[: self.num_trusted]


def candidates(built: TrainingSetup) -> list[Candidate]:
    """List the candidates: the recipe's own optimiser, then the others of SGD with momentum, RMSprop and Adam."""
    own_name = built.config.optimizer.name
    rate = own_rate(built)
    usual = _order_outward(RATES["sgd" if own_name == "sgd" else "adam"])
    trusted = tuple(dict.fromkeys(rate * factor for factor in TRUSTED))
    other_rates = [
        usual_rate for usual_rate in usual if all(not _is_near(usual_rate, trusted_rate) for trusted_rate in trusted)
    ]
    own_candidate = Candidate(
        f"{OWN} ({own_name})",
        lambda model, at: _copy_own_optimizer(built, model, at),
        (*trusted, *other_rates),
        len(trusted),
    )
    usual_candidates = [_make_usual_candidate(name) for name in RATES if name != own_name]
    return [own_candidate, *usual_candidates]


def own_rate(built: TrainingSetup) -> float:
    """Return the highest base rate of the recipe's optimiser."""
    return max((float(group["base_lr"]) for group in built.job.optimizer.param_groups), default=0.0)


def _copy_own_optimizer(built: TrainingSetup, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Copy the run's optimiser for a copy of its model, with every group's rate scaled in proportion."""
    source = built.job.optimizer
    names = {id(parameter): name for name, parameter in built.job.trained_module.named_parameters()}
    copied = dict(model.named_parameters())
    optimizer = copy.copy(source)
    optimizer.state = type(source.state)(source.state.default_factory)
    optimizer.param_groups = []
    highest = own_rate(built)
    for group in source.param_groups:
        parameters = [copied[names[id(parameter)]] for parameter in group["params"] if id(parameter) in names]
        base = group["base_lr"] * (rate / highest) if highest > 0 else rate
        optimizer.param_groups.append({**group, "params": parameters, "base_lr": base, "lr": base})
    return optimizer


def _make_usual_candidate(name: str) -> Candidate:
    rates = _order_outward(RATES[name])
    return Candidate(name, lambda model, at: build_optimizer(name, model, at), rates, len(rates))


def build_optimizer(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Build a usual optimiser with its usual arguments."""
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    recipe = registry.optimizers.build(ComponentConfig(name, {"lr": rate, "weight_decay": 0.0, **momentum}), facts={})
    optimizer: torch.optim.Optimizer = recipe.build(model)
    return optimizer


def _order_outward(rates: tuple[float, ...]) -> tuple[float, ...]:
    """Order rates from the middle outwards: the likely ones first."""
    middle = len(rates) // 2
    return tuple(rates[index] for index in sorted(range(len(rates)), key=lambda index: (abs(index - middle), index)))


def _is_near(rate: float, other: float) -> bool:
    return rate > 0 and other > 0 and abs(math.log(rate / other)) < math.log(_MAX_RATE_RATIO)


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
