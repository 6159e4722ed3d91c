"""The optimisers that are tried: the recipe's own as it was built, and others at rates over four decades."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from sightline import registry
from sightline.doctor.overfit.fit_attempt import Make
from sightline.engine.build import TrainingSetup
from sightline.types import ComponentConfig

__all__ = ["OWN", "Candidate", "build_optimizer", "candidates", "own_rate"]

OWN = "recipe"
RATES = {
    "sgd": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "rmsprop": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "adam": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
}
"""Four decades each, one rate a decade, about what is usual."""
TRUSTED = (1.0, 0.1, 10.0)
"""Of the recipe's own rate, which was chosen for another batch and a schedule: any of these may fit."""
_NEAR = 1.5


@dataclass(frozen=True)
class Candidate:
    """An optimiser to try. `rates` come in the order of trying; the first `num_trusted` decide whether it fits."""

    name: str
    make: Make
    rates: tuple[float, ...]
    num_trusted: int

    @property
    def trusted(self) -> tuple[float, ...]:
        return self.rates[: self.num_trusted]


def candidates(built: TrainingSetup) -> list[Candidate]:
    """The recipe's own optimiser first, then SGD with momentum, RMSprop and Adam, but for the one that it is itself."""
    own = built.config.optimizer.name
    rate = own_rate(built)
    usual = _outward(RATES["sgd" if own == "sgd" else "adam"])
    trusted = tuple(dict.fromkeys(rate * factor for factor in TRUSTED))
    others = [each for each in usual if all(not _is_near(each, one) for one in trusted)]
    first = Candidate(f"{OWN} ({own})", lambda model, at: _own(built, model, at), (*trusted, *others), len(trusted))
    rest = [_usual(name) for name in RATES if name != own]
    return [first, *rest]


def own_rate(built: TrainingSetup) -> float:
    """The highest base rate of the recipe's optimiser."""
    return max((float(group["base_lr"]) for group in built.job.optimizer.param_groups), default=0.0)


def _own(built: TrainingSetup, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """The run's optimiser over a copy of what it trains, every group's rate in proportion."""
    source = built.job.optimizer
    names = {id(parameter): name for name, parameter in built.job.trained_module.named_parameters()}
    copied = dict(model.named_parameters())
    optimizer = copy.copy(source)
    optimizer.state = type(source.state)(source.state.default_factory)
    optimizer.param_groups = []
    highest = own_rate(built)
    for group in source.param_groups:
        held = [copied[names[id(parameter)]] for parameter in group["params"] if id(parameter) in names]
        base = group["base_lr"] * (rate / highest) if highest > 0 else rate
        optimizer.param_groups.append({**group, "params": held, "base_lr": base, "lr": base})
    return optimizer


def _usual(name: str) -> Candidate:
    rates = _outward(RATES[name])
    return Candidate(name, lambda model, at: build_optimizer(name, model, at), rates, len(rates))


def build_optimizer(name: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """One of the usual optimisers with its usual arguments."""
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    recipe = registry.optimizers.build(ComponentConfig(name, {"lr": rate, "weight_decay": 0.0, **momentum}), facts={})
    made: torch.optim.Optimizer = recipe.build(model)
    return made


def _outward(rates: tuple[float, ...]) -> tuple[float, ...]:
    """From the middle to both ends: the likely ones first."""
    middle = len(rates) // 2
    return tuple(rates[place] for place in sorted(range(len(rates)), key=lambda place: (abs(place - middle), place)))


def _is_near(rate: float, other: float) -> bool:
    return rate > 0 and other > 0 and abs(math.log(rate / other)) < math.log(_NEAR)
