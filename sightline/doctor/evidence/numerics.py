"""Numbers that are none, and steps of a copy with the user's optimiser."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Pass, Subject

_NUM_STEPS = 6


@measure()
def is_finite(passed: Pass) -> bool:
    """Ask whether the loss of finite inputs is finite."""
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for _, t in dense_leaves(passed.batch.inputs)):
        raise NotApplicableError("inputs are not finite")
    if not any(t.numel() for _, t in dense_leaves(passed.batch.inputs)):
        raise NotApplicableError("a batch of no samples")
    return bool(passed.value.isfinite())


class Move(NamedTuple):
    """Parameter after steps of a copied optimiser: its rate, size and norm, and how far the first step moved it.

    `has_gradient` tells of the first step, `is_still` that no step has changed a bit.
    """

    rate: float
    size: int
    norm: float
    first_step: float
    has_gradient: bool
    is_still: bool


class Trial(NamedTuple):
    """Losses of the first batch over steps on it with a copy of the optimiser, and the moves of its parameters."""

    losses: list[float]
    moves: dict[str, Move]


@measure(passes=7)
def trial(subject: Subject) -> Trial:
    """Step a copy of the model on the first batch, with a copy of the only optimiser."""
    if len(subject.optimizers) != 1:
        raise NotApplicableError("several optimizers" if subject.optimizers else "no optimizer was given")
    if isinstance(subject.optimizers[0], torch.optim.LBFGS):
        raise NotApplicableError("an optimizer that asks for a closure")
    model = subject.copy("train")
    pairs = dict(zip(subject.model.parameters(), model.parameters(), strict=True))
    optimizer = copy.deepcopy(subject.optimizers[0], {id(old): new for old, new in pairs.items()})
    if any(group["lr"] == 0 and group.get("initial_lr", 0) > 0 for group in optimizer.param_groups):
        raise NotApplicableError("a schedule that starts at 0")
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    names = dict(zip((name for name, _ in subject.model.named_parameters()), model.parameters(), strict=True))
    names = {name: parameter for name, parameter in names.items() if id(parameter) in rates}
    before = {name: parameter.detach().clone() for name, parameter in names.items()}
    losses, moves = (
        [],
        {
            name: Move(rates[id(p)], p.numel(), float(before[name].norm()), 0.0, False, True)
            for name, p in names.items()
        },
    )
    for step in range(_NUM_STEPS):
        optimizer.zero_grad()
        value = subject.run(model, subject.batches[0]).value
        losses.append(float(value))
        value.backward()
        optimizer.step()
        for name, parameter in names.items():
            moved = float((parameter.detach() - before[name]).norm())
            old = moves[name]
            if step == 0:
                old = old._replace(first_step=moved, has_gradient=_is_some(parameter.grad))
            moves[name] = old._replace(is_still=old.is_still and moved == 0.0)
    losses.append(float(subject.run(model, subject.batches[0]).value))
    return Trial(losses, moves)


def _is_some(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())
