"""Training batch with fewer points, for checks that do not need the full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sightline.types import Batch

__all__ = ["with_fewer_points"]

_SIZES = (64, 128, 256)


def with_fewer_points(batch: Batch, run: Callable[[Batch], Any]) -> Batch:
    """Crop clouds (B, N, ...) to as few first points as `run` accepts; return the batch unchanged if none works."""
    points = batch.get("points")
    if not isinstance(points, Tensor) or points.ndim != 3:
        return batch
    for size in _SIZES:
        if size >= points.shape[1]:
            break
        small = {name: _crop_points(value, points.shape[:2], size) for name, value in batch.items()}
        try:
            with torch.no_grad():
                run(small)
        except Exception:  # noqa: BLE001 - a model may reject small clouds with any error
            continue
        return small
    return batch


def _crop_points(value: Any, rows: Any, size: int) -> Any:
    has_points = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == rows
    return value[:, :size].contiguous() if has_points else value
