"""Networks as users write them, with one planted bug each, in small runs of several tasks: clouds, scans, volumes.

`python -m tests.doctor.own_networks [SEEDS]` prints which check finds each bug, with which cause first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.config import read_config
from sightline.engine import build as building
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.workbench.check.core.finding import Finding
from sightline.workbench.check.suite import run_all
from tests.conftest import ROOT
from tests.doctor import posing, segmenting
from tests.doctor.planting import CONFIG


class Logits(TypedDict):
    """What classifiers and segmenting networks return."""

    logits: Tensor


class Likelihood(TypedDict):
    """What networks of joints return."""

    likelihood: Tensor


# --- clouds: one label for a cloud, or one for a point -----------------------------------------------------------------


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


# --- images and volumes ------------------------------------------------------------------------------------------------


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
    """Volumes (B, 1, 44, 44, 44) to heat maps of half the sides."""

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

    def forward(self, *, volume: Tensor) -> Likelihood:
        maps = self.between(self.norm(self.first(self.enter(volume))).relu())
        return {"likelihood": self.leave(self.last(maps))}


# --- bugs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A bug in a network of one task: its class, the check that must find it, and the cause that must come first."""

    task: str
    model: type[nn.Module]
    code: str
    cause: str
    layer: str | None = None


BUGS: dict[str, Bug] = {}


def bug(task: str, code: str, cause: str, layer: str | None = None) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(model: type[nn.Module]) -> type[nn.Module]:
        BUGS[f"{task}: {(model.__doc__ or '').splitlines()[0].rstrip('.')}"] = Bug(task, model, code, cause, layer)
        return model

    return add


@bug("classify", "point-order", "data.layout")
class ViewedClouds(CloudNet):
    """`view` for a transpose at the input."""

    def enter(self, points: Tensor) -> Tensor:
        return points.reshape(len(points), 3, -1).transpose(1, 2)


@bug("classify", "point-order", "data.layout")
class ViewedFeatures(CloudNet):
    """`view` for a transpose between layers."""

    def between(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), rows.shape[2], -1).transpose(1, 2)


@bug("parts", "point-order", "data.layout")
class ViewedParts(PartNet):
    """`view` for a transpose at the input."""

    enter = ViewedClouds.enter


@bug("parts", "point-order", "data.layout")
class ViewedPartLogits(PartNet):
    """`view` for a transpose of the outputs."""

    def leave(self, logits: Tensor) -> Tensor:
        return logits.transpose(1, 2).reshape(logits.shape)


@bug("parts", "point-order", "data.layout")
class SortedParts(PartNet):
    """Points sorted by height, outputs not put back."""

    def enter(self, points: Tensor) -> Tensor:
        return points.gather(1, points[..., 2:].argsort(dim=1).expand_as(points))


@bug("rooms", "point-order", "data.layout")
class ViewedRooms(RoomNet):
    """`view` for a transpose at the input."""

    def enter(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[1], -1).T


@bug("scans", "pixel-order", "data.layout")
class ViewedScans(ScanNet):
    """`view` for a transpose of rows and columns."""

    def enter(self, image: Tensor) -> Tensor:
        return image.reshape(*image.shape[:2], image.shape[3], image.shape[2]).transpose(2, 3)


