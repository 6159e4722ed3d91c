"""Textbook forms of point networks and of their geometry: what a user would write or copy, as in the papers' code.

The package is timed against them, and nothing else uses them. Shapes are those of the package; networks have the
weights of ours. In convolutional networks every edge and group feature is materialised, channels first, and passes a
convolution of size 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.areas.clouds.models.dgcnn import DGCNN, DGCNNEncoder
from sightline.areas.clouds.models.pct import PCT, OffsetAttention
from sightline.areas.clouds.models.pointnet2 import PointNet2
from sightline.areas.scenes.point_transformer import PointTransformer
from sightline.layers.mlp import LinearNorm

_CHUNK_SIZE = 1024


def expanded_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Compute squared distances (B, M, N) as -2ab + a^2 + b^2. Source: the formula of both papers' code."""
    distances = -2 * torch.matmul(queries, points.transpose(1, 2))
    distances += (queries**2).sum(dim=-1)[:, :, None]
    distances += (points**2).sum(dim=-1)[:, None, :]
    return distances


def neighbours_by_topk(values_BCN: Tensor, num_neighbours: int) -> Tensor:
    """Find neighbours (B, N, K) of clouds (B, C, N): all negated distances at once, then `topk`.

    Source: Wang et al. 2019, section 3.1, as in the authors' code.
    """
    inner = -2 * torch.matmul(values_BCN.transpose(2, 1), values_BCN)
    squares = torch.sum(values_BCN**2, dim=1, keepdim=True)
    negated = -squares - inner - squares.transpose(2, 1)
    return negated.topk(k=num_neighbours, dim=-1)[1]


def neighbours_by_topk_in_blocks(points: Tensor, num_neighbours: int) -> Tensor:
    """Find neighbours (B, N, K) in blocks of queries, for clouds whose distances do not fit into memory."""
    index = torch.empty((*points.shape[:2], num_neighbours), dtype=torch.int64)
    for start in range(0, points.shape[1], _CHUNK_SIZE):
        block = slice(start, start + _CHUNK_SIZE)
        index[:, block] = expanded_distances(points[:, block], points).topk(num_neighbours, largest=False).indices
    return index


def masked_farthest_points(points: Tensor, num_samples: int, start: int) -> Tensor:
    """Sample farthest points (B, num_samples): one pass over the cloud per sample, with a boolean mask.

    Source: Qi et al. 2017 (PointNet++), section 3.2, as in its PyTorch ports.
    """
    num_clouds, num_points, num_channels = points.shape
    samples = torch.zeros(num_clouds, num_samples, dtype=torch.long, device=points.device)
    distance = torch.full((num_clouds, num_points), 1e10, dtype=points.dtype, device=points.device)
    farthest = torch.full((num_clouds,), start, dtype=torch.long, device=points.device)
    clouds = torch.arange(num_clouds, dtype=torch.long, device=points.device)
    for sample in range(num_samples):
        samples[:, sample] = farthest
        centre = points[clouds, farthest, :].view(num_clouds, 1, num_channels)
        centre_distance = torch.sum((points - centre) ** 2, -1)
        mask = centre_distance < distance
        distance[mask] = centre_distance[mask]
        farthest = torch.max(distance, -1)[1]
    return samples


def first_in_ball(points: Tensor, centres: Tensor, radius: float, num_neighbours: int) -> Tensor:
    """Find points in balls (B, M, K): indices outside become N, are sorted to the end, and replaced by the first.

    Source: Qi et al. 2017 (PointNet++), section 3.2, as in its PyTorch ports.
    """
    num_clouds, num_points, _ = points.shape
    index = (
        torch.arange(num_points, device=points.device).view(1, 1, num_points).repeat(num_clouds, centres.shape[1], 1)
    )
    index[expanded_distances(centres, points) > radius**2] = num_points
    index = index.sort(dim=-1)[0][:, :, :num_neighbours]
    first = index[:, :, :1].repeat(1, 1, num_neighbours)
    mask = index == num_points
    index[mask] = first[mask]
    return index


def interpolate_three(features: Tensor, points: Tensor, queries: Tensor) -> Tensor:
    """Interpolate features (B, M, F): all distances sorted, the three nearest weighted by 1 / (d^2 + 1e-8).

    Source: Qi et al. 2017 (PointNet++), equation 2, as in its PyTorch ports.
    """
    distances, index = expanded_distances(queries, points).sort(dim=-1)
    weights = 1.0 / (distances[:, :, :3] + 1e-8)
    weights = weights / weights.sum(dim=2, keepdim=True)
    clouds = torch.arange(len(points)).view(-1, 1, 1)
    return (features[clouds, index[:, :, :3]] * weights[..., None]).sum(dim=2)


