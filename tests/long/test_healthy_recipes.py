"""The checks find nothing in shipped configs as they are, of which the suite asks it in a smaller form."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.doctor.test_healthy_runs import SMALLER, assert_shipped_is_healthy


@pytest.mark.parametrize("name", SMALLER)
def test_shipped_configs_are_healthy(name: str) -> None:
    """V2V on its 88 voxels a side takes 2 GB."""
    assert_shipped_is_healthy(ROOT / "configs" / f"{name}.yaml")
