"""The loss of a refined reference point: by hand, its gradient, its count, and frames without the joint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline.geometry.pinhole import CropPlacement
from sightline.losses.pose import CentreMSE


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


def test_the_gradient_is_that_of_finite_differences() -> None:
    joints = torch.rand(2, 2, 3, dtype=torch.float64) * 50 + torch.tensor([0.0, 0.0, 300.0])
    visible = torch.ones(2, 2, dtype=torch.bool)
    offset = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)

    def total(offset: Tensor) -> Tensor:
        return CentreMSE(centre_joint=0)(offset=offset, joints=joints, visible=visible, crop_placement=placements(2))

    assert torch.autograd.gradcheck(total, (offset,))
