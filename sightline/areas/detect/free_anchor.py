"""FreeAnchor: bags of anchors around boxes, and losses by which one anchor of a bag has to detect its box.

Source: Zhang et al. 2019, FreeAnchor: Learning to Match Anchors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from sightline.areas.detect.losses import sigmoid_focal
from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, NonNegativeFloat, PositiveFloat, Probability
from sightline.contract.loss import Loss
from sightline.ops.boxes.codes import DeltaWeights, decode_boxes, encode_deltas
from sightline.ops.boxes.overlaps import box_iou, column_blocks, giou
from sightline.ops.boxes.priors import IGNORED, PriorKind, Priors
from sightline.ops.dtypes import promote_to_float32, widen_labels
from sightline.ops.waits import is_on_host, read_list, send_list
from sightline.parts.boxes.assigner import BACKGROUND, Assigner, Assignment, argmax_by_group

_FARTHEST = 3.0
"""More than GIoUs less 1 are below 0."""


def anchor_bags(anchors: Tensor, boxes: Tensor, size: int, is_member: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the `size` anchors (M, size) of highest IoU with each box (M, 4), best first, and these IoUs (M, size).

    If fewer than `size` of the anchors (N, 4) overlap a box, those with the highest GIoU follow; all anchors if N <
    size. Anchors that are not `is_member` (N,) come last, with an IoU below -1.
    """
    size = min(size, len(anchors))
    bags, overlaps = [boxes.new_zeros((0, size), dtype=torch.int64)], [boxes.new_zeros(0, size)]
    for part in column_blocks(len(anchors), len(boxes), boxes.device):
        overlap = box_iou(boxes[part], anchors)
        if is_member is not None:
            overlap = torch.where(is_member, overlap, -_FARTHEST)
        best, bag = overlap.topk(size, dim=1)
        is_known = is_on_host(best)  # elsewhere each box is taken for one with too few anchors
        rows: Any = (best <= 0).any(dim=1).nonzero().flatten() if is_known else slice(None)
        if not is_known or len(rows):
            short = overlap[rows]
            far = giou(boxes[part][rows, None], anchors) - 1  # below any IoU
            far = torch.where(short < 0, short, far)
            bag[rows] = torch.where(short > 0, short, far).topk(size, dim=1).indices
        bags.append(bag)
        overlaps.append(overlap.gather(1, bag))
    return torch.cat(bags), torch.cat(overlaps)


@registry.assigners.add("free_anchor")
class FreeAnchor(Assigner):
    """FreeAnchor: the `bag_size` anchors with the highest IoU with a box are its bag, from which the loss chooses.

    The loss is `free_anchor_positive`. An anchor in several bags is given to the box that it overlaps most. Source:
    Zhang et al. 2019, section 3.2.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors"})
    excludes: ClassVar[frozenset[str]] = frozenset({"centreness", "objectness"})  # its own losses read neither
    remark: ClassVar[str] = "bags; the loss chooses among the anchors of a bag"

    def __init__(self, *, bag_size: Count = 50) -> None:
        self.bag_size = bag_size

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match anchors (P) to boxes (M, 4): `matched` and `num_claims` (P,)."""
        bags, overlap = anchor_bags(priors.coordinates, boxes, self.bag_size)
        box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(bags).flatten()
        prior, overlap = bags.flatten(), overlap.flatten()
        matched = argmax_by_group(prior, overlap, box, len(priors))
        num_claims = torch.zeros_like(matched).index_add_(0, prior, torch.ones_like(prior))
        return Assignment(torch.where(matched >= 0, matched, BACKGROUND), num_claims)


_MIN_REMAINDER = 1e-12


def bag_losses(log_probabilities: Tensor, is_in_bag: Tensor | None = None) -> Tensor:
    """Compute -log of the mean-max (M,) of each bag of probabilities from their logarithms (M, N); float64.

    Those that are not `is_in_bag` (M, N) do not count; each bag holds one that does.

    The mean-max is the mean weighted by 1 / (1 - P) of at most 1e12: near the plain mean of small ones, near the
    highest once it is close to 1. The limit has no part in the gradient. Source: Zhang et al. 2019, FreeAnchor,
    equation 8.
    """
    log_p = log_probabilities.double()  # weights reach 1e12
    remainder = -log_p.expm1()
    log_weight = -(remainder + (remainder.clamp(min=_MIN_REMAINDER) - remainder).detach()).log()
    if is_in_bag is not None:
        log_weight = log_weight.masked_fill(~is_in_bag, -torch.inf)
    return log_weight.logsumexp(dim=1) - (log_weight + log_p).logsumexp(dim=1)


_MAX_DENSE = 2**22
"""Predictions of an image up to which all are computed on a device, instead of waiting for those near boxes."""


