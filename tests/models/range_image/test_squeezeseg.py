"""SqueezeSeg in both versions, with and without its CRF: published counts, and the numbers of the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sightline
from sightline.errors import ConfigError
from sightline.types import ComponentConfig
from tests.cases import run_each
from tests.lidar_parity import assert_parity, load_lidar_golden


@run_each(
    "name, facts, crf, count",
    [
        ("squeezeseg", (20, 5), False, 915_540),
        ("squeezeseg", (20, 5), True, 915_960),
        ("squeezeseg", (4, 5), False, 906_308),
        ("squeezesegv2", (20, 5), False, 928_464),
        ("squeezesegv2", (20, 5), True, 928_884),
        ("squeezesegv2", (4, 6), False, 919_872),
    ],
)
def test_parameters_are_as_published(name: str, facts: tuple[int, int], crf: bool, count: int) -> None:
    model = sightline.build_model(name, num_classes=facts[0], in_channels=facts[1], crf=crf)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.shared
@pytest.mark.parametrize("crf", [False, True])
@pytest.mark.parametrize("name", ["squeezeseg", "squeezesegv2"])
def test_numbers_are_those_of_the_authors_code(shared: Path, name: str, crf: bool) -> None:
    """Their faults switched on: no gradient through the skips, and so none of the convolution that is nothing else."""
    end = "_crf" if crf else ""
    arguments = {"detach_skips": True, "crf": crf, "compat": "as_published"}
    model = assert_parity(
        load_lidar_golden(shared, f"lb_{name}{end}"), f"lidar_bonnetal_{name}{end}", ComponentConfig(name, arguments)
    )
    assert [key for key, value in model.named_parameters() if value.grad is None][:2] == [
        "whole.conv.weight", "whole.conv.bias"
    ]  # fmt: skip


def test_the_columns_start_interpolated() -> None:
    """A ramp of doubled columns is a ramp: (x_i + 3 x_i+1) / 4 and (3 x_i + x_i+1) / 4 between its pixels."""
    model = sightline.build_model("squeezeseg", num_classes=2, in_channels=5)
    ramp = torch.arange(8.0).expand(1, 64, 1, 8)
    doubled = model.up[0].upsample(ramp)[0, 0, 0]
    torch.testing.assert_close(doubled[1:-1], torch.arange(1, 15) / 2 - 0.25)


def test_a_random_field_without_coordinates_is_refused() -> None:
    with pytest.raises(ConfigError, match="crf: needs x, y and z"):
        sightline.build_model("squeezeseg", num_classes=2, in_channels=2, crf=True)
