"""A contrast run of seconds: the smallest network and the fewest clouds that the probes can be tried on."""

from __future__ import annotations

from pathlib import Path

from tests.command import succeed

__all__ = ["THIN", "train_thin"]

THIN = """
data: {name: synthetic_shapes, train_size: 72, test_size: 36, num_points: 64}
task: {name: contrast}
model: {name: intrapoint, points: {name: dgcnn, num_neighbours: 8, embedding: 16}, embedding: 16}
losses: [{name: intra_modal}]
metrics: [{name: pairs}]
transforms:
  train: [{name: two_views, transforms: [{name: rotate, axis: up}, {name: jitter}]}]
  evaluate: [{name: two_views, transforms: [{name: rotate, axis: up}, {name: jitter}]}]
optimizer: {name: adam, lr: 1e-3}
train: {epochs: 1, batch_size: 16}
evaluate: {metric: uniformity, batch_size: 10}
log: {tensorboard: false}
"""


def train_thin(folder: Path, *overrides: str, name: str = "run") -> Path:
    """The directory of a finished run of the thin config."""
    config = folder / "thin.yaml"
    config.write_text(THIN)
    succeed("train", config, *overrides, "--no-check", "--device", "cpu", "--out", folder / name)
    return folder / name
