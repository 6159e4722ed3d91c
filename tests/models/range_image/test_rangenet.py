"""Darknet and RangeNet: their published counts, and the numbers of their authors' code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import sightline
from sightline.models.darknet import DARKNET21, DARKNET53, Darknet
from sightline.types import ComponentConfig
from tests.lidar_parity import assert_parity, load_lidar_golden


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [("rangenet21", 20, 24_712_980), ("rangenet21", 4, 24_708_356), ("rangenet53", 20, 50_377_364)],
)
def test_parameters_are_as_published(name: str, num_classes: int, expected: int) -> None:
    """Of four classes by hand: 16 classes less are 16 (9 * 32 + 1) weights less."""
    assert count(sightline.build_model(name, num_classes=num_classes, in_channels=5)) == expected


@pytest.mark.parametrize(("depths", "expected"), [(DARKNET21, 14_921_120), (DARKNET53, 40_585_504)])
def test_encoders_are_as_published(depths: tuple[int, ...], expected: int) -> None:
    assert count(Darknet(in_channels=5, depths=depths)) == expected


def test_the_backbone_of_detection() -> None:
    """Darknet-53 on three channels: its count, its resolutions, its start."""
    network = Darknet()
    assert count(network) == 40_584_928
    assert [count(module) for module in (network.stem, *network.stages)] == [
        928, 39_232, 238_592, 2_923_008, 11_678_720, 25_704_448
    ]  # fmt: skip
    small = Darknet(width=4)
    shapes = [tuple(value.shape[1:]) for value in small(torch.zeros(2, 3, 64, 96))]
    assert shapes == [(4 * 2**level, 64 // 2**level, 96 // 2**level) for level in range(6)]
    assert network.stages[4][0].conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 1024)), rel=1e-2)


@pytest.mark.shared
@pytest.mark.parametrize("depth", [21, pytest.param(53, marks=pytest.mark.long)])
def test_numbers_are_those_of_the_authors_code(shared: Path, depth: int) -> None:
    golden = load_lidar_golden(shared, f"lb_darknet{depth}")
    assert_parity(golden, f"lidar_bonnetal_darknet{depth}", ComponentConfig(f"rangenet{depth}", {"detach_skips": True}))


def test_columns_that_cannot_be_halved_are_named() -> None:
    model = sightline.build_model("rangenet21", num_classes=2, in_channels=5, width=2)
    with pytest.raises(ValueError, match=r"16 x 70 .* 70 columns are not a multiple of 32; .* width of 64 or 96"):
        model(image=torch.zeros(1, 5, 16, 70))
    with pytest.raises(ValueError, match=r"expected \(S, 5, H, W\)"):
        model(image=torch.zeros(1, 6, 16, 64))
