"""Suppression of overlapping detections by name: greedy, soft, set and adaptive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat, Probability
from sightline.ops.box_overlaps import promote_to_float32
from sightline.ops.labels import widen_labels
from sightline.ops.suppression import SuppressionResult, batched_nms, soft_nms


class Suppression(ABC):
    """Base of NMS, called with the detections of one image.

    With `per_class`, different classes never suppress one another.
    Equal scores are taken in the order of their indices. The work is done on the CPU, wherever the detections are.
    `reads` names further inputs, of `proposal` and `density`: the head must provide them.
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, per_class: bool) -> None:
        self.per_class = per_class

    @torch.no_grad()
    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        *,
        proposal: Tensor | None = None,
        density: Tensor | None = None,
    ) -> SuppressionResult:
        """Suppress detections: boxes (N, 4), scores (N,), labels (N,) -> indices and scores (K,), same device.

        `proposal` (N,) int64 is the prior that predicts a box, `density` (N,) how much the nearest other object
        overlaps it, 0 to 1. Raises ValueError for other shapes, for scores that are not finite, and for a missing input
        of `reads`.
        """
        if boxes.shape != (len(scores), 4) or scores.shape != labels.shape or scores.ndim != 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (boxes, scores, labels))
            raise ValueError(
                f"{type(self).__name__}: found boxes, scores and labels {shapes}; expected (N, 4), (N,), (N,)"
            )
        if not scores.isfinite().all():
            raise ValueError(f"{type(self).__name__}: {int((~scores.isfinite()).sum())} scores are not finite numbers")
        dtype = torch.promote_types(promote_to_float32(boxes[:0]).dtype, promote_to_float32(scores[:0]).dtype)
        labels = widen_labels(labels, "labels").cpu() if self.per_class else torch.zeros(len(labels), dtype=torch.int64)
        extra: Any = {"proposal": proposal, "density": density}
        if any(extra[name] is None or extra[name].shape != scores.shape for name in self.reads):
            raise ValueError(f"{type(self).__name__}: needs {' and '.join(sorted(self.reads))} of each detection")
        extra_inputs = {name: extra[name].cpu() for name in self.reads}
        result = self.keep(
            boxes.to("cpu", dtype).contiguous(), scores.to("cpu", dtype).contiguous(), labels, **extra_inputs
        )
        return SuppressionResult(result.indices.to(boxes.device), result.scores.to(scores))

    @abstractmethod
    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> SuppressionResult:
        """Suppress detections on the CPU: boxes (N, 4), scores (N,), labels (N,) -> indices and scores (K,).

        Boxes and scores are both float32 or both float64; only equal labels suppress. The inputs of `reads` follow by
        name.
        """


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
    """Adaptive NMS: the threshold of a detection is at least its predicted density; with `soft`, linear soft-NMS.

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
        limits = density.to(boxes).clamp(min=self.iou_threshold)
        if self.soft:
            return soft_nms(boxes, scores, labels, iou_threshold=limits, min_score=self.min_score)
        indices = batched_nms(boxes, scores, labels, limits)
        return SuppressionResult(indices, scores[indices])
