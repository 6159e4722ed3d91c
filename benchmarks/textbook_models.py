"""Textbook forms of point networks, channels first, with the weights of ours: what a user would write or copy.

Every edge and group feature is materialised and passes a convolution of size 1. Geometry is that of `textbook`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks import textbook
from sightline.layers.mlp import LinearNorm
from sightline.layers.offset_attention import OffsetAttention
from sightline.models.dgcnn import DGCNN, DGCNNEncoder
from sightline.models.pct import PCT
from sightline.models.pointnet2 import PointNet2


class TextbookDGCNNEncoder(nn.Module):
    """Textbook DGCNN encoder: points (B, N, 3) -> (B, feature_width), with our encoder's parameters in order.

    Source: Wang et al. 2019, figure 3 and section 3.1.
    """

    def __init__(self, ours: DGCNNEncoder) -> None:
        super().__init__()
        edges: Any = ours.edges
        self.num_neighbours: int = ours.num_neighbours
        self.feature_width: int = ours.feature_width
        self.edges = nn.ModuleList(_to_convolution(layer.edge, num_axes=2) for layer in edges)
        self.embed = _to_convolution(ours.embed, num_axes=1)

    def encode(self, *, points: Tensor, features: None = None) -> Tensor:
        values_BCN = points.transpose(1, 2).contiguous()
        levels = []
        for edge in self.edges:
            values_BCN = edge(self._graph_features(values_BCN)).max(dim=-1)[0]
            levels.append(values_BCN)
        embedded_BCN = self.embed(torch.cat(levels, dim=1))
        return torch.cat((embedded_BCN.max(dim=-1)[0], embedded_BCN.mean(dim=-1)), dim=1)

    def _graph_features(self, values_BCN: Tensor) -> Tensor:
        """Build edge features (B, 2C, N, K): x_j - x_i, then x_i."""
        num_clouds, num_channels, num_points = values_BCN.shape
        with torch.no_grad():
            index = textbook.neighbours_by_topk(values_BCN, self.num_neighbours)
        index = (index + torch.arange(num_clouds).view(-1, 1, 1) * num_points).view(-1)
        values = values_BCN.transpose(2, 1).contiguous()
        neighbours = values.view(num_clouds * num_points, -1)[index]
        neighbours = neighbours.view(num_clouds, num_points, self.num_neighbours, num_channels)
        centres = values.view(num_clouds, num_points, 1, num_channels).repeat(1, 1, self.num_neighbours, 1)
        return torch.cat((neighbours - centres, centres), dim=3).permute(0, 3, 1, 2).contiguous()


class TextbookDGCNN(TextbookDGCNNEncoder):
    """Textbook DGCNN: points (B, N, 3) -> logits (B, num_classes), with our model's parameters in order."""

    def __init__(self, ours: DGCNN) -> None:
        super().__init__(ours)
        self.head = _to_convolutions(ours.head, num_axes=0)

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.encode(points=points))}


class TextbookPCT(nn.Module):
    """Textbook PCT: points (B, N, 3) -> logits (B, num_classes), with our model's parameters in order.

    Source: Guo et al. 2021 (PCT), figure 2 and equations 6 to 9.
    """

    def __init__(self, ours: PCT) -> None:
        super().__init__()
        groups: Any = ours.groups
        self.sizes: list[tuple[int, int]] = [(group.num_samples, group.num_neighbours) for group in groups]
        attention: Any = ours.attend.layers
        self.embed = _to_convolutions(ours.embed, num_axes=1)
        self.groups = nn.ModuleList(_to_convolutions(group.network.layers, num_axes=2) for group in groups)
        self.prepare = _to_convolutions(ours.prepare, num_axes=1)
        self.attend = nn.ModuleList(_TextbookOffsetAttention(layer) for layer in attention)
        self.fuse = _to_convolution(ours.fuse, num_axes=1)
        self.head = _to_convolutions(ours.head, num_axes=0)

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        values_BCN = self.embed(points.transpose(1, 2))
        for network, (num_samples, num_neighbours) in zip(self.groups, self.sizes, strict=True):
            samples = textbook.masked_farthest_points(points, num_samples, 0)
            values = values_BCN.transpose(1, 2)
            centres, centre_values = _gather_rows(points, samples), _gather_rows(values, samples)
            index = textbook.expanded_distances(centres, points).topk(num_neighbours, dim=-1, largest=False)[1]
            centre_values_BMKC = centre_values.unsqueeze(2).repeat(1, 1, num_neighbours, 1)
            edges = torch.cat([_gather_rows(values, index) - centre_values_BMKC, centre_values_BMKC], dim=-1)
            values_BCN = network(edges.permute(0, 3, 1, 2)).max(dim=-1)[0]
            points = centres
        attended, levels = self.prepare(values_BCN), []
        for layer in self.attend:
            attended = layer(attended)
            levels.append(attended)
        fused_BCN = self.fuse(torch.cat([*levels, values_BCN], dim=1))
        return {"logits": self.head(fused_BCN.max(dim=-1)[0])}


