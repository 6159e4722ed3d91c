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

from sightline.compute.numba_kernels import numba_kernel, run_parallel

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


@numba_kernel
def _score(first, last, mapped, matrix, mean, scale, shift, count, result):  # type: ignore[no-untyped-def]
    width = mapped.shape[2]
    zero = mapped.dtype.type(0)
    height = np.empty(width, mapped.dtype)
    for point in range(first, last):
        result[point, count[point] :] = -np.inf
        for slot in range(count[point]):
            row, total = mapped[point, slot], result[point, slot]
            total[:] = 0
            for channel in range(width):
                value = (row[channel] - mean[channel]) * scale[channel] + shift[channel]
                height[channel] = zero if value < 0 else value
            for source in range(width):
                factors, share = matrix[source], height[source]
                for channel in range(width):
                    total[channel] += share * factors[channel]


@numba_kernel
def _score_back(  # type: ignore[no-untyped-def]
    first, last, to_weight, weight, mapped, matrix, mean, scale, shift, count, result, sums
):
    width = mapped.shape[2]
    mixed = np.empty(width, mapped.dtype)
    passed = np.empty((2, width), mapped.dtype)
    to_score = np.empty(width, mapped.dtype)
    height = np.empty(width, mapped.dtype)
    to_matrix = np.empty((width, width), mapped.dtype)
    for block in range(first, last):
        start = block * _POINTS_AT_ONCE
        to_matrix[:] = 0
        for point in range(start, min(start + _POINTS_AT_ONCE, len(mapped))):
            mixed[:] = 0
            passed[:] = 0
            result[point] = 0
            for slot in range(count[point]):
                incoming, weights = to_weight[point, slot], weight[point, slot]
                for channel in range(width):
                    mixed[channel] += incoming[channel] * weights[channel]
            for slot in range(count[point]):
                incoming, weights, row = to_weight[point, slot], weight[point, slot], mapped[point, slot]
                target = result[point, slot]
                for channel in range(width):
                    to_score[channel] = weights[channel] * (incoming[channel] - mixed[channel])
                    value = (row[channel] - mean[channel]) * scale[channel] + shift[channel]
                    height[channel] = value if value > 0 else value * 0
                for source in range(width):
                    factors, received, gradient = matrix[source], to_matrix[source], to_score[source]
                    for channel in range(width):
                        target[channel] += gradient * factors[channel]
                        received[channel] += gradient * height[channel]
                for channel in range(width):
                    gradient = target[channel] if height[channel] > 0 else target[channel] * 0
                    target[channel] = gradient
                    passed[0, channel] += gradient
                    passed[1, channel] += gradient * (row[channel] - mean[channel])
            for channel in range(width):
                sums[block, 0, channel] += passed[0, channel]
                sums[block, 1, channel] += passed[1, channel]
        for source in range(width):
            for channel in range(width):
                sums[block, 2 + source, channel] = to_matrix[source, channel]
