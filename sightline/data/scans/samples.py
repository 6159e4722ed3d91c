"""The sample of every set of LiDAR scans: its fields, and the statistics of what a range image shows."""

from __future__ import annotations

import numpy as np

from sightline.types import Field

__all__ = ["FEATURES", "mean_and_spread", "scan_fields", "sums_of"]

FEATURES = ("remission",)
"""What a network is given of a point beside its coordinates."""
_LEAST_SPREAD = 1e-3
"""Of a channel that hardly varies, such as the heights of one beam: nothing is divided by less."""


def scan_fields(*, num_classes: int, num_beams: int | None, reach_m: float | None) -> dict[str, Field]:
    """The fields of a scan with the class of every point; `ring` where beams are numbered, 0 the highest."""
    frame = "sensor: x forward, y left, z up"
    low = None if reach_m is None else -reach_m
    fields = {
        "points": Field("points 3", "float32", "m", frame, low, reach_m, "concatenate"),
        "remission": Field("points 1", "float32", "share of what was sent", "", 0.0, 1.0, "concatenate"),
        "label": Field("points", "int64", "class", "", 0, num_classes - 1, "concatenate"),
    }
    if num_beams is not None:
        fields["ring"] = Field("points", "int64", "beam, 0 the highest", "", 0, num_beams - 1, "concatenate")
    return fields


def sums_of(points: np.ndarray, remission: np.ndarray) -> np.ndarray:
    """Sums (2, 5) float64 of range, x, y, z and remission over points (N, 3) and (N, 1), and of their squares."""
    xyz = points.astype(np.float64)
    distance = np.sqrt(np.einsum("nc,nc->n", xyz, xyz))
    values = np.column_stack([distance, xyz, remission.astype(np.float64)])
    return np.stack([values.sum(axis=0), np.einsum("nc,nc->c", values, values)])


def mean_and_spread(sums: np.ndarray, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of five channels from sums (2, 5) over `count` points, to four decimals."""
    mean, square = sums / max(count, 1)
    spread = np.sqrt(np.maximum(square - mean**2, _LEAST_SPREAD**2))
    return tuple(mean.round(4).tolist()), tuple(spread.round(4).tolist())
