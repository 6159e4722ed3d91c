"""Alignment, uniformity and retrieval accuracy of embeddings of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.metric import MeanMetric, State

_T = 2.0
"""Scale of the Gaussian potential, and the exponent of the distance: the values of the paper."""


class _PairMetric(MeanMetric):
    """Base of pair metrics. Per sample: the squared distance to its partner, its mean potential, and its retrieval.

    The last two, the mean potential within its batch and if its partner is the nearest of the batch, need other samples
    in the batch.
    """

    figures: tuple[str, ...] = ("alignment", "uniformity", "retrieval_accuracy")
    within_batch = frozenset({"uniformity", "retrieval_accuracy"})
    higher_is_better: Mapping[str, bool] = {"alignment": False, "uniformity": False, "retrieval_accuracy": True}

    def compute(self, state: State) -> dict[str, float]:
        alignment, potential, retrieval = super().compute(state).values()
        uniformity = math.log(potential) if potential > 0 else math.nan
        return dict(zip(self.figures, (alignment, uniformity, retrieval), strict=True))

    def _measure(self, anchors: Tensor, partners: Tensor, spread: Tensor) -> dict[str, Any]:
        anchors, partners, spread = (F.normalize(rows.double(), dim=1) for rows in (anchors, partners, spread))
        is_compared = torch.full((len(anchors),), len(anchors) > 1, device=anchors.device)  # with others of its batch
        distance = (anchors - partners).square().sum(dim=1)
        is_nearest = torch.zeros_like(is_compared)
        if len(anchors):
            is_nearest = torch.cdist(anchors, partners).argmin(dim=1) == torch.arange(
                len(anchors), device=anchors.device
            )
        values = distance, (_mean_potential(spread), is_compared), (is_nearest, is_compared)
        return dict(zip(self.figures, values, strict=True))


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

    def values(self, *, first: Tensor, second: Tensor) -> dict[str, Any]:
        """Measure embeddings `first` and `second` (B, D), in any scale."""
        return self._measure(first, second, first)


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

    figures = tuple(f"cross_{name}" for name in Pairs.figures)
    within_batch = frozenset(f"cross_{name}" for name in Pairs.within_batch)
    higher_is_better: Mapping[str, bool] = {f"cross_{name}": better for name, better in Pairs.higher_is_better.items()}

    def values(self, *, first: Tensor, second: Tensor, pictured: Tensor) -> dict[str, Any]:
        """Measure embeddings, all (B, D), in any scale."""
        return self._measure((first.double() + second) / 2, pictured, pictured)


def _mean_potential(rows: Tensor) -> Tensor:
    """Return the mean of exp(-2 d^2) of every row to the others (B,); 0 for a row alone."""
    potential = (-_T * torch.cdist(rows, rows).square()).exp().fill_diagonal_(0.0)
    return potential.sum(dim=1) / max(1, len(rows) - 1)
