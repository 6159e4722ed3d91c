"""Losses of heat maps and of the refined reference point: closed forms, finite differences, the PyTorch port."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sightline.areas.pose.losses import CentreMSE, HeatmapCrossEntropy, HeatmapMSE, JointL1
from sightline.ops.heat_maps import gaussian_heatmaps
from sightline.ops.pinhole import CropPlacement
from sightline.ops.voxels import CubePlacement
from tests.golden_parity import load_golden

CELLS = 6


def batch() -> dict[str, Tensor]:
    """Two samples of three joints in cubes of 12 voxels, one of them not visible, and any answer."""
    placement = CubePlacement.identity(torch.zeros(2, 3), cube_mm=120.0, size=2 * CELLS, original=2 * CELLS)
    joints = torch.empty(2, 3, 3, dtype=torch.float64).uniform_(-50, 50)
    return {
        "likelihood": torch.randn(2, 3, CELLS, CELLS, CELLS, dtype=torch.float64),
        "heatmaps": gaussian_heatmaps(joints / 20 + 3, cells=CELLS, dtype=torch.float64),
        "visible": torch.tensor([[True, True, False], [True, True, True]]),
        "joints": joints,
        "placement": placement.to_rows(),
    }


LOSSES = {
    HeatmapMSE: ("likelihood", "heatmaps", "visible"),
    HeatmapCrossEntropy: ("likelihood", "heatmaps", "visible"),
    JointL1: ("likelihood", "joints", "visible", "placement"),
}
COUNTED = {HeatmapMSE: ("heatmaps", "visible"), HeatmapCrossEntropy: ("visible",), JointL1: ("visible",)}


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_that_of_finite_differences(loss: type) -> None:
    given = {name: batch()[name] for name in LOSSES[loss]}
    likelihood = given.pop("likelihood").requires_grad_()
    assert torch.autograd.gradcheck(lambda value: loss()(likelihood=value, **given), (likelihood,))


@pytest.mark.parametrize("loss", LOSSES)
def test_where_nothing_is_visible_loss_and_gradient_are_zero(loss: type) -> None:
    given = {name: batch()[name] for name in LOSSES[loss]}
    given["visible"] = torch.zeros_like(given["visible"])
    if "heatmaps" in given:
        given["heatmaps"] = torch.zeros_like(given["heatmaps"])
    likelihood = given.pop("likelihood").requires_grad_()
    total = loss()(likelihood=likelihood, **given)
    total.backward()
    assert total.item() == 0
    assert not likelihood.grad.any()  # and so no NaN
    assert loss().count(**{name: given[name] for name in COUNTED[loss]}).item() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hidden_joint_changes_nothing(loss: type) -> None:
    given = {name: batch()[name] for name in LOSSES[loss]}
    other = {**given, "likelihood": given["likelihood"].clone()}
    other["likelihood"][0, 2] += 100
    assert loss()(**given).item() == loss()(**other).item()


def test_mean_square_is_that_of_its_definition() -> None:
    given = {name: batch()[name] for name in LOSSES[HeatmapMSE]}
    shown = given["visible"]
    squares = (given["likelihood"] - given["heatmaps"])[shown].square()
    loss = HeatmapMSE()
    mean = loss(**given) / loss.count(heatmaps=given["heatmaps"], visible=shown)
    assert mean.item() == pytest.approx(squares.mean().item(), rel=1e-13)


def test_coordinates_are_found_in_either_order_of_axes() -> None:
    given = {name: batch()[name] for name in LOSSES[JointL1]}
    straight = JointL1()(**given)
    turned = given["placement"].clone()
    turned[:, 11] = 1  # zyx
    permuted = {**given, "placement": turned, "likelihood": given["likelihood"].transpose(-1, -3)}
    assert JointL1()(**permuted).item() == pytest.approx(straight.item(), rel=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(3))
def test_entropy_and_mixed_loss_agree_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_decode", area="pose"), f"case{number}"
    likelihood = golden.tensor(f"{case}.heat").requires_grad_()
    target = golden.tensor(f"{case}.target_heat")
    visible = torch.ones(likelihood.shape[:2], dtype=torch.bool)
    entropy = HeatmapCrossEntropy()(likelihood=likelihood, heatmaps=target, visible=visible) / visible.sum()
    entropy.backward()
    assert entropy.item() == pytest.approx(golden.arrays[f"{case}.ce"].item(), rel=1e-9)
    torch.testing.assert_close(likelihood.grad, golden.tensor(f"{case}.ce_grad"), rtol=0, atol=1e-10)
    # A cube of as many mm as voxels, about its own middle: a coordinate in cells is half of one in voxels.
    size = 2 * likelihood.shape[-1]
    wanted = (golden.tensor(f"{case}.target_coord") + 0.5) * 2 - size / 2
    placement = CubePlacement.identity(torch.zeros(len(wanted), 3), cube_mm=float(size), size=size, original=size)
    distance = JointL1()(
        likelihood=likelihood.detach(), joints=wanted, visible=visible, placement=placement.to_rows()
    ) / (3 * visible.sum())
    mixed = 0.5 * entropy.item() + 0.5 * distance.item()
    assert mixed == pytest.approx(golden.arrays[f"{case}.mixed"].item(), rel=1e-9)


# --- The loss of a refined reference point: by hand, its gradient, its count, and frames without the joint ---


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
