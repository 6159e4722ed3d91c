"""Programs whose optimiser does not move what it should, or moves it too far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.doctor.rows import Case


def _make() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    rows = torch.randn(32, 6)
    return model, (rows, rows[:, :3].argmax(1))


def a_head_left_out(has_bug: bool, watch: Any, check: Any) -> None:
    model, batch = _make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if has_bug:
        model[3] = nn.Linear(16, 3)
    check(model, nn.CrossEntropyLoss(), batch, optimizer=optimizer)


def a_generator_used_up(has_bug: bool, watch: Any, check: Any) -> None:
    model, batch = _make()
    groups = [model[0].parameters() if has_bug else model.parameters()]
    check(model, nn.CrossEntropyLoss(), batch, optimizer=torch.optim.SGD(groups[0], 0.1, momentum=0.9))


def an_optimizer_from_before(has_bug: bool, watch: Any, check: Any) -> None:
    """The network is made anew after its optimizer."""
    model, batch = _make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    check(_make()[0] if has_bug else model, nn.CrossEntropyLoss(), batch, optimizer=optimizer)


def a_rate_below_the_bits(has_bug: bool, watch: Any, check: Any) -> None:
    model, (rows, _) = _make()
    optimizer = torch.optim.SGD(model.parameters(), 1e-12 if has_bug else 1e-2)
    check(model, nn.MSELoss(), (rows, 2 * rows[:, :3]), optimizer=optimizer)


def a_huge_rate(has_bug: bool, watch: Any, check: Any) -> None:
    model, batch = _make()
    check(model, nn.CrossEntropyLoss(), batch, optimizer=torch.optim.Adam(model.parameters(), 3.0 if has_bug else 3e-3))


def a_huge_rate_of_a_sum(has_bug: bool, watch: Any, check: Any) -> None:
    model, (rows, _) = _make()
    loss = nn.MSELoss(reduction="sum" if has_bug else "mean")
    check(model, loss, (rows, 20 * rows[:, :3]), optimizer=torch.optim.SGD(model.parameters(), 0.05))


CASES = [
    Case("a network that is made after its optimizer", an_optimizer_from_before, "optim.param_coverage"),
    Case("a head made after its optimizer", a_head_left_out, "optim.param_coverage"),
    Case("the first layer alone in an optimizer", a_generator_used_up, "optim.param_coverage"),
    Case("a rate below the last bit", a_rate_below_the_bits, "optim.lr"),
    Case("a huge rate", a_huge_rate, "optim.lr"),
    Case("a huge rate of a sum", a_huge_rate_of_a_sum, "optim.lr"),
]
