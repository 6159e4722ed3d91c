"""A training batch of fewer points, for what need not be looked at in full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.types import Batch

__all__ = ["with_fewer_points"]

_SIZES = (64, 128, 256)


def with_fewer_points(batch: Batch, run: Callable[[Batch], Any]) -> Batch:
    """The batch with the first points of every cloud (B, N, ...), as few as `run` goes through with; else as it is."""
    points = batch.get("points")
    if not isinstance(points, Tensor) or points.ndim != 3:
        return batch
    for size in _SIZES:
        if size >= points.shape[1]:
            break
        small = {name: _cut(value, points.shape[:2], size) for name, value in batch.items()}
        try:
            with torch.no_grad():
                run(small)
        except Exception:  # noqa: BLE001 - a model may refuse small clouds in any way it likes
            continue
        return small
    return batch


def _cut(value: Any, rows: Any, size: int) -> Any:
    is_of_points = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == rows
    return value[:, :size].contiguous() if is_of_points else value
