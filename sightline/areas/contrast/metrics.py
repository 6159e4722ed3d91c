"""Alignment, uniformity and retrieval accuracy of embeddings of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.metric import State

_T = 2.0
"""Scale of the Gaussian potential, and the exponent of the distance: the values of the paper."""


class _PairMetric:
    """Base of pair metrics. Per sample: the squared distance to its partner, its mean potential, and its retrieval.

    The last two, the mean potential within its batch and if its partner is the nearest of the batch, need other samples
    in the batch.
    """

    slots = frozenset({"distance", "potential", "is_nearest", "seen", "compared"})
    prefix = ""

    def new_state(self, *, num_samples: int = 0) -> State:
        floats = {name: torch.zeros(num_samples, dtype=torch.float64) for name in ("distance", "potential")}
        counts = {name: torch.zeros(num_samples, dtype=torch.int64) for name in ("is_nearest", "seen", "compared")}
        return floats | counts

    def compute(self, state: State) -> dict[str, float]:
        is_seen, is_compared = state["seen"] > 0, state["compared"] > 0
        potential = state["potential"][is_compared].mean().item()
        return {
            f"{self.prefix}alignment": state["distance"][is_seen].mean().item(),
            f"{self.prefix}uniformity": math.log(potential) if potential > 0 else math.nan,
            f"{self.prefix}retrieval_accuracy": state["is_nearest"][is_compared].double().mean().item(),
        }

    def _note(self, state: State, anchors: Tensor, partners: Tensor, spread: Tensor, sample_index: Tensor) -> None:
        anchors, partners, spread = (F.normalize(rows.double(), dim=1) for rows in (anchors, partners, spread))
        index = sample_index.to(state["seen"].device)
        values_by_name = {"distance": (anchors - partners).square().sum(dim=1), "seen": torch.ones_like(index)}
        if len(anchors) > 1:  # a row alone in its batch has nothing to be compared with
            row_index = torch.arange(len(anchors), device=anchors.device)
            values_by_name["potential"] = _mean_potential(spread)
            values_by_name["is_nearest"] = torch.cdist(anchors, partners).argmin(dim=1) == row_index
            values_by_name["compared"] = torch.ones_like(index)
        for name, values in values_by_name.items():
            state[name][index] += values.to(state[name])


@registry.metrics.add("pairs")
class Pairs(_PairMetric):
    """Alignment, uniformity and retrieval accuracy of the embeddings of two clouds of every object.

    Alignment is the mean squared distance of the two unit vectors, 0 to 4, better smaller. Uniformity is the logarithm
    of the mean of exp(-2 d^2) over the pairs of different objects in an evaluation batch, -4 to 0, better smaller: 0 if
    all are alike. Retrieval is the share of clouds whose own partner is the nearest one of the batch. A cloud alone in
    its batch counts for alignment only.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.contrast.metrics import Pairs
    >>> meter = Meter(Pairs())
    >>> meter.update(first=torch.eye(2), second=5 * torch.eye(2), sample_index=torch.tensor([0, 1]))
    >>> meter.compute()
    {'alignment': 0.0, 'uniformity': -4.0, 'retrieval_accuracy': 1.0}

    Source: Wang and Isola 2020, sections 4.1 and 4.2, with exponent and scale 2.
    """

    within_batch = frozenset({"uniformity", "retrieval_accuracy"})
    higher_is_better: Mapping[str, bool] = {"alignment": False, "uniformity": False, "retrieval_accuracy": True}

    def update(self, state: State, *, first: Tensor, second: Tensor, sample_index: Tensor) -> None:
        """Add a batch of embeddings `first` and `second` (B, D), in any scale."""
        self._note(state, first, second, first, sample_index)


@registry.metrics.add("cross_pairs")
class CrossPairs(_PairMetric):
    """Cross-modal alignment, uniformity and retrieval accuracy of clouds and images, as in `pairs`.

    A cloud's embedding is the mean of its two; uniformity is that of the images; retrieval looks for a cloud's image.

    >>> import torch
    >>> from sightline.parts.metrics import Meter
    >>> from sightline.areas.contrast.metrics import CrossPairs
    >>> meter = Meter(CrossPairs())
    >>> meter.update(first=torch.eye(2), second=torch.eye(2), pictured=torch.eye(2), sample_index=torch.tensor([0, 1]))
    >>> meter.compute()
    {'cross_alignment': 0.0, 'cross_uniformity': -4.0, 'cross_retrieval_accuracy': 1.0}

    Source: Wang and Isola 2020, sections 4.1 and 4.2; Afham et al. 2022, eq. 3 (the mean).
    """

    prefix = "cross_"
    within_batch = frozenset(f"cross_{name}" for name in Pairs.within_batch)
    higher_is_better: Mapping[str, bool] = {f"cross_{name}": better for name, better in Pairs.higher_is_better.items()}

    def update(self, state: State, *, first: Tensor, second: Tensor, pictured: Tensor, sample_index: Tensor) -> None:
        """Add a batch of embeddings, all (B, D), in any scale."""
        self._note(state, (first.double() + second) / 2, pictured, pictured, sample_index)


def _mean_potential(rows: Tensor) -> Tensor:
    """Return the mean of exp(-2 d^2) of every row to the others (B,); for two rows at least."""
    potential = (-_T * torch.cdist(rows, rows).square()).exp().fill_diagonal_(0.0)
    return potential.sum(dim=1) / (len(rows) - 1)
