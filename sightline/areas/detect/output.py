"""Detections from the outputs of a network: scores, boxes, suppression, and the pixels of the image file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat, Probability
from sightline.ops.boxes.codes import decode_boxes
from sightline.ops.boxes.overlaps import clip_boxes_to_image
from sightline.ops.boxes.priors import Priors
from sightline.ops.boxes.suppression import SuppressionResult, batched_nms, soft_nms
from sightline.ops.dtypes import promote_to_float32
from sightline.ops.points.affine_maps import invert_affine, warp_boxes
from sightline.ops.waits import fetch, send, send_list
from sightline.parts.boxes.suppression import Suppression


@registry.suppressions.add("greedy")
class GreedyNMS(Suppression):
    """Greedy NMS: the highest-scoring detection suppresses those whose IoU with it is above the threshold, and so on.

    Source: Felzenszwalb et al. 2010, section 7.2, with the IoU in place of the share that is covered.
    """

    def __init__(self, *, iou_threshold: Probability = 0.5, per_class: bool = True) -> None:
        super().__init__(per_class=per_class)
        self.iou_threshold = iou_threshold

    def keep(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, *, proposal: Tensor | None = None
    ) -> SuppressionResult:
        """Greedy NMS of boxes (N, 4), scores (N,), labels (N,), and proposal (N,) -> indices and scores (K,)."""
        indices = batched_nms(boxes, scores, labels, self.iou_threshold, proposal=proposal)
        return SuppressionResult(indices, scores[indices])


class _Soft(Suppression):
    def __init__(self, form: dict[str, float], *, per_class: bool) -> None:
        super().__init__(per_class=per_class)
        self.form: Any = form

    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> SuppressionResult:
        return soft_nms(boxes, scores, labels, **self.form)


@registry.suppressions.add("soft_linear")
class SoftLinear(_Soft):
    """Soft-NMS with linear decay: the highest-scoring detection multiplies overlapping scores by 1 - IoU.

    The decay starts at `iou_threshold`. The next detection is the highest by the new scores; those below `min_score`
    are dropped. Source: Bodla et al. 2017.
    """

    def __init__(
        self, *, iou_threshold: Probability = 0.3, min_score: Probability = 1e-3, per_class: bool = True
    ) -> None:
        super().__init__({"iou_threshold": iou_threshold, "min_score": min_score}, per_class=per_class)


@registry.suppressions.add("soft_gaussian")
class SoftGaussian(_Soft):
    """Soft-NMS with a Gaussian decay: the factor is exp(-IoU^2 / sigma) for every overlap.

    Source: Bodla et al. 2017.
    """

    def __init__(self, *, sigma: PositiveFloat = 0.5, min_score: Probability = 1e-3, per_class: bool = True) -> None:
        super().__init__({"sigma": sigma, "min_score": min_score}, per_class=per_class)


@registry.suppressions.add("set")
class SetSuppression(GreedyNMS):
    """Set NMS: greedy NMS in which detections of the same proposal never suppress one another.

    A proposal may contain two objects. Source: Chu et al. 2020, Detection in Crowded Scenes: One Proposal, Multiple
    Predictions, section 3.2.
    """

    reads = frozenset({"proposal"})


@registry.suppressions.add("adaptive")
class Adaptive(Suppression):
    """Adaptive NMS: a detection's threshold is its predicted density, if that is above `iou_threshold`.

    So fewer objects that stand close together are suppressed. With `soft`, it decides the decay of linear soft-NMS.
    Source: Liu et al. 2019, Adaptive NMS: Refining Pedestrian Detection in a Crowd, equation 4.
    """

    reads = frozenset({"density"})

    def __init__(
        self,
        *,
        iou_threshold: Probability = 0.5,
        soft: bool = False,
        min_score: Probability = 1e-3,
        per_class: bool = True,
    ) -> None:
        super().__init__(per_class=per_class)
        self.iou_threshold, self.soft, self.min_score = iou_threshold, soft, min_score

    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor, *, density: Tensor) -> SuppressionResult:
        """Adaptive NMS of boxes (N, 4), scores (N,), labels (N,), density (N,) -> indices and scores (K,)."""
        thresholds = density.to(boxes).clamp(min=self.iou_threshold)
        if self.soft:
            return soft_nms(boxes, scores, labels, iou_threshold=thresholds, min_score=self.min_score)
        indices = batched_nms(boxes, scores, labels, thresholds)
        return SuppressionResult(indices, scores[indices])


_ENTRIES_AT_ONCE = {"cuda": 1 << 26}
"""Scores that a device compares at once; elsewhere those of an image, as they take memory and gain nothing."""
_READ = ("logits", "codes", "objectness", "centreness", "density")


class UnsuppressedDetections(NamedTuple):
    """Detections of an image before suppression: `detections` (N, 6) as left, top, right, bottom, score, class.

    `proposal` (N,) int64 is the prior of each, `density` (N,) its predicted density, None if unknown.
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

    def select(self, is_chosen: Tensor) -> UnsuppressedDetections:
        """Return the detections of a mask (N,)."""
        further = (None if column is None else column[is_chosen] for column in self[1:])
        return UnsuppressedDetections(self.detections[is_chosen], *further)


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

    def decode(self, outputs: Mapping[str, Any], priors: Priors) -> list[UnsuppressedDetections]:
        """Decode the detections of each image of a batch before suppression, in pixels of the canvas; on the host.

        A GPU chooses and decodes those of several images together, and sends all of them at once.
        """
        logits, num_images = outputs["logits"], len(outputs["logits"])
        at_once = max(1, _ENTRIES_AT_ONCE.get(logits.device.type, 0) // max(1, logits[0].numel())) if num_images else 1
        rows = [
            self._choose({name: outputs[name][first : first + at_once] for name in _READ if name in outputs}, priors)
            for first in range(0, num_images, at_once)
        ]
        decoded: list[UnsuppressedDetections] = []
        for image, *columns in fetch(rows):
            bounds = torch.searchsorted(image, torch.arange(min(at_once, num_images - len(decoded)) + 1)).tolist()
            for first, last in pairwise(bounds):
                decoded.append(UnsuppressedDetections(*(column[first:last] for column in columns)))
        return decoded

    def _choose(self, outputs: Mapping[str, Tensor], priors: Priors) -> tuple[Tensor, ...]:
        """Choose the highest-scoring predictions of each level of images, in the order of images and levels.

        Returns image (N,), detections (N, 6), prior (N,) and, if it is predicted, density (N,).
        """
        logits, codes = outputs["logits"], outputs["codes"]
        count = logits.shape[2] if logits.ndim == 4 else 1
        if count > 1:
            logits, codes = logits.flatten(1, 2), codes.flatten(1, 2)
        scores = probabilities = promote_to_float32(logits).sigmoid()
        if "objectness" in outputs:
            scores = probabilities = probabilities * promote_to_float32(outputs["objectness"]).sigmoid()[..., None]
        if "centreness" in outputs:
            scores = (probabilities * promote_to_float32(outputs["centreness"]).sigmoid()[..., None]).sqrt()
        image, prediction, label = (~(probabilities <= self.min_score)).nonzero(as_tuple=True)  # NaN, too
        score = scores[image, prediction, label]
        starts = send_list([rows.start for rows in priors.level_slices], logits.device)
        segment = image * len(starts) + torch.searchsorted(starts, prediction // count, right=True) - 1
        order = score.argsort(descending=True, stable=True)  # ties in the order of priors
        order = order[segment[order].argsort(stable=True)]
        segment = segment[order]
        first = torch.searchsorted(segment, torch.arange(len(logits) * len(starts), device=logits.device))
        rank = torch.arange(len(segment), device=logits.device) - first[segment]
        order = order[rank < self.max_per_level]
        image, prediction, label, score = image[order], prediction[order], label[order], score[order]
        prior = prediction // count
        boxes = decode_boxes(priors.coordinates[prior], codes[image, prediction])
        detections = torch.cat([boxes, score[:, None].to(boxes), label[:, None].to(boxes)], dim=1)
        return image, detections, prior, *([outputs["density"][image, prior]] if "density" in outputs else ())

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
        rows, proposal, density = unsuppressed
        if (is_nan := rows[:, 4].isnan()).any():
            return rows[is_nan][: self.max_detections]  # `predict` and metrics report it
        survivors = self.suppression(rows[:, :4], rows[:, 4], rows[:, 5].long(), proposal=proposal, density=density)
        chosen = rows[survivors.indices[: self.max_detections]]
        return torch.cat([chosen[:, :4], survivors.scores[: self.max_detections, None], chosen[:, 5:]], dim=1)


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


def concatenate_detections(detections: Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
    """Concatenate the detections (D_b, 6) of each image: `detections` (D, 6), `detection_offsets` (B + 1,)."""
    offsets = [0, *accumulate(map(len, detections))]
    return {"detections": send(torch.cat([*detections]), device), "detection_offsets": send_list(offsets, device)}
