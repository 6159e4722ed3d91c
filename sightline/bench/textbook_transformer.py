"""The usual form of a Point Transformer, with the weights of ours: what a user would write or copy.

As in the authors' code every layer searches its own neighbours, for keys and again for values, and every edge is
written out. Geometry is that of `textbook`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sightline.bench import textbook
from sightline.layers.mlp import LinearNorm
from sightline.models.point_transformer import PointTransformer

__all__ = ["TextbookPointTransformer"]


class TextbookPointTransformer(nn.Module):
    """`forward(points=(B, N, 3))["logits"]` (B, N, num_classes) of a Point Transformer of ours, parameters as there.

    Source: Zhao et al. 2021 (Point Transformer), figure 3.
    """

    def __init__(self, ours: PointTransformer) -> None:
        super().__init__()
        # Modules of torch's own alone: the fused layers are of it, and their forward is not called.
        layers: Any = copy.deepcopy(ours)
        self.stages, self.decoder, self.head = layers.stages, layers.decoder, layers.head
        self.strides, self.num_neighbours = ours.strides, ours.num_neighbours

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        clouds, levels, values = [points], [], points
        for stage, stride, count in zip(self.stages, self.strides, self.num_neighbours, strict=True):
            if stride == 1:
                values = stage.down.edge(values)
            else:
                points, values = _down(stage.down.edge, points, values, points.shape[1] // stride, count)
                clouds.append(points)
            for block in stage.blocks:
                values = _block(block, points, values, count)
            levels.append(values)
        context = self.decoder.context
        of_cloud = context.mean(values.mean(dim=1)).relu()
        values = context.mix(torch.cat([values, of_cloud[:, None].repeat(1, values.shape[1], 1)], dim=-1))
        values = _block(self.decoder.blocks[-1], points, values, self.num_neighbours[-1])
        for place in reversed(range(len(self.decoder.ups))):
            up = self.decoder.ups[place]
            carried = _interpolate(up.coarse(values), clouds[place + 1], clouds[place])
            values = up.skip(levels[place]) + carried
            values = _block(self.decoder.blocks[place], clouds[place], values, self.num_neighbours[place])
        return {"logits": self.head(values)}


def _block(block: Any, points: Tensor, values: Tensor, num_neighbours: int) -> Tensor:
    attended = _attention(block.attention, points, block.before(values), num_neighbours)
    attended = _normed(block.norm, attended).relu()
    return (values + block.after(attended)).relu()


def _attention(layer: Any, points: Tensor, values: Tensor, num_neighbours: int) -> Tensor:
    query, key, value = layer.query(values), layer.key(values), layer.value(values)
    place, key = _grouped(points, key, num_neighbours)
    _, value = _grouped(points, value, num_neighbours)  # searched a second time, as in that code
    code = layer.code(layer.position(place))
    relation = key - query[:, :, None] + code
    weight = torch.softmax(layer.score(layer.reduce(_normed(layer.norm, relation).relu())), dim=2)
    messages = value + code
    shared = messages.view(*messages.shape[:3], -1, weight.shape[-1]) * weight.unsqueeze(3)
    return shared.sum(dim=2).view(values.shape)


def _grouped(points: Tensor, values: Tensor, num_neighbours: int) -> tuple[Tensor, Tensor]:
    """Of every point's neighbours: where they are, relative to it, and what they carry."""
    index = _nearest(points, points, num_neighbours)
    return _rows(points, index) - points[:, :, None], _rows(values, index)


def _down(
    edge: LinearNorm, points: Tensor, values: Tensor, num_samples: int, num_neighbours: int
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        chosen = textbook.masked_farthest_points(points, num_samples, 0)
    centres = _rows(points, chosen)
    index = _nearest(points, centres, num_neighbours)
    members = torch.cat([_rows(points, index) - centres[:, :, None], _rows(values, index)], dim=-1)
    return centres, edge(members).max(dim=2)[0]


def _interpolate(values: Tensor, points: Tensor, queries: Tensor) -> Tensor:
    index = _nearest(points, queries, 3)
    weights = 1.0 / ((_rows(points, index) - queries[:, :, None]).norm(dim=-1) + 1e-8)
    weights = weights / weights.sum(dim=2, keepdim=True)
    return (_rows(values, index) * weights[..., None]).sum(dim=2)


def _nearest(points: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    with torch.no_grad():
        distances = textbook.expanded_distances(queries, points)
        return distances.topk(min(num_neighbours, points.shape[1]), dim=-1, largest=False)[1]


def _normed(norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
    normed: Tensor = norm(values.flatten(0, -2))
    return normed.view(values.shape)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows by advanced indexing: `values` (B, N, C), `index` (B, ...) -> (B, ..., C)."""
    clouds = torch.arange(len(values)).view(-1, *(1,) * (index.ndim - 1))
    return values[clouds, index]