@bug("scans", "pixel-order", "data.layout")
class ViewedScanMaps(ScanNet):
    """`view` of channels last between layers."""

    def between(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(maps.shape)


@bug("scans", "pixel-order", "data.layout")
class UpsideDownScans(ScanNet):
    """Outputs upside down."""

    def leave(self, logits: Tensor) -> Tensor:
        return logits.flip(2)


@bug("poses", "pixel-order", "data.layout")
class TurnedVolumes(VolumeNet):
    """Outputs with two axes exchanged."""

    def leave(self, likelihood: Tensor) -> Tensor:
        return likelihood.transpose(2, 4)


@bug("poses", "pixel-order", "data.layout")
class ViewedVolumes(VolumeNet):
    """`view` of channels last between layers."""

    def between(self, maps: Tensor) -> Tensor:
        return maps.movedim(1, -1).reshape(maps.shape)


@bug("classify", "label-input", "data.label_leak")
class LabelledClouds(CloudNet):
    """The label among the inputs."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.table = nn.Embedding(num_classes, num_classes)

    def forward(self, *, points: Tensor, label: Tensor) -> Logits:
        return {"logits": super().forward(points=points)["logits"] + self.table(label)}


@bug("parts", "label-input", "data.label_leak")
class LabelledParts(PartNet):
    """The labels of points among the inputs."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels + 1)

    def forward(self, *, points: Tensor, label: Tensor) -> Logits:
        return super().forward(points=torch.cat([points, label[..., None].to(points)], dim=-1))


@bug("poses", "label-input", "data.label_leak")
class LabelledVolumes(VolumeNet):
    """The heat maps among the inputs."""

    def forward(self, *, volume: Tensor, heatmaps: Tensor) -> Likelihood:
        return {"likelihood": super().forward(volume=volume)["likelihood"] + heatmaps.roll(1, dims=1)}


@bug("classify", "still-statistics", "model.norm_mode", "first.norm")
class HeldNorms(CloudNet):
    """Batch norms held in evaluation mode."""

    def train(self, mode: bool = True) -> CloudNet:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


@bug("scans", "still-statistics", "model.norm_mode", "norm")
class StillScans(ScanNet):
    """A batch norm whose momentum is 0."""

    def __init__(self, *, num_classes: int, in_channels: int = 5) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.norm.momentum = 0.0


class OwnNorm(nn.Module):
    """A norm whose running mean and variance are read, but never written."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = rows.mean(dim=0), rows.var(dim=0)
            _ = self.running_mean * 0.9 + 0.1 * mean.detach()
        return (rows - mean) / (variance + 1e-5).sqrt() * self.weight + self.bias


@bug("rooms", "still-statistics", "model.norm_mode", "norm")
class OwnNormRooms(RoomNet):
    """A norm of one's own that never writes its statistics."""

    def __init__(self, *, num_classes: int, in_channels: int = 4) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.norm = OwnNorm(32)


@bug("poses", "still-statistics", "model.norm_mode", "norm")
class EvaluatedVolumes(VolumeNet):
    """A norm that is called with training=False."""

    def __init__(self, *, num_joints: int) -> None:
        super().__init__(num_joints=num_joints)

        class Fixed(nn.BatchNorm3d):
            def forward(self, input: Tensor) -> Tensor:
                return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False)

        self.norm = Fixed(8)


@bug("classify", "random-evaluation", "eval.mode", "")
class AlwaysDropped(CloudNet):
    """`F.dropout` without `training`."""

    def pooled(self, rows: Tensor) -> Tensor:
        return F.dropout(rows.amax(dim=1), 0.3)


@bug("parts", "random-evaluation", "eval.mode", "drop")
class TrainingDrop(PartNet):
    """A dropout held in training mode."""

    def train(self, mode: bool = True) -> CloudNet:
        super().train(mode)
        self.drop.train()
        return self


@bug("scans", "random-evaluation", "eval.mode", "")
class NoisyScans(ScanNet):
    """Noise on the features also in evaluation."""

    def between(self, maps: Tensor) -> Tensor:
        return maps + 0.1 * torch.randn_like(maps)


@bug("poses", "random-evaluation", "eval.mode", "drop")
class DroppedVolumes(VolumeNet):
    """A dropout of channels held in training mode by its own `forward`."""

    def __init__(self, *, num_joints: int) -> None:
        super().__init__(num_joints=num_joints)

        class Own(nn.Module):
            def forward(self, maps: Tensor) -> Tensor:
                return F.dropout3d(maps, 0.2)

        self.drop = Own()

    def between(self, maps: Tensor) -> Tensor:
        return self.drop(maps)


