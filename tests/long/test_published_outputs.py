"""The largest networks give the numbers of their authors' code; the suite asks it of smaller ones of each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import test_range_image_conversion as range_images
from tests.engine.test_range_image_conversion import _components  # noqa: F401  the data set that these runs name
from tests.models import test_point_transformer_dense as dense


@pytest.mark.shared
def test_the_dense_point_transformer_agrees_with_the_reference(shared: Path) -> None:
    dense.assert_agrees_with_the_reference(shared, dense.LARGEST, fused=True)


@pytest.mark.shared
def test_the_outputs_of_the_largest_range_image_network_come_back(shared: Path, tmp_path: Path) -> None:
    range_images.assert_outputs_come_back(shared, tmp_path, range_images.LARGEST)
