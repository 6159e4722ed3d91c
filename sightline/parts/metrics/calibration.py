"""Calibration: how far the confidence of predictions is from the share of them that is right."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.metric import Metric, State
from sightline.parts.metrics.confusion import confusion_matrix
from sightline.parts.metrics.predicted_labels import predict_classes

_ONE = 2**32
"""The confidence 1 as a whole number: those of 2^31 predictions have an exact sum."""


@registry.metrics.add("calibration")
class Calibration(Metric):
    """Expected calibration error, 0 to 1, and by how much the mean confidence exceeds the accuracy, -1 to 1.

    The confidence is the probability of the most probable class. Predictions are sorted by it into `bins` of equal
    width, each with its upper end; the error is the mean over all predictions of the distance between accuracy and
    mean confidence of their bin. Labels that are ignored do not count.

    >>> import torch
    >>> from sightline.parts.metrics import Calibration, Meter
    >>> meter = Meter(Calibration(num_classes=2))
    >>> meter.update(probabilities=torch.tensor([[0.75, 0.25], [0.75, 0.25]]), label=torch.tensor([0, 1]))
    >>> meter.compute()  # sure by 0.75, right in one of two
    {'calibration_error': 0.25, 'overconfidence': 0.25}

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
    """

    higher_is_better: Mapping[str, bool] = {"calibration_error": False}

    def __init__(self, *, num_classes: int, ignore_index: int | None = None, bins: Count = 15) -> None:
        self.num_classes, self.bins, self._ignored = num_classes, bins, -1 if ignore_index is None else ignore_index
        self._count = partial(confusion_matrix, num_classes=num_classes, ignore_index=ignore_index, num_groups=bins)

    def new_state(self) -> State:
        return {name: torch.zeros(self.bins, dtype=torch.int64) for name in ("count", "right", "confidence")}

    def update(
        self, state: State, *, probabilities: Tensor, label: Tensor | None = None, target: Tensor | None = None
    ) -> None:
        """Add a batch: `probabilities` (N, C) of clouds with `label` (N,), or of points with `target` (N,).

        Raises ValueError for what is no probability, and for labels outside the classes.
        """
        truth = label if target is None else target
        if truth is None:
            raise ValueError("calibration: found neither a label nor a target; it is about predictions of classes")
        prediction = predict_classes(probabilities, truth, self.num_classes, "predictions")
        sure = (probabilities.amax(dim=-1).double() * _ONE).round().long()
        if bool(((sure < 0) | (sure > _ONE)).any()):
            raise ValueError("probabilities: found one below 0 or above 1; calibration is about probabilities")
        bins = ((sure * self.bins - 1) // _ONE).clamp(min=0)
        counts = self._count(prediction, truth, group=bins)
        state["count"] += counts.sum(dim=(1, 2)).to(state["count"].device)
        state["right"] += counts.diagonal(dim1=1, dim2=2).sum(dim=1).to(state["right"].device)
        sure = sure.masked_fill(truth == self._ignored, 0).flatten()
        sums = torch.zeros_like(counts[:, 0, 0]).index_add_(0, bins.flatten(), sure)
        state["confidence"] += sums.to(state["confidence"].device)

    def compute(self, state: State) -> dict[str, float]:
        gaps, total = state["confidence"].double() / _ONE - state["right"], state["count"].sum()
        return {"calibration_error": (gaps.abs().sum() / total).item(), "overconfidence": (gaps.sum() / total).item()}
