"""CPU kernels of transition down: the maximum per channel over the edges of packed clouds.

Query m has the neighbours `index` (M, K), of which the first `count` (M,) are valid, at least one. Edge (m, j) carries
u_j + v_m, where `near` (N, C) is u and `own` (M, C) is v; all float32 or all float64. Rows of work are shares of the
channels: every sum is added by one thread, edge by edge, and has the same bits for any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.numba_kernels import numba_kernel, run_parallel

__all__ = ["EdgeExtremes", "edge_extremes", "edge_extremes_gradient"]

_NUM_SHARES = 8
_EDGES_OF_A_SUM = 64
"""Edges added in the input's dtype before the sum goes on in float64: exact enough for any number of edges."""


class EdgeExtremes(NamedTuple):
    """Extremes (M, C) of the queries' edges and their slots (M, C) int32.

    Sums of edge values and squares (C,) float64.
    """

    extreme: Tensor
    place: Tensor
    total: Tensor
    total_of_squares: Tensor


def edge_extremes(near: Tensor, own: Tensor, index: Tensor, count: Tensor, *, sign: Tensor) -> EdgeExtremes:
    """Find the largest edge value (M, C) of each query where `sign` is 1, the smallest where -1, the first where 0.

    NaN wins; ties go to the first.
    """
    extreme, argmax = torch.empty_like(own), torch.empty(own.shape, dtype=torch.int32)
    sums = np.zeros((2, own.shape[1]))
    arrays = _arrays(near, own, index, count, sign)
    run_parallel(_find, _NUM_SHARES, *arrays, extreme.numpy(), argmax.numpy(), sums)
    return EdgeExtremes(extreme, argmax, torch.from_numpy(sums[0]), torch.from_numpy(sums[1]))


def edge_extremes_gradient(
    near: Tensor,
    own: Tensor,
    index: Tensor,
    count: Tensor,
    place: Tensor,
    *,
    chosen: Tensor,
    constant: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor]:
    """Backward of `edge_extremes` and batch norm: gradients of near (N, C) and own (M, C).

    The gradient of an edge is `chosen` (M, C) at the slot `place`, and at every edge - `constant` - `slope` * its
    value, all (C,).
    """
    to_near, to_own = torch.zeros_like(near), torch.empty_like(own)
    arrays = _arrays(near, own, index, count, place, chosen, constant, slope)
    run_parallel(_spread, _NUM_SHARES, *arrays, to_near.numpy(), to_own.numpy())
    return to_near, to_own


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


# Loops run from 0 over rows cut out beforehand: numba would otherwise look for negative indices at every entry, and no
# vectors would be made.


@numba_kernel
def _find(first, last, neighbour_terms, query_terms, index, count, sign, extreme, argmax, sums):  # type: ignore[no-untyped-def]
    width = neighbour_terms.shape[1]
    low, high = first * width // _NUM_SHARES, last * width // _NUM_SHARES
    signs = sign[low:high].copy()
    best, where = np.empty(high - low, neighbour_terms.dtype), np.empty(high - low, np.int32)
    total, squares = np.zeros(high - low, neighbour_terms.dtype), np.zeros(high - low, neighbour_terms.dtype)
    num_added = 0
    for query in range(len(index)):
        own_row = query_terms[query][low:high]
        for slot in range(count[query]):
            near_row = neighbour_terms[index[query, slot]][low:high]
            _add_one(near_row, own_row, total, squares)
            if slot == 0:
                for channel in range(len(best)):
                    best[channel] = near_row[channel] * signs[channel]
                    where[channel] = 0
            else:
                for channel in range(len(best)):
                    signed = near_row[channel] * signs[channel]
                    is_better = (signed > best[channel]) | (signed != signed)
                    best[channel] = signed if is_better else best[channel]
                    where[channel] = slot if is_better else where[channel]
        for channel in range(len(best)):
            argmax[query, low + channel] = where[channel]
            extreme[query, low + channel] = (
                neighbour_terms[index[query, where[channel]], low + channel] + own_row[channel]
            )
        num_added += count[query]
        if num_added >= _EDGES_OF_A_SUM or query == len(index) - 1:
            for channel in range(len(best)):
                sums[0, low + channel] += total[channel]
                sums[1, low + channel] += squares[channel]
                total[channel] = 0
                squares[channel] = 0
            num_added = 0


@numba_kernel
def _add_one(neighbour_row, query_row, total, squares):  # type: ignore[no-untyped-def]
    for channel in range(len(neighbour_row)):
        carried = neighbour_row[channel] + query_row[channel]
        total[channel] += carried
        squares[channel] += carried * carried


@numba_kernel
def _spread(  # type: ignore[no-untyped-def]
    first, last, neighbour_terms, query_terms, index, count, argmax, chosen, constant, slope, to_near, to_own
):
    width = neighbour_terms.shape[1]
    low, high = first * width // _NUM_SHARES, last * width // _NUM_SHARES
    constants, slopes = constant[low:high].copy(), slope[low:high].copy()
    for query in range(len(index)):
        own_row, to_own_row = query_terms[query][low:high], to_own[query][low:high]
        for channel in range(len(to_own_row)):
            to_own_row[channel] = chosen[query, low + channel]
        for slot in range(count[query]):
            near_row, to_near_row = neighbour_terms[index[query, slot]][low:high], to_near[index[query, slot]][low:high]
            for channel in range(len(near_row)):
                lowered = constants[channel] + slopes[channel] * (near_row[channel] + own_row[channel])
                to_near_row[channel] -= lowered
                to_own_row[channel] -= lowered
        for channel in range(len(to_own_row)):
            to_near[index[query, argmax[query, low + channel]], low + channel] += chosen[query, low + channel]
