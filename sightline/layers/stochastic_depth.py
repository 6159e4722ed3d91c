"""Whole branches left out at random, sample by sample."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["StochasticDepth"]


class StochasticDepth(nn.Dropout):
    """A branch (B, ...) is zero for a sample with probability `p`, else 1/(1 - p) of itself; in evaluation it is as is.

    To be put before a branch is added to what goes past it. It is a dropout, and counts as one wherever dropout is
    counted: its draws are torch's own, one per sample, and change from step to step.
    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, equation 2; scaled in training, as dropout is.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        each_B = input.new_ones(len(input), *[1] * (input.ndim - 1))
        return input * F.dropout(each_B, self.p)
