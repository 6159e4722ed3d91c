"""Rules of the first step of a run: hooks, modes, what is frozen, the schedule, sizes of updates, and devices."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.types import Batch
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.coverage import Unreached
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.doctor.watch.gradients import is_frozen_by_kind
from sightline.engine.device.contexts import HeldDevice, list_foreign, list_held_devices
from sightline.engine.launcher import count_local_processes
from sightline.engine.optimizers import is_in_module
from sightline.engine.step import weighted_sum
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import DryRun, Outputs, forward_backward, isolated_copy
from sightline.workbench.check.sample_statistics import class_axis

_STATISTICS = ("running", "moving", "ema")
"""Words in the names of buffers that a training step changes."""
_KINDS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_MAX_STD = 3.0
_MAX_STEPS, _MAX_ZERO_START, _MAX_ZERO_END, _MIN_ZEROS = 2_000, 0.2, 0.05, 0.05
_MAX_RATIO, _MIN_MOVE, _NUM_UPDATES, _MIN_DEPENDENCE, _MAX_PENALTY = 10.0, 1e-4, 1000, 0.2, 10.0
"""Size of an update by that of the weights (some 0.01; 1 where these start at 0.001), and of all updates together
(0.01 in fine-tuning); share of an update that changes its sign with the gradients; penalty of a decay by the loss."""


# --- the model --------------------------------------------------------------------------------------------------------


@rule(
    "still-statistics",
    "error",
    "model.norm_mode model.frozen_unintended",
    holds="statistics that a training step moves: evaluation normalises by them; and dropout that drops",
    do="let train() reach the layer (no .eval() in the constructor), or name it in optimizer.frozen",
)
def still_statistics(still_layers: list[StillLayer]) -> Iterator[Fault]:
    """Report the first layer that ran, is not frozen, and learns no statistics, or drops nothing.

    The rule of a module asks another thing of buffers of any name: that evaluation alone reads them.
    """
    for layer, what, is_training, is_sure in still_layers[:1]:
        yield Fault(
            f"the {what} of '{layer}': idle in training",
            measured="the same bits after a training step" if is_training else "in evaluation mode",
            severity=None if is_sure else "warning",
            where=FindingLocation(layer=layer, config_path="model"),
        )


class StillLayer(NamedTuple):
    """Layer whose running statistics, or dropout, a training step leaves idle, and its mode.

    `is_sure` of a batch norm of an untrained model: others may keep what they have learnt.
    """

    layer: str
    what: str
    is_training: bool
    is_sure: bool


@measure()
def still_layers(run: Context, first_step: DryRun) -> list[StillLayer]:
    """List layers that ran, are not frozen, and whose running statistics a step does not move, or that drop nothing."""
    before, found = dict(run.built.job.model.named_buffers(remove_duplicate=False)), []
    for name, module in first_step.model.named_modules():
        own = {key: buffer for key, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()}
        names = {f"{name}.{key}".lstrip("."): each for key, each in own.items() if any(w in key for w in _STATISTICS)}
        is_frozen = any(is_in_module(name, entry["modules"]) for entry in run.built.job.frozen)
        parameters = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        is_still = names and all(key in before and torch.equal(each, before[key]) for key, each in names.items())
        is_off = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 and not module.training
        is_trained = any(parameters) or (not parameters and isinstance(module, _KINDS))
        if (is_still or is_off) and name in first_step.executed and not is_frozen and is_trained:
            what, is_norm = "running statistics" if is_still else "dropout", isinstance(module, _KINDS[0])
            found.append(StillLayer(name, what, module.training, run.is_fresh and is_norm))
    return found


@rule(
    "no-gradient",
    "warning",
    "model.frozen_unintended",
    holds="parameters with requires_grad, but for those that optimizer.frozen names",
    do="name the module in optimizer.frozen, or take requires_grad_(False) out",
)
def frozen_parameters(frozen_unnamed: list[str]) -> Iterator[Fault]:
    """Name parameters that want no gradient, and that the config does not freeze."""
    if frozen_unnamed:
        where = FindingLocation(param=frozen_unnamed[0], config_path="model")
        yield Fault("parameters are frozen without a word", measured=join_some(frozen_unnamed, most=4), where=where)


@measure()
def frozen_unnamed(run: Context) -> list[str]:
    """List the parameters that want no gradient, and that the config does not freeze; none where all biases train."""
    model, frozen = run.built.job.model, [entry["modules"] for entry in run.built.job.frozen]
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    names = [name for name in names if not any(is_in_module(name, entry) for entry in frozen)]
    return [] if is_frozen_by_kind(model.modules()) else names


@rule(
    "final-activation",
    "warning",
    "model.activation model.constant_output",
    holds="scores of classes of either sign: below 0 a ReLU passes no gradient",
    do="take the activation off the end of the network",
    is_statistical=True,
)
def final_activation(first_step: DryRun, last_layer: str | None) -> Fault | None:
    """Look for scores of classes that are nowhere below 0, and 0 in several places.

    The rule of a module asks which outputs are kept from targets that are numbers.
    """
    logits = first_step.seen_outputs.get("logits")
    if not isinstance(logits, Tensor) or "label" not in first_step.batch:
        raise NotApplicableError("no scores of classes")
    zeros = float((logits == 0).double().mean())
    if bool((logits < 0).any()) or not _MIN_ZEROS < zeros < 1:
        return None
    where = FindingLocation(layer=last_layer, config_path="model")
    return Fault("a ReLU ends the network", measured=f"{zeros:.0%} of 'logits' are 0, none below", where=where)


@measure()
def unreached(run: Context, first_step: DryRun) -> list[Unreached]:
    """List parameters of layers that run, and of losses, that a step gives no gradient, where it gives others one."""
    job, found = run.built.job, []
    own = {name: p for name, p in job.trained_module.named_parameters() if job.losses.owner(name) and p.requires_grad}
    if own:
        forward_backward(job, isolated_copy(job.model), [first_step.batch], run.world.device)
        prefixes = tuple(f"{entry['modules']}." for entry in job.frozen)
        silent = [name for name, parameter in own.items() if parameter.grad is None and not name.startswith(prefixes)]
        found += [Unreached("losses", silent, len(own), "unused")] if silent else []
    held = {id(p) for group in job.optimizer.param_groups for p in group["params"]}
    trained = {name for name, parameter in job.model.named_parameters() if id(parameter) in held}
    states = {name: state for name, state in first_step.gradients.items() if name in trained}
    silent = [n for n, state in states.items() if state == "none" and n.rpartition(".")[0] in first_step.executed]
    if silent and "some" in states.values():
        found.append(Unreached("layers", silent, len(states), "are cut", first_step.num_tries))
    return found


@rule(
    "initial-loss",
    "warning",
    "model.init model.numerics data.normalisation",
    holds="logits of an untrained model that have a standard deviation of at most 3 over the classes",
    do="scale the initial weights by 1/sqrt(fan-in), or normalise what goes into the last layer",
    is_statistical=True,
)
def initial_loss(untrained_outputs: tuple[Batch, Outputs], last_layer: str | None) -> Fault | None:
    """Measure the logits of an untrained model; rules of a module compare its first loss with those of constants."""
    batch, outputs = untrained_outputs
    logits: Any = outputs.get("logits")
    label: Any = batch.get("label")
    axis = class_axis(logits, label) if isinstance(logits, Tensor) and isinstance(label, Tensor) else None
    if axis is None or logits.shape[axis] < 2 or not bool(logits.isfinite().all()):
        raise NotApplicableError("no class logits of an untrained model")
    std = float((logits - logits.mean(dim=axis, keepdim=True)).double().std(correction=0))
    if std <= _MAX_STD:
        return None
    return Fault(
        f"the untrained model is over-confident: its logits have standard deviation {std:.3g}",
        measured=f"{std:.4g}",
        expected=f"at most {_MAX_STD:g}; a loss near ln {logits.shape[axis]} = {math.log(logits.shape[axis]):.4g}",
        where=FindingLocation(layer=last_layer, config_path="model"),
    )


# --- the optimiser ----------------------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """Largest learning rate of all groups at some steps of all."""

    steps: np.ndarray
    values: np.ndarray
    num_steps: int


@measure()
def rates(run: Context) -> Rates:
    """Compute the schedule of the run, at up to 2,000 steps."""
    job = run.built.job
    steps = np.unique(np.linspace(0, job.num_steps - 1, min(job.num_steps, _MAX_STEPS)).astype(np.int64))
    highest = max((group["base_lr"] for group in job.optimizer.param_groups), default=0.0)
    return Rates(steps, np.array([highest * float(job.schedule(int(step))) for step in steps]), job.num_steps)


@rule(
    "zero-learning-rate",
    "warning",
    "optim.scheduler optim.lr",
    holds="a positive learning rate in most steps",
    do="correct schedule (its steps or epochs, warm-up, milestones), or optimizer.lr",
)
def zero_rate(rates: Rates) -> Iterator[Fault]:
    """Look for rates that are no rates, or 0 for long."""
    steps, values, count = rates
    where = FindingLocation(config_path="schedule")
    if not np.isfinite(values).all() or (values < 0).any():
        measured = f"{values[~np.isfinite(values) | (values < 0)][0]}"
        yield Fault("the schedule gives no rate", measured=measured, severity="error", where=where)
    elif not values.any():
        causes, measured = ["optim.lr"], f"0 at {len(steps)} of {count} steps"
        yield Fault("the learning rate is always 0", measured=measured, severity="error", causes=causes, where=where)
    else:
        first, last = (int(steps[np.flatnonzero(values > 0)[end]]) for end in (0, -1))
        if first > max(1, _MAX_ZERO_START * count) or count - 1 - last > max(1, _MAX_ZERO_END * count):
            measured = f"positive from step {first} to {last} of {count}"
            yield Fault("the learning rate is 0 for a large part of the run", measured=measured, where=where)


class Update(NamedTuple):
    """Updates of weight matrices by a step at the highest rate: as it is, without clipping, with gradients turned.

    `momentum` and `decay` are the largest of all groups, `loss` is that of the step.
    """

    weights: list[Tensor]
    plain: list[Tensor]
    free: list[Tensor]
    turned: list[Tensor]
    momentum: float
    decay: float
    loss: float


@measure()
def first_update(run: Context, first_step: DryRun, rates: Rates) -> Update:
    """Step copies of the optimiser with the gradients of the first step."""
    if not rates.values.any():
        raise NotApplicableError("a rate of 0")
    factor, found = float(run.built.job.schedule(int(rates.steps[rates.values.argmax()]))), []
    for clips, sign in ((True, 1.0), (False, 1.0), (True, -1.0)):
        found.append(_step_copy(run, first_step, factor=factor, clips=clips, sign=sign))
    if not found[0]:
        raise LeftOutError("no weights with a gradient")
    weights = [weight for weight, _ in found[0]]
    momentum, decay = (
        max(float(group.get(name) or 0.0) for group in run.built.job.optimizer.param_groups)
        for name in ("momentum", "weight_decay")
    )
    means = {name: term.detach() / first_step.counts[name].clamp(min=1) for name, term in first_step.terms.items()}
    loss = abs(float(weighted_sum(means, run.built.job.loss_weights_at(0))))
    plain, free, turned = ([after - weight for weight, after in each] for each in found)
    return Update(weights, plain, free, turned, momentum, decay, loss)


def _step_copy(run: Context, step: DryRun, *, factor: float, clips: bool, sign: float) -> list[tuple[Tensor, Tensor]]:
    """Return the weights of up to eight matrices that have a gradient, before and after a step of a copy."""
    job, matrices = run.built.job, []
    names = {parameter: name for name, parameter in job.model.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in step.model.named_parameters()}
    optimizer = copy.deepcopy(job.optimizer)
    for group, copied_group in zip(job.optimizer.param_groups, optimizer.param_groups, strict=True):
        copied_group["lr"] = copied_group.get("base_lr", copied_group["lr"]) * factor
        for own, copied in zip(group["params"], copied_group["params"], strict=True):
            gradient = gradients.get(names.get(own, ""))
            copied.grad = None if gradient is None else sign * gradient
            if gradient is not None and own.ndim > 1 and bool(own.any()) and bool(gradient.any()):
                matrices.append((own.detach().double(), copied))
    if clips and job.clip_norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], job.clip_norm)
    optimizer.step()
    return [(own, copied.detach().double()) for own, copied in matrices[:: max(1, -(-len(matrices) // 8))]]


def _measure(tensors: list[Tensor]) -> float:
    return float(torch.stack([each.norm() for each in tensors]).norm())


@rule(
    "update-size",
    "warning",
    "optim.lr optim.clip optim.hyper",
    holds="an update below the size of the weights, all together above a ten-thousandth; gradients decide where to",
    do="change optimizer.lr by some powers of ten, raise train.clip_norm, or lower optimizer.weight_decay",
    is_statistical=True,
)
def update_size(rates: Rates, first_update: Update) -> Iterator[Fault]:
    """Compare the first update with the weights, with and without clipping, and with gradients turned round."""
    size, where = _measure(first_update.weights), FindingLocation(config_path="optimizer.lr")
    share = float(rates.values.mean() / rates.values.max())
    count = max(rates.num_steps, _NUM_UPDATES) * share / max(1e-3, 1 - first_update.momentum)
    ratio, free = _measure(first_update.plain) / size, _measure(first_update.free) / size
    measured = f"a step moves weights by {ratio:.3g} of their size, {free:.3g} without clipping"
    if ratio > _MAX_RATIO or ratio * count < _MIN_MOVE:
        causes = ["optim.clip"] if ratio * count < _MIN_MOVE <= free * count else ()
        summary = "updates are larger than the weights" if ratio > _MAX_RATIO else "updates hardly move the weights"
        yield Fault(summary, measured=measured, causes=causes, where=where)
        return
    loss, penalty = first_update.loss, first_update.decay / 2 * size**2
    pairs = zip(first_update.plain, first_update.turned, strict=True)
    cosines = torch.stack([(a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300) for a, b in pairs])
    dependence = float((1 - cosines.median()) / 2)
    if penalty > _MAX_PENALTY * loss and dependence < _MIN_DEPENDENCE:
        measured = f"the penalty is {penalty:.3g}, the loss {loss:.3g}; {dependence:.0%} of an update follows it"
        yield Fault("weight decay outweighs the loss", measured=measured, causes=["optim.hyper"], where=where)


# --- the devices ------------------------------------------------------------------------------------------------------


class ForeignDevices(NamedTuple):
    """GPUs of other processes on which the process `rank` holds memory, and its own one."""

    rank: int
    own: torch.device
    held: list[HeldDevice]


@measure()
def foreign_devices(run: Context) -> ForeignDevices:
    """List the GPUs of other processes on which this one holds memory."""
    world = run.world
    if world.size == 1 or world.device.type != "cuda":
        raise LeftOutError("one process, or no GPU")
    held = list_foreign(list_held_devices(), world.device, count_local_processes(world.size))
    return ForeignDevices(world.rank, world.device, held)


@rule(
    "foreign-device",
    "warning",
    "sys.resource sys.environment",
    holds="a process that holds memory on its own GPU alone",
    do="load with map_location='cpu', since saved tensors are put where they were; move tensors by .to(device), never "
    "to 'cuda' or 'cuda:0' by name",
)
def foreign_device(foreign_devices: ForeignDevices) -> Iterator[Fault]:
    """Report the GPUs of other processes on which this one has tensors, or the context that the first one made."""
    rank, own, others = foreign_devices
    for held in others:
        yield Fault(
            f"process {rank} holds memory on cuda:{held.number}, the device of process {held.number} of its machine",
            measured=f"{held.num_bytes / 1e6:.1f} MB of tensors, and a context of some 500 MB; its own device is {own}",
            where=FindingLocation(rank=rank),
        )
