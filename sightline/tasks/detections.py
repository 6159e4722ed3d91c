"""From a detector's raw outputs to the boxes of an image file: score, decode, suppress, and lead back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.geometry.boxes.affine import inverted, moved_boxes
from sightline.geometry.boxes.codings import decode
from sightline.geometry.boxes.overlaps import at_least_float32
from sightline.geometry.boxes.priors import Priors
from sightline.geometry.boxes.suppression import Kept, Suppression

__all__ = ["KeepAll", "Selection", "to_file"]


class KeepAll(Suppression):
    """Suppresses nothing: for looking at what another suppression is given."""

    def __init__(self) -> None:
        super().__init__(per_class=False)

    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Kept:
        places = scores.argsort(descending=True, stable=True)
        return Kept(places, scores[places])


@dataclass(frozen=True)
class Selection:
    """Which of an image's predictions become detections.

    Those of a class with a probability above `score`, the `per_level` surest of each level; of them what `suppression`
    leaves, the `most` surest. With centre-ness the score is the root of its product with the probability.
    """

    suppression: Suppression
    score: float
    per_level: int
    most: int

    def __call__(self, outputs: Mapping[str, Any], image: int, priors: Priors) -> Tensor:
        """The detections (D, 6) of one image of a batch: left, top, right, bottom on the canvas, score, class."""
        probabilities = at_least_float32(outputs["logits"][image]).sigmoid()
        scores = probabilities
        if "centreness" in outputs:
            scores = (probabilities * at_least_float32(outputs["centreness"][image]).sigmoid()[:, None]).sqrt()
        found = [self._surest(probabilities[rows], scores[rows], rows.start) for rows in priors.levels]
        prior, label, score = (torch.cat(parts) for parts in zip(*found, strict=True))
        boxes = decode(priors.rows[prior], outputs["codes"][image, prior])
        kept = self.suppression(boxes, score, label)
        places = kept.places[: self.most]
        columns = (boxes[places], kept.scores[: self.most, None].to(boxes), label[places, None].to(boxes))
        return torch.cat(columns, dim=1)

    def _surest(self, probabilities: Tensor, scores: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prior, class and score of the surest predictions of a level; equal ones in the order of priors."""
        prior, label = (probabilities > self.score).nonzero(as_tuple=True)
        score = scores[prior, label]
        order = score.argsort(descending=True, stable=True)[: self.per_level]
        return prior[order] + start, label[order], score[order]


def to_file(detections: Tensor, to_canvas: Tensor, file_px: Tensor, *, clip: bool) -> Tensor:
    """Detections (D, 6) on a canvas in pixels of the file, float64; cut at its border where `clip` says so.

    `to_canvas` (2, 3) leads from the file to the canvas.
    """
    boxes = moved_boxes(detections[:, :4].double(), inverted(to_canvas))
    if clip:
        height, width = file_px.tolist()
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    return torch.cat([boxes, detections[:, 4:].double()], dim=1)
