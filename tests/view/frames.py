"""Depth frames made by hand: three joints, each on the one pixel that measures it."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.areas.pose.v2v import DrawHeatmaps, PlaceCube, Voxelize
from sightline.contract.dataset import Dataset
from sightline.contract.draws import Draws
from sightline.contract.types import DataInfo, Field, Sample, SampleKey
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform

JOINTS = torch.tensor([[10.0, 30.0, 400.0], [-20.0, 5.0, 420.0], [24.0, -15.0, 480.0]])
NAMES = ("wrist", "thumb", "tip")
CUBE_MM, SIZE = 200.0, 16


class Frames(Dataset):
    """One image of 40 by 30 pixels; fy is negative where y points up."""

    def __init__(self, *, fy: float = -100.0) -> None:
        self.camera = torch.tensor([100.0, fy, 20.0, 15.0], dtype=torch.float64)
        facts = {"num_joints": 3, "joint_names": NAMES, "bones": ((0, 1), (0, 2)), "cube_mm": CUBE_MM}
        fields = {"depth": Field("30 40", "float32", "mm"), "camera": Field("4", "float64")}
        fields |= {"joints": Field("3 3", "float32", "mm"), "visible": Field("3", "bool")}
        self.info = DataInfo(facts, fields | {"reference": Field("3", "float32", "mm")})

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: SampleKey) -> Sample:
        fx, fy, u0, v0 = self.camera.tolist()
        depth = torch.zeros(30, 40)
        for x, y, z in JOINTS.tolist():
            depth[round(fy * y / z + v0), round(fx * x / z + u0)] = z
        sample = {"depth": depth, "camera": self.camera.clone(), "joints": JOINTS.clone()}
        return {**sample, "visible": torch.ones(3, dtype=torch.bool), "reference": torch.tensor([0.0, 0.0, 430.0])}


def transforms(**more: object) -> list[NamedTransform]:
    """From a frame to its heat maps; the cube as told."""
    place = PlaceCube(cube_mm=CUBE_MM, size=SIZE, **more)  # type: ignore[arg-type]
    drawn = DrawHeatmaps(sigma=1.0)
    return [
        NamedTransform("place_cube", place),
        NamedTransform("voxelize", Voxelize()),
        NamedTransform("draw_heatmaps", drawn),
    ]


def reader(dataset: Frames | None = None, **more: object) -> BatchReader:
    return BatchReader(dataset or Frames(), transforms(**more))


class Transposed(DrawHeatmaps):
    """Targets whose x and z are swapped: the mistake that these pictures are for."""

    def __call__(self, draws: Draws, *, joints: Tensor, visible: Tensor, placement: Tensor) -> dict[str, Tensor]:
        right = super().__call__(draws, joints=joints, visible=visible, placement=placement)["heatmaps"]
        return {"heatmaps": right.transpose(-1, -3).contiguous()}
