"""Losses of heat maps and of the refined reference point: by their definitions and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline.areas.pose.refiner import CentreMSE
from sightline.areas.pose.v2v import HeatmapMSE
from sightline.ops.views.depth_crops import CropPlacement
from sightline.ops.voxels.heat_maps import gaussian_heatmaps

CELLS = 6


def batch() -> dict[str, Tensor]:
    """Two samples of three joints in maps of 6 cells, one of them not visible, and any answer."""
    joints = torch.empty(2, 3, 3, dtype=torch.float64).uniform_(-50, 50)
    return {
        "likelihood": torch.randn(2, 3, CELLS, CELLS, CELLS, dtype=torch.float64),
        "heatmaps": gaussian_heatmaps(joints / 20 + 3, CELLS, axes="xyz", dtype=torch.float64),
        "visible": torch.tensor([[True, True, False], [True, True, True]]),
    }


def test_where_nothing_is_visible_loss_and_gradient_are_zero() -> None:
    given = batch()
    given |= {"visible": torch.zeros_like(given["visible"]), "heatmaps": torch.zeros_like(given["heatmaps"])}
    likelihood = given.pop("likelihood").requires_grad_()
    total = HeatmapMSE()(likelihood=likelihood, **given)
    total.backward()
    assert total.item() == 0
    assert not likelihood.grad.any()  # and so no NaN
    assert HeatmapMSE().count(**given).item() == 0


def test_a_hidden_joint_changes_nothing() -> None:
    given = batch()
    other = {**given, "likelihood": given["likelihood"].clone()}
    other["likelihood"][0, 2] += 100
    assert HeatmapMSE()(**given).item() == HeatmapMSE()(**other).item()


def test_mean_square_is_that_of_its_definition() -> None:
    given = batch()
    shown = given["visible"]
    squares = (given["likelihood"] - given["heatmaps"])[shown].square()
    loss = HeatmapMSE()
    mean = loss(**given) / loss.count(heatmaps=given["heatmaps"], visible=shown)
    assert mean.item() == pytest.approx(squares.mean().item(), rel=1e-13)


# --- The loss of a refined reference point: by hand, its count, and frames without the joint ---


def placements(count: int, *, side_mm: float = 200.0) -> Tensor:
    reference = torch.tensor([[0.0, 0.0, 300.0]], dtype=torch.float64).expand(count, -1)
    camera = torch.tensor([[240.0, -240.0, 160.0, 120.0]], dtype=torch.float64).expand(count, -1)
    side, angle = torch.full((count,), side_mm, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    return CropPlacement(reference, camera, side, angle).rows()


def test_by_hand() -> None:
    """The joint is (50, 0, 20) mm off, half a side is 100 mm: (0.5, 0, 0.2); (0.1, 0.1, 0.2) is 0.4 and 0.1 off it."""
    joints = torch.tensor([[[9.0, 9.0, 9.0], [50.0, 0.0, 320.0]]])
    loss = CentreMSE(centre_joint=1)
    total = loss(
        offset=torch.tensor([[0.1, 0.1, 0.2]]),
        joints=joints,
        visible=torch.ones(1, 2, dtype=torch.bool),
        crop_placement=placements(1),
    )
    assert total.item() == pytest.approx(0.16 + 0.01, rel=1e-6)
    assert loss.count(visible=torch.tensor([[True, False], [False, True], [True, True]])).item() == 2


def test_frames_without_the_joint_count_nowhere() -> None:
    offset = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    visible = torch.zeros(3, 2, dtype=torch.bool)
    joints = torch.zeros(3, 2, 3, dtype=torch.float64)  # as a set gives those that are not labelled
    loss = CentreMSE(centre_joint=1)
    total = loss(offset=offset, joints=joints, visible=visible, crop_placement=placements(3))
    total.backward()
    assert total.item() == 0
    assert torch.equal(offset.grad, torch.zeros(3, 3, dtype=torch.float64))
    assert loss.count(visible=visible).item() == 0
