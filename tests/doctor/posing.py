"""Small pose runs for tests, and transforms in the place of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.config import read_config
from sightline.engine.build import DataSubset, TrainingSetup, build, build_transforms
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader, NamedTransform

__all__ = ["make_pose", "with_transform"]

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
    path = folder / "pose.yaml"
    path.write_text(CONFIG)
    return build(read_config(path, overrides), World())


def with_transform(built: TrainingSetup, name: str, plant: Callable[[Any], Any]) -> TrainingSetup:
    """The run with `plant(transform)` in the place of the transform of that name, in training and evaluation."""
    data = built.data
    parts = {
        split: _changed(built, part, components, name, plant)
        for split, part, components in (
            ("train", data.train, built.config.transforms.train),
            ("selection", data.selection, built.config.transforms.evaluate),
        )
    }
    return dataclasses.replace(built, data=dataclasses.replace(data, **parts))


def _changed(
    built: TrainingSetup, part: DataSubset, components: Any, name: str, plant: Callable[[Any], Any]
) -> DataSubset:
    transforms = [
        NamedTransform(t.name, plant(t.apply) if t.name == name else t.apply)
        for t in build_transforms(components, part.dataset.info.facts)
    ]
    return dataclasses.replace(part, reader=BatchReader(part.dataset, transforms))
