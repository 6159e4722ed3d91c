"""How embeddings of pairs lie: what belongs together near, all else apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import registry
from sightline.metrics.base import State

__all__ = ["CrossPairs", "Pairs"]

_T = 2.0
"""Of the Gaussian potential, and the exponent of the distance: the values of the paper."""


class _PairMetric:
    """Per sample: the squared distance to its partner, its mean potential among its batch's others, and whether its
    partner is the nearest of the batch.
    """

    slots = frozenset({"distance", "potential", "is_nearest", "seen"})
    prefix = ""

    def new_state(self, *, num_samples: int = 0) -> State:
        zeros = torch.zeros(num_samples, dtype=torch.float64)
        counts = torch.zeros(num_samples, dtype=torch.int64)
        return {"distance": zeros, "potential": zeros.clone(), "is_nearest": counts, "seen": counts.clone()}

    def compute(self, state: State) -> dict[str, float]:
        seen = state["seen"] > 0
        means = {name: state[name][seen].double().mean().item() for name in ("distance", "potential", "is_nearest")}
        potential = means["potential"]
        return {
            f"{self.prefix}alignment": means["distance"],
            f"{self.prefix}uniformity": math.log(potential) if potential > 0 else math.nan,
            f"{self.prefix}retrieval_accuracy": means["is_nearest"],
        }

    def _note(self, state: State, anchors: Tensor, partners: Tensor, spread: Tensor, sample_index: Tensor) -> None:
        anchors, partners, spread = (F.normalize(rows.double(), dim=1) for rows in (anchors, partners, spread))
        index = sample_index.to(state["seen"].device)
        for name, values in {
            "distance": (anchors - partners).square().sum(dim=1),
            "potential": _mean_potential(spread),
            "is_nearest": (
                torch.cdist(anchors, partners).argmin(dim=1) == torch.arange(len(anchors)).to(anchors.device)
            ),
            "seen": torch.ones_like(index),
        }.items():
            state[name][index] += values.to(state[name])


@registry.metrics.add("pairs")
class Pairs(_PairMetric):
    """`alignment`, `uniformity` and `retrieval_accuracy` of the embeddings of two clouds of every object.

    Alignment is the mean squared distance of the two unit vectors, 0 to 4, better smaller. Uniformity is the logarithm
    of the mean of exp(-2 d^2) over the pairs of different objects in an evaluation batch, -4 to 0, better smaller: 0
    where all are alike. Retrieval is the share of clouds whose own partner is the nearest one of the batch.
    Source: Wang and Isola 2020, sections 4.1 and 4.2, with exponent and scale 2.
    """

    def update(self, state: State, *, first: Tensor, second: Tensor, sample_index: Tensor) -> None:
        """`first` and `second` (B, D), in any scale."""
        self._note(state, first, second, first, sample_index)


@registry.metrics.add("cross_pairs")
class CrossPairs(_PairMetric):
    """`cross_alignment`, `cross_uniformity` and `cross_retrieval_accuracy`, as those of `pairs`, of clouds and images.

    A cloud's embedding is the mean of its two; uniformity is that of the images; retrieval looks for a cloud's image.
    Source: Wang and Isola 2020, sections 4.1 and 4.2; Afham et al. 2022, eq. 3 (the mean).
    """

    prefix = "cross_"

    def update(self, state: State, *, first: Tensor, second: Tensor, pictured: Tensor, sample_index: Tensor) -> None:
        """All (B, D), in any scale."""
        self._note(state, (first + second) / 2, pictured, pictured, sample_index)


def _mean_potential(rows: Tensor) -> Tensor:
    """exp(-2 d^2) of every row to the others, their mean (B,); of a single row 1, as if its like were beside it."""
    if len(rows) < 2:
        return torch.ones_like(rows[:, 0])
    potential = (-_T * torch.cdist(rows, rows).square()).exp().fill_diagonal_(0.0)
    return potential.sum(dim=1) / (len(rows) - 1)
