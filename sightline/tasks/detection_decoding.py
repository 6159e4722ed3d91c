"""From a detector's raw outputs to the boxes of an image file: score, decode, suppress, and lead back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.geometry.boxes.affine import invert_affine, warp_boxes
from sightline.geometry.boxes.box_coder import decode_boxes
from sightline.geometry.boxes.overlaps import promote_to_float32
from sightline.geometry.boxes.priors import Priors
from sightline.geometry.boxes.suppression import Suppression

__all__ = ["Candidates", "DetectionFilter", "clip_boxes", "to_file_pixels"]


class Candidates(NamedTuple):
    """What an image may have: `detections` (N, 6) as left, top, right, bottom, score, class, before suppression.

    `proposal` (N,) int64 and `density` (N,) are None where the head does not predict them.
    """

    detections: Tensor
    proposal: Tensor | None = None
    density: Tensor | None = None

    @classmethod
    def concatenate(cls, passes: Sequence[Candidates]) -> Candidates:
        """Those of several passes over one image, on the same canvas; proposals of different passes differ."""
        detections, proposals, densities = zip(*passes, strict=True)
        proposal = density = None
        if all(each is not None for each in proposals):
            proposal = torch.cat([each * len(passes) + place for place, each in enumerate(proposals)])
        if all(each is not None for each in densities):
            density = torch.cat(densities)
        return cls(torch.cat(detections), proposal, density)


@dataclass(frozen=True)
class DetectionFilter:
    """Which of an image's predictions become detections.

    Those of a class with a probability above `score`, the `per_level` surest of each level; of them what `suppression`
    leaves, the `most` surest. With objectness, the probability is its product with that of the class. With centre-ness
    the score is the root of its product with the probability. Several predictions of one prior are one proposal.
    """

    suppression: Suppression
    score: float
    per_level: int
    most: int

    def candidates(self, outputs: Mapping[str, Any], image: int, priors: Priors) -> Candidates:
        """Those of one image of a batch, on the canvas."""
        logits, codes = outputs["logits"][image], outputs["codes"][image]
        count = len(logits[0]) if logits.ndim == 3 else 1
        if count > 1:
            logits, codes = logits.flatten(0, 1), codes.flatten(0, 1)
        probabilities = promote_to_float32(logits).sigmoid()
        if "objectness" in outputs:
            probabilities = probabilities * promote_to_float32(outputs["objectness"][image]).sigmoid()[:, None]
        scores = probabilities
        if "centreness" in outputs:
            scores = (probabilities * promote_to_float32(outputs["centreness"][image]).sigmoid()[:, None]).sqrt()
        levels = [slice(rows.start * count, rows.stop * count) for rows in priors.level_slices]
        found = [self._surest(probabilities[rows], scores[rows], rows.start) for rows in levels]
        place, label, score = (torch.cat(parts) for parts in zip(*found, strict=True))
        prior = place // count
        boxes = decode_boxes(priors.coordinates[prior], codes[place])
        density = outputs["density"][image, prior] if "density" in outputs else None
        columns = (boxes, score[:, None].to(boxes), label[:, None].to(boxes))
        return Candidates(torch.cat(columns, dim=1), prior, density)

    def suppress(self, candidates: Candidates) -> Tensor:
        """The detections (D, 6) that remain, the surest first."""
        rows, *more = candidates
        names = dict(zip(("proposal", "density"), more, strict=True))
        kept = self.suppression(rows[:, :4], rows[:, 4], rows[:, 5].long(), **names)
        chosen = rows[kept.indices[: self.most]]
        return torch.cat([chosen[:, :4], kept.scores[: self.most, None], chosen[:, 5:]], dim=1)

    def _surest(self, probabilities: Tensor, scores: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Place, class and score of the surest predictions of a level; equal ones in the order of priors."""
        prior, label = (probabilities > self.score).nonzero(as_tuple=True)
        score = scores[prior, label]
        order = score.argsort(descending=True, stable=True)[: self.per_level]
        return prior[order] + start, label[order], score[order]


def to_file_pixels(detections: Tensor, to_canvas: Tensor, file_px: Tensor, *, clip: bool) -> Tensor:
    """Detections (D, 6) on a canvas in pixels of the file, float64; cut at its border where `clip` says so.

    `to_canvas` (2, 3) leads from the file to the canvas.
    """
    boxes = warp_boxes(detections[:, :4].double(), invert_affine(to_canvas))
    moved = torch.cat([boxes, detections[:, 4:].double()], dim=1)
    return clip_boxes(moved, file_px) if clip else moved


def clip_boxes(detections: Tensor, file_px: Tensor) -> Tensor:
    """Detections (D, 6) whose boxes end at the border of the file."""
    height, width = file_px.tolist()
    boxes = detections[:, :4].clamp(min=0).minimum(detections.new_tensor([width, height, width, height]))
    return torch.cat([boxes, detections[:, 4:]], dim=1)
