"""The points that predict a box best predict it: as many as their overlaps add up to. Source: Ge et al. 2021, YOLOX."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sightline import registry
from sightline.arguments import Count, NonNegativeFloat, PositiveFloat
from sightline.assigners.base import BACKGROUND, Assigner, Assignment, PriorPredictions
from sightline.assigners.candidates import candidate_pairs, class_costs, is_within_reach
from sightline.geometry.boxes.overlaps import column_blocks, pairwise_iou
from sightline.geometry.boxes.priors import PriorKind, Priors

__all__ = ["SimOTA"]

_LEAST_IOU, _LOWEST_LOG, _FAR = 1e-8, -100.0, 1e6


@registry.assigners.add("simota")
class SimOTA(Assigner):
    """Each box takes the priors whose predictions cost least, about as many as the best `topk` IoUs add up to.

    Candidates lie less than `radius` strides from the middle of a box; those of other boxes cost 1e6 more. The cost is
    the binary cross entropy of the root of class probability times objectness, plus `iou_weight` times -log IoU. A
    prior that several boxes take goes to the box with the least cost of all. With `guarantee`, a box that this leaves
    without a prior gets its cheapest candidate that no box has. Source: Ge et al. 2021, YOLOX, section 2.3.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"points"})
    needs_predictions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        radius: PositiveFloat = 1.5,
        topk: Count = 10,
        iou_weight: NonNegativeFloat = 3.0,
        guarantee: bool = True,
    ) -> None:
        self.radius, self.topk, self.iou_weight, self.guarantee = radius, topk, iou_weight, guarantee

    def match(self, priors: Priors, boxes: Tensor, labels: Tensor, predicted: PriorPredictions) -> Assignment:
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        candidates = candidate_pairs(priors, boxes, self.radius)[1].unique()
        if not len(candidates):
            return Assignment(matched, num_claims)
        costs = _Costs(priors, boxes, labels, predicted, candidates, self.radius, self.iou_weight)
        every = torch.arange(len(candidates), device=boxes.device)
        parts = column_blocks(len(candidates), len(boxes), boxes.device)
        box, place = torch.cat([self._taken(costs, part, every) for part in parts]).unbind(dim=1)
        count = torch.zeros_like(every).index_add_(0, place, torch.ones_like(place))
        owner = torch.full_like(every, BACKGROUND)
        owner[place] = box
        contested = (count > 1).nonzero().flatten()
        owner[contested] = costs.cheapest_box(contested)
        if self.guarantee:
            _give_each_box_one(owner, costs)
        matched[candidates], num_claims[candidates] = owner, count
        return Assignment(matched, num_claims)

    def _taken(self, costs: _Costs, part: slice, every: Tensor) -> Tensor:
        """Boxes of a part and the places (n, 2) of the candidates that they take, equal costs in their order."""
        cost, overlap = costs.of(part, every)
        best = overlap.topk(min(self.topk, len(every)), dim=1).values
        number = best.sum(dim=1).long().clamp(min=1)
        limit = cost.topk(best.shape[1], dim=1, largest=False).values.gather(1, number[:, None] - 1)
        is_taken, is_tied = cost < limit, cost == limit
        is_taken |= is_tied & (is_tied.cumsum(dim=1) <= number[:, None] - is_taken.sum(dim=1, keepdim=True))
        return is_taken.nonzero() + number.new_tensor([part.start, 0])


@dataclass(frozen=True)
class _Costs:
    """What it costs that a candidate predicts a box, for parts of the matrix of all."""

    priors: Priors
    boxes: Tensor
    labels: Tensor
    predicted: PriorPredictions
    candidates: Tensor
    radius: float
    iou_weight: float

    def of(self, rows: slice | Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Costs and IoUs of some boxes and candidates."""
        chosen, boxes = self.candidates[places], self.boxes[rows]
        overlap = pairwise_iou(boxes, self.predicted.boxes[chosen].to(boxes.dtype))
        cost = self._of_class[places][:, self.labels[rows]].T + self.iou_weight * -(overlap + _LEAST_IOU).log()
        is_own = is_within_reach(boxes, self.priors.centres[chosen], self.radius * self.priors.prior_stride[chosen])
        return torch.where(is_own, cost, cost + _FAR), overlap

    def cheapest_box(self, places: Tensor) -> Tensor:
        """The box of each of these candidates that costs least."""
        found = torch.zeros_like(places)
        least = self.boxes.new_full(places.shape, torch.inf)
        for part in column_blocks(len(places), len(self.boxes), places.device):
            cost, box = self.of(part, places)[0].min(dim=0)
            found = torch.where(cost < least, box + part.start, found)
            least = torch.minimum(least, cost)
        return found

    @cached_property
    def _of_class(self) -> Tensor:
        """(N, K): each class as the only one that is true."""
        log_p = functional.logsigmoid(self.predicted.logits[self.candidates])
        if self.predicted.objectness is not None:
            log_p = (log_p + functional.logsigmoid(self.predicted.objectness[self.candidates])[:, None]) / 2
        log_rest = (-log_p.expm1()).log().clamp(min=_LOWEST_LOG)
        return class_costs(-log_rest, -log_p.clamp(min=_LOWEST_LOG))[0]


def _give_each_box_one(owner: Tensor, costs: _Costs) -> None:
    """Give boxes without a candidate their cheapest one that is free, the least cost of all first."""
    is_orphan = torch.ones(len(costs.boxes), dtype=torch.bool, device=owner.device)
    is_orphan[owner[owner >= 0]] = False
    orphans, free = is_orphan.nonzero().flatten(), (owner < 0).nonzero().flatten()
    if not len(orphans) or not len(free):
        return
    cost = costs.of(orphans, free)[0]
    for _ in range(min(cost.shape)):
        row, place = divmod(int(cost.argmin()), len(free))
        owner[free[place]] = orphans[row]
        cost[row], cost[:, place] = torch.inf, torch.inf
