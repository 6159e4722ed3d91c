"""Vector attention of the dense Point Transformer: one weight per channel of every neighbour.

`PlainDenseVectorAttention` writes out the features of every edge: the tested reference. `DenseVectorAttention` has the
same numbers and gradients, processes chunks of queries and recomputes most edge features in backward.

Dense vector attention as one autograd function, in chunks of points.

Row i receives the sum over its neighbours j of a_ij * u_ij, all of D channels, with
    h_ij = relu(P (p_i - p_j) + b)              z_ij = relu(S h_ij + query_i - key_j)
    u_ij = V h_ij + value_j                     a_ij = softmax over j of W z_ij
Backward recomputes h and u, and those of a and z that were not stored. Four bytes are stored for each channel of an
edge: a in single precision, a and z in half, neither in double. So a step computes ten to twelve maps of edges instead
of nine, and stores a fifth of their memory.

Transition down and transition up of the dense Point Transformer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sightline.layers.edge_conv import map_edges, map_gradient, map_points
from sightline.layers.mlp import LinearNorm
from sightline.layers.set_abstraction import PlainPlaceGroup, RelativeGroup, gather_rows
from sightline.ops import farthest_points, gather_points, interpolate
from sightline.ops.grouping import assert_rows
from sightline.ops.waits import is_recording, is_transformed

_ENTRIES_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}
"""Numbers of one tensor of edges in a chunk: on the CPU 2 MB in float32, which fit into the cache."""
_STORED_BYTES = 4
"""Bytes stored per channel of an edge, from the forward pass to the backward one."""

_NUM_ARGUMENTS = 11


class _Maps(NamedTuple):
    """Linear maps: P (D, 3), b (D,), V, S and W (D, D)."""

    place: Tensor
    bias: Tensor
    value: Tensor
    score: Tensor
    weight: Tensor


class _Rows(NamedTuple):
    """Tensors of all rows: the points (R, 3), their neighbours (R, K), and query, key and value (R, D)."""

    points: Tensor
    nearest: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class _Edges(NamedTuple):
    """Tensors of the edges of some rows (M, K, ...): p_i - p_j, h, z and a."""

    relative: Tensor
    hidden: Tensor
    scored: Tensor
    attention: Tensor


class DenseAttentionFunction(Function):
    """Autograd function of dense vector attention: `apply(keeps, *rows, P, b, V, S, W, bias)`.

    The rows are points (R, 3), index (R, K), query, key and value (R, D); the result is (R, D). The maps are cast to
    the dtype of the rows, so that the caller chooses half precision. The bias of W changes nothing; its gradient is
    exactly 0. `keeps` is True if backward will follow.
    """

    @staticmethod
    def forward(ctx: Any, keeps: bool, *inputs: Tensor) -> Tensor:
        """Compute the attended values (R, D) and store what backward needs."""
        rows, maps = _Rows(*inputs[:5]), _cast_maps(inputs)
        received = torch.empty_like(rows.query)
        ctx.num_kept = _STORED_BYTES // received.element_size() if keeps else 0
        stored: list[Tensor] = []
        with torch.autocast(rows.points.device.type, enabled=False):
            for part in _parts(rows):
                edges = _compute_edges(part, rows, maps)
                values = _compute_values(part, rows, edges, maps)
                torch.sum(values.mul_(edges.attention), dim=1, out=received[part])
                stored += (edges.attention, edges.scored)[: ctx.num_kept]
        ctx.save_for_backward(*inputs, received, *stored)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of all inputs from that of the attended values (R, D)."""
        saved = iter(ctx.saved_tensors)
        inputs, received = list(islice(saved, _NUM_ARGUMENTS)), next(saved)
        rows, maps = _Rows(*inputs[:5]), _cast_maps(inputs)
        back = _Backward(rows, maps, has_points=ctx.needs_input_grad[1])
        with torch.autocast(rows.points.device.type, enabled=False):
            for part in _parts(rows):
                edges = _compute_edges(part, rows, maps, kept=tuple(islice(saved, ctx.num_kept)))
                back.add(part, edges, received[part], gradients[0][part])
        grads = [*back.to_rows(), *back.to_maps, torch.zeros_like(inputs[-1])]
        cast_grads = (
            None if grad is None else grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)
        )
        return None, *cast_grads


