"""Picture of a depth image with the predicted joints and the crop cube."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sightline.geometry.pinhole import project_points
from sightline.pictures import PALETTE

__all__ = ["draw_pose"]

_WIDTH_PX = 640
"""Minimum width; smaller images are enlarged by an integer factor."""
_FINER = 2  # factor of supersampling for lines
_PAPER, _NEAR, _FAR, _OUTSIDE = (
    np.array(c, dtype=np.float64) for c in ((28, 31, 36), (236,) * 3, (96,) * 3, (58,) * 3)
)
_CUBE = (120, 170, 255)


def draw_pose(
    depth: np.ndarray,
    joints_px: np.ndarray,
    bones: Sequence[tuple[int, int]],
    *,
    reference_mm: np.ndarray,
    camera: np.ndarray,
    cube_mm: float,
) -> np.ndarray:
    """Draw a pose as (H, W, 3) uint8: depths in the cube from light to dark, the rest of the image dim.

    `depth` (H, W) in mm; `joints_px` (J, 2) columns and rows; `bones` a tree of pairs of joints, of which every branch
    from the root has a colour. The frame is the cube's section through the reference point.
    """
    factor = max(1, math.ceil(_WIDTH_PX / depth.shape[1]))
    shaded = _shade_depth(depth, float(reference_mm[2]), cube_mm).repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = shaded.shape[:2]
    canvas = Image.fromarray(shaded).resize((width * _FINER, height * _FINER), Image.Resampling.NEAREST)
    pen, step = ImageDraw.Draw(canvas), factor * _FINER
    corners = [reference_mm + np.array([x, y, 0]) * cube_mm / 2 for x in (-1, 1) for y in (-1, 1)]
    frame = (project_points(np.stack(corners), camera)[:, :2] + 0.5) * step  # pixel centres lie at integers
    pen.rectangle([*frame.min(axis=0), *frame.max(axis=0)], outline=_CUBE, width=_FINER)
    positions = (np.clip(joints_px, -1e4, 1e4) + 0.5) * step
    colors = _branch_colors(len(joints_px), bones)
    for first, second in bones:
        pen.line([*positions[first], *positions[second]], fill=colors[second], width=3 * _FINER)
    for position, color in zip(positions, colors, strict=True):
        radius = 3.5 * _FINER
        pen.ellipse([*(position - radius), *(position + radius)], fill=color, outline=(255, 255, 255), width=_FINER)
    return np.asarray(canvas.resize((width, height), Image.Resampling.LANCZOS))


def _shade_depth(depth: np.ndarray, middle_mm: float, cube_mm: float) -> np.ndarray:
    """Shade the depths (H, W) to grey values (H, W, 3) uint8 by their position in the cube."""
    share = ((depth - middle_mm) / cube_mm + 0.5)[..., None]
    shade = np.where((share >= 0) & (share <= 1), _NEAR + share * (_FAR - _NEAR), _OUTSIDE)
    shaded: np.ndarray = np.where((depth > 0)[..., None], shade, _PAPER).round().astype(np.uint8)
    return shaded


def _branch_colors(num_joints: int, bones: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Choose a colour per joint: that of its branch from the root; white for the root."""
    parent = {second: first for first, second in bones}
    colors = []
    for joint in range(num_joints):
        ancestor = joint
        while parent.get(parent.get(ancestor, -1)) is not None:
            ancestor = parent[ancestor]
        roots = [second for first, second in bones if first not in parent]
        red, green, blue = PALETTE[roots.index(ancestor)].tolist() if ancestor in roots else (255, 255, 255)
        colors.append((red, green, blue))
    return colors
