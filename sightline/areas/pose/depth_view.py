"""Pictures of the user's own depth images in `sightline view`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.areas.pose.depth_files import MIN_RANGE_MM, read_depth
from sightline.store.files.array_files import read_npy
from sightline.store.files.image_files import DEPTH_MODES, read_header
from sightline.view.image_stages import picture_stage
from sightline.view.panels import depth_panel
from sightline.view.stages import ViewedSample

_MIN_COLUMNS = 33
"""Columns from which on an array is an image: clouds have x, y, z and some channels."""
_MM_PER_M = 1000.0


def view_depth_file(path: Path, *, name: str) -> ViewedSample | None:
    """View a depth image: PNG or TIFF with one channel of 16 bits or float32, or an array (height, width).

    None for a file of another kind. Raises DataError for a damaged one.
    """
    suffix = path.suffix.lower()
    array = read_npy(path) if suffix == ".npy" else None
    is_image = array is not None and array.ndim == 2 and array.shape[1] >= _MIN_COLUMNS
    mode = read_header(path).mode if suffix in DEPTH_MODES else ""
    if not (is_image or mode in DEPTH_MODES.get(suffix, ())):
        return None
    depth, is_metres = read_depth(path, mm_per_unit=_MM_PER_M), False
    if array is not None or mode == "F":
        is_metres = 0 < depth.max(initial=0) < MIN_RANGE_MM * _MM_PER_M
    depth = depth if is_metres else read_depth(path)
    measured = depth[depth > 0]
    figures = {"height_px": depth.shape[0], "width_px": depth.shape[1], "measured": len(measured) / max(depth.size, 1)}
    text = f"{depth.shape[1]} x {depth.shape[0]} pixels, {figures['measured']:.0%} measured"
    if len(measured):
        figures |= {"nearest_mm": float(measured.min()), "farthest_mm": float(measured.max())}
        text += f", {measured.min():.4g} to {measured.max():.4g} mm"
        text += ", from numbers in metres (mm_per_unit=1000)" if is_metres else ""
    stage = picture_stage("as read", text, (depth_panel("depth", depth, np.ones(4), ()),), figures)
    return ViewedSample(name, (stage,), "camera_y_down", {"file": str(path)})
