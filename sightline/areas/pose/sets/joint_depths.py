"""Comparison of labelled joints with the depths at their pixels: units, camera, and marks of pixels without depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sightline.areas.pose.sets.depth_frames import DepthCamera
from sightline.contract.errors import DataError
from sightline.ops.pinhole import project_points

MM_PER = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
_NUM_COMPARED = 8
_MAX_PX = 1e6
_KNOWN_MM = (1000.0, 25.4, 10.0, 1000 / 256, 1.0, 0.25, 0.2, 0.1)
"""Lengths in mm of the units of depth images: metres, inches, cm, KITTI's, mm, RealSense's, TUM's, tenths of mm."""
TYPE_MAXIMA = (2.0**15 - 1, 2.0**16 - 1, 2.0**31 - 1, 2.0**32 - 1)
_MIN_MARK_SHARE = 0.001
_MIN_RATIOS = 4


def compare_with_images(
    joints: np.ndarray, camera: DepthCamera, read: Callable[[int], np.ndarray], *, mm_per_unit: float, where: str
) -> list[str]:
    """Compare joints (frames, J, 3) with the depths at their pixels in some frames; return notes on what is doubtful.

    `read` reads the depths of a frame in mm, whose file has numbers of `mm_per_unit`. Raises DataError, beginning with
    `where`, if most joints lie outside of the image, or if depths are the same multiple of the joints'.
    """
    near, mirrored, outside, total = 0, 0, 0, 0
    found: list[np.ndarray] = []
    marks: list[Mark] = []
    compared = np.unique(np.linspace(0, len(joints) - 1, _NUM_COMPARED).astype(int)).tolist()
    for index in compared:
        depth = read(index)
        marks += find_mark(depth, mm_per_unit)
        known = joints[index][~np.isnan(joints[index]).any(axis=1)]
        total += len(known)
        at_pixels = _depths_at(depth, known, camera)
        found.append(np.stack([at_pixels, known[:, 2]]))
        outside, near = outside + int(np.isnan(at_pixels).sum()), near + _count_near(at_pixels, known)
        mirrored += _count_near(_depths_at(depth, known * [1, -1, 1], camera), known)
    if total and outside > total / 2:
        raise DataError(
            f"{where}: {outside} of {total} joints lie outside of the image of {camera.width_px} x "
            f"{camera.height_px}; fx, fy, u0 and v0, or the unit of the joints, are of something else"
        )
    notes = _note_marks(marks, len(compared))
    if mirrored > 2 * near and mirrored > total / 4:
        return [
            *notes,
            f"joints fit the depths at their pixels better upside down ({mirrored} of {total}, as they are {near}): "
            "does Y point up? then fy is negative",
        ]
    if near > total / 10:
        return notes
    return [*notes, *_compare_scales(np.concatenate(found, axis=1), mm_per_unit, where)]


class Mark(NamedTuple):
    """Number of an image that may mark pixels without a measurement, its share, and the next largest."""

    number: float
    share: float
    next_largest: float


def find_mark(depth: np.ndarray, mm_per_unit: float) -> list[Mark]:
    """Find the largest depth of an image if many pixels have it and it is far beyond all others."""
    measured = depth[depth > 0]
    top = measured.max(initial=0)
    others = measured[measured < top]
    share = 1 - len(others) / max(len(measured), 1)
    number = round(float(top) / mm_per_unit, 6)
    is_far = len(others) and (top > 2 * others.max() or number in TYPE_MAXIMA)
    return [Mark(number, share, float(others.max()) / mm_per_unit)] if is_far and share >= _MIN_MARK_SHARE else []


def _note_marks(marks: Sequence[Mark], num_compared: int) -> list[str]:
    """Return a note on the number that most of the compared images may use as a mark."""
    number, count = Counter(mark.number for mark in marks).most_common(1)[0] if marks else (0.0, 0)
    alike = [mark for mark in marks if mark.number == number]
    if count <= num_compared / 2:
        return []
    return [
        f"{np.mean([mark.share for mark in alike]):.0%} of the measured pixels are exactly {number:.9g}, all others "
        f"at most {max(mark.next_largest for mark in alike):.6g} ({count} of {num_compared} images looked at); if it "
        f"marks pixels without a measurement, give no_return={number:.9g}"
    ]


def _compare_scales(found: np.ndarray, mm_per_unit: float, where: str) -> list[str]:
    """Return a note on joints that do not lie at the depths (2, J) of image and labels, which are `found`.

    Raises DataError if depths are the same multiple of the joints'.
    """
    depths, joints = found[:, found[0] > 0]
    if not len(depths):
        return [f"nothing is measured at the pixels of the joints of {found.shape[1]}; is the camera another one?"]
    ratios = depths / joints
    ratio = float(np.median(ratios))
    both = f"the joints are {np.median(joints):.4g} mm from the camera and the image has {np.median(depths):.4g} mm"
    is_constant = len(ratios) >= _MIN_RATIOS and float(np.mean(np.abs(ratios / ratio - 1) < 0.1)) >= 0.75
    if not is_constant or 0.8 < ratio < 1.25:
        return [f"no joint lies near the depth at its pixel: {both} there (medians); check camera, units and axes"]
    unit = mm_per_unit / ratio
    unit = next((known for known in _KNOWN_MM if abs(known / unit - 1) < 0.05), unit)
    of_joints = next((f" or joint_unit={name}" for name, mm in MM_PER.items() if abs(mm / ratio - 1) < 0.05), "")
    raise DataError(
        f"{where}: {both} at their pixels, {ratio:.4g} times as much at all of them; the units differ: "
        f"give mm_per_unit={unit:.6g}{of_joints}"
    )


def _depths_at(depth: np.ndarray, joints: np.ndarray, camera: DepthCamera) -> np.ndarray:
    """Return the depths (J,) at the pixels of joints, NaN outside of the image."""
    with np.errstate(over="ignore"):  # of a joint a hair's breadth before the camera
        pixels = project_points(joints, camera.intrinsics)[:, :2]
    column, row = np.clip(np.round(pixels), -_MAX_PX, _MAX_PX).astype(int).T
    is_inside = (column >= 0) & (column < camera.width_px) & (row >= 0) & (row < camera.height_px)
    values = np.full(len(joints), np.nan)
    values[is_inside] = depth[row[is_inside], column[is_inside]]
    return values


def _count_near(depths: np.ndarray, joints: np.ndarray) -> int:
    """Count joints within a tenth of the depth at their pixel."""
    return int((np.abs(depths - joints[:, 2]) < 0.1 * joints[:, 2]).sum())
