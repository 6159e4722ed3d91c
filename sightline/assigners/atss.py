"""ATSS: the nearest priors of a box are positive above an IoU threshold that adapts to the box's candidates."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import Count
from sightline.assigners.base import BACKGROUND, Assigner, Assignment, argmax_by_group
from sightline.geometry.boxes.box_coder import encode_distances
from sightline.geometry.boxes.overlaps import box_centres, iou
from sightline.geometry.boxes.priors import PriorKind, Priors
from sightline.geometry.neighbours import nearest_neighbours

__all__ = ["ATSS"]

_SIDE_STRIDES = 8
_MIN_INSIDE_PX = 0.01


@registry.assigners.add("atss")
class ATSS(Assigner):
    """ATSS: priors of the `topk` nearest cells of each level with an IoU of at least mean plus deviation.

    The centre of a prior has to be inside the box; of several boxes the one with the highest IoU wins. Points count
    as squares of eight strides, the anchors of the paper. A small or doubled box may get no prior.
    Source: Zhang et al. 2020, algorithm 1; the deviation is the unbiased one of their code.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors", "points"})

    def __init__(self, *, topk: Count = 9) -> None:
        self.topk = topk

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match priors (P) to boxes (M, 4): `matched` and `num_candidates` (P,)."""
        candidates = self._candidates(priors, boxes)
        overlap = iou(priors.to_boxes(_SIDE_STRIDES)[candidates], boxes[:, None])
        limit = overlap.mean(dim=1) + overlap.std(dim=1, correction=min(1, overlap.shape[1] - 1))
        inside = encode_distances(priors.centres[candidates], boxes[:, None]).amin(dim=2) > _MIN_INSIDE_PX
        box, candidate = ((overlap >= limit[:, None]) & inside).nonzero(as_tuple=True)
        prior = candidates[box, candidate]
        matched = argmax_by_group(prior, overlap[box, candidate], box, len(priors))
        num_claims = torch.zeros_like(matched).index_add_(0, prior, torch.ones_like(prior))
        return Assignment(torch.where(matched >= 0, matched, BACKGROUND), num_claims)

    def _candidates(self, priors: Priors, boxes: Tensor) -> Tensor:
        """Return the priors (M, K) of the nearest cells of every level: the anchors of a cell have one centre."""
        centres, candidates = priors.centres, []
        for rows, per_cell in zip(priors.level_slices, priors.priors_per_cell, strict=True):
            cells = centres[rows][::per_cell]
            count = min(self.topk, len(cells))
            nearest_cells = nearest_neighbours(cells[None], num_neighbours=count, queries=box_centres(boxes)[None])[0]
            steps = torch.arange(per_cell, device=boxes.device)
            candidates.append((rows.start + nearest_cells[:, :, None] * per_cell + steps).flatten(1))
        return torch.cat(candidates, dim=1)
