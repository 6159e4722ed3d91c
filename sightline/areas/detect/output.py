"""Detections from the outputs of a network: scores, boxes, suppression, and the pixels of the image file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.areas.detect.suppressions import Suppression
from sightline.ops.box_codes import decode_boxes
from sightline.ops.box_forms import clip_boxes_to_image
from sightline.ops.box_overlaps import promote_to_float32
from sightline.ops.priors import Priors, invert_affine, warp_boxes


class UnsuppressedDetections(NamedTuple):
    """Detections of an image before suppression: `detections` (N, 6) as left, top, right, bottom, score, class.

    `proposal` (N,) int64 is the prior of each, None if unknown; `density` (N,) is None if the head predicts none.
    """

    detections: Tensor
    proposal: Tensor | None = None
    density: Tensor | None = None

    @classmethod
    def concatenate(cls, passes: Sequence[UnsuppressedDetections]) -> UnsuppressedDetections:
        """Concatenate the detections of several passes over one image; proposals of different passes differ."""
        detections, proposals, densities = zip(*passes, strict=True)
        proposal = density = None
        if all(values is not None for values in proposals):
            proposal = torch.cat([values * len(passes) + index for index, values in enumerate(proposals)])
        if all(values is not None for values in densities):
            density = torch.cat(densities)
        return cls(torch.cat(detections), proposal, density)


@dataclass(frozen=True)
class DetectionFilter:
    """Selection of an image's detections from its predictions.

    Predictions of a class with a probability above `min_score`, the `max_per_level` highest-scoring of each level; of
    these the `max_detections` highest-scoring after `suppression`. With objectness, the probability is its product with
    that of the class. With centre-ness the score is the root of its product with the probability. Several predictions
    of one prior have the same `proposal`. Scores that are NaN are kept, and then nothing else.
    """

    suppression: Suppression
    min_score: float
    max_per_level: int
    max_detections: int

    def decode(self, outputs: Mapping[str, Any], image: int, priors: Priors) -> UnsuppressedDetections:
        """Decode the detections of one image of a batch before suppression, in pixels of the canvas."""
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
        selected = [self._select_top(probabilities[rows], scores[rows], rows.start) for rows in levels]
        prediction_index, label, score = (torch.cat(parts) for parts in zip(*selected, strict=True))
        prior_index = prediction_index // count
        boxes = decode_boxes(priors.coordinates[prior_index], codes[prediction_index])
        density = outputs["density"][image, prior_index] if "density" in outputs else None
        columns = (boxes, score[:, None].to(boxes), label[:, None].to(boxes))
        return UnsuppressedDetections(torch.cat(columns, dim=1), prior_index, density)

    def score_in_graph(self, outputs: Mapping[str, Any], priors: Priors) -> tuple[Tensor, Tensor]:
        """Return all boxes (B, P, 4), and scores (B, P, C), 0 for those that `decode` does not select."""
        logits, codes = outputs["logits"], outputs["codes"]
        count = logits.shape[2] if logits.ndim == 4 else 1
        if count > 1:
            logits, codes = logits.flatten(1, 2), codes.flatten(1, 2)
        probabilities = logits.sigmoid()
        if "objectness" in outputs:
            probabilities = probabilities * outputs["objectness"].sigmoid()[..., None]
        scores = probabilities
        if "centreness" in outputs:
            scores = (probabilities * outputs["centreness"].sigmoid()[..., None]).sqrt()
        scores = torch.where(probabilities > self.min_score, scores, 0)
        parts = []
        for rows in priors.level_slices:
            level = scores[:, rows.start * count : rows.stop * count].flatten(1)
            if level.shape[1] > self.max_per_level:
                lowest = level.topk(self.max_per_level, dim=1).values[:, -1:]
                level = torch.where(level >= lowest, level, 0)
            parts.append(level)
        coordinates = priors.coordinates.to(codes.dtype).repeat_interleave(count, dim=0)
        return decode_boxes(coordinates, codes), torch.cat(parts, dim=1).view(scores.shape)

    def suppress(self, unsuppressed: UnsuppressedDetections) -> Tensor:
        """Suppress overlapping detections: (N, 6) to (D, 6), by falling score."""
        rows, *more = unsuppressed
        if (is_nan := rows[:, 4].isnan()).any():
            return rows[is_nan][: self.max_detections]  # `predict` and metrics report it
        names = dict(zip(("proposal", "density"), more, strict=True))
        survivors = self.suppression(rows[:, :4], rows[:, 4], rows[:, 5].long(), **names)
        chosen = rows[survivors.indices[: self.max_detections]]
        return torch.cat([chosen[:, :4], survivors.scores[: self.max_detections, None], chosen[:, 5:]], dim=1)

    def _select_top(self, probabilities: Tensor, scores: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return index, class and score of a level's highest-scoring predictions; ties in the order of priors."""
        prior, label = (~(probabilities <= self.min_score)).nonzero(as_tuple=True)  # NaN, too
        score = scores[prior, label]
        order = score.argsort(descending=True, stable=True)[: self.max_per_level]
        return prior[order] + start, label[order], score[order]


def to_file_pixels(detections: Tensor, to_canvas: Tensor, file_px: Tensor, *, clip: bool) -> Tensor:
    """Map detections (D, 6) from a canvas to pixels of the file, float64; clipped to its border if `clip`.

    `to_canvas` (2, 3) is the affine map from the file to the canvas.
    """
    boxes = warp_boxes(detections[:, :4].double(), invert_affine(to_canvas))
    moved = torch.cat([boxes, detections[:, 4:].double()], dim=1)
    return clip_boxes(moved, file_px) if clip else moved


def clip_boxes(detections: Tensor, file_px: Tensor) -> Tensor:
    """Clip the boxes of detections (D, 6) to the border of the file, `file_px` (height, width)."""
    height, width = file_px.tolist()
    return torch.cat([clip_boxes_to_image(detections[:, :4], (height, width)), detections[:, 4:]], dim=1)
