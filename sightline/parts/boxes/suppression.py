"""Base class of suppressions: which of overlapping detections stay, for boxes of 4 or 7 numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sightline.ops.boxes.suppression import SuppressionResult
from sightline.ops.dtypes import promote_to_float32, widen_labels


class Suppression(ABC):
    """Base of NMS, called with the detections of one image or frame, or by `suppress_batch` with those of a batch.

    A subclass implements `keep`, and states `num_sides`, the numbers of a box: 4 (left, top, right, bottom) or 7 (x, y,
    z, dx, dy, dz, yaw). With `per_class`, different classes never suppress one another. Equal scores are taken in the
    order of their indices. The work is done on the CPU, wherever the detections are.
    """

    num_sides: ClassVar[int] = 4
    """Numbers of a box."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Names of further inputs, of `proposal` and `density`: the head must provide them."""

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
        """Suppress detections: boxes (N, D), scores (N,), labels (N,) -> indices and scores (K,), same device.

        `proposal` (N,) int64 is the prior that predicts a box, `density` (N,) the highest IoU that its object has with
        another one, 0 to 1, as predicted. Raises ValueError for other shapes, for scores that are not finite, and for a
        missing input of `reads`.
        """
        if boxes.shape != (len(scores), self.num_sides) or scores.shape != labels.shape or scores.ndim != 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (boxes, scores, labels))
            needed = f"(N, {self.num_sides}), (N,), (N,)"
            raise ValueError(f"{type(self).__name__}: found boxes, scores and labels {shapes}; expected {needed}")
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
        """Suppress detections on the CPU: boxes (N, D), scores (N,), labels (N,) -> indices and scores (K,).

        Boxes and scores are both float32 or both float64; only equal labels suppress. The inputs of `reads` follow by
        name.
        """


def suppress_batch(
    suppression: Suppression,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    is_box: Tensor,
    *,
    proposal: Tensor | None = None,
    density: Tensor | None = None,
) -> SuppressionResult:
    """Suppress the detections of a padded batch, as a call of `suppression` with those of each image does.

    `boxes` are (B, M, D), all others (B, M); `is_box` bool marks the detections, what other rows hold is not read.
    Returns `indices` (B, M) of rows by falling score, -1 behind the last, and their `scores` (B, M), 0 there.
    Raises ValueError as a call does.
    """
    inputs = {"boxes": boxes, "scores": scores, "labels": labels, "is_box": is_box}
    inputs |= {} if proposal is None else {"proposal": proposal}
    inputs |= {} if density is None else {"density": density}
    if boxes.ndim != 3 or any(rows.shape[:2] != boxes.shape[:2] for rows in inputs.values()):
        shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in inputs.items())
        raise ValueError(
            f"{type(suppression).__name__}: found {shapes}; expected (B, M, {suppression.num_sides}) and (B, M)"
        )
    indices = torch.full(boxes.shape[:2], -1, device=boxes.device)
    kept = torch.zeros_like(scores)
    for image, flags in enumerate(is_box):
        rows = flags.nonzero().flatten()
        of_image = {name: values[image, rows] for name, values in inputs.items() if name != "is_box"}
        result = suppression(**of_image)
        indices[image, : len(result.indices)] = rows[result.indices]
        kept[image, : len(result.indices)] = result.scores
    return SuppressionResult(indices, kept)
