"""The checks find nothing in the published V2V on its 88 voxels a side, which takes 2 GB; the suite asks it of 32."""

from __future__ import annotations

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from tests.conftest import ROOT
from tests.doctor.planting import assert_healthy


def test_the_published_volume_is_healthy() -> None:
    assert_healthy(build(read_config(ROOT / "configs" / "pose" / "synthetic_hands_v2v.yaml"), World()))
