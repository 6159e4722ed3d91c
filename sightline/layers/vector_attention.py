"""Vector attention among neighbours (Point Transformer): one attention weight per channel group of a neighbour.

`PlainVectorAttention` writes out the features of every edge: the tested reference. `VectorAttention` has the same
numbers and gradients and stores an eighth of the channels of each edge. An edge is k_j - q_i, maps of
points, plus a map of three numbers: kernels recompute it wherever it is needed, in chunks of edges before a matrix
product. In backward the gradient of the batch statistics is a constant and a slope per channel, so its sum over the
edges of a point is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sightline.layers.batch_norm import (
    ShiftedSums,
    batch_statistics_gradients,
    normalisation_statistics,
    uses_batch_statistics,
)
from sightline.layers.mlp import LinearNorm
from sightline.layers.pyramid import Edges
from sightline.ops.numba_kernels import can_use_numba, cpu_autocast_dtype
from sightline.ops.points.attention_scores import attention_scores, mapped_sums, score_gradients
from sightline.ops.points.grouping import assert_rows
from sightline.ops.points.vector_attention import (
    SHARE_PLANES,
    EdgeGradients,
    edge_sums,
    norm_sums,
    position_gradient_sums,
    position_moments,
    rectified_gradients,
    rectified_positions,
    relu_edges,
    weighted_messages,
    weighted_messages_backward,
)


class AttentionWeights(NamedTuple):
    """Learned tensors of an attention without its queries, keys and values, in the order of their use."""

    position: Tensor
    position_bias: Tensor
    position_scale: Tensor
    position_shift: Tensor
    code: Tensor
    code_bias: Tensor
    relation_scale: Tensor
    relation_shift: Tensor
    reduce: Tensor
    reduce_bias: Tensor
    reduce_scale: Tensor
    reduce_shift: Tensor
    score: Tensor
    score_bias: Tensor


_ENTRIES_AT_ONCE = 2**18
"""Edges times channels of a chunk: 1 MB in float32, which stays in the cache between a kernel and a product."""


class _Normalised(NamedTuple):
    """Statistics of a batch norm in the forward pass: `scale` is the inverse deviation times the weight. All (C,)."""

    norm: nn.BatchNorm1d
    num_values: Tensor | int | None
    mean: Tensor
    inverse_deviation: Tensor
    scale: Tensor

    @classmethod
    def from_sums(cls, norm: nn.BatchNorm1d, weight: Tensor, sums: ShiftedSums | None) -> _Normalised:
        count, mean, inverse_deviation = normalisation_statistics(norm, sums, weight.dtype)
        return cls(norm, count, mean, inverse_deviation, weight * inverse_deviation)

    def statistics_terms(self, to_bias: Tensor, to_scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of the norm's weight, and the `constant` and `slope` of its statistics, (C,) each.

        The statistics lower the gradient of a value x by constant + slope * (x - mean). `to_scaled` is the sum of
        gradient times distance from the mean.
        """
        to_weight = to_scaled * self.inverse_deviation
        constant, slope = batch_statistics_gradients(
            self.norm,
            self.num_values,
            grad_bias=to_bias,
            to_weight=to_weight,
            scale=torch.ones_like(self.scale),
            inverse_deviation=self.inverse_deviation,
        )
        return to_weight, constant, slope


