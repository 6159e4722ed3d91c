"""FreeAnchor: bags of anchors, from which training chooses. Source: Zhang et al. 2019, Learning to Match Anchors."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Count
from sightline.assigners.base import BACKGROUND, Assigner, Assignment, argmax_by_group
from sightline.geometry.boxes.bags import anchor_bags
from sightline.geometry.boxes.priors import PriorKind, Priors

__all__ = ["FreeAnchor"]


@registry.assigners.add("free_anchor")
class FreeAnchor(Assigner):
    """FreeAnchor: the `bag_size` anchors with the highest IoU with a box are its bag, from which the loss chooses.

    The loss is `free_anchor_positive`. An anchor in several bags is given to the box that it overlaps most. Source:
    Zhang et al. 2019, section 3.2.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors"})
    excludes: ClassVar[frozenset[str]] = frozenset({"centreness", "objectness"})  # its own losses read neither

    def __init__(self, *, bag_size: Count = 50) -> None:
        self.bag_size = bag_size

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match anchors (P) to boxes (M, 4): `matched` and `num_candidates` (P,)."""
        bags, overlap = anchor_bags(priors.coordinates, boxes, self.bag_size)
        box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(bags).flatten()
        prior, overlap = bags.flatten(), overlap.flatten()
        matched = argmax_by_group(prior, overlap, box, len(priors))
        num_claims = torch.zeros_like(matched).index_add_(0, prior, torch.ones_like(prior))
        return Assignment(torch.where(matched >= 0, matched, BACKGROUND), num_claims)
