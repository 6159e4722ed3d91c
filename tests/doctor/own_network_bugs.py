"""Planted bugs in networks of a user's own: their cause, and the network with other methods or layers.

Those of classified clouds that tests/planted/classify.py plants are not here again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.doctor.own_networks import CloudNet, Logits, MapOutput, PartNet, RoomNet, ScanNet, VolumeNet


def change(base: type[nn.Module], edit: Callable[[Any], object] | None = None, **methods: Any) -> type[nn.Module]:
    """Make the network with other methods, which `edit` changes once it is made."""

    def init(self: Any, **facts: Any) -> None:
        base.__init__(self, **facts)
        if edit is not None:
            edit(self)

    return type(base.__name__, (base,), {"__init__": init, **methods})


def add(**layers: Any) -> Callable[[Any], None]:
    """Make an edit that sets layers, each made by a function, or one of the network's own by its name."""

    def edit(network: Any) -> None:
        for name, layer in layers.items():
            setattr(network, name, getattr(network, layer) if isinstance(layer, str) else layer())

    return edit


def hold(mode: bool, *names: str) -> Callable[..., nn.Module]:
    """Make a method `train` by which layers keep a mode."""

    def train(self: Any, is_training: bool = True) -> nn.Module:
        nn.Module.train(self, is_training)
        for name in names:
            self.get_submodule(name).train(mode)
        return self

    return train


class Layer(nn.Module):
    """Layer of a function."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, rows: Tensor) -> Tensor:
        return self.run(rows)


class LabelledParts(PartNet):
    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels + 1)

    def forward(self, *, points: Tensor, label: Tensor) -> Logits:
        return super().forward(points=torch.cat([points, label[..., None].to(points)], dim=-1))


class LabelledVolumes(VolumeNet):
    def forward(self, *, volume: Tensor, heatmaps: Tensor) -> MapOutput:
        return {"likelihood": super().forward(volume=volume)["likelihood"] + heatmaps.roll(1, dims=1)}


class OwnNorm(nn.Module):
    """A norm whose running mean and variance are read, but never written."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(32)), nn.Parameter(torch.zeros(32))
        self.running_mean, self.running_var = nn.Buffer(torch.zeros(32)), nn.Buffer(torch.ones(32))

    def forward(self, rows: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = rows.mean(dim=0), rows.var(dim=0)
            _ = self.running_mean * 0.9 + 0.1 * mean.detach()
        return (rows - mean) / (variance + 1e-5).sqrt() * self.weight + self.bias


class FixedNorm(nn.BatchNorm3d):
    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False)


# --- layers that only `--deep` compares -------------------------------------------------------------------------------


class Forgetful(nn.Linear):
    """A linear layer that forgets its bias."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class Turned(nn.Linear):
    """A linear layer with the weights of a square matrix transposed."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight + self.bias


