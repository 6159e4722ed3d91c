"""Restarts, schedules, averages and teachers: with a bug and without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import sightline
from tests.runtime.method_parts import Optimizer, draw, run, sgd, train
from tests.runtime.odd_healthy_loops import mlp


def search_for_a_rate(*, sets_back: bool) -> None:
    model = mlp(8, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with sightline.watch(model, optimizer=optimizer):
        train(model, optimizer, 80, rate=1.0)
        if sets_back:
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        optimizer.param_groups[0]["lr"] = 1e-3
        train(model, optimizer, 100)


def search_before_a_schedule() -> None:
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 70, eta_min=1e-3)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler):
        train(model, optimizer, 60, rate=3.0)
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        for _ in range(70):
            train(model, optimizer, 1)
            scheduler.step()


def folds(bug: bool) -> None:
    """Each fold begins with other weights, or with those of the last one."""

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        for layer in () if bug else model.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        optimizer.state.clear()
        train(model, optimizer, 20)

    run(body, 3)


def state_lost_at_a_resume(bug: bool) -> None:
    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        train(model, optimizer, 20)
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        kept = optimizer.state_dict()
        optimizer.load_state_dict({**kept, "state": {}} if bug else kept)

    run(body, 3)


def rewind_weights() -> None:
    """The lottery ticket: what is not pruned goes back to its first values, by `data`."""
    model = mlp(8, 32, 4)
    first = copy.deepcopy(model.state_dict())

    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        train(model, optimizer, 20)
        mask = model[0].weight.abs() > model[0].weight.abs().quantile(0.2)
        for name, parameter in model.named_parameters():
            parameter.data = first[name].clone()
        model[0].weight.data *= mask
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})

    run(body, 3, model=model)


def rate_falls_after_a_restart(bug: bool) -> None:
    model = mlp(8, 16, 4)
    first = copy.deepcopy(model.state_dict())

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        if step == 2:
            model.load_state_dict(first)
            optimizer.state.clear()
        train(model, optimizer, 10)
        optimizer.param_groups[0]["lr"] *= 0.3 if bug and step >= 2 else 1

    run(body, 14, model=model)


def warm_up_then_plateau(bug: bool, *, warms: int = 40, updates: int = 120) -> None:
    """Warm up, and lower the rate after epochs whose loss has not fallen; or forget the second scheduler."""
    model, schedulers = mlp(8, 16, 4), torch.optim.lr_scheduler
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    warm_up = schedulers.LinearLR(optimizer, 0.01, total_iters=warms)
    plateau = schedulers.ReduceLROnPlateau(optimizer, patience=1)
    with sightline.watch(model, optimizer=optimizer, scheduler=[warm_up, plateau]):
        for step in range(updates):
            train(model, optimizer, 1)
            if step < warms:
                warm_up.step()
            elif step % 20 == 19 and not bug:
                plateau.step(1.0)


def schedule(factor: Callable[[int], float], every: int, updates: int = 120) -> None:
    """Train with a schedule that is stepped after so many updates."""
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with sightline.watch(model, optimizer=optimizer, scheduler=scheduler):
        for step in range(updates):
            train(model, optimizer, 1)
            if step % every == every - 1:
                scheduler.step()


def average(bug: bool, *, begins: int = 60, updates: int = 100) -> None:
    """Average weights from an update on, by hand, and evaluate the average, without its buffers or with them."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    mean = copy.deepcopy(model)

    @torch.no_grad()
    def follow(step: int) -> None:
        for own, value in zip(mean.parameters(), model.parameters(), strict=True) if step >= begins else ():
            own.lerp_(value, 0.1)
        for own, value in zip(mean.buffers(), model.buffers(), strict=True) if step >= begins else ():
            own.copy_(own if bug else value)
        if step % 20 == 19:
            mean.eval()(draw()[0])

    body = lambda model, optimizer, step: (train(model, optimizer, 1), follow(step))  # noqa: E731
    run(body, updates, model=model, make=sgd(), ema=mean)


def load_an_edited_state(bug: bool) -> None:
    """Load a state that the loop has just taken and edited in its place, or one that it took too early, uncopied."""
    state: dict[str, Tensor] = {}

    def body(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        nonlocal state
        train(model, optimizer, 10)
        state = state if bug and state else model.state_dict()
        if not bug:
            state["2.weight"] *= 0.9
        model.load_state_dict(state)

    run(body, 3)


class Taught(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.student = mlp(8, 16, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(requires_grad=False)
        for own, other in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            other.data.copy_(own.data.mul_(factor))

    def forward(self, rows: Tensor) -> Tensor:
        return self.student(rows) + 0.1 * self.teacher(rows)


def teacher_that_follows(bug: bool, *, at: int | None = None, factor: float = 1.0, updates: int = 320) -> None:
    """A teacher follows at each update, once, or (as an anchor, of a trained model) never; or its mean is lost."""

    @torch.no_grad()
    def body(model: Any, optimizer: Optimizer, step: int) -> None:
        with torch.enable_grad():
            train(model, optimizer, 1)
        for mean, weight in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            if bug:
                mean = 0.9 * mean + 0.1 * weight
            elif at in (None, step):
                mean.lerp_(weight, 0.1)

    make = lambda model: torch.optim.SGD(model.student.parameters(), 0.05)  # noqa: E731
    run(body, updates, model=Taught(factor), make=make)
