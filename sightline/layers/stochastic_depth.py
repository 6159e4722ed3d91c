"""Stochastic depth: branches dropped at random, sample by sample."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class StochasticDepth(nn.Dropout):
    """Stochastic depth (DropPath).

    A branch (B, ...) is zero for a sample with probability `p`, else scaled by 1/(1 - p).
    In evaluation it is unchanged. Apply it to a branch before the residual is added. It is a dropout, and counts as one
    wherever dropout is counted: its draws are torch's own, one per sample, and change from step to step.
    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, equation 2; scaled in training, as dropout is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop samples of a branch (B, ...) -> (B, ...)."""
        if not self.training or self.p == 0:
            return input
        each_B = input.new_ones(len(input), *[1] * (input.ndim - 1))
        return input * F.dropout(each_B, self.p)