# --- convolutional networks ------------------------------------------------------------------------------------------


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
            index = neighbours_by_topk(values_BCN, self.num_neighbours)
        first = torch.arange(num_clouds, device=index.device).view(-1, 1, 1) * num_points
        index = (index + first).view(-1)
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
            samples = masked_farthest_points(points, num_samples, 0)
            values = values_BCN.transpose(1, 2)
            centres, centre_values = _gather_rows(points, samples), _gather_rows(values, samples)
            index = expanded_distances(centres, points).topk(num_neighbours, dim=-1, largest=False)[1]
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
            centres = _gather_rows(points, masked_farthest_points(points, num_samples, 0))
            index = first_in_ball(points, centres, radius, num_neighbours)
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
    clouds = torch.arange(len(values), device=values.device).view(-1, *(1,) * (index.ndim - 1))
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


# --- Point Transformer -----------------------------------------------------------------------------------------------


class TextbookPointTransformer(nn.Module):
    """Textbook Point Transformer: points (B, N, 3) -> logits (B, N, num_classes), with our model's parameters.

    As in the authors' code every layer searches its own neighbours, for keys and again for values.
    Source: Zhao et al. 2021 (Point Transformer), figure 3.
    """

    def __init__(self, ours: PointTransformer) -> None:
        super().__init__()
        # Only torch's own modules inside the layers are called, not the forward methods of fused layers.
        layers: Any = copy.deepcopy(ours)
        self.stages, self.decoder, self.head = layers.stages, layers.decoder, layers.head
        self.strides, self.num_neighbours = ours.strides, ours.num_neighbours

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        clouds, levels, values = [points], [], points
        for stage, stride, count in zip(self.stages, self.strides, self.num_neighbours, strict=True):
            if stride == 1:
                values = stage.down.edge(values)
            else:
                points, values = _downsample(stage.down.edge, points, values, points.shape[1] // stride, count)
                clouds.append(points)
            for block in stage.blocks:
                values = _apply_block(block, points, values, count)
            levels.append(values)
        context = self.decoder.context
        cloud_context = context.mean(values.mean(dim=1)).relu()
        values = context.mix(torch.cat([values, cloud_context[:, None].repeat(1, values.shape[1], 1)], dim=-1))
        values = _apply_block(self.decoder.blocks[-1], points, values, self.num_neighbours[-1])
        for level in reversed(range(len(self.decoder.ups))):
            up = self.decoder.ups[level]
            interpolated = _interpolate(up.coarse(values), clouds[level + 1], clouds[level])
            values = up.skip(levels[level]) + interpolated
            values = _apply_block(self.decoder.blocks[level], clouds[level], values, self.num_neighbours[level])
        return {"logits": self.head(values)}


def _apply_block(block: Any, points: Tensor, values: Tensor, num_neighbours: int) -> Tensor:
    attended = _attend(block.attention, points, block.before(values), num_neighbours)
    attended = _normalize(block.norm, attended).relu()
    return (values + block.after(attended)).relu()


def _attend(layer: Any, points: Tensor, values: Tensor, num_neighbours: int) -> Tensor:
    query, key, value = layer.query(values), layer.key(values), layer.value(values)
    position, key = _group_neighbours(points, key, num_neighbours)
    _, value = _group_neighbours(points, value, num_neighbours)  # searched a second time, as in that code
    code = layer.code(layer.position(position))
    relation = key - query[:, :, None] + code
    weight = torch.softmax(layer.score(layer.reduce(_normalize(layer.norm, relation).relu())), dim=2)
    messages = value + code
    shared = messages.view(*messages.shape[:3], -1, weight.shape[-1]) * weight.unsqueeze(3)
    return shared.sum(dim=2).view(values.shape)


def _group_neighbours(points: Tensor, values: Tensor, num_neighbours: int) -> tuple[Tensor, Tensor]:
    """Gather relative positions (B, N, K, 3) and values (B, N, K, C) of every point's neighbours."""
    index = _find_nearest(points, points, num_neighbours)
    return _gather_rows(points, index) - points[:, :, None], _gather_rows(values, index)


def _downsample(
    edge: LinearNorm, points: Tensor, values: Tensor, num_samples: int, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        samples = masked_farthest_points(points, num_samples, 0)
    centres = _gather_rows(points, samples)
    index = _find_nearest(points, centres, num_neighbours)
    members = torch.cat([_gather_rows(points, index) - centres[:, :, None], _gather_rows(values, index)], dim=-1)
    return centres, edge(members).max(dim=2)[0]


def _interpolate(values: Tensor, points: Tensor, queries: Tensor) -> Tensor:
    index = _find_nearest(points, queries, 3)
    weights = 1.0 / ((_gather_rows(points, index) - queries[:, :, None]).norm(dim=-1) + 1e-8)
    weights = weights / weights.sum(dim=2, keepdim=True)
    return (_gather_rows(values, index) * weights[..., None]).sum(dim=2)


def _find_nearest(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    with torch.no_grad():
        distances = expanded_distances(queries, points)
        return distances.topk(min(num_neighbours, points.shape[1]), dim=-1, largest=False)[1]


def _normalize(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    normalized: Tensor = norm(values.flatten(0, -2))
    return normalized.view(values.shape)
