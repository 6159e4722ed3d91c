"""CPU kernels of vector attention: batch norm, ReLU and linear map from edge features to attention scores.

Edges are (P, K, G), of which the first `count` (P,) of a point are valid; the matrix is (G, G). G is small: torch's
operations over such short rows cost several times the arithmetic. Rows of work are blocks of points: their sums are
added in order, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.ops.lanes import load, store, zeros_like
from sightline.ops.numba_kernels import LANES, numba_kernel, run_parallel

_POINTS_AT_ONCE = 256
"""Points of one block of partial sums: fixed, regardless of the number of threads."""


def mapped_sums(mapped: Tensor, origin: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the sums over valid edges (P, K, G) of mapped - origin and of its square, (G,) float64 each."""
    num_blocks = -(-len(mapped) // _POINTS_AT_ONCE)
    sums = np.zeros((num_blocks, 2, mapped.shape[2]))
    run_parallel(_add_up, num_blocks, *_arrays(mapped, origin, count), sums)
    total, squares = torch.from_numpy(sums.sum(axis=0))
    return total, squares


def attention_scores(
    mapped: Tensor, matrix: Tensor, count: Tensor, *, mean: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Compute matrix max((mapped - mean) scale + shift, 0) of every valid edge: (P, K, G) -> (P, K, G).

    Invalid slots are minus infinity.
    """
    result = torch.empty_like(mapped)
    inputs = _arrays(mapped, matrix.mT, mean, scale, shift, count)
    run_parallel(_score, len(mapped), *inputs, result.numpy())
    return result


class ScoreGradients(NamedTuple):
    """Gradients of the attention scores: of the normed values, of the norm's parameters and of the matrix.

    `grad_normed` (P, K, G), 0 for invalid edges; its sum over the edges (G,); the sum of its product with the distance
    from the mean (G,); the gradient of the matrix (G, G).
    """

    grad_normed: Tensor
    to_shift: Tensor
    to_scaled: Tensor
    to_matrix: Tensor


def score_gradients(
    to_weight: Tensor,
    weight: Tensor,
    mapped: Tensor,
    matrix: Tensor,
    count: Tensor,
    *,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
) -> ScoreGradients:
    """Backward of `attention_scores` and the softmax over neighbours.

    Gradients of the scores from `to_weight` (P, K, G).
    `weight` and `mapped` are (P, K, G), the weights after and the values before.
    """
    num_blocks, width = -(-len(mapped) // _POINTS_AT_ONCE), mapped.shape[2]
    result, sums = torch.empty_like(mapped), np.zeros((num_blocks, 2 + width, width))
    inputs = _arrays(to_weight, weight, mapped, matrix, mean, scale, shift, count)
    run_parallel(_score_back, num_blocks, *inputs, result.numpy(), sums)
    total = torch.from_numpy(sums.sum(axis=0)).to(mapped.dtype)
    return ScoreGradients(result, total[0], total[1], total[2:])


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@numba_kernel
def _add_up(first, last, mapped, origin, count, sums):  # type: ignore[no-untyped-def]
    width = mapped.shape[2]
    total, squares = np.empty(width, mapped.dtype), np.empty(width, mapped.dtype)
    for block in range(first, last):
        start = block * _POINTS_AT_ONCE
        for point in range(start, min(start + _POINTS_AT_ONCE, len(mapped))):
            total[:] = 0
            squares[:] = 0
            for slot in range(count[point]):
                row = mapped[point, slot]
                for channel in range(width):
                    moved = row[channel] - origin[channel]
                    total[channel] += moved
                    squares[channel] += moved * moved
            for channel in range(width):
                sums[block, 0, channel] += total[channel]
                sums[block, 1, channel] += squares[channel]


# A point's edges side by side, (G, K): K is padded with zeros to a multiple of eight, and G may be 2.


@numba_kernel
def _rectify(row, mean, scale, shift, heights):  # type: ignore[no-untyped-def]
    zero = row.dtype.type(0)
    for channel in range(row.shape[1]):
        origin, factor, start, line = mean[channel], scale[channel], shift[channel], heights[channel]
        for slot in range(row.shape[0]):
            height = (row[slot, channel] - origin) * factor + start
            line[slot] = zero if height < 0 else height


@numba_kernel
def _score(first, last, mapped, matrix, mean, scale, shift, count, result):  # type: ignore[no-untyped-def]
    num_slots, width = mapped.shape[1], mapped.shape[2]
    padded = -(-num_slots // LANES) * LANES
    heights, scores = np.zeros((width, padded), mapped.dtype), np.zeros((width, padded), mapped.dtype)
    for point in range(first, last):
        num_edges = count[point]
        _rectify(mapped[point, :num_edges], mean, scale, shift, heights)
        _mix(matrix, heights, num_edges, scores)
        row = result[point]
        for channel in range(width):
            line = scores[channel]
            for slot in range(num_edges):
                row[slot, channel] = line[slot]
        row[num_edges:] = -np.inf


@numba_kernel
def _mix(matrix, lines, num_edges, result):  # type: ignore[no-untyped-def]
    for channel in range(len(result)):
        for slot in range(0, num_edges, LANES):
            total = zeros_like(lines)
            for source in range(len(lines)):
                total = total + load(lines, (source, slot)) * matrix[source, channel]
            store(total, result, (channel, slot))


@numba_kernel
def _through_softmax(incoming, weights, to_scores):  # type: ignore[no-untyped-def]
    for channel in range(incoming.shape[1]):
        mixed, line = incoming.dtype.type(0), to_scores[channel]
        for slot in range(len(incoming)):
            mixed += incoming[slot, channel] * weights[slot, channel]
        for slot in range(len(incoming)):
            line[slot] = weights[slot, channel] * (incoming[slot, channel] - mixed)


@numba_kernel
def _multiply(to_scores, heights, num_edges, to_matrix):  # type: ignore[no-untyped-def]
    for slot in range(num_edges):
        for channel in range(0, to_matrix.shape[1], LANES):
            values = load(heights, (slot, channel))
            for source in range(len(to_matrix)):
                total = load(to_matrix, (source, channel)) + values * to_scores[source, slot]
                store(total, to_matrix, (source, channel))


@numba_kernel
def _score_back(  # type: ignore[no-untyped-def]
    first, last, to_weight, weight, mapped, matrix, mean, scale, shift, count, result, sums
):
    num_slots, width, kind = mapped.shape[1], mapped.shape[2], mapped.dtype.type
    zero, padded = kind(0), -(-num_slots // LANES) * LANES
    heights, to_scores = np.zeros((width, padded), mapped.dtype), np.zeros((width, padded), mapped.dtype)
    to_heights = np.zeros((width, padded), mapped.dtype)
    padded_width = -(-width // LANES) * LANES
    rows, to_matrix = np.zeros((num_slots, padded_width), mapped.dtype), np.empty((width, padded_width), mapped.dtype)
    for block in range(first, last):
        start = block * _POINTS_AT_ONCE
        to_matrix[:] = 0
        for point in range(start, min(start + _POINTS_AT_ONCE, len(mapped))):
            num_edges, row, target = count[point], mapped[point], result[point]
            _rectify(row[:num_edges], mean, scale, shift, heights)
            for channel in range(width):
                line = heights[channel]
                for slot in range(num_edges):
                    rows[slot, channel] = line[slot]
            _through_softmax(to_weight[point, :num_edges], weight[point, :num_edges], to_scores)
            _multiply(to_scores, rows, num_edges, to_matrix)
            _mix(matrix, to_scores, num_edges, to_heights)
            for channel in range(width):
                passed, scaled, origin = zero, zero, mean[channel]
                line, height = to_heights[channel], heights[channel]
                for slot in range(num_edges):
                    gradient = line[slot] if height[slot] > 0 else line[slot] * zero
                    target[slot, channel] = gradient
                    passed += gradient
                    scaled = kind(scaled + np.float64(gradient) * (row[slot, channel] - origin))
                sums[block, 0, channel] += passed
                sums[block, 1, channel] += scaled
            target[num_edges:] = 0
        for source in range(width):
            for channel in range(width):
                sums[block, 2 + source, channel] = to_matrix[source, channel]
