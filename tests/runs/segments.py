"""Two small runs that label points: parts of dense clouds, and ragged scenes thinned before the model sees them."""

from __future__ import annotations

from pathlib import Path

from tests.command import succeed

__all__ = ["PLUGIN", "SCENES", "make_parts", "make_scenes"]

PLUGIN = '''
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

import sightline


class Output(TypedDict):
    logits: Tensor


@sightline.register.model("per_point")
class PerPoint(sightline.Model):
    """Sees one point at a time, in either form of a batch."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_channels, 16), nn.ReLU(), nn.Linear(16, num_classes))

    def forward(self, *, points: Tensor, features: Tensor, offsets: Tensor | None = None) -> Output:
        return {"logits": self.net(torch.cat([points, features], dim=-1))}


@sightline.register.data("toy_rooms")
class ToyRooms(sightline.Dataset):
    """Coloured rooms of ragged size; the class of a point is the third of the height that it lies in, some ignored."""

    def __init__(self, *, split: str) -> None:
        self.split = split
        point = {"collate": "concatenate"}
        fields = {
            "points": sightline.Field("points 3", "float32", "m", "room, z up", **point),
            "colours": sightline.Field("points 3", "float32", "", "", 0.0, 1.0, **point),
            "label": sightline.Field("points", "int64", low=0, high=255, **point),
        }
        facts = {"num_classes": 3, "class_names": ("low", "middle", "high"), "in_channels": 6, "up_axis": "z"}
        sizes = {"train": 6, "test": 5}
        self.info = sightline.DataInfo(facts | {"ignore_index": 255}, fields, sizes, features=("colours",))

    def __len__(self) -> int:
        return self.info.split_sizes[self.split]

    def sample_name(self, index: int) -> str:
        return f"Area_1/room {index}"

    def __getitem__(self, key: sightline.SampleKey) -> sightline.Sample:
        random = np.random.default_rng((key.index, self.split == "test"))
        points = random.uniform(0, 3, size=(random.integers(60, 120), 3)).astype(np.float32)
        label = np.minimum(points[:, 2].astype(np.int64), 2)
        label[::10] = 255
        colours = random.uniform(size=points.shape).astype(np.float32)
        fields = {"points": points, "colours": colours, "label": label}
        return {name: torch.from_numpy(values) for name, values in fields.items()}
'''

PARTS = """
task: {name: segment}
data: {name: synthetic_shapes, target: parts, normals: file, num_points: 64, train_size: 36, test_size: 24}
model: {name: per_point}
losses: [{name: cross_entropy}]
metrics: [{name: part_iou}]
transforms:
  train: [{name: rotate}, {name: scale}, {name: sample_points, num_points: 48}]
optimizer: {name: adam, lr: 3e-2}
train: {epochs: 4, batch_size: 12}
evaluate: {metric: instance_miou, batch_size: 7}
log: {tensorboard: false}
"""
SCENES = """
task: {name: segment}
data: {name: toy_rooms}
model: {name: per_point}
losses: [{name: cross_entropy}]
metrics: [{name: iou}]
transforms:
  train: [{name: rotate}]
  evaluate: [{name: sample_points, num_points: 40, score_all: true}]
optimizer: {name: adam, lr: 3e-2}
train: {epochs: 4, batch_size: 2}
evaluate: {metric: miou, batch_size: 2, select: test}
log: {tensorboard: false}
"""


def make_parts(folder: Path) -> Path:
    """`plugin.py`, `parts.yaml` and the run of it, in a folder; returns the run."""
    return _make(folder, "parts", PARTS)


def make_scenes(folder: Path) -> Path:
    """The same with `scenes.yaml`."""
    return _make(folder, "scenes", SCENES)


def _make(folder: Path, name: str, config: str) -> Path:
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / f"{name}.yaml").write_text(config)
    words = ("--plugin", folder / "plugin.py", "--device", "cpu", "--no-check", "--out", folder / name)
    succeed("train", folder / f"{name}.yaml", *words)
    return folder / name
