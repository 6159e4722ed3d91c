"""Textbook form of a Point Transformer, with the weights of ours: what a user would write or copy.

As in the authors' code every layer searches its own neighbours, for keys and again for values, and every edge is
materialised. Geometry is that of `textbook`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import textbook
from sightline.layers.mlp import LinearNorm
from sightline.models.point_transformer import PointTransformer


class TextbookPointTransformer(nn.Module):
    """Textbook Point Transformer: points (B, N, 3) -> logits (B, N, num_classes), with our model's parameters.

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
        samples = textbook.masked_farthest_points(points, num_samples, 0)
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
        distances = textbook.expanded_distances(queries, points)
        return distances.topk(min(num_neighbours, points.shape[1]), dim=-1, largest=False)[1]


def _normalize(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    normalized: Tensor = norm(values.flatten(0, -2))
    return normalized.view(values.shape)


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows by advanced indexing: `values` (B, N, C), `index` (B, ...) -> (B, ..., C)."""
    clouds = torch.arange(len(values)).view(-1, *(1,) * (index.ndim - 1))
    return values[clouds, index]
