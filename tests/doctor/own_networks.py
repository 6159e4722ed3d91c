"""Networks as users write them, with places for bugs, in small runs: clouds, parts, rooms, range images, volumes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.config import read_config
from sightline.doctor.finding import Finding
from sightline.engine import build as building
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.suite import run_all
from tests.conftest import ROOT
from tests.doctor import posing, segmenting
from tests.doctor.planting import make
from tests.doctor.regressing import MapOutput
from tests.doctor.segmenting import Logits

# --- clouds: one label for a cloud, or one for a point ---


class Shared(nn.Module):
    """Layers on each point (B, N, C), with a batch norm."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_channels, width), nn.BatchNorm1d(width)

    def forward(self, rows: Tensor) -> Tensor:
        return self.norm(self.linear(rows).transpose(1, 2)).transpose(1, 2).relu()


class CloudNet(nn.Module):
    """A PointNet of clouds (B, N, 3) with places for bugs: `enter`, `between`, `pooled`, `leave`."""

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = Shared(in_channels, width), Shared(width, width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, num_classes)

    def enter(self, points: Tensor) -> Tensor:
        return points

    def between(self, rows: Tensor) -> Tensor:
        return rows

    def pooled(self, rows: Tensor) -> Tensor:
        return rows.amax(dim=1)

    def leave(self, logits: Tensor) -> Tensor:
        return logits

    def rows(self, points: Tensor) -> Tensor:
        return self.second(self.between(self.first(self.enter(points))))

    def forward(self, *, points: Tensor) -> Logits:
        return {"logits": self.leave(self.head(self.drop(self.pooled(self.rows(points)))))}


class PartNet(CloudNet):
    """The same for parts: features of the point beside those of its cloud."""

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: int = 32) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, width=width)
        self.head = nn.Linear(2 * width, num_classes)

    def pooled(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.amax(dim=1, keepdim=True).expand_as(rows)], dim=-1)


class RoomNet(nn.Module):
    """Points of ragged scenes: layers on each point beside the mean of its scene."""

    def __init__(self, *, num_classes: int, in_channels: int = 4, width: int = 32) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(in_channels, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(2 * width, num_classes)

    def enter(self, rows: Tensor) -> Tensor:
        return rows

    def leave(self, logits: Tensor) -> Tensor:
        return logits

    def forward(self, *, points: Tensor, features: Tensor, offsets: Tensor) -> Logits:
        rows = self.norm(self.first(self.enter(torch.cat([points, features], dim=-1)))).relu()
        sizes = offsets.diff()
        means = torch.stack([part.mean(dim=0) for part in rows.split(sizes.tolist())])
        return {"logits": self.leave(self.head(torch.cat([rows, means.repeat_interleave(sizes, dim=0)], dim=-1)))}


# --- images and volumes ---


class ScanNet(nn.Module):
    """Range images (B, C, H, W): halved once, and a skip."""

    def __init__(self, *, num_classes: int, in_channels: int = 5, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.last = nn.Conv2d(2 * width, num_classes, 1)

    def enter(self, image: Tensor) -> Tensor:
        return image

    def between(self, maps: Tensor) -> Tensor:
        return maps

    def leave(self, logits: Tensor) -> Tensor:
        return logits

    def forward(self, *, image: Tensor) -> Logits:
        fine = self.norm(self.first(self.enter(image))).relu()
        coarse = F.interpolate(self.down(fine).relu(), size=fine.shape[-2:])
        logits = self.leave(self.last(self.between(torch.cat([fine, coarse], dim=1))))
        return {"logits": logits.movedim(1, -1)}


class VolumeNet(nn.Module):
    """Volumes (B, 1, 24, 24, 24) to heat maps of half the sides."""

    def __init__(self, *, num_joints: int, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, width, 2, stride=2), nn.BatchNorm3d(width)
        self.last = nn.Conv3d(width, num_joints, 1)
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(self.last.bias)

    def enter(self, volume: Tensor) -> Tensor:
        return volume

    def between(self, maps: Tensor) -> Tensor:
        return maps

    def leave(self, likelihood: Tensor) -> Tensor:
        return likelihood

    def forward(self, *, volume: Tensor) -> MapOutput:
        maps = self.between(self.norm(self.first(self.enter(volume))).relu())
        return {"likelihood": self.leave(self.last(maps))}


# --- runs ---

HEALTHY: dict[str, type[nn.Module]] = {
    "classify": CloudNet,
    "parts": PartNet,
    "rooms": RoomNet,
    "scans": ScanNet,
    "poses": VolumeNet,
}
FACTS = ("num_classes", "num_joints", "in_channels")


def make_network(model: type[nn.Module], facts: Mapping[str, Any], seed: int) -> nn.Module:
    """The network with the facts that it takes, with the weights of a seed."""
    names = [name for cls in model.__mro__ for name in getattr(cls.__init__, "__annotations__", {})]
    torch.manual_seed(seed)
    built: nn.Module = model(**{name: facts[name] for name in FACTS if name in facts and name in names})
    return built


def _parts(folder: Path, *overrides: str) -> TrainingSetup:
    return make(folder, *segmenting.PARTS, *overrides)


def _rooms(folder: Path, *overrides: str) -> TrainingSetup:
    network = building.build_unchanged_model(None, {"num_classes": 4, "in_channels": 4}, None)  # type: ignore[arg-type]
    return segmenting.make_rooms(folder, model=network)


def _scans(folder: Path, *overrides: str) -> TrainingSetup:
    project = "[{name: project, height: 64, width: 64, rows: ring}]"
    words = (
        *("data.num_columns=64", "data.train_size=8", "data.test_size=3", "train.batch_size=4"),
        "losses=[{name: cross_entropy}]",
        *(f"transforms.{stage}={project}" for stage in ("train", "evaluate")),
    )
    return build(read_config(ROOT / "configs/segment/synthetic_lidar_salsanext.yaml", (*words, *overrides)), World())


def _poses(folder: Path, *overrides: str) -> TrainingSetup:
    small = (f"transforms.{stage}.0.size=24" for stage in ("train", "evaluate"))
    return posing.make_pose(folder, *small, *overrides)


_RUNS: dict[str, Callable[..., TrainingSetup]] = {
    "classify": make,
    "parts": _parts,
    "rooms": _rooms,
    "scans": _scans,
    "poses": _poses,
}


def findings_of(task: str, model: type[nn.Module], *, seed: int = 0, deep: bool = False) -> list[Finding]:
    """What `sightline check` finds in a small run of a task with this network in the place of its own."""
    with tempfile.TemporaryDirectory() as folder:
        with pytest.MonkeyPatch.context() as patch:
            make_one = lambda config, facts, world: make_network(model, facts, seed)  # noqa: E731
            patch.setattr(building, "build_unchanged_model", make_one)
            built = _RUNS[task](Path(folder), f"seed={seed}")
        return run_all(built, World(), deep=deep)
