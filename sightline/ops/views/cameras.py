"""Cameras on rings around the up axis, each of which frames the unit sphere about the origin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Axis = Literal["x", "y", "z"]
Projection = Literal["parallel", "pinhole"]

_AXES: dict[Axis, tuple[int, int, int]] = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}  # right-handed, upward last
_FRAME = 0.95
"""Radius of the unit sphere in a picture with half a side of 1: discs at the rim exceed the sphere."""
_DISTANCE = 3.0
"""Distance of a pinhole from the origin, in radii of the sphere: the field of view is then 39 degrees."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """Camera poses that view the unit sphere: the directions right, up and towards the viewer of each view.

    `rotations` (V, 3, 3) float64, these three unit vectors as rows; `distance` from the origin to the pinhole, None for
    parallel projection; `scale_px`: pixels per unit, for a pinhole pixels per unit at distance 1. Pixel centres are at
    integers, the origin of space in the middle of the picture of `size_px` pixels a side.
    """

    rotations: np.ndarray
    size_px: int
    scale_px: float
    distance: float | None = None

    def __len__(self) -> int:
        return len(self.rotations)

    @property
    def centre_px(self) -> float:
        """The coordinate of the image's middle, in x as in y, in pixels."""
        return (self.size_px - 1) / 2

    def to_view(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotate vectors (N, 3) into each camera's frame: right, up and towards the viewer, (V, N) each.

        The sums are written out: the bits of a view do not depend on the number of views.
        """
        x, y, z = vectors.T
        right, up, towards = (
            row[:, 0:1] * x + row[:, 1:2] * y + row[:, 2:3] * z for row in self.rotations.swapaxes(0, 1)
        )
        return right, up, towards


def ring_cameras(
    num_views: int,
    *,
    size_px: int,
    up_axis: Axis = "z",
    elevations_deg: Sequence[float] = (30.0,),
    projection: Projection = "parallel",
) -> Cameras:
    """Place views evenly around the up axis, ring after ring, with the same number on each elevation.

    Every second ring is turned by half a step. View 0 is on the axis after the up axis (x, y, z, x).
    Raises ValueError if the views cannot be divided evenly, and for elevations of more than 90 degrees.
    """
    num_rings = len(elevations_deg)
    if num_rings == 0 or num_views < 1 or num_views % num_rings:
        raise ValueError(
            f"{num_views} views on {num_rings} elevations: as many on each, at least one, must be asked for"
        )
    for elevation in elevations_deg:
        if not abs(elevation) <= 90:  # NaN is refused as well
            raise ValueError(f"an elevation of {elevation:g} degrees: it must lie within -90 and 90")
    per_ring = num_views // num_rings
    rotations = np.zeros((num_views, 3, 3))
    for view in range(num_views):
        ring, view_in_ring = divmod(view, per_ring)
        azimuth = 2 * math.pi * (view_in_ring + (ring % 2) / 2) / per_ring
        rotations[view][:, _AXES[up_axis]] = _view_rotation(azimuth, math.radians(elevations_deg[ring]))
    half_px = size_px / 2 * _FRAME
    if projection == "parallel":
        return Cameras(rotations, size_px, half_px)
    # The cone from the pinhole that touches the sphere has the tangent 1 / sqrt(distance^2 - 1).
    return Cameras(rotations, size_px, half_px * math.sqrt(_DISTANCE**2 - 1), _DISTANCE)


def _view_rotation(azimuth: float, elevation: float) -> np.ndarray:
    """Return the directions right, up and towards the viewer (3, 3) as rows, in a frame whose third axis is up."""
    cos_a, sin_a, cos_e, sin_e = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    return np.array(
        [[-sin_a, cos_a, 0.0], [-sin_e * cos_a, -sin_e * sin_a, cos_e], [cos_e * cos_a, cos_e * sin_a, sin_e]]
    )
