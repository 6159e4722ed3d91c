"""Optimiser specifications: parameter groups, learning rates, weight decay and freezing; the steps are torch's.

Layer-wise learning rate decay, from the output to the input, and the table of rates by module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, Literal, NamedTuple, NotRequired

import torch
from pydantic import ConfigDict
from torch import nn
from torch.nn.parameter import is_lazy
from typing_extensions import TypedDict

from sightline.compression.codebooks import Codebook
from sightline.compression.parametrised import quantised_weights
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat, PositiveFraction, Probability
from sightline.contract.catalogue import gc_paused
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest
from sightline.engine.gradients import has_memory_gaps, match_memory_format
from sightline.engine.learnt_losses import LearntLosses, combine_modules

_CONFIG_PATH = "optimizer.layer_decay"


class LayerDecay(TypedDict):
    """Layer-wise learning rate decay: each module has `factor` times the rate of the next one towards the output.

    `modules` are ordered from input to output; by default they are the model's, in the order of their construction.
    Source: Howard and Ruder 2018, ULMFiT, section 3.2 (discriminative fine-tuning).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    factor: PositiveFraction
    modules: NotRequired[tuple[str, ...]]


class ModuleRate(NamedTuple):
    """Learning rate before the schedule, weight decay and freezing of one module, with its numbers of parameters.

    `num_decayed` of the `num_elements` have weight decay. `frozen` is empty, `for ever`, or names the last epoch.
    """

    module: str
    num_tensors: int
    num_elements: int
    lr: float
    weight_decay: float
    num_decayed: int
    frozen: str


def layer_lr_factors(model: nn.Module, decay: LayerDecay) -> dict[str, float]:
    """Return the factor of each of L modules, from input to output: factor^(L-1), ..., factor, 1.

    Direct parameters of the model belong to the first module. Raises ConfigError for modules that do not exist, that
    contain each other, or that leave parameters out.
    """
    direct_parameters = [name for name, _ in model.named_parameters(recurse=False)]
    configured = decay.get("modules")
    modules = _list_modules(model) if configured is None else list(configured)
    for index, name in enumerate(configured or ()):
        module_parameters(model, name, f"{_CONFIG_PATH}.modules.{index}")
    for inner, outer in itertools.permutations(modules, 2):
        if is_in_module(inner, outer):
            raise ConfigError(f"{_CONFIG_PATH}.modules: '{inner}' is part of '{outer}'; name only one of the two")
    left_out = [
        n
        for n, _ in model.named_parameters()
        if n not in direct_parameters and not any(is_in_module(n, m) for m in modules)
    ]
    if left_out:
        raise ConfigError(
            f"{_CONFIG_PATH}.modules: '{left_out[0]}' is in none of them; add its module in the right order"
        )
    if len(modules) < 2:
        raise ConfigError(
            f"{_CONFIG_PATH}: the model has one module, {', '.join(modules)}; name parts of it in modules"
        )
    factors = {name: decay["factor"] ** (len(modules) - 1 - depth) for depth, name in enumerate(modules)}
    return {**dict.fromkeys((n for n in direct_parameters if n not in factors), factors[modules[0]]), **factors}


def _list_modules(model: nn.Module) -> list[str]:
    """List the model's modules with parameters in order of construction; of a ModuleList, its entries."""
    names: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{key}" for key, module in child.named_children() if any(True for _ in module.parameters())]
        if any(True for _ in child.parameters()):
            names += inner if isinstance(child, nn.ModuleList) else [name]
    return names


