"""Frames of KITTI's oriented 3D boxes: the transforms from scanner to camera to image.

The rectified camera's frame: metres, x right, y down, z forward. A box is x, y, z of the middle of its bottom, length,
height, width, and the turn about y: at zero its length lies along x.
Source: Geiger et al. 2012, the object development kit's readme.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """Calibration: `camera_of_velodyne` (4, 4), scanner to rectified camera frame.

    `projection` (3, 4), camera to pixels.
    """

    camera_of_velodyne: np.ndarray
    projection: np.ndarray

    @classmethod
    def from_matrices(
        cls, *, velo_to_cam: np.ndarray, rectification: np.ndarray, projection: np.ndarray
    ) -> Calibration:
        """Build a calibration from the file's Tr_velo_to_cam (3, 4), R0_rect (3, 3) and P2 (3, 4), all float64."""
        moved, turned = np.eye(4), np.eye(4)
        moved[:3] = velo_to_cam
        turned[:3, :3] = rectification
        return cls(turned @ moved, projection)

    def to_camera(self, points_velodyne: np.ndarray) -> np.ndarray:
        """Transform scanner points (N, 3) to the rectified camera's frame, (N, 3) float64."""
        matrix = self.camera_of_velodyne
        with np.errstate(invalid="ignore"):  # a point that is not finite stays so; NumPy would warn
            return points_velodyne.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]

    def to_image(self, points_camera: np.ndarray) -> np.ndarray:
        """Project camera points (N, 3) to column and row (N, 2) in pixels, centres at integers.

        NaN for points not in front.
        """
        homogeneous = points_camera @ self.projection[:, :3].T + self.projection[:, 3]
        is_ahead = (points_camera[:, 2] > 0) & (homogeneous[:, 2] > 0)
        pixels = np.full((len(points_camera), 2), np.nan)
        pixels[is_ahead] = homogeneous[is_ahead, :2] / homogeneous[is_ahead, 2:]
        return pixels
