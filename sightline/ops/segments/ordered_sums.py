"""Sums over the rows of a table in an order that nothing changes: not threads, nor rows that fill the table up."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline.ops.segments.sums import scatter_rows

_BLOCK = 256
"""Rows that are added in the format of the table; the sums of blocks are added in float64."""


def ordered_sum(values: Tensor, num_rows: int) -> Tensor:
    """Add up the first `num_rows` rows of values (N, C): (C,) float64; what comes after them may be anything."""
    num_blocks = -(-num_rows // _BLOCK)
    bounds = torch.arange(num_blocks + 1, device=values.device).mul_(_BLOCK).clamp_(max=num_rows)
    blocks, _ = scatter_rows(values[None, :num_rows], bounds[None], num_blocks, layout="bounds")
    whole = torch.tensor([[0, num_blocks]], device=values.device)
    return scatter_rows(blocks.double(), whole, 1, layout="bounds")[0][0, 0]
