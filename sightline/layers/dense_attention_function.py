"""Dense vector attention as one autograd function, in chunks of points.

Row i receives the sum over its neighbours j of a_ij * u_ij, all of D channels, with
    h_ij = relu(P (p_i - p_j) + b)              z_ij = relu(S h_ij + query_i - key_j)
    u_ij = V h_ij + value_j                     a_ij = softmax over j of W z_ij
Backward recomputes h and u, and those of a and z that were not stored. Four bytes are stored for each channel of an
edge: a in single precision, a and z in half, neither in double. So a step computes ten to twelve maps of edges instead
of nine, and stores a fifth of their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sightline.layers.edge_products import map_edges, map_gradient

__all__ = ["DenseAttentionFunction"]

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
