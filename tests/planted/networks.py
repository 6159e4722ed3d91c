"""Networks that a user might write for the bench CLS, with one fault each; the first has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.contract.model import Model
from tests.planted.planting import OWN, LogitsOutput, Plant


class OwnNetwork(Model):
    """PointNet of two layers a point, a maximum over points, and a head: (B, N, in_channels) to logits (B, C)."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(in_channels, 32, 1), nn.Conv1d(32, 64, 1)
        self.first_norm, self.second_norm = nn.BatchNorm1d(32), nn.BatchNorm1d(64)
        self.hidden, self.head_norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(64, num_classes)

    def forward(self, *, points: Tensor) -> LogitsOutput:
        return {"logits": self.classify(self.pool(self.embed(self.to_channels(points))))}

    def to_channels(self, points: Tensor) -> Tensor:
        """Bring the channels before the points."""
        return points.transpose(1, 2)

    def embed(self, points: Tensor) -> Tensor:
        return self.second_norm(self.second(self.first_norm(self.first(points)).relu())).relu()

    def pool(self, features: Tensor) -> Tensor:
        return features.amax(2)

    def classify(self, pooled: Tensor) -> Tensor:
        return self.last(self.dropout(self.head_norm(self.hidden(pooled)).relu()))


def change_network(**methods: Any) -> Plant:
    """Make a plant of the network above with other methods."""
    changed = type("OwnNetwork", (OwnNetwork,), {**methods, "__module__": __name__})
    return lambda planter: planter.add_model(changed)


def change_layers(change: Any) -> Plant:
    """Make a plant of the network above whose layers `change` once they are made."""

    def init(self: OwnNetwork, *, num_classes: int, in_channels: int) -> None:
        OwnNetwork.__init__(self, num_classes=num_classes, in_channels=in_channels)
        change(self)

    return change_network(__init__=init)


def hide_layers(network: OwnNetwork) -> None:
    """Keep two layers in a Python list, which no module knows."""
    layers = [network.hidden, network.second]
    del network.hidden, network.second
    object.__setattr__(network, "hidden", layers[0])
    object.__setattr__(network, "second", layers[1])


def draw_large_weights(network: OwnNetwork) -> None:
    """Draw every weight from N(0, 10^2)."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=10.0)


def add_neighbour_distances(network: OwnNetwork, points: Tensor) -> Tensor:
    """Embed points, and add the distances to their nearest neighbours among learned features, the point itself too."""
    features = OwnNetwork.embed(network, points)
    squares = (features[:, :, :, None] - features[:, :, None, :]).square().sum(1)
    return features + squares.topk(4, largest=False).values.sqrt().sum(-1)[:, None]


def attend_over_batch(network: OwnNetwork, features: Tensor) -> Tensor:
    """Pool by an attention whose softmax is over the samples of the batch."""
    return (features * features.softmax(0)).sum(2)


def search_whole_batch(network: OwnNetwork, points: Tensor) -> Tensor:
    """Embed points, averaged over their nearest neighbours among the points of all samples."""
    features = OwnNetwork.embed(network, points)
    rows = points.transpose(1, 2).flatten(0, 1)
    index = torch.cdist(rows, rows).topk(4, largest=False).indices
    means = features.transpose(1, 2).flatten(0, 1)[index].mean(1)
    return means.unflatten(0, (len(points), -1)).transpose(1, 2)


def drop_always(network: OwnNetwork, pooled: Tensor) -> Tensor:
    """Classify with the dropout of `functional`, which does not know of evaluation."""
    return network.last(F.dropout(network.head_norm(network.hidden(pooled)).relu()))


def freeze_statistics(network: OwnNetwork) -> None:
    """Let the running statistics of all norms never move."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0


def rest_norms(network: OwnNetwork, mode: bool = True) -> nn.Module:
    """Set the mode of all modules but the norms, which stay in evaluation."""
    nn.Module.train(network, mode)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.Module.train(module, False)
    return network


def share_layers(network: OwnNetwork) -> None:
    """Make the norm of the head that of the second layer."""
    network.head_norm = network.second_norm


class TransposedLinear(nn.Linear):
    """Linear layer that multiplies by its transposed weight; it works wherever the weight is square."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight + self.bias


class HalvedLinear(nn.Linear):
    """Linear layer that scales its gradient: a straight-through trick that was left in."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output.detach() + 0.01 * (output - output.detach())


TransposedLinear.__module__ = HalvedLinear.__module__ = OWN
