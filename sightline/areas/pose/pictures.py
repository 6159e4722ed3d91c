"""Pictures of poses: the cube of a depth image, and the joints over the image in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from sightline.ops.views.pinhole import project_points
from sightline.ops.voxels.cubes import CubePlacement, to_camera
from sightline.view.panels import ImagePanel, Window, depth_panel
from sightline.view.skeletons import JointFigure

UNIT_CORNERS = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
"""Corners (8, 3) of the unit cube."""
_EDGES = tuple((a, b) for a, b in combinations(range(8), 2) if np.abs(UNIT_CORNERS[a] - UNIT_CORNERS[b]).sum() == 1)
_CUBE = np.array([120, 128, 140], dtype=np.uint8)
_MARGIN_PX = 4


def without_rounding(placement: CubePlacement) -> CubePlacement:
    """Return the placement without the roundings of the authors' release, for exact positions."""
    return replace(placement, compat="none")


def draw_joints(
    depth: np.ndarray, camera: np.ndarray, placement: CubePlacement, figures: Sequence[JointFigure]
) -> ImagePanel:
    """Draw figures in the camera's frame over a depth image (H, W), of which the part in the placed cube is shown."""
    _, window = project_placement(placement, camera, depth)
    return depth_panel("predicted and true", depth, camera, figures, window=window)


def project_placement(
    placement: CubePlacement, camera: np.ndarray, depth: np.ndarray
) -> tuple[JointFigure | None, Window]:
    """Return the edges and the window of `project_cube` for the placed cube of a depth image (H, W)."""
    corners = torch.from_numpy(UNIT_CORNERS * placement.size)
    return project_cube(to_camera(corners[None], without_rounding(placement))[0].numpy(), camera, depth.shape)


def project_cube(corners: np.ndarray, camera: np.ndarray, shape: tuple[int, ...]) -> tuple[JointFigure | None, Window]:
    """Return the edges of a cube with these corners (8, 3), and the window of the image of `shape` that shows it.

    `corners` are those of `UNIT_CORNERS`, in the camera's frame. If the cube reaches behind the camera or lies outside
    the image: None, and the whole image.
    """
    height, width = shape
    if corners[:, 2].min() < 1:
        return None, (0, 0, width, height)
    pixels = project_points(corners, camera)[:, :2]
    left, top = np.floor(pixels.min(axis=0)).astype(int) - _MARGIN_PX
    right, bottom = np.ceil(pixels.max(axis=0)).astype(int) + _MARGIN_PX + 1
    window = (max(0, int(left)), max(0, int(top)), min(width, int(right)), min(height, int(bottom)))
    if window[0] >= window[2] or window[1] >= window[3]:
        return None, (0, 0, width, height)
    return JointFigure("cube", corners, np.ones(8, dtype=bool), _EDGES, _CUBE), window