class FusedVectorAttention(Function):
    """Autograd function: the attended values (P, C) of queries, keys and values (P, C).

    Shapes: P points, K neighbours, C channels, G weights of C / G channels each. An edge carries near_j + own_i +
    code h, where near is the key, own the bias of the code less the query, and h the rectified map of the edge's
    relative position. Backward is written out, and uses forward's autocast.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(
        ctx: Any,
        edges: Edges,
        norms: tuple[nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm1d],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """Compute the attended values (P, C) of query, key and value (P, C) over the edges (P, K)."""
        learned, index, count = AttentionWeights(*weights), edges.index, edges.count
        position, rectified_position = _rectify_positions(edges, norms[0], learned)
        code, query_terms = learned.code.mT.contiguous(), learned.code_bias - query
        relation = _relation_norm(edges, norms[1], learned, key, query_terms, rectified_position)
        query_terms -= relation.mean
        mapped = _map_relations(edges, learned, relation, key, query_terms, rectified_position)
        reduced = _reduction_norm(edges, norms[2], learned, mapped)
        # The bias of the scores is the same for all neighbours of a point: their weights do not depend on it.
        norm = {"mean": reduced.mean, "scale": reduced.scale, "shift": learned.reduce_shift}
        weight = attention_scores(mapped, learned.score, count, **norm).softmax(dim=1)
        value = value + learned.code_bias  # the weights add up to one
        ctx.edges, ctx.norms = edges, (position, relation, reduced)
        ctx.save_for_backward(key, query_terms, value, rectified_position, mapped, weight, *weights)
        return weighted_messages(value, code, rectified_position, weight, index, count)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Compute the gradients of all inputs from that of the attended values (P, C)."""
        key, query_terms, value, rectified_position, mapped, weight, *weights = ctx.saved_tensors
        edges, (position, relation, reduced), learned = ctx.edges, ctx.norms, AttentionWeights(*weights)
        incoming = gradients[0].contiguous()
        to_value, to_code, to_position, to_weight = weighted_messages_backward(
            incoming, value, learned.code.mT.contiguous(), rectified_position, weight, edges.index, edges.count
        )
        through = _through_reduction(edges, learned, reduced, mapped, weight, to_weight)
        grads = _through_relation(
            edges, learned, relation, key, query_terms, rectified_position, through.to_mapped, to_position
        )
        position_grads = _through_position(edges, learned, position, rectified_position, to_position, grads)
        grad_query_sum = grads.to_query.sum(dim=0)
        return (
            *(None, None, grads.to_query.neg_(), grads.to_key, to_value),
            *position_grads,
            grads.to_code + to_code.mT,
            incoming.sum(dim=0) + grad_query_sum,
            *(grads.to_scale, grads.to_shift, grads.to_reduce, through.to_bias),
            *(through.to_scale, through.to_shift, through.to_score, torch.zeros_like(learned.score_bias)),
        )


# --- forward, part by part -------------------------------------------------------------------------------------------


def _tile(vector: Tensor, edges: Edges) -> Tensor:
    """Repeat a vector (G,) once per neighbour, (K G,): narrow tensors (P, K G) are processed in long rows."""
    return vector.repeat(edges.index.shape[1])


def _sum_edges(narrow: Tensor, edges: Edges) -> Tensor:
    """Sum (P, K G) over the edges: (G,)."""
    return narrow.sum(dim=0).view(edges.index.shape[1], -1).sum(dim=0)


def _reduction_norm(edges: Edges, norm: nn.BatchNorm1d, learned: AttentionWeights, mapped: Tensor) -> _Normalised:
    """Return the norm of the first map of every relation, (P, K, G)."""
    sums = None
    if uses_batch_statistics(norm):
        origin = mapped[:, 0].mean(dim=0)  # of every point's edge with itself, or with its twin
        sums = ShiftedSums(origin.double(), *mapped_sums(mapped, origin, edges.count), edges.num_edges)
    return _Normalised.from_sums(norm, learned.reduce_scale, sums)


def _rectify_positions(edges: Edges, norm: nn.BatchNorm1d, learned: AttentionWeights) -> tuple[_Normalised, Tensor]:
    """Return the rectified map of every edge's relative position (P, K, 3), 0 for invalid edges, and its norm.

    The statistics of a linear map of positions follow from the first two moments of the positions.
    """
    sums = None
    if uses_batch_statistics(norm):
        matrix, (mean, products) = learned.position.double(), edges.moments
        variance = ((matrix @ (products - torch.outer(mean, mean))) * matrix).sum(dim=1)
        origin = matrix @ mean + learned.position_bias.double()
        sums = ShiftedSums(origin, torch.zeros_like(origin), variance * edges.num_edges, edges.num_edges)
    position = _Normalised.from_sums(norm, learned.position_scale, sums)
    shift = learned.position_shift + (learned.position_bias - position.mean) * position.scale
    matrix = learned.position * position.scale[:, None]
    return position, rectified_positions(edges.relative, matrix, shift, edges.count)


