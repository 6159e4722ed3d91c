"""Comparison of every distinct layer and every loss of a run with references and finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sightline.config import RunConfig
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.oracles.known_layers import examine_known, is_known, with_fewer_points
from sightline.doctor.oracles.losses import examine_losses
from sightline.doctor.oracles.recorded import examine_recorded, record_calls
from sightline.doctor.oracles.results import OracleResult, class_location
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.errors import summarise_error
from sightline.numba_kernels import compute_seconds
from sightline.types import Batch

_MAX_SECONDS = 45.0  # CPU time of this thread
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (bool, int, float, str, tuple, list, type(None), torch.dtype)
_WIDTH_ARGUMENTS = (
    *("in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels", "num_groups"),
    *("normalized_shape", "groups", "p"),
)
"""Arguments of torch's layers that change their size, but not their operation."""
_CPU = torch.device("cpu")


def examine(
    job: TrainState, config: RunConfig, facts: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]
) -> list[OracleResult]:
    """Compare each kind of layer, in the model's order, and each loss; layers without time for a check have a note.

    `batch` and `outputs` are of a training step before any update, on the CPU.
    """
    model = isolated_copy(job.model).to(_CPU)
    rows = examine_layers(model, batch, lambda inputs: compute_batch_losses(job.task, model, inputs, _CPU))
    return [*rows, *examine_losses(job, config, facts, batch, outputs)]


def examine_layers(model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> list[OracleResult]:
    """Compare each kind of layer of a model on the CPU; `run` runs the model on a batch and may change statistics."""
    start_seconds = compute_seconds()
    step = _RecordedStep(model.train(), batch, run)
    results = []
    for names in step.kinds:
        module = step.modules[names[0]]
        row = OracleResult(
            _describe(module), names[0] or "(the whole model)", len(names), file=class_location(type(module))
        )
        if compute_seconds() - start_seconds > _MAX_SECONDS:
            results.append(dataclasses.replace(row, note="no time was left"))
        elif is_known(module) or not step.is_read(names[0]):
            results.append(_examine_layer(step, names[0], row))
    return results


class _RecordedStep:
    """Step on few points, with the modules called and the recorded inputs of unknown layers."""

    def __init__(self, model: nn.Module, batch: Batch, run: Callable[[Batch], Any]) -> None:
        small = with_fewer_points(batch, run)
        self.modules = dict(model.named_modules())
        _, self.called = record_calls(model, {}, lambda: run(small))
        self.kinds = [sorted(names, key=lambda name: name not in self.called) for names in distinct_layers(model)]
        representatives = {names[0]: self.modules[names[0]] for names in self.kinds}
        unknown = {name: module for name, module in representatives.items() if not is_known(module)}
        self.calls, _ = record_calls(model, unknown, lambda: run(small))

    def silent_below(self, name: str) -> set[str]:
        """Return the modules inside this one that were not called, by their relative names."""
        prefix = f"{name}." if name else ""
        return {
            module_name.removeprefix(prefix)
            for module_name in self.modules
            if module_name not in self.called and module_name.startswith(prefix)
        }

    def is_read(self, name: str) -> bool:
        """Return True if a module was not called, but a layer that contains it was: that layer reads its parameters."""
        parent = name
        while parent := parent.rpartition(".")[0]:
            if parent in self.called and type(self.modules[parent]) not in _CONTAINERS:
                return name not in self.called
        return False


def _examine_layer(step: _RecordedStep, name: str, row: OracleResult) -> OracleResult:
    """Compare one layer; if it raises an error in float64, or alone, it is not checked and the note has the error."""
    module = step.modules[name]
    try:
        if is_known(module):
            return examine_known(module, row)
        if name not in step.calls:
            return dataclasses.replace(row, note="it was not called in the step")
        return examine_recorded(module, step.calls[name], row, silent=step.silent_below(name))
    except Exception as error:  # noqa: BLE001 - a plugin's layer may raise any error
        return dataclasses.replace(row, note=summarise_error(error, max_length=100))


def distinct_layers(model: nn.Module) -> list[list[str]]:
    """Group the names of modules by type and arguments; containers such as Sequential are left out."""
    groups: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        has_forward = type(module).forward is not nn.Module.forward or "forward" in vars(module)
        if type(module) not in _CONTAINERS and has_forward:
            groups.setdefault(_make_signature(module), []).append(name)
    return list(groups.values())


def _make_signature(module: nn.Module) -> Any:
    """Return type, plain attributes, parameter shapes and signatures of children; a `forward` per instance is distinct.

    The width is left out for torch's own layers, whose operation does not depend on it.
    """
    plain = [
        (name, repr(value))
        for name, value in sorted(vars(module).items())
        if name != "training" and isinstance(value, _PLAIN) and not (name.startswith("_") and value is None)
    ]
    if is_known(module) and type(module).__module__.startswith("torch.nn.") and "forward" not in vars(module):
        parameter_names = [name for name, parameter in module.named_parameters(recurse=False)]
        groups = min(2, getattr(module, "groups", 1))
        return (
            type(module),
            tuple(attribute for attribute in plain if attribute[0] not in _WIDTH_ARGUMENTS),
            tuple(parameter_names),
            groups,
        )
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]
    instance_id = id(module) if "forward" in vars(module) else 0
    children = tuple((name, _make_signature(child)) for name, child in module.named_children())
    return type(module), tuple(plain), tuple(shapes), instance_id, children


def _describe(module: nn.Module) -> str:
    """Format the type and the arguments of a module, without its children."""
    return f"{type(module).__name__}({module.extra_repr()})"
