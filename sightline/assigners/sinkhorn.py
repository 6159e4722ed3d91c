"""Sinkhorn's algorithm: optimal transport with an entropy term, over the pairs of a sparse matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MARGIN", "sinkhorn"]

MARGIN = 1e-8
"""Margin added to each supply and each demand."""


def sinkhorn(
    cost: Tensor,
    supplier: Tensor,
    consumer: Tensor,
    supply: Tensor,
    demand: Tensor,
    *,
    epsilon: float = 0.1,
    num_iterations: int = 50,
) -> Tensor:
    """Compute the transport of each pair (E,) from `supply` (R,) to `demand` (C,), float64; rows are normalised last.

    A pair has a `cost`, a `supplier` and a `consumer` (E,); missing pairs transport nothing. Every supplier and
    consumer is in a pair. `epsilon` is the weight of the entropy: the smaller, the nearer to the optimum after many
    iterations. Source: Cuturi 2013, algorithm 1, in the domain of logarithms; `MARGIN` is that of the code of Ge et al.
    2021 (OTA).
    """
    cost = cost.double() / epsilon
    log_supply, log_demand = ((amounts.double() + MARGIN).log() for amounts in (supply, demand))
    of_supplier, of_consumer = torch.zeros_like(log_supply), torch.zeros_like(log_demand)
    for _ in range(num_iterations):
        of_consumer = log_demand - _log_sums(of_supplier[supplier] - cost, consumer, log_demand)
        of_supplier = log_supply - _log_sums(of_consumer[consumer] - cost, supplier, log_supply)
    return (of_supplier[supplier] + of_consumer[consumer] - cost).exp()


def _log_sums(values: Tensor, group: Tensor, like: Tensor) -> Tensor:
    """Compute the log-sum-exp (G,) of each group, for the groups of `like` (G,)."""
    highest = torch.full_like(like, -torch.inf).scatter_reduce(0, group, values, "amax")
    return torch.zeros_like(like).index_add_(0, group, (values - highest[group]).exp()).log() + highest