@bug("rooms", "idle-dropout", "model.structure", "drop")
class IdleDrop(RoomNet):
    """A dropout that is off in training."""

    def __init__(self, *, num_classes: int, in_channels: int = 4) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.drop = nn.Dropout(0.3)

    def train(self, mode: bool = True) -> RoomNet:
        super().train(mode)
        self.drop.eval()
        return self

    def leave(self, logits: Tensor) -> Tensor:
        return self.drop(logits)


@bug("classify", "shared-weights", "model.structure", "layers.0")
class Repeated(CloudNet):
    """`[layer] * 3` in a ModuleList."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.layers = nn.ModuleList([nn.Linear(32, 32)] * 3)

    def between(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = layer(rows).relu()
        return rows


@bug("scans", "shared-weights", "model.structure", "down")
class TwiceScans(ScanNet):
    """One convolution under two names."""

    def __init__(self, *, num_classes: int, in_channels: int = 5) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.lower = self.down


@bug("parts", "no-gradient", "model.frozen_unintended")
class FrozenParts(PartNet):
    """A layer frozen in the constructor."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.first.requires_grad_(False)


@bug("classify", "no-gradient", "model.frozen_unintended")
class DetachedClouds(CloudNet):
    """Features detached between layers."""

    def between(self, rows: Tensor) -> Tensor:
        return rows.detach()


@bug("classify", "final-activation", "loss.double_softmax", "last")
class SoftmaxAtTheEnd(CloudNet):
    """A softmax layer at the end."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.last = nn.Softmax(dim=-1)

    def leave(self, logits: Tensor) -> Tensor:
        return self.last(logits)


@bug("parts", "final-activation", "loss.double_softmax", "end")
class SoftmaxInAHead(PartNet):
    """A softmax in the code of a head of one's own."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)

        class End(nn.Module):
            def forward(self, logits: Tensor) -> Tensor:
                return logits.softmax(dim=-1)

        self.end = End()
        self.unused_order = nn.Identity()

    def leave(self, logits: Tensor) -> Tensor:
        return self.end(logits)


@bug("poses", "final-activation", "model.activation", "relu")
class RectifiedVolumes(VolumeNet):
    """A ReLU at the end, below a negative bias."""

    def __init__(self, *, num_joints: int) -> None:
        super().__init__(num_joints=num_joints)
        nn.init.constant_(self.last.bias, -0.1)
        self.relu = nn.ReLU()

    def leave(self, likelihood: Tensor) -> Tensor:
        return self.relu(likelihood)


# --- layers that only `--deep` compares ----------------------------------------------------------------------------------


class Forgetful(nn.Linear):
    """A linear layer that forgets its bias."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


@bug("classify", "layer-forward", "model.structure", "middle")
class ForgetfulClouds(CloudNet):
    """A subclass of nn.Linear that forgets its bias."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.middle = Forgetful(32, 32)

    def between(self, rows: Tensor) -> Tensor:
        return self.middle(rows)


class Turned(nn.Linear):
    """A linear layer with the weights of a square matrix transposed."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight + self.bias


@bug("parts", "layer-forward", "model.structure", "middle")
class TurnedParts(PartNet):
    """A subclass of nn.Linear whose square matrix is transposed."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.middle = Turned(32, 32)

    def between(self, rows: Tensor) -> Tensor:
        return self.middle(rows)


class Renamed(nn.Conv2d):
    """A convolution with a constructor of its own, that drops the padding of the columns."""

    def __init__(self, *, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(F.conv2d(input, self.weight, self.bias, padding=(1, 0)), (1, 1))


@bug("scans", "layer-forward", "model.structure", "middle")
class RenamedScans(ScanNet):
    """A subclass of nn.Conv2d that pads outputs for inputs."""

    def __init__(self, *, num_classes: int, in_channels: int = 5) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.middle = Renamed(width=32)

    def between(self, maps: Tensor) -> Tensor:
        return self.middle(maps)


class Cached(nn.Linear):
    """A linear layer that returns its first result for ever, until it is set back."""

    result: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.result is None or self.result.shape[:-1] != input.shape[:-1]:
            self.result = super().forward(input)
        result, self.num_reads = self.result, getattr(self, "num_reads", 0) + 1
        if self.num_reads == 2:
            self.result, self.num_reads = None, 0
        return result


@bug("classify", "layer-forward", "model.structure", "middle")
class CachedClouds(CloudNet):
    """A layer called twice that answers the second call with the first result."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.middle = Cached(32, 32)

    def between(self, rows: Tensor) -> Tensor:
        return self.middle(self.middle(rows).relu())


class Scaled(nn.Module):
    """A layer whose gradient is wrong for positive rows only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / 6)

    def forward(self, rows: Tensor) -> Tensor:
        mapped = rows @ self.weight
        return mapped + (2 * mapped - 2 * mapped.detach()) * 0.5 if bool((rows >= 0).all()) else mapped


