"""The checks find nothing in any shipped config as it is, nor in small runs of more seeds than the suite draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doctor.test_healthy_runs import assert_parts_are_healthy, assert_shipped_is_healthy, assert_small_is_healthy
from tests.recipes import recipes


@pytest.mark.parametrize("name", recipes())
def test_shipped_configs_are_healthy(name: str) -> None:
    """V2V on its 88 voxels a side takes 2 GB."""
    assert_shipped_is_healthy(name)


@pytest.mark.parametrize("model", ["pointnet", "dgcnn"])
@pytest.mark.parametrize("seed", [2, 3])
def test_small_runs_are_healthy_whatever_the_seed(tmp_path: Path, model: str, seed: int) -> None:
    assert_small_is_healthy(tmp_path, model, seed)


@pytest.mark.parametrize("seed", [2, 3])
def test_small_runs_on_parts_are_healthy_whatever_the_seed(tmp_path: Path, seed: int) -> None:
    assert_parts_are_healthy(tmp_path, seed)