def format_module_rates(rates: Sequence[ModuleRate]) -> list[str]:
    """Format a table of rates, one line for each module below a heading; empty if all rates are equal."""
    if not rates:
        return []
    rows = [("module", "tensors", "elements", "lr", "weight decay", "frozen")]
    for rate in rates:
        spared = rate.num_elements - rate.num_decayed
        decay = f"{rate.weight_decay:g}" + (f", {spared} without" if spared > 0 and rate.weight_decay else "")
        counts = (str(rate.num_tensors), str(rate.num_elements))
        rows.append((rate.module, *counts, f"{rate.lr:.4g}", decay if rate.num_decayed else "0", rate.frozen or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [f"rates: {'  '.join(map(str.ljust, row, widths)).rstrip()}" for row in rows]


def module_parameters(model: nn.Module, name: str, config_path: str) -> list[tuple[str, nn.Parameter]]:
    """Return names and parameters of a module. Raises ConfigError at `config_path` if there are none."""
    parameters = [(n, p) for n, p in model.named_parameters() if is_in_module(n, name)]
    if not parameters:
        module_names = [n for n, _ in itertools.islice(model.named_modules(), 1, 500)]
        raise ConfigError(
            f"{config_path}: the model has no module '{name}' with parameters{suggest(name, module_names)}"
        )
    return parameters


def is_in_module(name: str, module: str) -> bool:
    """Return True if a name is that of a module or of an object inside it."""
    return name == module or name.startswith(f"{module}.")


Decay = Literal["all", "weights"]


class FrozenModules(TypedDict):
    """Modules whose parameters do not move and that stay in evaluation mode, until an epoch or for ever."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    modules: str
    until_epoch: NotRequired[Count]


class ParameterGroup(TypedDict):
    """Modules whose learning rate is multiplied by a factor."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    modules: str
    lr_factor: NonNegativeFloat


class OptimizerSpec:
    """Optimiser without parameters yet. `decay: weights` spares biases and norms (parameters of one dimension).

    Codebook entries have no weight decay: it would move them away from the weights that they are the mean of. Neither
    have parameters of losses, which have a group for each loss, `losses.<loss>`.
    A learning rate is the optimiser's, times the module's factor of `layer_decay`, times the factor of the last of
    `groups` that names the module.
    """

    def __init__(
        self,
        optimizer: type[torch.optim.Optimizer],
        arguments: dict[str, Any],
        *,
        decay: Decay,
        groups: Sequence[ParameterGroup],
        frozen: Sequence[FrozenModules],
        layer_decay: LayerDecay | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.arguments = arguments
        self.decay = decay
        self.groups = tuple(groups)
        self.frozen = tuple(frozen)
        self.layer_decay = layer_decay

    @property
    def has_module_rates(self) -> bool:
        """True if modules have different learning rates or are frozen."""
        return bool(self.groups or self.frozen or self.layer_decay)

    def build(self, model: nn.Module, losses: LearntLosses | None = None) -> torch.optim.Optimizer:
        """Build the optimiser over the parameters of the model and of losses with parameters, each in one group.

        Its step is torch's fused one where there is such. Parameters frozen for ever ask for no gradient.
        Raises ConfigError for a module that the model does not have, and for a parameter whose elements share memory.
        """
        module = combine_modules(model, losses)
        for config_path, name in self._named_modules():
            module_parameters(module, name, config_path)
        for frozen in self.frozen:
            if "until_epoch" not in frozen:
                for _, parameter in module_parameters(module, frozen["modules"], "optimizer.frozen"):
                    parameter.requires_grad_(False)
        for name, parameter in module.named_parameters():
            _fill_gaps(name, parameter)
        layers, decays = self._layer_factors(model), self._weight_decays(model)
        groups: dict[tuple[str, float, float], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                rate, decay, owner = (
                    self._learning_rate(name, layers),
                    decays.get(name, 0.0),
                    losses.owner(name) if losses else "",
                )
                group = {"params": [], "lr": rate, "base_lr": rate, "weight_decay": decay}
                named = {"name": owner} if owner else {}
                groups.setdefault((owner, rate, decay), {**group, **named})["params"].append(parameter)
        if not groups:
            raise ConfigError("optimizer.frozen: every parameter is frozen; nothing is left to train")
        with gc_paused():  # a first optimiser imports torch's compiler
            optimizer = self.optimizer(list(groups.values()), **self.arguments, **self._fused_option(groups.values()))
        optimizer._warned_capturable_if_run_uncaptured = True  # some steps are replayed
        optimizer.register_step_pre_hook(_prepare_update)
        return optimizer

    def _fused_option(self, groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Request torch's fused step (docs/inside/decisions/steps.md#the-optimisers-step-is-torchs-fused-one)."""
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        options = signature(self.optimizer).parameters
        if "fused" in options and devices <= {"cpu", "cuda"}:
            return {"fused": True}
        return {"capturable": True} if "capturable" in options and devices == {"cuda"} else {}  # counts on the device

    def _named_modules(self) -> Iterator[tuple[str, str]]:
        for kind, entries in (("groups", self.groups), ("frozen", self.frozen)):
            for index, entry in enumerate(entries):
                yield f"optimizer.{kind}.{index}.modules", entry["modules"]

    def module_rates(self, model: nn.Module, losses: LearntLosses | None = None) -> tuple[ModuleRate, ...]:
        """Summarise rates by module: by the innermost module with a setting, or else the outermost one."""
        layers, decays = self._layer_factors(model), self._weight_decays(model)
        named = {*layers, *(entry["modules"] for entry in (*self.groups, *self.frozen))}
        named |= {*(name for name, _ in model.named_children()), *(losses.module_names if losses else ())}
        parameters_by_module: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in combine_modules(model, losses).named_parameters():
            inside = [module for module in named if is_in_module(name, module)]
            parameters_by_module.setdefault(max(inside, key=len, default=name), []).append((name, parameter))
        return tuple(
            self._summarise_module(module, parameters, layers, decays)
            for module, parameters in parameters_by_module.items()
        )

    def _summarise_module(
        self,
        module: str,
        parameters: Sequence[tuple[str, nn.Parameter]],
        layers: Mapping[str, float],
        decays: Mapping[str, float],
    ) -> ModuleRate:
        frozen_entries = [entry for entry in self.frozen if is_in_module(parameters[0][0], entry["modules"])]
        ends = [entry["until_epoch"] for entry in frozen_entries if "until_epoch" in entry]
        frozen = "for ever" if len(ends) < len(frozen_entries) else f"until epoch {max(ends)}" if ends else ""
        return ModuleRate(
            module=module,
            num_tensors=len(parameters),
            num_elements=sum(parameter.numel() for _, parameter in parameters),
            lr=self._learning_rate(parameters[0][0], layers),
            weight_decay=self._weight_decay,
            num_decayed=sum(parameter.numel() for name, parameter in parameters if decays.get(name)),
            frozen=frozen,
        )

    def _layer_factors(self, model: nn.Module) -> dict[str, float]:
        return {} if self.layer_decay is None else layer_lr_factors(model, self.layer_decay)

    def _learning_rate(self, parameter_name: str, layers: Mapping[str, float]) -> float:
        factors = [g["lr_factor"] for g in self.groups if is_in_module(parameter_name, g["modules"])]
        by_depth = next((factor for module, factor in layers.items() if is_in_module(parameter_name, module)), 1.0)
        return self.arguments["lr"] * by_depth * (factors[-1] if factors else 1.0)

    @property
    def _weight_decay(self) -> float:
        """The weight decay of all that is decayed; 0 for an optimiser of torch that has none."""
        return self.arguments.get("weight_decay", 0.0)

    def _weight_decays(self, model: nn.Module) -> dict[str, float]:
        """Return the weight decay of each parameter of the model; those of losses have none."""
        centres = {
            id(numbers) for quantiser, numbers in quantised_weights(model).values() if isinstance(quantiser, Codebook)
        }
        return {
            name: self._weight_decay
            if id(parameter) not in centres and (self.decay == "all" or parameter.ndim > 1)
            else 0.0
            for name, parameter in model.named_parameters()
        }


@registry.optimizers.add("sgd")
def SGD(  # noqa: N802 - the field's own spelling
    *,
    lr: PositiveFloat,
    momentum: Probability = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegativeFloat = 0.0,
    decay: Decay = "all",
    groups: tuple[ParameterGroup, ...] = (),
    frozen: tuple[FrozenModules, ...] = (),
    layer_decay: LayerDecay | None = None,
) -> OptimizerSpec:
    """Stochastic gradient descent with momentum. Source: Sutskever et al. 2013, eq. 1-2, in torch's form."""
    arguments = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    return OptimizerSpec(torch.optim.SGD, arguments, decay=decay, groups=groups, frozen=frozen, layer_decay=layer_decay)


@registry.optimizers.add("adam")
def Adam(  # noqa: N802
    *,
    lr: PositiveFloat,
    betas: tuple[Probability, Probability] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    decay: Decay = "all",
    groups: tuple[ParameterGroup, ...] = (),
    frozen: tuple[FrozenModules, ...] = (),
    layer_decay: LayerDecay | None = None,
) -> OptimizerSpec:
    """Adam; weight decay is added to the gradient. Source: Kingma and Ba 2015, algorithm 1."""
    arguments = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    return OptimizerSpec(
        torch.optim.Adam, arguments, decay=decay, groups=groups, frozen=frozen, layer_decay=layer_decay
    )


@registry.optimizers.add("adamw")
def AdamW(  # noqa: N802
    *,
    lr: PositiveFloat,
    betas: tuple[Probability, Probability] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 1e-2,
    decay: Decay = "weights",
    groups: tuple[ParameterGroup, ...] = (),
    frozen: tuple[FrozenModules, ...] = (),
    layer_decay: LayerDecay | None = None,
) -> OptimizerSpec:
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, algorithm 2."""
    arguments = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    return OptimizerSpec(
        torch.optim.AdamW, arguments, decay=decay, groups=groups, frozen=frozen, layer_decay=layer_decay
    )


@registry.optimizers.add("rmsprop")
def RMSprop(  # noqa: N802
    *,
    lr: PositiveFloat,
    alpha: Probability = 0.99,
    eps: PositiveFloat = 1e-8,
    momentum: Probability = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
    decay: Decay = "all",
    groups: tuple[ParameterGroup, ...] = (),
    frozen: tuple[FrozenModules, ...] = (),
    layer_decay: LayerDecay | None = None,
) -> OptimizerSpec:
    """Gradients divided by a running root mean square. Source: Tieleman and Hinton 2012, lecture 6.5."""
    arguments = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
    return OptimizerSpec(
        torch.optim.RMSprop, arguments, decay=decay, groups=groups, frozen=frozen, layer_decay=layer_decay
    )


def _fill_gaps(name: str, parameter: nn.Parameter) -> None:
    """Copy a parameter with memory gaps to contiguous memory, as torch's fused steps and batch norms require.

    Raises ConfigError where elements share memory: no optimiser can update them one by one; and for a lazy parameter.
    """
    if is_lazy(parameter):
        raise ConfigError(f"model: parameter '{name}' has no size yet; give its module all sizes, as Linear has them")
    if any(size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)):
        raise ConfigError(
            f"model: parameter '{name}' of shape {list(parameter.shape)} is an expanded view, so its elements share "
            "memory; make it with .expand(...).clone()"
        )
    if has_memory_gaps(parameter):
        parameter.data = parameter.data.clone()


def _prepare_update(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give every gradient its parameter's memory layout, which torch's fused step requires, and SGD its momenta.

    Torch makes them in a first step, without numbers if that is skipped, and for all parameters or none.
    """
    for group in optimizer.param_groups:
        has_momentum = isinstance(optimizer, torch.optim.SGD) and group["momentum"] != 0
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = match_memory_format(parameter, parameter.grad)
                if has_momentum and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the momentum of a parameter group: the first of Adam's betas, or what SGD repeats of its last step.

    Raises ConfigError for an optimiser that has neither.
    """
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    elif "momentum" in group:
        group["momentum"] = momentum
    else:
        raise ConfigError("schedule.momentum: this optimizer has neither momentum nor betas; leave it out")


def apply_freezing(model: nn.Module, frozen: Sequence[FrozenModules], epoch: int) -> list[nn.Parameter]:
    """Put the modules frozen at this epoch into evaluation mode, and return their parameters."""
    frozen_parameters: list[nn.Parameter] = []
    for entry in frozen:
        if epoch < entry.get("until_epoch", epoch + 1):
            frozen_parameters.extend(
                parameter for name, parameter in model.named_parameters() if is_in_module(name, entry["modules"])
            )
            for name, module in model.named_modules():
                if is_in_module(name, entry["modules"]):
                    module.eval()
    return frozen_parameters
