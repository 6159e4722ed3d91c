"""SimOTA: the points with the lowest cost for a box are positive, their number from its IoUs. Source: YOLOX, 2021."""

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

_MIN_IOU, _MIN_LOG, _FAR = 1e-8, -100.0, 1e6


@registry.assigners.add("simota")
class SimOTA(Assigner):
    """SimOTA: each box takes the priors of lowest cost, about as many as its `topk` best IoUs sum to (dynamic k).

    Candidates are less than `radius` strides from the middle of a box; those of other boxes cost 1e6 more. The cost is
    the binary cross entropy of the root of class probability times objectness, plus `iou_weight` times -log IoU. A
    prior that several boxes take goes to the box with the lowest cost. With `guarantee`, a box that is then
    without a prior gets its cheapest free candidate. Source: Ge et al. 2021, YOLOX, section 2.3.
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
        """Match points (P) to boxes (M, 4) of labels (M,) by predictions: `matched` and `num_candidates` (P,)."""
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        candidates = candidate_pairs(priors, boxes, self.radius)[1].unique()
        if not len(candidates):
            return Assignment(matched, num_claims)
        costs = _Costs(priors, boxes, labels, predicted, candidates, self.radius, self.iou_weight)
        all_candidates = torch.arange(len(candidates), device=boxes.device)
        parts = column_blocks(len(candidates), len(boxes), boxes.device)
        box, candidate = torch.cat([self._select_candidates(costs, part, all_candidates) for part in parts]).unbind(
            dim=1
        )
        count = torch.zeros_like(all_candidates).index_add_(0, candidate, torch.ones_like(candidate))
        owner = torch.full_like(all_candidates, BACKGROUND)
        owner[candidate] = box
        contested = (count > 1).nonzero().flatten()
        owner[contested] = costs.cheapest_box(contested)
        if self.guarantee:
            _guarantee_priors(owner, costs)
        matched[candidates], num_claims[candidates] = owner, count
        return Assignment(matched, num_claims)

    def _select_candidates(self, costs: _Costs, part: slice, every: Tensor) -> Tensor:
        """Select the candidates of some boxes: pairs (n, 2) of box and candidate index, equal costs in their order."""
        cost, overlap = costs.compute(part, every)
        best = overlap.topk(min(self.topk, len(every)), dim=1).values
        number = best.sum(dim=1).long().clamp(min=1)
        limit = cost.topk(best.shape[1], dim=1, largest=False).values.gather(1, number[:, None] - 1)
        is_taken, is_tied = cost < limit, cost == limit
        is_taken |= is_tied & (is_tied.cumsum(dim=1) <= number[:, None] - is_taken.sum(dim=1, keepdim=True))
        return is_taken.nonzero() + number.new_tensor([part.start, 0])


@dataclass(frozen=True)
class _Costs:
    """Cost matrix of boxes and candidates, computed in blocks."""

    priors: Priors
    boxes: Tensor
    labels: Tensor
    predicted: PriorPredictions
    candidates: Tensor
    radius: float
    iou_weight: float

    def compute(self, rows: slice | Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return costs and IoUs (R, C) of some boxes and candidates."""
        chosen, boxes = self.candidates[indices], self.boxes[rows]
        overlap = pairwise_iou(boxes, self.predicted.boxes[chosen].to(boxes.dtype))
        cost = self._class_cost[indices][:, self.labels[rows]].T + self.iou_weight * -(overlap + _MIN_IOU).log()
        is_own = is_within_reach(boxes, self.priors.centres[chosen], self.radius * self.priors.prior_stride[chosen])
        return torch.where(is_own, cost, cost + _FAR), overlap

    def cheapest_box(self, indices: Tensor) -> Tensor:
        """Return the box of lowest cost for each of these candidates."""
        cheapest = torch.zeros_like(indices)
        least = self.boxes.new_full(indices.shape, torch.inf)
        for part in column_blocks(len(indices), len(self.boxes), indices.device):
            cost, box = self.compute(part, indices)[0].min(dim=0)
            cheapest = torch.where(cost < least, box + part.start, cheapest)
            least = torch.minimum(least, cost)
        return cheapest

    @cached_property
    def _class_cost(self) -> Tensor:
        """Classification cost (N, K) of each class as the only true one."""
        log_p = functional.logsigmoid(self.predicted.logits[self.candidates])
        if self.predicted.objectness is not None:
            log_p = (log_p + functional.logsigmoid(self.predicted.objectness[self.candidates])[:, None]) / 2
        log_rest = (-log_p.expm1()).log().clamp(min=_MIN_LOG)
        return class_costs(-log_rest, -log_p.clamp(min=_MIN_LOG))[0]


def _guarantee_priors(owner: Tensor, costs: _Costs) -> None:
    """Give boxes without a candidate their cheapest free one, in the order of cost."""
    is_orphan = torch.ones(len(costs.boxes), dtype=torch.bool, device=owner.device)
    is_orphan[owner[owner >= 0]] = False
    orphans, free = is_orphan.nonzero().flatten(), (owner < 0).nonzero().flatten()
    if not len(orphans) or not len(free):
        return
    cost = costs.compute(orphans, free)[0]
    for _ in range(min(cost.shape)):
        row, column = divmod(int(cost.argmin()), len(free))
        owner[free[column]] = orphans[row]
        cost[row], cost[:, column] = torch.inf, torch.inf