class _BoxesLoss(Loss):
    """Base of sums over bags of anchors that are divided by the number of boxes."""

    assigner = "free_anchor"

    def count(self, *, is_ignored: Tensor) -> Tensor:
        """Count the boxes that are not ignored; `is_ignored` (G,) bool."""
        return (~is_ignored).sum()


@registry.losses.add("free_anchor_positive")
class FreeAnchorPositive(_BoxesLoss):
    """FreeAnchor positive loss: -`alpha` log of the mean-max, over each box's bag, of the matching probabilities.

    An anchor's probability is that of the box's class times exp(-`box_weight` smooth L1 of its deltas, times
    `delta_weights`). The bag is chosen among the anchors that the assigner `free_anchor` gives to boxes. Divided by the
    number of boxes.

    >>> import torch
    >>> from sightline.areas.detect.free_anchor import FreeAnchorPositive
    >>> boxes = torch.tensor([[0.0, 0, 10, 10]])
    >>> batch = {"priors": boxes, "boxes": boxes, "codes": torch.zeros(1, 1, 4), "target": torch.tensor([[0]])}
    >>> batch |= {"label": torch.tensor([0]), "is_ignored": torch.tensor([False]), "box_offsets": torch.tensor([0, 1])}
    >>> FreeAnchorPositive()(logits=torch.zeros(1, 1, 1), **batch)  # the anchor is the box, its class unsure: 0.5 ln 2
    tensor(0.3466)

    Source: Zhang et al. 2019, FreeAnchor, equations 7 and 8; the weights of deltas are those of the authors' code.
    """

    def __init__(
        self,
        *,
        bag_size: Count = 50,
        alpha: Probability = 0.5,
        box_weight: NonNegativeFloat = 0.75,
        beta: NonNegativeFloat = 0.11,
        delta_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0),
    ) -> None:
        super().__init__()
        self.bag_size, self.alpha, self.box_weight, self.beta = bag_size, alpha, box_weight, beta
        self.delta_weights: DeltaWeights = delta_weights

    def forward(
        self,
        *,
        logits: Tensor,
        codes: Tensor,
        priors: Tensor,
        target: Tensor,
        boxes: Tensor,
        label: Tensor,
        is_ignored: Tensor,
        box_offsets: Tensor,
    ) -> Tensor:
        """Compute the loss sum from `logits` (B, P, K) before the sigmoid, and `codes` (B, P, 4) as anchor deltas."""
        _assert_anchors("free_anchor_positive", priors)
        total = promote_to_float32(logits[:0]).sum() + promote_to_float32(codes[:0]).sum()
        for image, image_boxes, classes in _iterate_images(priors, boxes, label, is_ignored, box_offsets):
            image_boxes, is_member = image_boxes.to(priors.dtype), target[image] >= 0
            if is_on_host(target):
                member = is_member.nonzero().flatten()
                bags = member[anchor_bags(priors[member], image_boxes, self.bag_size)[0]]
                is_in_bag = None
            else:
                bags, overlap = anchor_bags(priors, image_boxes, self.bag_size, is_member)
                is_in_bag = overlap >= 0
            true = encode_deltas(priors[bags], image_boxes[:, None], weights=self.delta_weights)
            predicted = promote_to_float32(codes[image, bags]) * send_list(self.delta_weights, true.device, true.dtype)
            distance = functional.smooth_l1_loss(predicted, true, reduction="none", beta=self.beta).sum(dim=2)
            log_p = functional.logsigmoid(promote_to_float32(logits[image, bags, classes[:, None]]))
            total = total + self.alpha * bag_losses(log_p - self.box_weight * distance, is_in_bag).sum().to(total.dtype)
        return total


