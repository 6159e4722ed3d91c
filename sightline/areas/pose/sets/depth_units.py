"""Units of depth images and of joints: whether the two agree, and which units would make them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sightline.areas.pose.sets.packed_depth import unpack_depth
from sightline.store.prepared.prepared_set import PreparedSet

MM_PER = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Length in mm of the units that joints may be in."""
_MAX_FRAMES = 60
"""Number of frames, evenly spaced over all, in which depths are compared."""
_MIN_PLACES = 20
_MAX_ERROR = 0.25
"""Largest factor, as a logarithm to base 10, between the depth of a joint and that of its image, the unit aside."""
_MIN_SHARE = 0.5
"""Least share of the joints that must agree on the factor: others may be hidden, or beside the figure."""


def note_units(prepared: PreparedSet) -> list[str]:
    """Return a note if the depth images are 10, 100 or 1000 times as far as the joints, or as near; both readings.

    A pixel of a joint is the same in either unit. Both may be wrong: only the user knows the camera.
    """
    manifest = prepared.manifest
    places = _measure_places(prepared)
    if len(places) < _MIN_PLACES:
        return []
    exponents = np.log10(places[:, 0] / places[:, 1])
    exponent = round(float(np.median(exponents)))
    if not exponent or (np.abs(exponents - exponent) < _MAX_ERROR).mean() < _MIN_SHARE:
        return []
    of_images, of_joints = np.median(places, axis=0)
    factor, size = 10.0**exponent, _typical_size(prepared)
    readings = [
        f"if the joints are right, the images are in units of {manifest['file_mm_per_unit'] / factor:g} mm: "
        f"mm_per_unit={manifest['file_mm_per_unit'] / factor:g} (a figure of {size:.4g} mm, {of_joints:.4g} mm away)"
    ]
    unit = next((name for name, mm in MM_PER.items() if math.isclose(mm, MM_PER[manifest["joint_unit"]] * factor)), "")
    option = f"they are in {unit}: joint_unit={unit}" if unit else f"they are to be multiplied by {factor:g}"
    readings.append(f"if the images are right, {option} (a figure of {size * factor:.4g} mm, {of_images:.4g} mm away)")
    times = f"{factor:g} times as far away" if exponent > 0 else f"{1 / factor:g} times as near"
    return [
        f"units disagree: the depth images are {times} as the joints on them (medians {of_images:.4g} and "
        f"{of_joints:.4g} mm at {len(places)} joints); {'; '.join(readings)}"
    ]


def _measure_places(prepared: PreparedSet) -> np.ndarray:
    """Measure depth images at the pixels of visible joints: (places, 2), the depth of the image and of the joint."""
    rows = [(split, row) for split in prepared.splits for row in range(len(prepared.names(split)))]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_MAX_FRAMES, len(rows))).astype(int))
    return np.concatenate([_measure_frame(prepared, *rows[index]) for index in chosen.tolist()])


def _measure_frame(prepared: PreparedSet, split: str, row: int) -> np.ndarray:
    manifest: Mapping[str, Any] = prepared.manifest
    width, height = manifest["image_size_px"]
    joints, visible = prepared.row(split, "joints", row), prepared.row(split, "visible", row)
    x, y, z = joints[visible & (joints[:, 2] > 0)].astype(np.float64).T
    fx, fy, u0, v0 = manifest["camera_px"]
    columns, rows = np.rint(fx * x / z + u0), np.rint(fy * y / z + v0)
    is_inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    if not is_inside.any() or not prepared.row(split, "is_valid", row):
        return np.zeros((0, 2))
    depth = unpack_depth(
        prepared.row(split, "depth", row), dtype=manifest["depth_type"], width_px=width, height_px=height
    )
    measured = depth[rows[is_inside].astype(int), columns[is_inside].astype(int)].astype(np.float64)
    pairs = np.stack([measured * manifest["mm_per_unit"], z[is_inside]], axis=1)
    return pairs[measured > 0]


def _typical_size(prepared: PreparedSet) -> float:
    """Return the median extent of the joints of a frame, in mm."""
    sizes = [
        float(np.ptp(joints[visible], axis=0).max())
        for split in prepared.splits
        for joints, visible in zip(prepared.array(split, "joints"), prepared.array(split, "visible"), strict=True)
        if visible.any()
    ]
    return float(np.median(sizes)) if sizes else 0.0