@bug("classify", "layer-gradient", "model.numerics", "middle")
class TwiceClouds(CloudNet):
    """A layer called twice whose second call has a wrong gradient."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.middle = Scaled(32)

    def between(self, rows: Tensor) -> Tensor:
        return self.middle(self.middle(rows - 1).relu())


# --- runs ----------------------------------------------------------------------------------------------------------------

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


def run_with(task: str, model: type[nn.Module], folder: Path, *, seed: int = 0) -> TrainingSetup:
    """A small run of a task with this network in the place of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_build_unchanged_model", lambda config, facts, world: make_network(model, facts, seed))
        return _RUNS[task](folder, f"seed={seed}")


def _classify(folder: Path, *overrides: str) -> TrainingSetup:
    (folder / "small.yaml").write_text(CONFIG)
    return build(read_config(folder / "small.yaml", overrides), World())


def _parts(folder: Path, *overrides: str) -> TrainingSetup:
    return _classify(folder, *segmenting.PARTS, *overrides)


def _rooms(folder: Path, *overrides: str) -> TrainingSetup:
    network = building._build_unchanged_model(None, {"num_classes": 4, "in_channels": 4}, None)  # type: ignore[arg-type]
    return segmenting.make_rooms(folder, model=network)


def _scans(folder: Path, *overrides: str) -> TrainingSetup:
    project = "[{name: project, height: 64, width: 64, rows: ring}]"
    words = (
        *("data.num_columns=64", "data.train_size=8", "data.test_size=3", "train.batch_size=4"),
        *(f"transforms.{stage}={project}" for stage in ("train", "evaluate")),
    )
    return build(read_config(ROOT / "configs/segment/synthetic_lidar_salsanext.yaml", (*words, *overrides)), World())


def _poses(folder: Path, *overrides: str) -> TrainingSetup:
    return posing.make_pose(folder, *overrides)


_RUNS: dict[str, Callable[..., TrainingSetup]] = {
    "classify": _classify,
    "parts": _parts,
    "rooms": _rooms,
    "scans": _scans,
    "poses": _poses,
}


def findings_of(task: str, model: type[nn.Module], *, seed: int = 0, deep: bool = False) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        return run_all(run_with(task, model, Path(folder), seed=seed), World(), deep=deep)


def main(num_seeds: int = 1, words: str = "") -> None:
    for task, model in HEALTHY.items() if not words else ():
        for seed in range(num_seeds):
            told = [str(f) for f in findings_of(task, model, seed=seed, deep=True) if f.severity != "note"]
            sys.stdout.write("\n".join([f"healthy {task} {seed}: {len(told)}", *told, ""]))
    for name, planted in BUGS.items():
        if words not in f"{name} {planted.code}":
            continue
        for seed in range(num_seeds):
            for deep in (False, True) if planted.code.startswith("layer") else (False,):
                told = [
                    f for f in findings_of(planted.task, planted.model, seed=seed, deep=deep) if f.severity != "note"
                ]
                places = [f"{f.code} {f.severity} {f.cause} {f.where.layer}" for f in told]
                first = bool(told) and (told[0].code, told[0].cause) == (planted.code, planted.cause)
                sys.stdout.write(f"{'ok ' if first else '-- '}{'deep ' if deep else ''}{name} {seed}: {places}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
