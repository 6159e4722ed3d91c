"""The largest networks give the numbers of their authors' code; the suite asks it of smaller ones of each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import test_range_image_conversion as range_images
from tests.engine.test_range_image_conversion import _components  # noqa: F401  the data set that these runs name
from tests.golden_parity import load_golden
from tests.models.test_cloud_parity import GOLDEN, LARGEST, assert_agrees


@pytest.mark.shared
def test_the_dense_point_transformer_agrees_with_the_reference(shared: Path) -> None:
    assert_agrees(load_golden(shared, LARGEST), GOLDEN[LARGEST], fused=True)


@pytest.mark.shared
def test_the_outputs_of_the_largest_range_image_network_come_back(shared: Path, tmp_path: Path) -> None:
    range_images.assert_outputs_come_back(shared, tmp_path, range_images.LARGEST)
