"""Boxes in the image of 3D boxes, and their angles of observation, by the calibration of a frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sightline.store.boxes3d.box_table import BoxTable, ImageBoxes
from sightline.store.boxes3d.conversions import boxes_to_camera
from sightline.store.boxes3d.kitti_objects import Calibration

__all__ = ["add_image_boxes", "make_image_boxes", "project_boxes"]

_CORNERS = np.array([(u, v, w) for w in (0.0, -1.0) for u, v in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5))])
"""Corners of a box in shares of length, width and height, from the middle of its bottom, y down."""
_EDGES = np.array([(a, b) for a in range(8) for b in range(a) if (_CORNERS[a] != _CORNERS[b]).sum() == 1])
_NEAR_M = 0.1
"""Depth from which on the camera sees."""


def project_boxes(boxes: np.ndarray, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Return image boxes (M, 4), left, top, right, bottom in pixels, and angles of observation (M,), of boxes (M, 7).

    The image box holds the projection of what lies 0.1 m or more in front of the camera, the eight corners of most
    boxes, and is cut at the borders of the image if its size is known: one beside the image has no width, one above or
    below no height. It is NaN for a box that is nowhere in front; by KITTI's rules a detection without a height is
    ignored. Points are divided by their depth in the rectified camera, not by that of the projection, a few millimetres
    more. The angle is ry - atan2(x, z) of the camera, as of KITTI's labels; OpenPCDet takes x and y of the scanner.
    Source: OpenPCDet, whose results on KITTI are made so; there corners behind the camera are mirrored into the image.
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
    seen = np.concatenate([corners, _cut_edges(corners)], axis=1)
    depth = seen[..., 2:]
    is_ahead = depth >= _NEAR_M
    projected = seen @ calibration.projection[:2, :3].T + calibration.projection[:2, 3]
    pixels = projected / np.where(is_ahead, depth, 1.0)
    image_boxes = np.concatenate(
        [np.where(is_ahead, pixels, np.inf).min(axis=1), np.where(is_ahead, pixels, -np.inf).max(axis=1)], axis=1
    )
    image_boxes = np.where(is_ahead.any(axis=1), image_boxes, np.nan)
    if calibration.image_px is not None:
        limits = np.array([*calibration.image_px, *calibration.image_px], dtype=np.float64) - 1
        image_boxes = np.clip(image_boxes, 0, limits)
    angle = turn - np.arctan2(x, z)
    return image_boxes, (angle + np.pi) % (2 * np.pi) - np.pi


def _cut_edges(corners: np.ndarray) -> np.ndarray:
    """Return where edges between corners (M, 8, 3) reach the depth from which the camera sees, else a corner."""
    starts, ends = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    apart = ends[..., 2] - starts[..., 2]
    is_cut = (starts[..., 2] < _NEAR_M) != (ends[..., 2] < _NEAR_M)
    share = np.where(is_cut, (_NEAR_M - starts[..., 2]) / np.where(is_cut, apart, 1.0), 0.0)[..., None]
    places = starts + share * (ends - starts)
    places[..., 2] = np.where(is_cut, _NEAR_M, places[..., 2])
    return places


def add_image_boxes(table: BoxTable, calibration: Calibration | None) -> BoxTable:
    """Return a table with the image boxes and angles that the calibration gives, unless it states some itself."""
    if calibration is None or not (table.image is None or np.isnan(table.image.corners_px).all()):
        return table
    return replace(table, image=make_image_boxes(np.column_stack(project_boxes(table.boxes, calibration))))


def make_image_boxes(rows: np.ndarray) -> ImageBoxes:
    """Make what an image states of detections, of rows (M, 5) of corners and angle."""
    unknown = np.full(len(rows), np.nan)
    return ImageBoxes(rows[:, :4].copy(), unknown, np.full(len(rows), -1, dtype=np.int64), rows[:, 4].copy())
