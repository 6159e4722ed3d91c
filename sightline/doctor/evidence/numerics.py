"""Numbers that are none, and steps of a copy with the user's optimiser."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.coverage import Gradients
from sightline.doctor.evidence.levels import promote
from sightline.doctor.evidence.losses import value_of
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.finding import FindingLocation
from sightline.doctor.objects import read_rate
from sightline.doctor.subject import Pass, Subject, step_optimizer

_NUM_STEPS = 6
SHORT = (torch.bfloat16, torch.float16)
_STEPS = (1e-5, 1e-4)
"""Steps of finite differences, as shares of the norm of an output: float64 leaves eight digits."""


@measure()
def is_finite(passed: Pass) -> bool:
    """Ask whether the loss of finite inputs is finite."""
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for _, t in dense_leaves(passed.batch.inputs)):
        raise LeftOutError("inputs are not finite")
    return bool(passed.value.isfinite())


class Origin(NamedTuple):
    """First number that is not finite: its place, a row of the rule's table, what was measured, and the row's words.

    `more` is evidence beside the stage; `causes` are those of the row, unless it is known better.
    """

    place: str
    measured: str
    words: Mapping[str, Any] = MappingProxyType({})
    where: FindingLocation = FindingLocation()
    more: Mapping[str, Any] = MappingProxyType({})
    causes: Sequence[str] = ()


@measure()
def origin(is_finite: bool, gradients: Gradients, passed: Pass) -> Origin | None:
    """Find a loss that is no number, or gradients that are none."""
    bad = [name for name, state in gradients.own.items() if state == "bad"]
    if not is_finite:
        return Origin("first loss", f"{float(passed.value.detach())}")
    if not bad:
        return None
    measured = f"loss {float(passed.value.detach()):.4g}; {len(bad)} of {len(gradients.own)} gradients are not finite"
    return Origin("gradient", measured, {"names": join_some(bad, most=4)}, FindingLocation(param=bad[0]))


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
    """Losses of the first batch over steps on it with a copy of the optimiser, and the moves of its parameters.

    A loop gives one step: without losses, with the moves of some rows of its matrices, the format of the weights, and
    the largest learning rates of this update and of all so far.
    """

    losses: list[float]
    moves: dict[str, Move]
    num_steps: int = _NUM_STEPS
    dtype: torch.dtype | None = None
    rate: float = 0.0
    highest_rate: float = 0.0


def copy_with_optimizer(subject: Subject) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Copy the model and its only optimiser, which steps the copy."""
    if len(subject.optimizers) != 1:
        if subject.optimizers:
            raise LeftOutError("several optimizers")
        raise NotApplicableError("no optimizer was given", lacks="optimizer")
    if isinstance(subject.optimizers[0], torch.optim.LBFGS):
        raise LeftOutError("an optimizer that asks for a closure")
    if not hasattr(subject.optimizers[0], "_optimizer_step_pre_hooks"):  # a copy would patch the step of its class
        raise LeftOutError("an optimizer that torch has not initialised")
    model = subject.copy("train")
    own = subject.optimizers[0]
    memo: dict[int, Any] = {id(o): new for o, new in zip(subject.model.parameters(), model.parameters(), strict=True)}
    optimizer = copy.deepcopy(own, memo)
    for name, value in vars(own).items():  # torch copies no attributes of a class of the user's
        if name not in vars(optimizer) and not callable(value):
            setattr(optimizer, name, copy.deepcopy(value, memo))
    return model, optimizer


@measure(passes=7)
def trial(subject: Subject) -> Trial:
    """Step a copy of the model on the first batch, with a copy of the only optimiser."""
    model, optimizer = copy_with_optimizer(subject)
    if any(read_rate(group) == 0 and group.get("initial_lr", 0) > 0 for group in optimizer.param_groups):
        raise NotApplicableError("a schedule that starts at 0")
    rates = {id(p): read_rate(group) for group in optimizer.param_groups for p in group["params"]}
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
        step_optimizer(optimizer)
        for name, parameter in names.items():
            moved = float((parameter.detach() - before[name]).norm())
            old = moves[name]
            if step == 0:
                old = old._replace(first_step=moved, has_gradient=_is_some(parameter.grad))
            moves[name] = old._replace(is_still=old.is_still and moved == 0.0)
    losses.append(float(subject.run(model, subject.batches[0]).value))
    return Trial(losses, moves)


class Descent(NamedTuple):
    """Slope of the loss along its gradient at an output: by backward, and by finite differences of two steps.

    Where backward gives 0 at all outputs, the way is drawn.
    """

    path: str
    given: float
    near: float
    far: float


@measure(passes=4)
def descents(subject: Subject, passed: Pass, slopes: list[Slope]) -> list[Descent]:
    """Follow the gradient at each output, in float64, by two small steps."""
    found, outputs = [], {slope.path: slope.output.double() for slope in slopes}
    doubled = promote(subject, passed)
    is_still = not any(bool(slope.gradient.any()) for slope in slopes)
    subject = dataclasses.replace(subject, form=subject.form.to_double())
    given = {"subject": subject, "passed": passed, "outputs": dict(outputs)}
    if isinstance(attempt("float64", value_of, given), MissingError):
        raise NotApplicableError("a loss that does not take float64")
    for slope in slopes:
        output, way = outputs[slope.path], slope.gradient.double()
        size = float(way.norm())
        if (size == 0 and not is_still) or not math.isfinite(size):
            continue
        unit = torch.randn_like(way) if is_still else way
        unit /= unit.norm()
        values = []
        for step in _STEPS:
            ends = [output + sign * step * (1 + float(output.norm())) * unit for sign in (1, -1)]
            with torch.no_grad():
                high, low = (float(value_of(*doubled, {**outputs, slope.path: end})) for end in ends)
            values.append((high - low) / (2 * step * (1 + float(output.norm()))))
        found.append(Descent(slope.path, size, *values))
    if not found:
        raise NotApplicableError("no gradient at an output")
    return found


def _is_some(gradient: Tensor | None) -> bool:
    return gradient is not None and bool((gradient.coalesce().values() if gradient.is_sparse else gradient).any())
