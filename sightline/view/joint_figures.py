"""Errors of joints as numbers and as text: in the placed cube, in the target, and as predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.geometry.volumes import CubePlacement, to_camera, to_voxels
from sightline.tasks.pose import decode_joints

__all__ = [
    "describe_errors",
    "describe_placement",
    "describe_round_trip",
    "describe_target",
    "measure_joint_errors",
    "measure_placement",
    "measure_target",
    "median_nearest_distance",
    "without_rounding",
]

_ROUND_TRIP_MM = 1e-9
"""Rounding error of coordinates of some thousand mm in float64 after a dozen operations."""
_HALF_A_CELL = 0.5 + 1e-3
"""Largest error of argmax decoding: next to a cell's border, float32 cannot decide which of two cells is larger."""


def without_rounding(placement: CubePlacement) -> CubePlacement:
    """Return the placement without the roundings of the authors' release, for exact positions."""
    return replace(placement, compat="none")


def median_nearest_distance(joints: np.ndarray, points: np.ndarray) -> float | None:
    """Compute the median over joints (J, 3) of the distance to the nearest point (N, 3); None if there are none.

    A joint is a finger's radius below the skin: a distance much above that means that joints and image disagree.
    """
    if not len(joints) or not len(points):
        return None
    return float(np.median([np.sqrt(((points - joint) ** 2).sum(axis=1).min()) for joint in joints]))


def measure_placement(placement: CubePlacement, joints: Tensor, raw: Tensor, visible: Tensor) -> dict[str, Any]:
    """Count the joints (J, 3) inside the cube and measure their round-trip error in mm, compared with the raw joints.

    Joints that are not visible are left out.
    """
    exact = without_rounding(placement)
    voxels = to_voxels(joints.double()[None], exact)
    error_mm = (to_camera(voxels, exact)[0] - raw).norm(dim=1)[visible]
    inside = ((voxels[0] >= 0) & (voxels[0] < placement.size)).all(dim=1) & visible
    furthest = float(error_mm.max()) if len(error_mm) else None
    return {
        "num_joints": int(visible.sum()),
        "num_joints_inside": int(inside.sum()),
        "round_trip_mm": furthest,
        "is_sound": None if furthest is None else furthest <= _ROUND_TRIP_MM,
    }


def measure_target(heatmaps: Tensor, placement: CubePlacement, raw: Tensor, visible: Tensor) -> dict[str, Any]:
    """Measure the error of joints decoded from heat maps (J, V, V, V) against the raw joints (J, 3), in mm and cells.

    Decoded by argmax, which is at most half a cell off along each axis of the grid, and by a parabola around the
    maximum. Only visible joints inside the cube count: the heat maps of the others have no peak.
    """
    cell_voxels = placement.size / heatmaps.shape[-1]
    exact = without_rounding(placement)
    expected = to_voxels(raw[None], exact) / cell_voxels
    is_inside = ((expected[0] >= 0) & (expected[0] < heatmaps.shape[-1])).all(dim=1)
    counted = is_inside & visible
    figures: dict[str, Any] = {
        "cell_mm": placement.voxel_mm * cell_voxels / float(placement.scale[0]),
        "num_joints": int(visible.sum()),
        "num_joints_inside": int(counted.sum()),
    }
    names = ("target_off_cells", "target_off_mm", "target_off_max_mm", "parabola_off_max_mm", "is_sound")
    if not bool(counted.any()):
        return figures | dict.fromkeys(names)
    decoded = decode_joints(heatmaps[None], placement, decoding="argmax")
    max_error_cells = float(((to_voxels(decoded, exact) / cell_voxels) - expected)[0, counted].abs().max())
    error_mm = (decoded[0] - raw).norm(dim=1)[counted]
    smooth = decode_joints(heatmaps[None], placement, decoding="parabola")[0]
    parabola_max_mm = float((smooth - raw).norm(dim=1)[counted].max())
    values = (
        max_error_cells,
        float(error_mm.mean()),
        float(error_mm.max()),
        parabola_max_mm,
        max_error_cells <= _HALF_A_CELL,
    )
    return figures | dict(zip(names, values, strict=True))


def measure_joint_errors(found: Tensor, true: Tensor, visible: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute the distance in mm of each decoded joint (J, 3) from the true one, by name, with mean and maximum."""
    error_mm = (found - true).norm(dim=1)
    errors_by_name = {
        name: float(mm) if is_visible else None for name, mm, is_visible in zip(names, error_mm, visible, strict=True)
    }
    if not bool(visible.any()):
        return {"mean_error_mm": None, "max_error_mm": None, "worst_joint": None, "error_mm": errors_by_name}
    worst = int(torch.where(visible, error_mm, -1.0).argmax())
    return {
        "mean_error_mm": float(error_mm[visible].mean()),
        "max_error_mm": float(error_mm[worst]),
        "worst_joint": names[worst],
        "error_mm": errors_by_name,
    }


# --- in words --------------------------------------------------------------------------------------------------------


def describe_placement(placement: CubePlacement) -> str:
    """Describe the position of the cube and its augmentation."""
    middle = ", ".join(f"{value:.0f}" for value in placement.reference_mm[0].tolist())
    neutral = (placement.grid_size - placement.size) / 2
    shift = (placement.shift[0] - neutral).tolist()
    varied = [f"scaled by {float(placement.scale[0]):.2f}"] if float(placement.scale[0]) != 1 else []
    if float(placement.angle_rad[0]):
        varied.append(f"turned by {np.degrees(float(placement.angle_rad[0])):.0f} degrees")
    if any(shift):
        varied.append(f"shifted by {', '.join(f'{value:.1f}' for value in shift)} voxels")
    return ", ".join([f"cube of {placement.cube_mm:g} mm about ({middle})", *varied])


def describe_round_trip(figures: Mapping[str, Any]) -> str:
    """Describe how many joints are inside the cube, and their error from mm to the grid and back."""
    if figures["round_trip_mm"] is None:
        return "no joint is labelled"
    text = f"{figures['num_joints_inside']} of {figures['num_joints']} joints inside, "
    if figures["is_sound"]:
        return f"{text}back in mm {figures['round_trip_mm']:.0e} mm from the raw ones"
    return f"{text}BACK IN MM THEY ARE {figures['round_trip_mm']:.1f} mm FROM THE RAW ONES: a transform moves joints"


def describe_target(figures: Mapping[str, Any]) -> str:
    """Describe the errors of the joints decoded from the target."""
    if figures["is_sound"] is None:
        return "no labelled joint lies in the cube"
    num_outside = figures["num_joints"] - figures["num_joints_inside"]
    text = (
        f"read back from the target, joints are {figures['target_off_mm']:.1f} mm from the raw ones "
        f"({figures['target_off_max_mm']:.1f} at most), {figures['target_off_cells']:.2f} of a cell of "
        f"{figures['cell_mm']:.1f} mm along an axis; by the parabola {figures['parabola_off_max_mm']:.2g} mm"
    )
    text += f"; {num_outside} joints outside of the cube" if num_outside else ""
    return text if figures["is_sound"] else f"MORE THAN HALF A CELL: {text}; target and raw joints disagree"


def describe_errors(figures: Mapping[str, Any]) -> str:
    """Describe the errors of the predicted joints."""
    if figures["mean_error_mm"] is None:
        return "no joint is labelled"
    worst = f"{figures['worst_joint']} {figures['max_error_mm']:.1f} mm"
    return f"{figures['mean_error_mm']:.1f} mm off on average, {worst}"
