"""Learning rates that change no weight, for the whole run or a share of it, or because of the optimiser."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.errors import summarise_error
from sightline.engine.train import TrainState
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, diagnose

_diagnose = functools.partial(diagnose, __file__)
_MAX_STEPS = 20_000
_WARMUP_SHARE = 0.2
_TAIL_SHARE = 0.05


@check("zero-learning-rate", "preflight", causes=("optim.scheduler", "optim.lr"), config_path="schedule")
def zero_learning_rate(context: Context) -> Iterator[Fault]:
    """Most steps have a positive learning rate, and two steps at the highest rate change the weights.

    Finds: Learning rates that change no weight, for the whole run or a share of it, or because of the optimiser.
    """
    evidence = {"num_steps": context.built.job.num_steps}
    for fault in _rate_faults(context, *compute_rates(context)):
        yield replace(fault, evidence=evidence)


def _rate_faults(context: Context, steps: np.ndarray, rates: np.ndarray) -> Iterator[Fault]:
    wrong, job = np.flatnonzero(~np.isfinite(rates) | (rates < 0)), context.built.job
    if len(wrong) and (error := _find_error(job, int(steps[wrong[0]]))) is not None:
        yield _diagnose("no schedule", summarise_error(error), step=int(steps[wrong[0]]))
    elif len(wrong):
        yield _diagnose("no rate", step=int(steps[wrong[0]]), rate=float(rates[wrong[0]]))
    elif not rates.any():
        base_rates = [group["base_lr"] for group in job.optimizer.param_groups]
        diagnosis = "zero schedule" if any(base_rates) else "zero base rate"
        yield _diagnose(diagnosis, step=0, looked_at=len(steps), num_steps=job.num_steps, base_rates=base_rates)
    else:
        yield from _share_faults(steps, rates, job.num_steps)
        yield from _replay_faults(context, int(steps[rates.argmax()]))


def compute_rates(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Compute the largest learning rate of all groups at up to 20,000 evenly spaced steps: steps (S,), rates (S,).

    From a step on at which the schedule fails, rates are NaN.
    """
    job = context.built.job
    count = min(job.num_steps, _MAX_STEPS)
    steps = np.unique(np.linspace(0, job.num_steps - 1, count).astype(np.int64))
    highest = max((group["base_lr"] for group in job.optimizer.param_groups), default=0.0)
    rates = np.full(len(steps), np.nan)
    with contextlib.suppress(Exception):
        for index, step in enumerate(steps):
            rates[index] = highest * job.schedule(int(step))
    return steps, rates


def _find_error(job: TrainState, step: int) -> Exception | None:
    """Return the error of the schedule at a step; None if it gives a number there."""
    try:
        float(job.schedule(step))
    except Exception as error:  # noqa: BLE001 - a plugin's schedule may fail in any way
        return error
    return None


def _share_faults(steps: np.ndarray, rates: np.ndarray, num_steps: int) -> Iterator[Fault]:
    """Yield the faults of rates of 0 in too many steps at the start (warm-up) or at the end (decay) of the run."""
    is_moving = np.flatnonzero(rates > 0)
    first, last = int(steps[is_moving[0]]), int(steps[is_moving[-1]])
    num_final_zeros = num_steps - 1 - last
    if first > max(1, _WARMUP_SHARE * num_steps):
        words = {"first": first, "num_steps": num_steps, "share": first / num_steps, "limit": _WARMUP_SHARE}
        yield _diagnose("zero at the start", step=0, **words)
    if num_final_zeros > max(1, _TAIL_SHARE * num_steps):
        words = {"number": num_final_zeros, "share": num_final_zeros / num_steps, "limit": _TAIL_SHARE}
        yield _diagnose("zero at the end", step=last + 1, num_steps=num_steps, highest=rates.max(), **words)


def _replay_faults(context: Context, step: int) -> Iterator[Fault]:
    """Yield a fault if two steps of a copy of the optimiser, with real gradients, change no bit of any weight."""
    rehearsal, job = context.dry_run, context.built.job
    if not rehearsal.is_sound:
        return
    optimizer, parameters = _copy_optimizer(job.model, job.optimizer, rehearsal.model)
    if not parameters:
        return
    if job.clip_norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], job.clip_norm)
    largest = max(float(copied.grad.abs().max()) for _, copied in parameters.values() if copied.grad is not None)
    rate = 0.0
    for index in range(2):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * job.schedule(step)
            rate = max(rate, group["lr"])
        optimizer.step()
        is_cleared = not any(copied.grad is not None and copied.grad.any() for _, copied in parameters.values())
        if index == 0 and is_cleared and _ignores_gradients(context, step, parameters):
            yield _diagnose("cleared", param=next(iter(parameters)), number=len(parameters))
            return
    if any(not torch.equal(original, copied) for original, copied in parameters.values()):
        return
    words = {"rate": rate, "largest": largest, "change": _estimate_change(rate, largest, optimizer)}
    yield _diagnose("no change", step=step, param=next(iter(parameters)), number=len(parameters), **words)


def _ignores_gradients(context: Context, step: int, updated: dict[str, tuple[Tensor, Tensor]]) -> bool:
    """Return True if a step with the opposite gradients gives the same weights as the step that was taken."""
    job = context.built.job
    optimizer, parameters = _copy_optimizer(job.model, job.optimizer, context.dry_run.model)
    for _, copied in parameters.values():
        assert copied.grad is not None, "these are the parameters with a gradient"
        copied.grad.neg_()
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * job.schedule(step)
    optimizer.step()
    return all(torch.equal(copied, updated[name][1]) for name, (_, copied) in parameters.items())


def _copy_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, rehearsed: nn.Module
) -> tuple[torch.optim.Optimizer, dict[str, tuple[Tensor, Tensor]]]:
    """Copy the optimiser with its parameters and the gradients of the dry run.

    Also return the parameters with a non-zero gradient: name -> (original, copied).
    """
    copied_optimizer = copy.deepcopy(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in rehearsed.named_parameters()}
    with_gradient: dict[str, tuple[Tensor, Tensor]] = {}
    for group, copied_group in zip(optimizer.param_groups, copied_optimizer.param_groups, strict=True):
        for original, copied in zip(group["params"], copied_group["params"], strict=True):
            gradient = gradients.get(names.get(original, ""))
            copied.grad = None if gradient is None else gradient.clone()
            if gradient is not None and bool(gradient.any()):
                with_gradient[names[original]] = (original, copied)
    return copied_optimizer, with_gradient


def _estimate_change(rate: float, gradient: float, optimizer: torch.optim.Optimizer) -> float:
    """Estimate the change of a weight in one step: lr x gradient for SGD, about lr for adaptive optimisers."""
    return rate * gradient if isinstance(optimizer, torch.optim.SGD) else rate
