"""Layers in the wrong mode: statistics that never move, dropout in evaluation or off in training; shared weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.doctor.finding import FindingLocation
from sightline.engine.optimizers import is_in_module
from sightline.workbench.check.context import Context, check, step_check
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.model_probe import ModelProbe, differing
from sightline.workbench.check.oracles.results import class_location

_STATISTICS = ("running", "moving", "ema")
"""Words in the names of buffers that a training step changes."""
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd
_MAX_SHOWN = 3


@step_check(
    "still-statistics",
    causes=("model.norm_mode", "model.frozen_unintended"),
    expected="statistics that a training step moves: evaluation normalises by them",
)
def still_statistics(context: Context, step: DryRun) -> Fault | None:
    """Running statistics of each layer that runs change in a training step, unless `optimizer.frozen` names the layer.

    Finds: Norms held in evaluation mode, or whose running statistics never move: evaluation uses their initial values.

    Running statistics are the buffers with `running`, `moving` or `ema` in their names.
    """
    initial = dict(context.built.job.model.named_buffers(remove_duplicate=False))
    moved = {
        name: name not in initial or not torch.equal(buffer, initial[name])
        for name, buffer in step.model.named_buffers(remove_duplicate=False)
    }
    still = [
        name
        for name, module in step.model.named_modules()
        if (buffers := _find_statistics(name, module)) and not any(moved[buffer] for buffer in buffers)
        if _takes_part(step, name, module) and not _is_declared_frozen(context, name)
    ]
    if not still:
        return None
    module: Any = step.model.get_submodule(still[0])
    reason, action = "its forward does not write them", "write them where self.training is True, by copy_ or in place"
    if not module.training:
        reason, action = (
            "it is in evaluation mode during training",
            "let train() reach it (no .eval() in the constructor or in train), or name it in optimizer.frozen",
        )
    elif getattr(module, "momentum", None) == 0:
        reason, action = "its momentum is 0", "set momentum to the share of the new batch, 0.1 by default in torch"
    return Fault(
        f"the running statistics of {_list_names(still)} never move",
        severity="error" if context.is_fresh and isinstance(module, _BATCH_NORMS) else "warning",
        layer=still[0],
        measured=f"the same bits before and after a training step in {len(still)} layer(s): {reason}",
        action=action,
        evidence={"layers": still[:10]},
    )


def _find_statistics(name: str, module: nn.Module) -> list[str]:
    """Return the full names of a module's own running statistics."""
    buffers = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()]
    return [f"{name}.{key}".lstrip(".") for key in buffers if any(word in key for word in _STATISTICS)]


def _takes_part(step: DryRun, name: str, module: nn.Module) -> bool:
    """Return True for a layer that ran, or whose parameters got a gradient; a layer that is frozen as a whole does not.

    `no-gradient` reports parameters that are frozen; a frozen norm has none, and is of another type.
    """
    parameters = dict(module.named_parameters(recurse=False))
    gradients = {step.gradients.get(f"{name}.{key}".lstrip("."), "none") for key in parameters}
    is_plain = isinstance(module, _BATCH_NORMS) and not parameters
    is_trained = is_plain or any(parameter.requires_grad for parameter in parameters.values())
    return is_trained and (name in step.executed or not gradients <= {"none"})


def _is_declared_frozen(context: Context, name: str) -> bool:
    return any(is_in_module(name, entry["modules"]) for entry in context.built.job.frozen)


def _list_names(names: list[str]) -> str:
    return join_some([f"'{name}'" for name in names], most=_MAX_SHOWN)


@step_check(
    "idle-dropout",
    severity="warning",
    causes=("model.structure", "model.norm_mode"),
    expected="training mode, in which values are dropped, unless optimizer.frozen names the layer",
    action="let train() reach it, name its module in optimizer.frozen, or take it out",
)
def idle_dropout(context: Context, step: DryRun) -> Fault | None:
    """Each dropout layer that runs in a training step is in training mode.

    Finds: Dropout that is off in training, because something holds its layer in evaluation mode.
    """
    idle = [
        name
        for name, module in step.model.named_modules()
        if isinstance(module, _DROPOUTS) and module.p > 0 and not module.training and name in step.executed
        if not _is_declared_frozen(context, name)
    ]
    if not idle:
        return None
    return Fault(
        f"the dropout of {_list_names(idle)} is off in training",
        layer=idle[0],
        measured=f"{len(idle)} layer(s) in evaluation mode after train()",
    )


