"""Which modules learn at which rate: rates that fall from the output to the input, and a table of what each gets."""

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

_PLACE = "optimizer.layer_decay"


class LayerDecay(TypedDict):
    """Each module's learning rate is `factor` times that of the next one towards the output; the last keeps its own.

    `modules` go from the input to the output; left out, they are the model's own, in the order in which it was made.
    Source: Howard and Ruder 2018, ULMFiT, section 3.2 (discriminative fine-tuning).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    factor: PositiveFraction
    modules: NotRequired[tuple[str, ...]]


class ModuleRate(NamedTuple):
    """What a module gets: how much of it, its learning rate before the schedule, its weight decay, how long it rests.

    `num_decayed` of the `num_elements` have the weight decay, the others none. `frozen` is empty, `for ever`, or states
    until which epoch.
    """

    module: str
    num_tensors: int
    num_elements: int
    lr: float
    weight_decay: float
    num_decayed: int
    frozen: str


def layer_lr_factors(model: nn.Module, decay: LayerDecay) -> dict[str, float]:
    """The factor of each module, from the input to the output: factor^(L-1), ..., factor, 1 of L modules.

    Parameters that the model itself holds go with the first. Raises ConfigError for modules that are not there, that
    hold one another, or that leave parameters out.
    """
    own = [name for name, _ in model.named_parameters(recurse=False)]
    given = decay.get("modules")
    modules = _own_order(model) if given is None else list(given)
    for place, name in enumerate(given or ()):
        module_parameters(model, name, f"{_PLACE}.modules.{place}")
    for inner, outer in itertools.permutations(modules, 2):
        if is_in_module(inner, outer):
            raise ConfigError(f"{_PLACE}.modules: '{inner}' is part of '{outer}'; each may stand in one place only")
    left_out = [n for n, _ in model.named_parameters() if n not in own and not any(is_in_module(n, m) for m in modules)]
    if left_out:
        raise ConfigError(f"{_PLACE}.modules: '{left_out[0]}' is in none of them; name its module in its place")
    if len(modules) < 2:
        raise ConfigError(f"{_PLACE}: the model is of one module, {', '.join(modules)}; name parts of it in modules")
    factors = {name: decay["factor"] ** (len(modules) - 1 - depth) for depth, name in enumerate(modules)}
    return {**dict.fromkeys((n for n in own if n not in factors), factors[modules[0]]), **factors}


def _own_order(model: nn.Module) -> list[str]:
    """The model's modules with parameters in the order in which it was made, lists of modules entry by entry."""
    found: list[str] = []
    for name, child in model.named_children():
        inner = [f"{name}.{key}" for key, each in child.named_children() if any(True for _ in each.parameters())]
        if any(True for _ in child.parameters()):
            found += inner if isinstance(child, nn.ModuleList) else [name]
    return found


def format_module_rates(rates: Sequence[ModuleRate]) -> list[str]:
    """A line for each module below a heading; nothing where all learn alike."""
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


def module_parameters(model: nn.Module, name: str, place: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a module. Raises ConfigError at `place` where it has none, or there is no such module."""
    found = [(n, p) for n, p in model.named_parameters() if is_in_module(n, name)]
    if not found:
        known = [n for n, _ in itertools.islice(model.named_modules(), 1, 500)]
        raise ConfigError(f"{place}: the model has no module '{name}' with parameters{suggest(name, known)}")
    return found


def is_in_module(name: str, module: str) -> bool:
    """Whether a name is that of a module, or of something in it."""
    return name == module or name.startswith(f"{module}.")
