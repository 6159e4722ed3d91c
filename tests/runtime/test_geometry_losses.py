"""Bugs in losses of boxes, rotations and depth are named once, and correct forms that look alike raise nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sightline
from sightline.workbench.watch.plain.rotations import measure_signs
from tests.runtime.blind_losses import LossCase
from tests.runtime.geometry_losses import (
    CORRECT,
    PLANTED,
    iou_by_columns,
    iou_of_volumes,
    overlap_times_a_mask,
)
from tests.runtime.test_blind_loops import judge_case, name_of

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", PLANTED, ids=name_of)
def test_a_bug_is_named_once(make: Callable[[], LossCase], seed: int) -> None:
    torch.manual_seed(seed)
    assert judge_case(make()) == [("loss-form", PLANTED[make])]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", CORRECT, ids=name_of)
def test_a_correct_loss_raises_nothing(make: Callable[[], LossCase], seed: int) -> None:
    torch.manual_seed(seed)
    assert judge_case(make()) == []


@pytest.mark.parametrize("make", [iou_by_columns, iou_of_volumes, overlap_times_a_mask], ids=name_of)
def test_a_loop_sees_overlaps_and_is_unchanged(make: Callable[[], LossCase]) -> None:
    torch.manual_seed(0)
    model, loss, (inputs, target) = make()
    weights = []
    for is_watched in (True, False):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
        watch = sightline.watch(own if is_watched else nn.Linear(1, 1), optimizer=optimizer if is_watched else None)
        with watch:
            for _ in range(2):
                optimizer.zero_grad()
                loss(own(inputs), target).backward()
                optimizer.step()
        weights.append([p.detach() for p in own.parameters()])
        if is_watched:
            found = [(finding.code, finding.where.step) for finding in watch.findings if finding.code == "loss-form"]
            assert found == ([] if make is overlap_times_a_mask else [("loss-form", 1)])
    assert all(map(torch.equal, *weights))


def test_the_side_of_a_plane() -> None:
    """Half of the rows of a random sign are on the far side of w = 0, and none of those of one sign."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(400, 4), dim=1)
    assert measure_signs(rows) > 0.3
    assert measure_signs(rows * rows[:, 3:].sign()) == 0
    assert measure_signs(1.01 * rows) == 0
    assert measure_signs(rows[:8].repeat(20, 1)) == 0