class Renamed(nn.Conv2d):
    """A convolution with a constructor of its own, that drops the padding of the columns."""

    def __init__(self, *, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(F.conv2d(input, self.weight, self.bias, padding=(1, 0)), (1, 1))


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


class Scaled(nn.Module):
    """A layer whose gradient is wrong for positive rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32) / 6)

    def forward(self, rows: Tensor) -> Tensor:
        mapped = rows @ self.weight
        return mapped + (2 * mapped - 2 * mapped.detach()) * 0.5 if bool((rows >= 0).all()) else mapped


def _view(self: Any, points: Tensor) -> Tensor:
    return points.reshape(len(points), 3, -1).transpose(1, 2)


def _repeat(self: Any, rows: Tensor) -> Tensor:
    for layer in self.layers:
        rows = layer(rows).relu()
    return rows


def _rectify(network: Any) -> None:
    nn.init.constant_(network.last.bias, -0.1)
    network.relu = nn.ReLU()


_middle = {"between": lambda self, rows: self.middle(rows)}
_twice = {"between": lambda self, rows: self.middle(self.middle(rows).relu())}
BUGS: dict[str, dict[str, type[nn.Module]]] = {
    "data.layout": {
        "classify: `view` for a transpose between layers": change(
            CloudNet, between=lambda self, rows: rows.reshape(len(rows), rows.shape[2], -1).transpose(1, 2)
        ),
        "parts: `view` for a transpose at the input": change(PartNet, enter=_view),
        "parts: `view` for a transpose of the outputs": change(
            PartNet, leave=lambda self, logits: logits.transpose(1, 2).reshape(logits.shape)
        ),
        "parts: Points sorted by height, outputs not put back": change(
            PartNet, enter=lambda self, points: points.gather(1, points[..., 2:].argsort(dim=1).expand_as(points))
        ),
        "rooms: `view` for a transpose at the input": change(
            RoomNet, enter=lambda self, rows: rows.reshape(rows.shape[1], -1).T
        ),
        "scans: `view` for a transpose of rows and columns": change(
            ScanNet, enter=lambda self, image: image.reshape(*image.shape[:2], *image.shape[:1:-1]).transpose(2, 3)
        ),
        "scans: `view` of channels last between layers": change(
            ScanNet, between=lambda self, maps: maps.permute(0, 2, 3, 1).reshape(maps.shape)
        ),
        "scans: Outputs upside down": change(ScanNet, leave=lambda self, logits: logits.flip(2)),
        "poses: Outputs with two axes exchanged": change(VolumeNet, leave=lambda self, maps: maps.transpose(2, 4)),
        "poses: `view` of channels last between layers": change(
            VolumeNet, between=lambda self, maps: maps.movedim(1, -1).reshape(maps.shape)
        ),
    },
    "data.label_leak": {
        "parts: The labels of points among the inputs": LabelledParts,
        "poses: The heat maps among the inputs": LabelledVolumes,
    },
    "model.norm_mode": {
        "scans: A batch norm whose momentum is 0": change(ScanNet, lambda net: setattr(net.norm, "momentum", 0.0)),
        "rooms: A norm of one's own that never writes its statistics": change(RoomNet, add(norm=OwnNorm)),
        "poses: A norm that is called with training=False": change(VolumeNet, add(norm=lambda: FixedNorm(8))),
    },
    "eval.mode": {
        "parts: A dropout held in training mode": change(PartNet, train=hold(True, "drop")),
        "scans: Noise on the features also in evaluation": change(
            ScanNet, between=lambda self, maps: maps + 0.1 * torch.randn_like(maps)
        ),
        "poses: A dropout of channels held in training mode by its own `forward`": change(
            VolumeNet,
            add(drop=lambda: Layer(lambda maps: F.dropout3d(maps, 0.2))),
            between=lambda self, maps: self.drop(maps),
        ),
    },
    "model.structure": {
        "rooms: A dropout that is off in training": change(
            RoomNet,
            add(drop=lambda: nn.Dropout(0.3)),
            train=hold(False, "drop"),
            leave=lambda self, logits: self.drop(logits),
        ),
        "classify: `[layer] * 3` in a ModuleList": change(
            CloudNet, add(layers=lambda: nn.ModuleList([nn.Linear(32, 32)] * 3)), between=_repeat
        ),
        "scans: One convolution under two names": change(ScanNet, add(lower="down")),
        "classify: A subclass of nn.Linear that forgets its bias": change(
            CloudNet, add(middle=lambda: Forgetful(32, 32)), **_middle
        ),
        "parts: A subclass of nn.Linear whose square matrix is transposed": change(
            PartNet, add(middle=lambda: Turned(32, 32)), **_middle
        ),
        "scans: A subclass of nn.Conv2d that pads outputs for inputs": change(
            ScanNet, add(middle=lambda: Renamed(width=32)), **_middle
        ),
        "classify: A layer called twice that answers the second call with the first result": change(
            CloudNet, add(middle=lambda: Cached(32, 32)), **_twice
        ),
    },
    "model.frozen_unintended": {
        "parts: A layer frozen in the constructor": change(PartNet, lambda net: net.first.requires_grad_(False)),
        "classify: Features detached between layers": change(CloudNet, between=lambda self, rows: rows.detach()),
    },
    "loss.double_softmax": {
        "parts: A softmax in the code of a head of one's own": change(
            PartNet,
            add(end=lambda: Layer(lambda logits: logits.softmax(dim=-1)), unused_order=nn.Identity),
            leave=lambda self, logits: self.end(logits),
        ),
    },
    "model.activation": {
        "poses: A ReLU at the end, below a negative bias": change(
            VolumeNet, _rectify, leave=lambda self, maps: self.relu(maps)
        ),
    },
    "model.numerics": {
        "classify: A layer called twice whose second call has a wrong gradient": change(
            CloudNet,
            add(middle=Scaled),
            between=lambda self, rows: self.middle(self.middle(rows - 1).relu()),
        ),
    },
}
"""Networks by their cause, task and bug."""
DEEP = ("subclass of", "called twice")
"""Words of the bugs that only `check --deep` finds."""
