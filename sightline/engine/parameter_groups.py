"""Layer-wise learning rate decay, from the output to the input, and the table of rates by module."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, NotRequired

from pydantic import ConfigDict
from torch import nn
from typing_extensions import TypedDict

from sightline.arguments import PositiveFraction
from sightline.errors import ConfigError
from sightline.schema import suggest

__all__ = ["LayerDecay", "ModuleRate", "format_module_rates", "is_in_module", "layer_lr_factors", "module_parameters"]

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
