"""Learning rates that change no weight, for the whole run or a share of it, or because of the optimiser."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault

_MAX_STEPS = 20_000
_WARMUP_SHARE = 0.2
_TAIL_SHARE = 0.05


@check("G15", "zero-learning-rate", "preflight", causes=("optim.scheduler", "optim.lr"), config_path="schedule")
def zero_learning_rate(context: Context) -> Iterator[Fault]:
    """Most steps have a positive learning rate, and two steps at the highest rate change the weights.

    Finds: Learning rates that change no weight, for the whole run or a share of it, or because of the optimiser.
    """
    evidence = {"num_steps": context.built.job.num_steps}
    for fault in _rate_faults(context, *compute_rates(context)):
        yield replace(fault, evidence=evidence)


def _rate_faults(context: Context, steps: np.ndarray, rates: np.ndarray) -> Iterator[Fault]:
    wrong, job = np.flatnonzero(~np.isfinite(rates) | (rates < 0)), context.built.job
    if len(wrong):
        step, rate = int(steps[wrong[0]]), float(rates[wrong[0]])
        yield Fault(
            f"the learning rate of step {step} is {rate:g}",
            step=step,
            measured=f"{rate:g}, the highest base rate times schedule({step})",
            expected="a finite number, not below 0",
            action="look at the schedule's formula at this step",
        )
    elif not rates.any():
        base_rates = [group["base_lr"] for group in job.optimizer.param_groups]
        is_base = not any(base_rates)
        yield Fault(
            "the learning rate is zero at every step: nothing is ever trained",
            causes=("optim.lr", "optim.scheduler"),
            at="optimizer.lr" if is_base else "schedule",
            step=0,
            measured=f"0 at all {len(steps)} steps looked at of {job.num_steps}; base rates {base_rates}",
            expected="base rate x schedule(step) > 0",
            action="give the optimiser a positive lr"
            if is_base
            else "correct the schedule: its factor is 0 throughout",
        )
    else:
        yield from _share_faults(steps, rates, job.num_steps)
        yield from _replay_faults(context, int(steps[rates.argmax()]))


def compute_rates(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Compute the largest learning rate of all groups at up to 20,000 evenly spaced steps: steps (S,), rates (S,)."""
    job = context.built.job
    count = min(job.num_steps, _MAX_STEPS)
    steps = np.unique(np.linspace(0, job.num_steps - 1, count).astype(np.int64))
    highest = max((group["base_lr"] for group in job.optimizer.param_groups), default=0.0)
    return steps, np.array([highest * job.schedule(int(step)) for step in steps], dtype=np.float64)


def _share_faults(steps: np.ndarray, rates: np.ndarray, num_steps: int) -> Iterator[Fault]:
    """Yield the faults of rates of 0 in too many steps at the start (warm-up) or at the end (decay) of the run."""
    is_moving = np.flatnonzero(rates > 0)
    first, last = int(steps[is_moving[0]]), int(steps[is_moving[-1]])
    num_final_zeros = num_steps - 1 - last
    if first > max(1, _WARMUP_SHARE * num_steps):
        yield Fault(
            f"the first {first} of {num_steps} steps have learning rate zero",
            severity="warning",
            step=0,
            measured=f"0 before step {first}, {first / num_steps:.0%} of the run",
            expected=f"zeros of a warm-up for at most {_WARMUP_SHARE:.0%} of the run",
            action="shorten the warm-up, or count it in the schedule's own unit (epochs, not steps)",
        )
    if num_final_zeros > max(1, _TAIL_SHARE * num_steps):
        yield Fault(
            f"from step {last + 1} of {num_steps} on the learning rate is zero",
            severity="warning",
            step=last + 1,
            measured=f"0 at the last {num_final_zeros} steps, {num_final_zeros / num_steps:.0%} of the run; "
            f"{rates.max():g} at the highest",
            expected=f"zeros for at most the last {_TAIL_SHARE:.0%} of the run",
            action="stretch the schedule over the whole run, give it a floor, or train fewer steps",
        )


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
            yield Fault(
                "the optimiser clears the gradients before it uses them",
                causes=("optim.step_order", "optim.lr"),
                at="optimizer",
                measured=f"the same weights after a step with the gradients of {len(parameters)} parameters and with "
                "their opposites; all are zero afterwards",
                expected="weights that depend on the gradients: zero_grad, then backward, then step",
                action="call zero_grad before the backward pass, not in step",
                param=next(iter(parameters)),
            )
            return
    if any(not torch.equal(original, copied) for original, copied in parameters.values()):
        return
    yield Fault(
        "two optimiser steps at the highest learning rate change no bit of any weight",
        causes=("optim.lr", "optim.clip", "optim.state"),
        at="optimizer.lr",
        step=step,
        measured=f"lr {rate:g}, largest gradient {largest:.3g} in {len(parameters)} parameters: change 0",
        expected=f"changes of about {_estimate_change(rate, largest, optimizer):.3g}, "
        "above half a unit in the last place",
        action="raise the learning rate, or look at what the optimiser does with its gradients",
        param=next(iter(parameters)),
    )


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
