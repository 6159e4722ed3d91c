"""The crops of a depth frame: input and target agree under every variation; samples keep their bits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sightline.data.synthetic.synthetic_hands import SyntheticHands
from sightline.draws import Draws
from sightline.errors import ConfigError
from sightline.geometry.pinhole import CropPlacement, from_crop_coordinates
from sightline.losses.pose import CentreMSE
from sightline.transforms.point_selection import CropDepth
from sightline.types import SampleKey

VARIED = {"moved_mm": 5.0, "scale": (0.9, 1.1), "max_angle_rad": math.pi}


def draws(*indices: int) -> Draws:
    return Draws.for_samples([SampleKey(index, 0, 0) for index in indices])


@pytest.fixture(scope="module")
def hands() -> dict[str, Tensor]:
    frames = SyntheticHands(split="train", train_size=4, test_size=1)
    return frames.get_batch([SampleKey(index, 0, 0) for index in range(4)])


def crops(given: dict[str, Tensor], keys: Draws, **arguments: object) -> dict[str, Tensor]:
    transform = CropDepth(cube_mm=200.0, **arguments)  # type: ignore[arg-type]
    return transform(keys, depth=given["depth"], camera=given["camera"], reference=given["reference"])


def test_the_true_joint_has_no_loss_whatever_the_variation(hands: dict[str, Tensor]) -> None:
    """Target and decoding are two readings of one placement: the offset of the true joint leads back to it."""
    placement = crops(hands, draws(0, 1, 2, 3), **VARIED)["crop_placement"]
    loss = CentreMSE(centre_joint=5)
    zero = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    given = {"joints": hands["joints"].double(), "visible": hands["visible"], "crop_placement": placement}
    loss(offset=zero, **given).backward()
    offset = -zero.grad / 2  # of a squared distance
    assert loss(offset=offset, **given) < 1e-24
    found = from_crop_coordinates(offset[:, None], CropPlacement.from_rows(placement))[:, 0]
    torch.testing.assert_close(found, hands["joints"][:, 5].double(), rtol=0, atol=1e-9)


def test_variations_are_those_that_are_said(hands: dict[str, Tensor]) -> None:
    many = {name: value[:1].expand(2000, *value.shape[1:]) for name, value in hands.items() if name != "depth"}
    many["depth"] = torch.zeros(2000, 1, 1)
    placed = CropPlacement.from_rows(crops(many, draws(*range(2000)), size=1, **VARIED)["crop_placement"])
    moved = placed.reference_mm - many["reference"].double()
    assert (moved.std(dim=0) - 5).abs().max() < 0.4  # of 2000 draws the deviation's own is 0.08
    assert moved.mean(dim=0).abs().max() < 0.5
    assert 180 <= placed.side_mm.min() < 182
    assert 218 < placed.side_mm.max() <= 220.001
    assert 3.1 < placed.angle_rad.abs().max() <= math.pi + 1e-6


def test_without_variation_the_crop_lies_about_the_reference(hands: dict[str, Tensor]) -> None:
    placed = CropPlacement.from_rows(crops(hands, draws(0, 1, 2, 3))["crop_placement"])
    assert torch.equal(placed.reference_mm, hands["reference"].double())
    assert torch.equal(placed.camera, hands["camera"])
    assert placed.side_mm.tolist() == [200.0] * 4
    assert placed.angle_rad.tolist() == [0.0] * 4
    assert crops(hands, draws(0, 1, 2, 3), side_mm=160.0)["crop_placement"][:, 7].tolist() == [160.0] * 4


def test_a_sample_has_the_same_bits_alone_and_nothing_given_changes(hands: dict[str, Tensor]) -> None:
    before = {name: value.clone() for name, value in hands.items()}
    together = crops(hands, draws(7, 3, 9, 1), **VARIED)
    alone = crops({name: value[2:3] for name, value in hands.items()}, draws(9), **VARIED)
    assert all(torch.equal(together[name][2:3], alone[name]) for name in together)
    assert all(torch.equal(before[name], hands[name]) for name in before)
    assert together["crop"].shape == (4, 1, 128, 128)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crop_depth: scale \[1.1, 0.9\] is empty; the smaller factor comes first"):
        CropDepth(cube_mm=200.0, scale=(1.1, 0.9))
