"""Small pose runs for tests."""

from __future__ import annotations

from pathlib import Path

from sightline.engine.build import TrainingSetup
from tests.doctor.planting import make

CONFIG = """\
task: {name: pose}
data: {name: synthetic_hands, train_size: 40, test_size: 8}
model: {name: v2v_small}
losses: [{name: heatmap_mse}]
metrics: [{name: joint_error}]
optimizer: {name: adam, lr: 1e-3}
train: {epochs: 1, batch_size: 4}
evaluate: {metric: mean_error_mm, mode: min}
transforms:
  train:
    - {name: place_cube, size: 44, scale: [0.8, 1.2], max_angle_rad: 0.698, max_shift: 2.0}
    - {name: voxelize}
    - {name: draw_heatmaps}
  evaluate:
    - {name: place_cube, size: 44}
    - {name: voxelize}
    - {name: draw_heatmaps}
"""


def make_pose(folder: Path, *overrides: str) -> TrainingSetup:
    """A small run on synthetic hands, built from a real config file."""
    return make(folder, *overrides, text=CONFIG)