class _Backward:
    """Gradients of rows and maps, accumulated over chunks in at least float32."""

    def __init__(self, rows: _Rows, maps: _Maps, *, has_points: bool) -> None:
        self._rows, self._maps = rows, maps
        dtype = torch.promote_types(rows.query.dtype, torch.float32)
        self._to_points = torch.zeros_like(rows.points) if has_points else None
        self._to_query = torch.empty_like(rows.query)
        self._to_key, self._to_value = (torch.zeros_like(tensor, dtype=dtype) for tensor in (rows.key, rows.value))
        self.to_maps = [torch.zeros_like(tensor, dtype=dtype) for tensor in maps]
        self._value_back, self._score_back, self._weight_back = (tensor.mT.contiguous() for tensor in maps[2:])

    def add(self, part: slice, edges: _Edges, received: Tensor, gradient: Tensor) -> None:
        """Add the gradients of the edges of one chunk of rows."""
        index, (relative, hidden, scored, attention) = self._rows.nearest[part], edges
        values = _compute_values(part, self._rows, edges, self._maps)
        to_values = attention * gradient[:, None]
        # Of a softmax: what reaches a weight, less the mean of what reaches all, which here is the row received.
        to_weights = values.sub_(received[:, None]).mul_(to_values)
        to_scores = torch.ops.aten.threshold_backward(map_edges(to_weights, self._weight_back), scored, 0)
        to_hidden = map_edges(to_scores, self._score_back).add_(map_edges(to_values, self._value_back))
        to_places = torch.ops.aten.threshold_backward(to_hidden, hidden, 0)
        _, _, to_value_map, to_score_map, to_weight_map = self.to_maps
        to_value_map += map_gradient(hidden, to_values)
        to_score_map += map_gradient(hidden, to_scores)
        to_weight_map += map_gradient(scored, to_weights)
        self._add_places(part, relative, to_places)
        torch.sum(to_scores, dim=1, out=self._to_query[part])
        self._to_key.index_add_(0, index.flatten(), to_scores.flatten(0, 1).to(self._to_key.dtype), alpha=-1)
        self._to_value.index_add_(0, index.flatten(), to_values.flatten(0, 1).to(self._to_value.dtype))

    def _add_places(self, part: slice, relative: Tensor, to_places: Tensor) -> None:
        to_place_map, to_bias = self.to_maps[:2]
        to_place_map += (relative.flatten(0, 1).mT @ to_places.flatten(0, 1)).mT  # ten times as quick as its transpose
        to_bias += to_places.sum(dim=(0, 1))
        if self._to_points is not None:
            to_relative = (to_places @ self._maps.place).to(self._to_points.dtype)
            self._to_points[part] += to_relative.sum(dim=1)
            self._to_points.index_add_(0, self._rows.nearest[part].flatten(), to_relative.flatten(0, 1), alpha=-1)

    def to_rows(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of the rows, in their order."""
        return self._to_points, None, self._to_query, self._to_key, self._to_value


def _cast_maps(inputs: tuple[Tensor, ...] | list[Tensor]) -> _Maps:
    return _Maps(*(tensor.to(inputs[2].dtype) for tensor in inputs[5:10]))


def _parts(rows: _Rows) -> Iterator[slice]:
    entries = _ENTRIES_AT_ONCE.get(rows.query.device.type, _ENTRIES_AT_ONCE["cpu"])
    size = max(1, entries // (rows.nearest.shape[1] * rows.query.shape[1]))
    return (slice(first, first + size) for first in range(0, len(rows.query), size))


def _compute_edges(part: slice, rows: _Rows, maps: _Maps, *, kept: tuple[Tensor, ...] = ()) -> _Edges:
    """Compute the edge tensors of a chunk; `kept` are a and z if they were stored."""
    index = rows.nearest[part]
    relative = (rows.points[part][:, None] - F.embedding(index, rows.points)).to(rows.query.dtype)
    hidden = torch.addmm(maps.bias, relative.flatten(0, 1), maps.place.mT).relu_().view(*index.shape, -1)
    if len(kept) == 2:
        return _Edges(relative, hidden, kept[1], kept[0])
    scored = map_edges(hidden, maps.score)
    scored.add_(rows.query[part][:, None]).sub_(F.embedding(index, rows.key)).relu_()
    attention = kept[0] if kept else map_edges(scored, maps.weight).softmax(dim=1)
    return _Edges(relative, hidden, scored, attention)


def _compute_values(part: slice, rows: _Rows, edges: _Edges, maps: _Maps) -> Tensor:
    return map_edges(edges.hidden, maps.value).add_(F.embedding(rows.nearest[part], rows.value))


class PlainDenseVectorAttention(nn.Module):
    """Vector attention with a residual: each point adds its neighbours' values, weighted per channel. Plain form.

    `forward(points (B, N, 3), features (B, N, channels), index (B, N, K)) -> (B, N, channels)`, with `index` the
    neighbours j of each point i. With x = `enter`(features) of `width` channels, d_ij = `place`(p_i - p_j) and
    a_ij = softmax over j of `weigh`(query(x)_i - key(x)_j + d_ij) / sqrt(width), the output is features +
    `leave`(sum over j of a_ij * (value(x)_j + d_ij)). Stores about five times B*N*K*width numbers for backward.
    Source: Zhao et al. 2021 (Point Transformer), equations 3 and 4; the root and the width are those of
    qq456cvb/Point-Transformers.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(channels, width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.place = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.leave = nn.Linear(width, channels)

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, channels), index (B, N, K) -> (B, N, channels)."""
        return features + self.leave(self._attend(points, self.enter(features), index))

    def _attend(self, points: Tensor, entered: Tensor, index: Tensor) -> Tensor:
        """Return the weighted sum over the neighbours, (B, N, width)."""
        position_code = self.place(points[:, :, None] - gather_points(points, index))
        values = gather_points(self.value(entered), index) + position_code
        return (self.attention(entered, position_code, index) * values).sum(dim=2)

    def attention(self, entered: Tensor, place: Tensor, index: Tensor) -> Tensor:
        """Return the attention weights (B, N, K, width) of each point over its neighbours; their sum over K is 1."""
        difference = self.query(entered)[:, :, None] - gather_points(self.key(entered), index)
        return (self.weigh(difference + place) / math.sqrt(self.width)).softmax(dim=2)


class DenseVectorAttention(PlainDenseVectorAttention):
    """Fused `PlainDenseVectorAttention`, with a fraction of its memory and time.

    Same state, same numbers, same gradients.
    Linear parts are applied to points: with h_ij the input of the last map of `place`, the first map of `weigh` is
    a map of point i, less one of point j, plus one map of h_ij that is the product of two. The last bias of `weigh`
    adds the same to all neighbours, which a softmax cancels: its gradient is exactly 0. Stores B*N*K*width times
    four bytes for backward, and nothing without gradients. Under torch.compile it is the plain form. It has no second
    derivative.
    Source: as the plain form.
    """

    def _attend(self, points: Tensor, entered: Tensor, index: Tensor) -> Tensor:
        # None of these looks into a function with a backward of its own.
        if torch.compiler.is_compiling() or is_recording() or is_transformed():
            return super()._attend(points, entered, index)
        assert_rows(index, points, num_queries=points.shape[1])
        first, last = cast(nn.Linear, self.place[0]), cast(nn.Linear, self.place[2])
        score, weight = cast(nn.Linear, self.weigh[0]), cast(nn.Linear, self.weigh[2])
        offset = F.linear(last.bias, score.weight, score.bias)
        query_terms = map_points(map_points(entered, self.query.weight), score.weight) + offset
        key_terms = map_points(map_points(entered, self.key.weight), score.weight)
        value_terms = map_points(entered, self.value.weight) + last.bias
        received = DenseAttentionFunction.apply(
            torch.is_grad_enabled(),
            points.flatten(0, 1),
            _to_packed_rows(index),
            *(tensor.to(entered.dtype).flatten(0, 1) for tensor in (query_terms, key_terms, value_terms)),
            first.weight,
            first.bias,
            last.weight,
            map_points(score.weight, last.weight.mT),
            weight.weight / math.sqrt(self.width),
            weight.bias,
        )
        return received.view(entered.shape)


def _to_packed_rows(index: Tensor) -> Tensor:
    """Convert neighbours (B, N, K) to rows of the packed points of all clouds: (B*N, K)."""
    num_clouds, num_points, _ = index.shape
    starts = torch.arange(num_clouds, device=index.device) * num_points
    return (index + starts[:, None, None]).flatten(0, 1)


_STRIDE = 4


class DenseTransitionDown(nn.Module):
    """Transition down: farthest-point sampling to a quarter, and max pooling of an MLP over the neighbours.

    `forward(points (B, N, 3), features (B, N, in_channels), index (B, N, K)) -> (centres (B, M, 3), features
    (B, M, out_channels))` with M = max(1, N // 4) and `index` the nearest points of every point, a centre's among them.
    Sampling starts at the first point. Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition down;
    qq456cvb/Point-Transformers, which adds the members' positions relative to the centre.
    """

    def __init__(self, *, in_channels: int, out_channels: int, fused: bool) -> None:
        super().__init__()
        group = RelativeGroup if fused else PlainPlaceGroup
        self.group = group(in_channels=in_channels, widths=(out_channels, out_channels), first="place")

    def forward(self, points: Tensor, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, N, 3), features (B, N, C), index (B, N, K) -> centres (B, M, 3), features (B, M, D)."""
        chosen = farthest_points(points, num_samples=max(1, points.shape[1] // _STRIDE))
        centres = gather_rows(points, chosen)
        return centres, self.group.forward_groups(points, features, centres, gather_rows(index, chosen))


class DenseTransitionUp(nn.Module):
    """Transition up: interpolate coarse features at the fine points and add the projected skip features.

    `forward(points (B, N, 3), features (B, N, out_channels), centres (B, M, 3), coarse (B, M, in_channels)) -> (B, N,
    out_channels)`; the three nearest centres, weighted by 1 / (d^2 + 1e-8).
    Source: Zhao et al. 2021 (Point Transformer), section 3.4, transition up.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = _relu_layer(in_channels, out_channels)
        self.skip = _relu_layer(out_channels, out_channels)

    def forward(self, points: Tensor, features: Tensor, centres: Tensor, coarse: Tensor) -> Tensor:
        """Map points (B, N, 3), features (B, N, C), centres (B, M, 3), coarse (B, M, D) -> (B, N, C)."""
        carried = interpolate(self.coarse(coarse), points=centres, queries=points)
        return carried + self.skip(features)


def _relu_layer(in_channels: int, out_channels: int) -> LinearNorm:
    return LinearNorm(in_channels=in_channels, out_channels=out_channels, has_bias=True, activation=nn.ReLU())
