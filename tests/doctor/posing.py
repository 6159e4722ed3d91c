"""Small pose runs for tests."""

from __future__ import annotations

from pathlib import Path

from sightline.engine.build import TrainingSetup
from tests.doctor.planting import make
from tests.planted.planting import BENCHES

CONFIG = (
    (BENCHES / "POSE.yaml").read_text().replace("train_size: 24", "train_size: 40").replace("epochs: 2", "epochs: 1")
)


def make_pose(folder: Path, *overrides: str) -> TrainingSetup:
    """A small run on synthetic hands, built from a real config file."""
    return make(folder, *overrides, text=CONFIG)