@step_check(
    "random-evaluation",
    causes=("eval.mode", "sys.nondeterminism"),
    expected="the same bits: two evaluations of one model have the same metrics",
)
def random_evaluation(context: Context, step: DryRun) -> Fault | None:
    """Outputs in evaluation mode do not depend on the seed of the random numbers.

    Finds: Dropout, noise or random samples that stay on in evaluation: every evaluation has other metrics.

    Two draws belong to a model: a mask that it returns, as a masked autoencoder does, and numbers that it multiplies by
    a tensor that it computes, as a sample of a distribution.
    """
    probe = context.probe(3)
    fault = None if probe is None else judge_draws(probe)
    if probe is None or fault is None:
        return None
    module = probe.model.get_submodule(fault.layer or "")
    return replace(fault, layer=None, where=place_code(context, fault.layer or "", module))


def judge_draws(probe: ModelProbe) -> Fault | None:
    """Find an output of a probe that depends on the seed, and the layer that draws: a dropout before others."""
    draws = probe.draws()
    first = probe.outputs() if draws else {}
    changed = differing(first, probe.outputs(seed=1)) if draws else []
    if not changed:
        return None
    dropped = [draw for draw in draws if "dropout" in draw[1] or "bernoulli" in draw[1]]
    if not dropped and (_returns_draws(first, changed) or probe.scales_draws()):
        return None
    layer, operator = (dropped or draws)[0]
    return Fault(
        f"'{changed[0]}' differs between two evaluations of the same samples"
        + (": dropout is active in evaluation" if dropped else ""),
        severity="error" if dropped else "warning",
        layer=layer,
        measured=f"other outputs with another seed in evaluation mode; {operator} draws in '{layer or 'the model'}'",
        action="give F.dropout training=self.training, and let eval() reach each nn.Dropout"
        if dropped
        else "draw where self.training is True only, or from a generator of a fixed seed",
    )


def place_code(context: Context, layer: str, module: nn.Module) -> FindingLocation:
    """Return the location of a module's class, if it is the user's or this package's, else that of the model."""
    file, line = class_location(type(module))
    if file is None or type(module).__module__.startswith("torch."):
        return context.place("model", layer=layer or None)
    return FindingLocation(file=file, line=line, layer=layer or None, config_path="model")


@check(
    "shared-weights",
    "preflight",
    severity="warning",
    causes=("model.structure", "model.unregistered"),
    config_path="model",
    expected="one name for each module; a module that is meant to be shared is registered once and called often",
    action="make a module for each place (a list repeated with * repeats the module itself), or register it once",
)
def shared_weights(context: Context) -> Iterator[Fault]:
    """Each module with parameters is registered under one name.

    Finds: One layer under several names, such as `[layer] * 3`: fewer weights than the network seems to have.

    A layer with a name of its own, which one list repeats, is shared on purpose.
    """
    names: dict[nn.Module, list[str]] = {}
    model = context.built.job.model
    for name, module in model.named_modules(remove_duplicate=False):
        if any(True for _ in module.parameters()):
            names.setdefault(module, []).append(name)
    shared = {places[0]: places for places in names.values() if len(places) > 1}
    for first, places in shared.items():
        if any(first != outer and is_in_module(first, outer) for outer in shared) or _is_declared_shared(places):
            continue
        size = sum(parameter.numel() for parameter in model.get_submodule(first).parameters())
        yield Fault(
            f"{_list_names(places)} are one and the same layer, with one set of weights",
            layer=first,
            measured=f"{len(places)} names for {size} weights",
            evidence={"names": places[:10]},
        )


def _is_declared_shared(places: Sequence[str]) -> bool:
    """Return True for one name of its own, and items of one list."""
    lists = [place.rpartition(".")[0] for place in places if place.rpartition(".")[2].isdigit()]
    return len(set(lists)) == 1 and len(lists) == len(places) - 1


def _returns_draws(outputs: Mapping[str, Tensor], changed: Sequence[str]) -> bool:
    """Return True if an output that depends on the seed is a mask beside others: the loss knows what was drawn."""
    return len(outputs) > 1 and any(bool(((outputs[name] == 0) | (outputs[name] == 1)).all()) for name in changed)