class _TextbookOffsetAttention(nn.Module):
    def __init__(self, ours: OffsetAttention) -> None:
        super().__init__()
        self.query = _linear_to_convolution(ours.query, num_axes=1)
        self.value = _linear_to_convolution(ours.value, num_axes=1)
        self.change = _to_convolution(ours.change, num_axes=1)

    def forward(self, values_BCN: Tensor) -> Tensor:
        query = self.query(values_BCN).permute(0, 2, 1)
        key = self.query(values_BCN)  # a second map with the same weights, as in that code
        attention = torch.softmax(torch.bmm(query, key), dim=-1)
        attention = attention / (1e-9 + attention.sum(dim=1, keepdim=True))
        received = torch.bmm(self.value(values_BCN), attention)
        return values_BCN + self.change(values_BCN - received)


class TextbookPointNet2(nn.Module):
    """Textbook PointNet++ (SSG): points (B, N, 3) -> logits (B, num_classes), with our model's parameters in order.

    Source: Qi et al. 2017 (PointNet++), section 3 and appendix B.1.
    """

    def __init__(self, ours: PointNet2) -> None:
        super().__init__()
        abstractions: Any = ours.abstractions
        self.balls: list[tuple[int, float, int]] = [
            (abstraction.num_samples, abstraction.groups[0].radius, abstraction.groups[0].num_neighbours)
            for abstraction in abstractions
        ]
        self.abstractions = nn.ModuleList(
            _to_convolutions(abstraction.groups[0].network.layers, num_axes=2) for abstraction in abstractions
        )
        self.encode = _to_convolutions(cast(nn.Sequential, ours._modules["encode"]), num_axes=1)
        self.head = _to_convolutions(ours.head, num_axes=0)

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        values: Tensor | None = None
        for network, (num_samples, radius, num_neighbours) in zip(self.abstractions, self.balls, strict=True):
            centres = _gather_rows(points, textbook.masked_farthest_points(points, num_samples, 0))
            index = textbook.first_in_ball(points, centres, radius, num_neighbours)
            members = _gather_rows(points, index) - centres[:, :, None]
            if values is not None:
                members = torch.cat([members, _gather_rows(values, index)], dim=-1)
            values = network(members.permute(0, 3, 1, 2)).max(dim=-1)[0].transpose(1, 2)
            points = centres
        assert values is not None
        encoded_BCN = self.encode(torch.cat([points, values], dim=-1).transpose(1, 2))
        return {"logits": self.head(encoded_BCN.max(dim=-1)[0])}


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows by advanced indexing: `values` (B, N, C), `index` (B, ...) -> (B, ..., C)."""
    clouds = torch.arange(len(values)).view(-1, *(1,) * (index.ndim - 1))
    return values[clouds, index]


def _to_convolutions(layers: Iterable[nn.Module], *, num_axes: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            _to_convolution(layer, num_axes=num_axes) if isinstance(layer, LinearNorm) else copy.deepcopy(layer)
            for layer in layers
        )
    )


def _to_convolution(layer: LinearNorm, *, num_axes: int) -> nn.Sequential:
    """Convert a linear layer to a convolution of size 1 over `num_axes` axes, channels first, with its weights."""
    norm = (nn.BatchNorm2d if num_axes == 2 else nn.BatchNorm1d)(layer.norm.num_features, eps=layer.norm.eps)
    norm = norm.to(layer.norm.weight.dtype)
    norm.load_state_dict(layer.norm.state_dict())
    return nn.Sequential(_linear_to_convolution(layer.linear, num_axes=num_axes), norm, copy.deepcopy(layer.activation))


def _linear_to_convolution(linear: nn.Linear, *, num_axes: int) -> nn.Module:
    if num_axes == 0:
        return copy.deepcopy(linear)
    conv_class = nn.Conv1d if num_axes == 1 else nn.Conv2d
    convolution = conv_class(linear.in_features, linear.out_features, 1, bias=linear.bias is not None).to(
        linear.weight.dtype
    )
    weight = linear.weight.detach().reshape(*linear.weight.shape, *(1,) * num_axes)
    convolution.load_state_dict(linear.state_dict() | {"weight": weight})
    return convolution
