"""What a network that takes dense clouds may assume of its input."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["join_channels"]


def join_channels(points: Tensor, features: Tensor | None, *, in_channels: int) -> Tensor:
    """Coordinates and further channels side by side: (B, N, 3) and (B, N, in_channels - 3) -> (B, N, in_channels).

    Raises ValueError, naming the found and the expected shape, for any other layout or width, and for clouds of three
    points, whose layout cannot be told.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] == 0:
        hint = "; the channels come last here: transpose it" if points.ndim == 3 and points.shape[1] == 3 else ""
        raise ValueError(f"points: found the shape {tuple(points.shape)}, expected (B, N, 3) with N >= 1{hint}")
    if points.shape[1] == 3:
        raise ValueError(
            f"points: found the shape {tuple(points.shape)}, which may be three points or three channels; give clouds "
            "of another number of points, channels last"
        )
    expected = (*points.shape[:2], in_channels - 3)
    found = (*points.shape[:2], 0) if features is None else tuple(features.shape)
    if found != expected:
        given = "no features (width 0)" if features is None else f"the shape {found}"
        raise ValueError(
            f"features: found {given}, expected {expected}: this model was built for {in_channels} channels, "
            "xyz and what follows it"
        )
    return points if features is None else torch.cat([points, features], dim=-1)
