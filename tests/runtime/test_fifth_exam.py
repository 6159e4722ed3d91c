"""What a fifth blind exam, of perception, asked for: each bug in a form of its own, beside correct twins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import sightline
from tests.runtime.odd_healthy_loops import batches, classes, mlp

SIDE = 16


# --- loops -----------------------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: Any, after: Callable[[int], None], epochs: int = 5) -> list[str]:
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step, (inputs, label) in enumerate(batches(*classes(640), epochs=epochs)):
            model.zero_grad()
            F.cross_entropy(model(inputs), label).backward()
            optimizer.step()
            after(step)
    return [finding.code for finding in watch.findings]


@pytest.mark.parametrize("held", ["by the first", "by a second, made then", "by none"])
def test_layers_that_are_unfrozen_are_in_an_optimiser(held: str) -> None:
    torch.manual_seed(0)
    model = mlp(10, 16, 3)
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters() if held == "by the first" else model[2].parameters(), 0.1)
    later: list[torch.optim.Optimizer] = []

    def unfreeze(step: int) -> None:
        model[0].requires_grad_(requires_grad=step >= 30)
        if step == 30 and held == "by a second, made then":
            later.append(torch.optim.SGD(model[0].parameters(), 0.01))
        for each in later if step > 30 else ():
            each.step()

    assert train(model, optimizer, unfreeze, epochs=8) == (["not-optimised"] if held == "by none" else [])


class Taught(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(10, 16, 3)
        self.teacher = copy.deepcopy(self.student).requires_grad_(requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.student(rows) + 0.1 * self.teacher(rows)


@pytest.mark.parametrize("form", ["never", "each update", "at times", "of a trained one", "short"])
def test_a_teacher_follows_its_student(form: str) -> None:
    torch.manual_seed(0)
    model = Taught()
    if form == "of a trained one":  # an anchor, as of a model that is tuned
        with torch.no_grad():
            for own, other in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
                other.copy_(own.mul_(5))

    @torch.no_grad()
    def follow(step: int) -> None:
        for mean, weight in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            if form == "never":
                mean = 0.9 * mean + 0.1 * weight
            elif form == "each update" or (form == "at times" and step == 200):
                mean.lerp_(weight, 0.1)

    optimizer = torch.optim.SGD(model.student.parameters(), 0.05)
    found = train(model, optimizer, follow, epochs=5 if form == "short" else 16)
    assert found == (["ema"] if form == "never" else [])


@pytest.mark.parametrize("form", ["once", "for a while", "each update", "by torch", "from zero", "from an identity"])
def test_pruned_weights_stay_zero(form: str) -> None:
    """Or grow again after many updates: dense, sparse, dense (Han et al. 2017)."""
    torch.manual_seed(0)
    model = mlp(10, 64, 3)
    if form == "from zero":
        nn.init.zeros_(model[0].weight)
    if form == "from an identity":
        nn.init.eye_(model[0].weight)
    mask = (torch.rand(model[0].weight.shape) < 0.2).float()

    def prune(step: int) -> None:
        until = {"once": 41, "for a while": 70, "each update": 100}.get(form, 0)
        if 40 <= step < until:
            model[0].weight.data.mul_(mask)
        elif form == "by torch" and step == 40:
            torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.8)

    found = train(model, torch.optim.Adam(model.parameters(), 1e-3), prune)
    assert ("regrown-weights" in found) == (form == "once")