def _relation_norm(
    edges: Edges,
    norm: nn.BatchNorm1d,
    learned: AttentionWeights,
    key: Tensor,
    query_terms: Tensor,
    rectified_position: Tensor,
) -> _Normalised:
    """Return the norm of the relations, near + own + code of the position."""
    sums = None
    if uses_batch_statistics(norm):
        code = learned.code.mT.contiguous()
        # Near the mean: exactly it where every point is a neighbour equally often.
        mean_position = _sum_edges(rectified_position.flatten(1), edges) / edges.num_edges
        origin = key.mean(dim=0) + query_terms.mean(dim=0) + mean_position @ code
        totals = edge_sums(key, query_terms - origin, code, rectified_position, edges.index, edges.count)
        sums = ShiftedSums(origin.double(), *totals, edges.num_edges)
    return _Normalised.from_sums(norm, learned.relation_scale, sums)


def _fold_norm(
    learned: AttentionWeights, relation: _Normalised, key: Tensor, query_terms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the norm into near, own and code, so that edges carry normalised values."""
    scale = relation.scale
    return (
        key * scale,
        torch.addcmul(learned.relation_shift, query_terms, scale),
        (learned.code.mT * scale).contiguous(),
    )


def _parts(edges: Edges, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over chunks of points, with scratch memory (points, K, C) for their edges."""
    num_points, num_slots = edges.index.shape
    width = like.shape[1]
    step = max(1, _ENTRIES_AT_ONCE // (num_slots * width))
    room = like.new_empty((min(step, num_points), num_slots, width))
    for start in range(0, num_points, step):
        stop = min(start + step, num_points)
        yield slice(start, stop), room[: stop - start]


def _map_relations(
    edges: Edges,
    learned: AttentionWeights,
    relation: _Normalised,
    key: Tensor,
    query_terms: Tensor,
    rectified_position: Tensor,
) -> Tensor:
    """Compute the first map of every edge's rectified relation, (P, K, G)."""
    scaled = _fold_norm(learned, relation, key, query_terms)
    num_weights = len(learned.reduce)
    mapped = key.new_empty((*edges.index.shape, num_weights))
    for points, rectified in _parts(edges, key):
        relu_edges(points, *scaled, rectified_position, edges.index, edges.count, out=rectified)
        rows = mapped[points].view(-1, num_weights)
        torch.addmm(learned.reduce_bias, rectified.flatten(0, 1), learned.reduce.mT, out=rows)
    return mapped


# --- backward, part by part ------------------------------------------------------------------------------------------


class _ThroughReduction(NamedTuple):
    """Gradients of the reduction MLP: first map (P, K, G) and its bias, norm weight and bias (G,), last map (G, G)."""

    to_mapped: Tensor
    to_bias: Tensor
    to_scale: Tensor
    to_shift: Tensor
    to_score: Tensor


def _through_reduction(
    edges: Edges, learned: AttentionWeights, reduced: _Normalised, mapped: Tensor, weight: Tensor, to_weight: Tensor
) -> _ThroughReduction:
    """Backward of the reduction MLP: gradients of its input and parameters from `to_weight` (P, K, G)."""
    norm = {"mean": reduced.mean, "scale": reduced.scale, "shift": learned.reduce_shift}
    grads = score_gradients(to_weight, weight, mapped, learned.score, edges.count, **norm)
    to_scale, constant, slope = reduced.statistics_terms(grads.to_shift, grads.to_scaled)
    # scale (gradient - constant - slope (mapped - mean)), in rows as long as all neighbours of a point
    centred = mapped.flatten(1) - _tile(reduced.mean, edges)
    to_mapped = grads.grad_normed.flatten(1).mul_(_tile(reduced.scale, edges))
    to_mapped.sub_(_tile(reduced.scale * constant, edges)).addcmul_(centred, _tile(-reduced.scale * slope, edges))
    if edges.rows is not None:
        to_mapped.view(mapped.shape).masked_fill_(~edges.is_valid[..., None], 0.0)
    to_bias = _sum_edges(to_mapped, edges)
    return _ThroughReduction(to_mapped.view(mapped.shape), to_bias, to_scale, grads.to_shift, grads.to_matrix)


class _ThroughRelation(NamedTuple):
    """Gradients of keys and query terms (P, C), of the position map (C, 3), the norm (C,) and the next map (G, C).

    Also the terms by which statistics lower the gradient of a position: of its neighbour and of its point (P, 3), and
    times the position (3, 3).
    """

    to_key: Tensor
    to_query: Tensor
    to_code: Tensor
    to_scale: Tensor
    to_shift: Tensor
    to_reduce: Tensor
    of_neighbour: Tensor
    of_point: Tensor
    of_position: Tensor


def _through_relation(
    edges: Edges,
    learned: AttentionWeights,
    relation: _Normalised,
    key: Tensor,
    query_terms: Tensor,
    rectified_position: Tensor,
    to_mapped: Tensor,
    to_position: Tensor,
) -> _ThroughRelation:
    """Backward of the relation from `to_mapped` (P, K, G).

    The gradient of the positions is accumulated in `to_position`.
    """
    scaled = _fold_norm(learned, relation, key, query_terms)
    into, to_reduce = EdgeGradients.zeros(key, scaled[2]), torch.zeros_like(learned.reduce)
    rectified_room = torch.empty_like(next(_parts(edges, key))[1])
    for points, gradient in _parts(edges, key):
        rectified = rectified_room[: len(gradient)]
        incoming = to_mapped[points].flatten(0, 1)
        torch.mm(incoming, learned.reduce, out=gradient.view(-1, key.shape[1]))
        rectified_gradients(
            *(points, *scaled, rectified_position, edges.index, edges.count),
            gradient=gradient,
            rectified=rectified,
            into=into,
            reading=scaled[2],
            to_position=to_position,
        )
        to_reduce.addmm_(incoming.mT, rectified.flatten(0, 1))
    moments, count, to_code = (
        position_moments(rectified_position, edges.index, edges.count),
        edges.count[:, None],
        into.grad_code.mT,
    )
    to_scaled, at_positions, to_shift = norm_sums(key, query_terms, into, moments, num_shares=SHARE_PLANES)
    to_scale, constant, slope = relation.statistics_terms(to_shift, to_scaled + (learned.code * to_code).sum(dim=1))

    # The statistics of the batch answer: every edge loses constant + slope times what it carries, less the mean.
    at_positions = at_positions + learned.code @ moments.squares
    to_code = to_code - torch.outer(constant, moments.point_sums.sum(dim=0)) - slope[:, None] * at_positions
    sloped = (relation.scale * slope)[:, None] * learned.code
    return _ThroughRelation(
        _subtract_statistics(
            into.grad_neighbours, into.neighbour_sums, moments.degree, learned, relation, constant, slope
        ),
        _subtract_statistics(into.grad_points, into.point_sums, count, learned, relation, constant, slope),
        to_code * relation.scale[:, None],
        *(to_scale, to_shift, to_reduce),
        key @ sloped,
        query_terms @ sloped + (relation.scale * constant) @ learned.code,
        learned.code.mT @ sloped,
    )


def _subtract_statistics(
    gradient: Tensor,
    carried: Tensor,
    count: Tensor,
    learned: AttentionWeights,
    relation: _Normalised,
    constant: Tensor,
    slope: Tensor,
) -> Tensor:
    """Return sums of gradients (P, C) over `count` (P, 1) edges, less the gradient of the statistics.

    `carried` are the sums of the edges' values after the norm: times scale, plus shift.
    """
    by_count = slope * learned.relation_shift - relation.scale * constant
    return (gradient * relation.scale).addcmul_(count, by_count).sub_(carried.mul_(slope))


def _through_position(
    edges: Edges,
    learned: AttentionWeights,
    position: _Normalised,
    rectified_position: Tensor,
    to_position: Tensor,
    relation_grads: _ThroughRelation,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the position map, its bias, and its norm's weight and bias, all from a few sums."""
    sums = position_gradient_sums(
        *(to_position, rectified_position, edges.relative, edges.index, edges.count),
        of_neighbour=relation_grads.of_neighbour,
        of_point=relation_grads.of_point,
        of_position=relation_grads.of_position.mT,
    ).to(rectified_position.dtype)
    times_position, to_shift = sums[:, :3], sums[:, 3]
    bias = learned.position_bias - position.mean
    to_scale, constant, slope = position.statistics_terms(
        to_shift, (learned.position * times_position).sum(dim=1) + bias * to_shift
    )
    mean, products = (moment.to(rectified_position.dtype) * edges.num_edges for moment in edges.moments)
    at_positions = learned.position @ products + torch.outer(bias, mean)
    at_all = learned.position @ mean + bias * edges.num_edges
    to_linear = times_position - torch.outer(constant, mean) - slope[:, None] * at_positions
    to_bias = to_shift - constant * edges.num_edges - slope * at_all
    return to_linear * position.scale[:, None], to_bias * position.scale, to_scale, to_shift


class PlainVectorAttention(nn.Module):
    """Vector attention: each point attends to its neighbours' values with a weight per channel group. Plain form.

    `forward(features (P, C), edges of P among P points) -> (P, C)`; C is a multiple of 8. The weights of a channel sum
    to one over the neighbours. Invalid slots of `edges` have no influence, statistics included.
    Stores some twelve tensors of P*K*C numbers at once in training.
    Source: Zhao et al. 2021 (Point Transformer), equations 3 and 4; the sharing of weights and the batch norms are
    those of the authors' code.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        assert channels % SHARE_PLANES == 0, f"{channels} channels are not a multiple of {SHARE_PLANES}"
        num_weights = channels // SHARE_PLANES
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.position = LinearNorm(in_channels=3, out_channels=3, has_bias=True, activation=nn.ReLU())
        self.code = nn.Linear(3, channels)
        self.norm = nn.BatchNorm1d(channels)
        self.reduce = LinearNorm(in_channels=channels, out_channels=num_weights, has_bias=True, activation=nn.ReLU())
        self.score = nn.Linear(num_weights, num_weights)

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        """Map features (P, C) -> (P, C) over the edges (P, K)."""
        query, key, value = self.query(features), self.key(features), self.value(features)
        code_EC = self.code(self.position(edges.list_valid(edges.relative)))  # E edges of all clouds
        key_EC, value_EC = edges.gather(key, value)
        relation_EC = key_EC - edges.repeat(query) + code_EC
        score_EG = self.score(self.reduce(self.norm(relation_EC).relu()))
        weight_PKG = edges.pad(score_EG, -torch.inf).softmax(dim=1)
        message_PKC = edges.pad(value_EC + code_EC, 0.0)
        shared = message_PKC.unflatten(-1, (SHARE_PLANES, -1)) * weight_PKG[:, :, None]
        return shared.sum(dim=1).flatten(1)


class VectorAttention(PlainVectorAttention):
    """Fused `PlainVectorAttention` without its edges: same state, numbers, gradients and running statistics.

    Stores P*K*C/4 numbers for backward, and 2**18 edges times channels at a time. Under bf16 autocast the maps of
    points alone are rounded, edges are float32. On a GPU, with weights in half precision, under torch.compile, without
    numba and if gradients of the points are needed it is the plain form. It has no second derivative: use
    `PlainVectorAttention` for one.
    Source: as the plain form; Ioffe and Szegedy 2015, algorithm 1, for the statistics over all edges.
    """

    def forward(self, features: Tensor, edges: Edges) -> Tensor:
        """Map features (P, C) -> (P, C) over the edges (P, K)."""
        weights, lowered = self._weights(), cpu_autocast_dtype(features)
        wants_positions = edges.relative.requires_grad and torch.is_grad_enabled()
        is_kernels = lowered != torch.float16 and can_use_numba(features, edges.relative, *weights, extra_dtype=lowered)
        if wants_positions or not is_kernels:
            return super().forward(features, edges)
        assert_rows(edges.index[None], features[None], num_queries=len(features))
        maps = [linear(features) for linear in (self.query, self.key, self.value)]
        norms, wide = (self.position.norm, self.norm, self.reduce.norm), self.code.weight.dtype
        with torch.autocast("cpu", enabled=False):
            attended = FusedVectorAttention.apply(edges, norms, *(values.to(wide) for values in maps), *weights)
        return cast(Tensor, attended.to(maps[0].dtype))

    def _weights(self) -> AttentionWeights:
        return AttentionWeights(
            *(self.position.linear.weight, self.position.linear.bias),
            *(self.position.norm.weight, self.position.norm.bias),
            *(self.code.weight, self.code.bias, self.norm.weight, self.norm.bias),
            *(self.reduce.linear.weight, self.reduce.linear.bias),
            *(self.reduce.norm.weight, self.reduce.norm.bias, self.score.weight, self.score.bias),
        )
