"""Sums over the rows of a table in an order that nothing changes: not threads, nor rows that fill the table up."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.segments.sums import scatter_rows

_BLOCK = 256
"""Rows that are added in the format of the table; the sums of blocks are added in float64."""


def ordered_sum(values: Tensor, num_rows: int) -> Tensor:
    """Add up the first `num_rows` rows of values (N, C): (C,) float64; what comes after them may be anything."""
    num_blocks = -(-values.shape[0] // _BLOCK)
    blocks = _sum_segments(values, num_blocks, size=_BLOCK, num_rows=num_rows)
    return _sum_segments(blocks.double(), 1, size=-(-num_rows // _BLOCK), num_rows=num_blocks)[0]


def _sum_segments(values: Tensor, num_segments: int, *, size: int, num_rows: int) -> Tensor:
    """Add up the first rows of values (N, C) in segments of `size`, below `num_rows`: (num_segments, C).

    A segment more takes the rows after them, so that shapes depend on the table alone.
    """
    bounds = torch.arange(num_segments + 2, device=values.device).mul_(size).clamp_(max=num_rows)
    bounds[-1:].fill_(values.shape[0])
    return scatter_rows(values[None], bounds[None], num_segments + 1, layout="bounds")[0][0, :num_segments]
