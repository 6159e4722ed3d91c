"""Boxes in the image of 3D boxes, and their angles of observation, by the calibration of a frame."""

from __future__ import annotations

import numpy as np

from sightline.store.boxes3d.conversions import boxes_to_camera
from sightline.store.boxes3d.kitti_objects import Calibration

__all__ = ["project_boxes"]

_CORNERS = np.array([(u, v, w) for w in (0.0, -1.0) for u, v in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5))])
"""Corners of a box in shares of length, width and height, from the middle of its bottom, y down."""


def project_boxes(
    boxes: np.ndarray, calibration: Calibration, *, image_px: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return image boxes (M, 4), left, top, right, bottom in pixels, and angles of observation (M,), of boxes (M, 7).

    The image box holds the eight projected corners, and is cut at the borders of an image of `image_px`, width and
    height; NaN for a box with a corner that is not in front of the camera. Corners are divided by their depth in the
    rectified camera, not by that of the projection, a few millimetres more. The angle is ry - atan2(x, z) of the
    camera. Source: OpenPCDet, whose results on KITTI are made so.
    """
    x, y, z, length, height, width, turn = boxes_to_camera(boxes, calibration.camera_of_velodyne).T
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    along, across = np.outer(length, _CORNERS[:, 0]), np.outer(width, _CORNERS[:, 1])
    corners = np.stack(
        [
            x[:, None] + cos * along + sin * across,
            y[:, None] + np.outer(height, _CORNERS[:, 2]),
            z[:, None] - sin * along + cos * across,
        ],
        axis=2,
    )
    depth = corners[..., 2:]
    projected = corners @ calibration.projection[:2, :3].T + calibration.projection[:2, 3]
    pixels = np.where(depth > 0, projected / np.where(depth > 0, depth, 1.0), np.nan)
    image_boxes = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)
    if image_px is not None:
        limits = np.array([*image_px, *image_px], dtype=np.float64) - 1
        image_boxes = np.clip(image_boxes, 0, limits)
    angle = turn - np.arctan2(x, z)
    return image_boxes, (angle + np.pi) % (2 * np.pi) - np.pi
