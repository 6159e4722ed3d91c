"""One planted bug each in a network of a user's own, with the check that must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.doctor.own_networks import (
    CloudNet,
    Logits,
    MapOutput,
    PartNet,
    RoomNet,
    ScanNet,
    VolumeNet,
)

# --- bugs ---


@dataclass(frozen=True)
class Bug:
    """A bug in a network of one task: its class, the check that must find it, and the cause that must come first."""

    task: str
    model: type[nn.Module]
    code: str
    cause: str
    layer: str | None = None

    @property
    def is_deep(self) -> bool:
        return self.code.startswith("layer-")


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

    def forward(self, *, volume: Tensor, heatmaps: Tensor) -> MapOutput:
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


# --- layers that only `--deep` compares ---


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