@registry.losses.add("free_anchor_negative")
class FreeAnchorNegative(_BoxesLoss):
    """FreeAnchor negative loss: (1 - `alpha`) q^gamma (-log(1 - q)) / `bag_size` of every class at every prior.

    q is the probability of the class times that of detecting no box of it: 1 if the predicted box overlaps none by
    more than `least_iou`, 0 if it overlaps one more than any other prediction does, linear between. Ignored priors
    do not count. Divided by the number of boxes.

    >>> import torch
    >>> from sightline.areas.detect.free_anchor import FreeAnchorNegative
    >>> priors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])  # the first detects the box, the second nothing
    >>> batch = {"priors": priors, "codes": torch.zeros(1, 2, 4), "target": torch.tensor([[0, -1]])}
    >>> batch |= {"boxes": priors[:1], "label": torch.tensor([0])}
    >>> batch |= {"is_ignored": torch.tensor([False]), "box_offsets": torch.tensor([0, 1])}
    >>> FreeAnchorNegative(bag_size=1)(logits=torch.zeros(1, 2, 1), **batch)  # of the second, 0.5 0.5^2 ln 2
    tensor(0.0866)

    Source: Zhang et al. 2019, FreeAnchor, equations 6 and 9.
    """

    def __init__(
        self,
        *,
        bag_size: Count = 50,
        alpha: Probability = 0.5,
        gamma: PositiveFloat = 2.0,
        least_iou: FractionBelowOne = 0.6,
    ) -> None:
        super().__init__()
        self.bag_size, self.alpha, self.gamma, self.least_iou = bag_size, alpha, gamma, least_iou

    def forward(
        self,
        *,
        logits: Tensor,
        codes: Tensor,
        priors: Tensor,
        target: Tensor,
        boxes: Tensor,
        label: Tensor,
        is_ignored: Tensor,
        box_offsets: Tensor,
    ) -> Tensor:
        """Compute the loss sum from `logits` (B, P, K) and `codes` (B, P, 4) as in `free_anchor_positive`.

        The predicted boxes get no gradient.
        """
        _assert_anchors("free_anchor_negative", priors)
        weight = (widen_labels(target, "target") != IGNORED)[..., None].to(logits.dtype).repeat(1, 1, logits.shape[2])
        terms = []
        for image, image_boxes, classes in _iterate_images(priors, boxes, label, is_ignored, box_offsets):
            with torch.no_grad():
                predicted = decode_boxes(priors, codes[image])
                arguments = predicted, image_boxes.to(predicted.dtype), classes
                if is_on_host(target) or logits[image].numel() > _MAX_DENSE:
                    prior, kind, p = self._detection_probabilities(*arguments)
                    is_counted = weight[image, prior, kind] > 0
                    p, prior, kind = p[is_counted], prior[is_counted], kind[is_counted]
                    index: Any = (image, prior, kind)
                    is_counted = is_counted[is_counted]
                else:
                    p, index = self._all_detection_probabilities(*arguments, logits.shape[2]), image
                    is_counted = (weight[image] > 0) & (p > 0)
                    p = torch.where(is_counted, p, 0.0)
            weight[index] = torch.where(is_counted, 0.0, weight[index])
            value = promote_to_float32(logits[index])
            log_class, log_rest = functional.logsigmoid(value), functional.logsigmoid(-value)
            log_q, log_other = log_class + (1 - p).log(), torch.logaddexp(log_rest, log_class + p.log())
            terms.append(torch.where(is_counted, -(self.gamma * log_q).exp() * log_other, 0.0).sum())
        none = torch.zeros((), dtype=torch.bool, device=logits.device)
        plain = sigmoid_focal(logits, none, alpha=None, gamma=self.gamma, weight=weight)
        return (1 - self.alpha) / self.bag_size * torch.stack([plain, *terms]).sum()

    def _all_detection_probabilities(self, predicted: Tensor, boxes: Tensor, classes: Tensor, count: int) -> Tensor:
        """Return the probability (P, count) that a prior detects a box of each class, without waiting for a device."""
        blocks = column_blocks(len(boxes), len(predicted), boxes.device)
        overlap = torch.cat([box_iou(boxes, predicted[part]) for part in blocks], dim=1)
        p = (overlap - self.least_iou) / (overlap.amax(dim=1, keepdim=True) - self.least_iou)
        p = torch.where(overlap > self.least_iou, p, 0.0)
        return p.new_zeros(count, p.shape[1]).scatter_reduce(0, classes[:, None].expand_as(p), p, "amax").T

    def _detection_probabilities(
        self, predicted: Tensor, boxes: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return priors, classes, and the probability that the prior detects a box of the class, if it is above 0."""
        best, pairs, values = boxes.new_zeros(len(boxes)), [], []
        for part in column_blocks(len(boxes), len(predicted), boxes.device):
            overlap = box_iou(boxes, predicted[part])
            best = torch.maximum(best, overlap.amax(dim=1))
            box, prior = (overlap > self.least_iou).nonzero(as_tuple=True)
            pairs.append(torch.stack([box, prior + part.start], dim=1))
            values.append(overlap[box, prior])
        box, prior = torch.cat(pairs).unbind(dim=1)
        p = (torch.cat(values) - self.least_iou) / (best[box] - self.least_iou)
        keys, group = torch.stack([prior, classes[box]], dim=1).unique(dim=0, return_inverse=True)
        highest = p.new_zeros(len(keys)).scatter_reduce(0, group, p, "amax")
        return keys[:, 0], keys[:, 1], highest


def _assert_anchors(name: str, priors: Tensor) -> None:
    if priors.shape[1] != 4:
        raise ValueError(f"{name}: found points as priors, expected anchors; take the head retina")


def _iterate_images(
    priors: Tensor, boxes: Tensor, label: Tensor, is_ignored: Tensor, offsets: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Iterate over the images with boxes that are not ignored: their boxes and classes; over none without priors."""
    if not len(priors):
        return
    flags, label = read_list(is_ignored), widen_labels(label)
    for image, (first, last) in enumerate(pairwise(read_list(offsets))):
        rows = send_list([row for row in range(first, last) if not flags[row]], boxes.device)
        if len(rows):
            yield image, boxes[rows], label[rows]
