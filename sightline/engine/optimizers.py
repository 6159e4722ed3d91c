"""Optimisers as recipes: which parameters, in which groups, with which rates; torch's own steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NotRequired

import torch
from pydantic import ConfigDict
from torch import nn
from typing_extensions import TypedDict

from sightline import registry
from sightline.arguments import Count, Factor, Probability, Size
from sightline.collection import collection_paused
from sightline.errors import ConfigError
from sightline.schema import nearest

__all__ = ["SGD", "Adam", "AdamW", "Frozen", "Group", "RMSprop", "Recipe", "hold_still"]

Decay = Literal["all", "weights"]


class Frozen(TypedDict):
    """Modules whose parameters do not move and that stay in evaluation mode, until an epoch or for ever."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    modules: str
    until_epoch: NotRequired[Count]


class Group(TypedDict):
    """Modules whose learning rate is multiplied by a factor."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    modules: str
    lr_factor: Factor


class Recipe:
    """An optimiser still without parameters. `decay: weights` spares biases and norms (parameters of one dimension)."""

    def __init__(
        self,
        optimizer: type[torch.optim.Optimizer],
        arguments: dict[str, Any],
        *,
        decay: Decay,
        groups: Sequence[Group],
        frozen: Sequence[Frozen],
    ) -> None:
        self.optimizer = optimizer
        self.arguments = arguments
        self.decay = decay
        self.groups = tuple(groups)
        self.frozen = tuple(frozen)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over the model's parameters, each in exactly one group.

        Parameters frozen for ever ask for no gradient. Raises ConfigError for a module that the model does not have.
        """
        for place, name in self._named_modules():
            _parameters_below(model, name, place)
        for frozen in self.frozen:
            if "until_epoch" not in frozen:
                for _, parameter in _parameters_below(model, frozen["modules"], "optimizer.frozen"):
                    parameter.requires_grad_(False)
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                rate, decay = self._rate(name), self._decay(parameter)
                group = groups.setdefault(
                    (rate, decay), {"params": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
                )
                group["params"].append(parameter)
        if not groups:
            raise ConfigError("optimizer.frozen: every parameter is frozen; nothing is left to train")
        with collection_paused():  # a first optimiser imports torch's compiler
            return self.optimizer(list(groups.values()), **self.arguments)

    def _named_modules(self) -> Iterator[tuple[str, str]]:
        for kind, entries in (("groups", self.groups), ("frozen", self.frozen)):
            for index, entry in enumerate(entries):
                yield f"optimizer.{kind}.{index}.modules", entry["modules"]

    def _rate(self, parameter_name: str) -> float:
        factors = [g["lr_factor"] for g in self.groups if _is_below(parameter_name, g["modules"])]
        return self.arguments["lr"] * (factors[-1] if factors else 1.0)

    def _decay(self, parameter: nn.Parameter) -> float:
        return self.arguments["weight_decay"] if self.decay == "all" or parameter.ndim > 1 else 0.0


@registry.optimizers.add("sgd")
def SGD(  # noqa: N802 - the field's own spelling
    *,
    lr: Size,
    momentum: Probability = 0.9,
    nesterov: bool = False,
    weight_decay: Factor = 0.0,
    decay: Decay = "all",
    groups: tuple[Group, ...] = (),
    frozen: tuple[Frozen, ...] = (),
) -> Recipe:
    """Stochastic gradient descent with momentum. Source: Sutskever et al. 2013, eq. 1-2, in torch's form."""
    arguments = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    return Recipe(torch.optim.SGD, arguments, decay=decay, groups=groups, frozen=frozen)


@registry.optimizers.add("adam")
def Adam(  # noqa: N802
    *,
    lr: Size,
    betas: tuple[Probability, Probability] = (0.9, 0.999),
    eps: Size = 1e-8,
    weight_decay: Factor = 0.0,
    decay: Decay = "all",
    groups: tuple[Group, ...] = (),
    frozen: tuple[Frozen, ...] = (),
) -> Recipe:
    """Adam; weight decay is added to the gradient. Source: Kingma and Ba 2015, algorithm 1."""
    arguments = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    return Recipe(torch.optim.Adam, arguments, decay=decay, groups=groups, frozen=frozen)


@registry.optimizers.add("adamw")
def AdamW(  # noqa: N802
    *,
    lr: Size,
    betas: tuple[Probability, Probability] = (0.9, 0.999),
    eps: Size = 1e-8,
    weight_decay: Factor = 1e-2,
    decay: Decay = "weights",
    groups: tuple[Group, ...] = (),
    frozen: tuple[Frozen, ...] = (),
) -> Recipe:
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, algorithm 2."""
    arguments = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    return Recipe(torch.optim.AdamW, arguments, decay=decay, groups=groups, frozen=frozen)


@registry.optimizers.add("rmsprop")
def RMSprop(  # noqa: N802
    *,
    lr: Size,
    alpha: Probability = 0.99,
    eps: Size = 1e-8,
    momentum: Probability = 0.0,
    weight_decay: Factor = 0.0,
    decay: Decay = "all",
    groups: tuple[Group, ...] = (),
    frozen: tuple[Frozen, ...] = (),
) -> Recipe:
    """Gradients divided by a running root mean square. Source: Tieleman and Hinton 2012, lecture 6.5."""
    arguments = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
    return Recipe(torch.optim.RMSprop, arguments, decay=decay, groups=groups, frozen=frozen)


def hold_still(model: nn.Module, frozen: Sequence[Frozen], epoch: int) -> list[nn.Parameter]:
    """Put the modules frozen at this epoch into evaluation mode, and return their parameters."""
    held: list[nn.Parameter] = []
    for entry in frozen:
        if epoch < entry.get("until_epoch", epoch + 1):
            held.extend(parameter for _, parameter in _parameters_below(model, entry["modules"], "optimizer.frozen"))
            for name, module in model.named_modules():
                if _is_below(name, entry["modules"]):
                    module.eval()
    return held


def _parameters_below(model: nn.Module, name: str, place: str) -> list[tuple[str, nn.Parameter]]:
    found = [(n, p) for n, p in model.named_parameters() if _is_below(n, name)]
    if not found:
        known = [n for n, _ in itertools.islice(model.named_modules(), 1, 500)]
        raise ConfigError(f"{place}: the model has no module '{name}' with parameters{nearest(name, known)}")
    return found


def _is_below(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
