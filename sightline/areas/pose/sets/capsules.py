"""Depth of capsules, cylinders with round ends, on the ray through each pixel of a camera, exact to float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.ops.views.pinhole import pixel_rays

_ROW = 18
"""Row of a capsule: start, end (0:6), radius, axis (7:10), start x axis (10:13), length, columns, rows (14:18)."""

_PARALLEL = 1e-24
"""Squared sine times the squared length of a ray, below which its angle with an axis is lost in rounding."""
_REACH_PX = 2**20
"""Bound of a window of pixels: far outside of any picture, and still a whole number."""


def render_capsules(capsules: np.ndarray, camera: DepthCamera) -> np.ndarray:
    """Render the nearest surface on the ray through every pixel's centre: capsules (F, N, 7) -> depth (F, H, W).

    `capsules` (F, N, 7): of each frame start, end (a sphere where they are one point) and radius, in the camera's frame
    with z forward, wholly before the camera; one of radius 0 is left out. Depths are float64 along the optical axis, 0
    without a hit, and have the same bits in any process.
    Source: the quadratic of a ray and a cylinder about the axis n, with the discriminant A r^2 - (d . (a x n))^2 of
    Lagrange's identity, which does not cancel where rays are nearly parallel to the axis.
    """
    rows = _build_rows(capsules, camera.intrinsics)
    rays = pixel_rays(camera.intrinsics, width_px=camera.width_px, height_px=camera.height_px)
    depth = np.full((len(rows), camera.height_px, camera.width_px), np.inf)
    for image, frame_rows in zip(depth, rows, strict=True):
        for row in frame_rows:
            left, right, top, bottom = np.clip(row[14:18], 0, None).astype(int)
            window = (slice(top, bottom + 1), slice(left, right + 1))
            if row[6] == 0 or not rays[window].size:
                continue
            distance = _distance(row, rays[window][..., 0], rays[window][..., 1])
            image[window] = np.fmin(image[window], distance)
    depth[np.isinf(depth)] = 0
    return depth


def _distance(row: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the ray parameter at which rays (x, y, 1) enter a capsule; inf for rays that miss it."""
    start, end, radius, (nx, ny, nz), (mx, my, mz), length = row[:3], row[3:6], row[6], row[7:10], row[10:13], row[13]
    across = y * nz - ny, nx - x * nz, x * ny - y * nx  # the ray x the axis
    steepness = across[0] * across[0] + across[1] * across[1] + across[2] * across[2]
    aside = x * mx + y * my + mz
    share = steepness * (radius * radius) - aside * aside
    along, begin = x * nx + y * ny + nz, start[0] * nx + start[1] * ny + start[2] * nz
    with np.errstate(divide="ignore", invalid="ignore"):
        entry = (across[0] * mx + across[1] * my + across[2] * mz - np.sqrt(share)) / steepness
        height = entry * along - begin
    # A ray along the axis enters by the end that it comes to first.
    is_parallel = steepness <= _PARALLEL
    is_low = np.where(is_parallel, along > 0, height <= 0)
    at_end = np.where(is_low, _sphere(start, radius, x, y), _sphere(end, radius, x, y))
    is_side = ~is_parallel & (height > 0) & (height < length)
    return np.where(is_parallel | (share >= 0), np.where(is_side, entry, at_end), np.inf)


def _sphere(centre: np.ndarray, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b, c = centre
    square = x * x + y * y + 1
    across = y * c - b, a - x * c, x * b - y * a
    share = square * (radius * radius) - (across[0] * across[0] + across[1] * across[1] + across[2] * across[2])
    with np.errstate(invalid="ignore"):
        return np.where(share >= 0, (x * a + y * b + c - np.sqrt(share)) / square, np.inf)


def _build_rows(capsules: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Build the rows (F, N, _ROW) of capsules (F, N, 7): with axis, moment, length and pixel window."""
    start, end, radius = capsules[..., 0:3], capsules[..., 3:6], capsules[..., 6]
    rows = np.zeros((*capsules.shape[:2], _ROW))
    rows[..., :7] = capsules
    offset = end - start
    length = np.sqrt(offset[..., 0] ** 2 + offset[..., 1] ** 2 + offset[..., 2] ** 2)
    axis = offset / np.where(length > 0, length, 1)[..., None]
    rows[..., 7:10], rows[..., 13] = axis, length
    rows[..., 10], rows[..., 11], rows[..., 12] = (
        start[..., i] * axis[..., j] - start[..., j] * axis[..., i] for i, j in ((1, 2), (2, 0), (0, 1))
    )
    rows[..., 14:16] = _window(start, end, radius, 0, camera[0], camera[2])
    rows[..., 16:18] = _window(start, end, radius, 1, camera[1], camera[3])
    return rows


def _window(
    start: np.ndarray, end: np.ndarray, radius: np.ndarray, axis: int, focal_px: float, centre_px: float
) -> np.ndarray:
    """Return the lowest and highest row or column (F, N, 2) that a capsule, the hull of its end spheres, may cover.

    The planes through the pinhole that touch a sphere have the slopes (x z +- r sqrt(x^2 + z^2 - r^2)) / (z^2 - r^2).
    """
    slopes = []
    for centre in (start, end):
        aside, ahead = centre[..., axis], centre[..., 2]
        root = radius * np.sqrt(np.maximum(aside * aside + ahead * ahead - radius * radius, 0))
        slopes += [
            (aside * ahead + sign * root) / np.where(radius > 0, ahead * ahead - radius * radius, 1) for sign in (1, -1)
        ]
    pixels = np.stack(slopes) * focal_px + centre_px
    # One pixel more on each side than rounding could ever leave out.
    return np.clip(np.stack([np.floor(pixels.min(0)) - 1, np.ceil(pixels.max(0)) + 1], -1), -_REACH_PX, _REACH_PX)


def capsule_rows(points: np.ndarray, ends: Sequence[tuple[int, int]], radii: Sequence[float]) -> np.ndarray:
    """Make capsules (B, N, 7) between pairs of points (B, P, 3)."""
    first, second = np.array(ends).T
    radius_column = np.broadcast_to(np.asarray(radii)[None, :, None], (len(points), len(radii), 1))
    return np.concatenate((points[:, first], points[:, second], radius_column), axis=2)
