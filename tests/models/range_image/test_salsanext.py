"""SalsaNext: its published counts, and the numbers of its authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

import sightline
from sightline.errors import ConfigError
from sightline.types import ComponentConfig
from tests.lidar_parity import assert_parity, load_lidar_golden


@pytest.mark.parametrize(("num_classes", "count"), [(20, 6_711_572), (4, 6_711_044)])
def test_parameters_are_as_published(num_classes: int, count: int) -> None:
    model = sightline.build_model("salsanext", num_classes=num_classes, in_channels=5)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="width: is 15, must be even"):
        sightline.build_model("salsanext", num_classes=4, in_channels=5, width=15)


@pytest.mark.shared
def test_numbers_are_those_of_the_authors_code(shared: Path) -> None:
    assert_parity(load_lidar_golden(shared, "salsanext"), "salsanext", ComponentConfig("salsanext", {}))
