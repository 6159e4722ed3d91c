"""Class axis of a model's logits."""

from __future__ import annotations

from torch import Tensor

__all__ = ["class_axis"]


def class_axis(logits: Tensor, label: Tensor) -> int | None:
    """Return the axis of `logits` without which it has the shape of `label` (the last of several); None without one."""
    axes = [
        axis
        for axis in range(logits.ndim)
        if logits.ndim == label.ndim + 1 and logits.shape[:axis] + logits.shape[axis + 1 :] == label.shape
    ]
    return axes[-1] if axes else None
