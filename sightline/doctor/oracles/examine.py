"""Every distinct layer and every loss of a run, each held against what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sightline.config import RunConfig
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.oracles.known import examine_known, is_known
from sightline.doctor.oracles.losses import examine_losses
from sightline.doctor.oracles.recorded import examine_recorded, record_calls
from sightline.doctor.oracles.reduced import with_fewer_points
from sightline.doctor.oracles.results import OracleResult, class_location
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.errors import summarise_error
from sightline.numba_kernels import compute_seconds
from sightline.types import Batch

__all__ = ["distinct_layers", "examine", "examine_layers"]

_MOST_SECONDS = 45.0  # of this thread's own time
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (bool, int, float, str, tuple, list, type(None), torch.dtype)
_WIDTHS = (
    *("in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels", "num_groups"),
    *("normalized_shape", "groups", "p"),
)
"""Arguments of torch's layers that change how large they are, and not what they compute."""
_CPU = torch.device("cpu")


def examine(
    job: TrainState, config: RunConfig, facts: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]
) -> list[OracleResult]:
    """A row for each kind of layer, in the model's order, and for each loss; rows without time for a check record it.

    `batch` and `outputs` are of a training step before any update, on the CPU.
    """
    model = isolated_copy(job.model).to(_CPU)
    rows = examine_layers(model, batch, lambda given: compute_batch_losses(job.task, model, given, _CPU))
    return [*rows, *examine_losses(job, config, facts, batch, outputs)]


def examine_layers(model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> list[OracleResult]:
    """A row for each kind of layer of a model, on the CPU, that `run` puts a batch through. Statistics may change."""
    started = compute_seconds()
    step = _Step(model.train(), batch, run)
    found = []
    for names in step.kinds:
        module = step.modules[names[0]]
        row = OracleResult(
            _describe(module), names[0] or "(the whole model)", len(names), file=class_location(type(module))
        )
        if compute_seconds() - started > _MOST_SECONDS:
            found.append(dataclasses.replace(row, note="no time was left"))
        elif is_known(module) or not step.is_read(names[0]):
            found.append(_tried(step, names[0], row))
    return found


class _Step:
    """A step on few points: what was called, and with what."""

    def __init__(self, model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> None:
        small = with_fewer_points(batch, run)
        self.modules = dict(model.named_modules())
        _, self.called = record_calls(model, {}, lambda: run(small))
        self.kinds = [sorted(names, key=lambda name: name not in self.called) for names in distinct_layers(model)]
        firsts = {names[0]: self.modules[names[0]] for names in self.kinds}
        unknown = {name: module for name, module in firsts.items() if not is_known(module)}
        self.calls, _ = record_calls(model, unknown, lambda: run(small))

    def silent_below(self, name: str) -> set[str]:
        """Modules inside this one that were not called, by their names in it."""
        start = f"{name}." if name else ""
        return {
            other.removeprefix(start) for other in self.modules if other not in self.called and other.startswith(start)
        }

    def is_read(self, name: str) -> bool:
        """Whether it was not called, but a layer that holds it was: that one reads its parameters and represents it."""
        above = name
        while above := above.rpartition(".")[0]:
            if above in self.called and type(self.modules[above]) not in _CONTAINERS:
                return name not in self.called
        return False


def _tried(step: _Step, name: str, row: OracleResult) -> OracleResult:
    """The error of a layer that does not run in float64, or alone, is not a finding: it was not checked."""
    module = step.modules[name]
    try:
        if is_known(module):
            return examine_known(module, row)
        if name not in step.calls:
            return dataclasses.replace(row, note="it was not called in the step")
        return examine_recorded(module, step.calls[name], row, silent=step.silent_below(name))
    except Exception as error:  # noqa: BLE001 - layers of others may raise anything
        return dataclasses.replace(row, note=summarise_error(error, max_length=100))


def distinct_layers(model: nn.Module) -> list[list[str]]:
    """Names of modules, those of one type with the same arguments together; left out are mere containers."""
    groups: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        has_forward = type(module).forward is not nn.Module.forward or "forward" in vars(module)
        if type(module) not in _CONTAINERS and has_forward:
            groups.setdefault(_signature(module), []).append(name)
    return list(groups.values())


def _signature(module: nn.Module) -> Any:
    """Type, plain attributes, shapes of parameters and what it is made of; a `forward` of its own makes it distinct.

    What torch's own layers compute does not depend on how many channels they have.
    """
    plain = [
        (name, repr(value))
        for name, value in sorted(vars(module).items())
        if name != "training" and isinstance(value, _PLAIN) and not (name.startswith("_") and value is None)
    ]
    if is_known(module) and type(module).__module__.startswith("torch.nn.") and "forward" not in vars(module):
        given = [name for name, parameter in module.named_parameters(recurse=False)]
        groups = min(2, getattr(module, "groups", 1))
        return type(module), tuple(each for each in plain if each[0] not in _WIDTHS), tuple(given), groups
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]
    own = id(module) if "forward" in vars(module) else 0
    below = tuple((name, _signature(child)) for name, child in module.named_children())
    return type(module), tuple(plain), tuple(shapes), own, below


def _describe(module: nn.Module) -> str:
    """Type and arguments, without what is inside."""
    return f"{type(module).__name__}({module.extra_repr()})"
