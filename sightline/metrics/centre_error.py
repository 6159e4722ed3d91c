"""Distance of reference points from the middle joint, before and after a refiner."""

from __future__ import annotations

import torch
from torch import Tensor

from sightline import registry
from sightline.metrics.base import State
from sightline.metrics.joint_errors import distance_slots, record_distances

__all__ = ["CentreError"]


@registry.metrics.add("centre_error")
class CentreError:
    """Centre error: the mean distance of refined points from the middle joint, its median and maximum.

    `centre_error_mm` is the mean, `reference_error_mm` that of the points which were refined: a refiner that does not
    get below it is of no use. Frames without a label of this joint do not count. Source: Oberweger and Lepetit 2017,
    DeepPrior++.

    `reference_error_mm` is that of the points which were refined: a refiner that does not reach below it is of no use.
    Frames without a label of this joint count nowhere. Source: Oberweger and Lepetit 2017, DeepPrior++.
    """

    slots = frozenset({"distance_mm", "labelled", "seen"})
    higher_is_better = False

    def __init__(self, *, centre_joint: int) -> None:
        self.centre_joint = centre_joint

    def new_state(self, *, num_samples: int = 0) -> State:
        return distance_slots(num_samples, 2)

    def update(
        self,
        state: State,
        *,
        centre_mm: Tensor,
        reference: Tensor,
        joints: Tensor,
        visible: Tensor,
        sample_index: Tensor,
    ) -> None:
        """Add a batch: `centre_mm` refined and `reference` (B, 3), `joints` true (B, J, 3), all in mm.

        `visible` (B, J).
        """
        estimates = torch.stack([centre_mm, reference.to(centre_mm)], dim=1)
        middle = joints[:, self.centre_joint, None].expand(-1, 2, -1)
        record_distances(
            state, estimates, middle, visible[:, self.centre_joint, None].bool().expand(-1, 2), sample_index
        )

    def compute(self, state: State) -> dict[str, float]:
        is_labelled = state["labelled"][:, 0] > 0
        refined, unrefined = state["distance_mm"][is_labelled].unbind(dim=1)
        names = ("centre_error_mm", "median_centre_error_mm", "max_centre_error_mm", "reference_error_mm")
        if not len(refined):
            return dict.fromkeys(names, torch.nan)
        figures = (refined.mean(), refined.median(), refined.max(), unrefined.mean())
        return {name: figure.item() for name, figure in zip(names, figures, strict=True)}

    def per_sample(self, state: State) -> Tensor:
        """Return the distance (num_samples,) float64 of each frame's refined point.

        NaN if its joint is not labelled.
        """
        return state["distance_mm"][:, 0] / state["labelled"][:, 0]

    def per_class(self, state: State) -> dict[str, dict[str, float]]:
        """Return nothing: there are no classes."""
        return {}
