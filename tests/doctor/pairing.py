"""Small runs that compare two clouds of every object."""

from __future__ import annotations

from pathlib import Path

from sightline.engine.build import TrainingSetup
from tests.doctor.planting import make

CONFIG = """\
data: {name: synthetic_shapes, train_size: 120, test_size: 24, num_points: 64}
task: {name: contrast}
model: {name: intrapoint, points: {name: dgcnn, num_neighbours: 8, embedding: 32}, embedding: 16}
losses: [{name: intra_modal}]
metrics: [{name: pairs}]
transforms:
  train: [{name: two_views, transforms: [{name: rotate, axis: up}, {name: jitter}]}]
  evaluate: [{name: two_views, transforms: [{name: rotate, axis: up}, {name: jitter}]}]
optimizer: {name: adam, lr: 1e-3}
train: {epochs: 2, batch_size: 16}
evaluate: {metric: uniformity}
"""

STRONG = (
    "transforms.train=[{name: two_views, transforms: [{name: normalize_unit_sphere}, "
    "{name: scale, low: 0.5, high: 2.0, isotropic: true}, {name: rotate, axis: up}, "
    "{name: translate, max_shift: 0.5, relative: true}, {name: jitter}, {name: drop_points, max_ratio: 0.875}]}]"
)
"""The six steps of CrossPoint, an override."""


def make_pairs(folder: Path, *overrides: str) -> TrainingSetup:
    """A small run, built from a real config file."""
    return make(folder, *overrides, text=CONFIG)
