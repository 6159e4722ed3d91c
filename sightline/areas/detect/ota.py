"""OTA: optimal transport of boxes to points, by Sinkhorn's algorithm over sparse pairs. Source: Ge et al. 2021, OTA."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sightline.areas.detect.candidates import candidate_pairs, class_costs
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat, PositiveFloat
from sightline.ops.boxes.focal import sigmoid_focal_loss
from sightline.ops.boxes.overlaps import box_iou, column_blocks, iou
from sightline.ops.boxes.priors import PriorKind, Priors
from sightline.parts.boxes.assigner import BACKGROUND, Assigner, Assignment, PriorPredictions, argmax_by_group

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


_MIN_INSIDE_PX = 0.01
_MIN_IOU = 1e-7


@registry.assigners.add("ota")
class OTA(Assigner):
    """OTA: optimal transport assigns each box about as many priors as the `topk` best IoUs of its candidates sum to.

    Background supplies all others. Candidates are inside a box and less than `radius` strides from its middle; a box
    without any takes part with the `topk` priors of lowest cost. The cost is the focal loss of the class plus
    `iou_weight` times -log IoU, that of background the focal loss of none. A prior goes to the supplier with the
    largest share in it, relative to the supplier's largest. Source: Ge et al. 2021, OTA, sections 3.2 and 3.3.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"points"})
    needs_predictions: ClassVar[bool] = True

    def __init__(
        self,
        *,
        radius: PositiveFloat = 2.5,
        topk: Count = 20,
        iou_weight: NonNegativeFloat = 1.5,
        epsilon: PositiveFloat = 0.1,
        num_iterations: Count = 50,
    ) -> None:
        self.radius, self.topk, self.iou_weight = radius, topk, iou_weight
        self.epsilon, self.num_iterations = epsilon, num_iterations

    def match(self, priors: Priors, boxes: Tensor, labels: Tensor, predicted: PriorPredictions) -> Assignment:
        """Match points (P) to boxes (M, 4) of labels (M,) by predictions: `matched` and `num_claims` (P,)."""
        nothing = torch.zeros_like(predicted.logits, dtype=torch.bool)
        costs = [sigmoid_focal_loss(predicted.logits, is_target) for is_target in (nothing, ~nothing)]
        class_cost, background_cost = (tensors.double() for tensors in class_costs(*costs))
        box, prior = candidate_pairs(priors, boxes, self.radius, inside_px=_MIN_INSIDE_PX)
        overlap = iou(predicted.boxes[prior].to(boxes), boxes[box])
        supply = _sums_of_best(overlap, box, self.topk, len(boxes)).long().clamp(min=1)
        cost = class_cost[prior, labels[box]] - self.iou_weight * overlap.double().clamp(min=_MIN_IOU).log()

        lonely = (box.bincount(minlength=len(boxes)) == 0).nonzero().flatten()
        cheapest = self._cheapest(lonely, boxes, labels, predicted, class_cost, background_cost)
        box, prior, cost = (torch.cat(tensors) for tensors in zip((box, prior, cost), cheapest, strict=True))
        candidates, candidate = prior.unique(return_inverse=True)
        share = self._shares(box, candidate, cost, background_cost[candidates], supply, len(priors))

        box = torch.cat([box, torch.full_like(candidates, len(boxes))])
        candidate = torch.cat([candidate, torch.arange(len(candidates), device=candidate.device)])
        best = argmax_by_group(candidate, share, box, len(candidates))
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        matched[candidates] = torch.where(best < len(boxes), best, BACKGROUND)
        is_claimed = share > share[-len(candidates) :][candidate]
        num_claims[candidates] = torch.zeros_like(candidates).index_add_(0, candidate, is_claimed.long())
        return Assignment(matched, num_claims)

    def _cheapest(
        self,
        lonely: Tensor,
        boxes: Tensor,
        labels: Tensor,
        predicted: PriorPredictions,
        of_class: Tensor,
        of_none: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return pairs (E,), and their costs, of `lonely` boxes with the cheapest priors relative to background."""
        number, pairs = min(self.topk, len(of_none)), []
        for part in column_blocks(len(of_none), len(lonely), lonely.device):
            rows = lonely[part]
            overlap = box_iou(boxes[rows], predicted.boxes.to(boxes)).double().clamp(min=_MIN_IOU)
            cost = of_class[:, labels[rows]].T - self.iou_weight * overlap.log()
            prior = (cost - of_none).topk(number, largest=False).indices
            pairs.append((rows[:, None].expand_as(prior).flatten(), prior.flatten(), cost.gather(1, prior).flatten()))
        parts = zip(*pairs, strict=True) if pairs else [[lonely], [lonely], [of_none[:0]]]
        box, prior, cost = (torch.cat(list(tensors)) for tensors in parts)
        return box, prior, cost

    def _shares(
        self, box: Tensor, candidate: Tensor, cost: Tensor, of_none: Tensor, supply: Tensor, num_priors: int
    ) -> Tensor:
        """Return the transport of each pair relative to its supplier's largest; then that of background.

        Priors that are near no box are one consumer together, which background alone serves.
        """
        count, num_remaining = len(of_none), num_priors - len(of_none)
        supplier = torch.cat([box, torch.full((count + 1,), len(supply), device=box.device)])
        consumer = torch.cat([candidate, torch.arange(count + 1, device=box.device)])
        cost = torch.cat([cost, of_none, of_none.new_zeros(1)])
        supply = torch.cat([supply, (num_priors - supply.sum()).clamp(min=1)[None]])
        demand = torch.ones(count + 1, dtype=torch.float64, device=box.device)
        demand[-1] = num_remaining + (num_remaining - 1) * MARGIN  # as if the margin were added to each of them
        margins = supplier, consumer, supply, demand
        plan = sinkhorn(cost, *margins, epsilon=self.epsilon, num_iterations=self.num_iterations)
        plan[-1] /= max(1, num_remaining)
        max_plan = plan.new_zeros(len(supply)).scatter_reduce(0, supplier, plan, "amax")
        return (plan / max_plan[supplier])[:-1]


def _sums_of_best(values: Tensor, group: Tensor, count: int, num_groups: int) -> Tensor:
    """Return the sums (num_groups,) of the `count` highest values of each group."""
    order = values.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    values, group = values[order], group[order]
    rank = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    is_best = rank < count
    return values.new_zeros(num_groups).index_add_(0, group[is_best], values[is_best])
