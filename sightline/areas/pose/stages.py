"""Stages of a depth frame with joints: the placed cube, its voxels, heat maps, and the decoded joints.

After the raw stage, coordinates are voxels of the placed cube's grid, as the network sees them. Joints decoded from a
target are transformed back to mm by the inverse placement and compared with the raw joints, which no transform changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.pose.depth_files import MIN_RANGE_MM, read_depth
from sightline.areas.pose.pictures import draw_joints, project_placement, without_rounding
from sightline.areas.pose.task import MIN_PEAK, decode_joints
from sightline.contract.errors import join_some
from sightline.contract.types import Batch, DataInfo, Sample
from sightline.draw.pictures import PALETTE, Frame
from sightline.ops.views.pinhole import depth_points
from sightline.ops.voxels.cubes import CubePlacement, permute_axes, to_camera, to_voxels
from sightline.store.files.array_files import read_npy
from sightline.store.files.image_files import DEPTH_MODES, read_header
from sightline.view.image_stages import picture_stage
from sightline.view.panels import depth_panel, volume_panels
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.skeletons import READ, TRUE, JointFigure
from sightline.view.stages import ClassColoring, RgbColoring, Stage, ViewedSample
from sightline.view.volumes import Volume

_ROUND_TRIP_MM = 1e-9
"""Rounding error of coordinates of some thousand mm in float64 after a dozen operations."""
_HALF_A_CELL = 0.5 + 1e-3
"""Largest error of argmax decoding: next to a cell's border, float32 cannot decide which of two cells is larger."""


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
    """Measure the largest error of joints decoded from heat maps (J, V, V, V) against the raw joints (J, 3).

    They are decoded by argmax, which is at most half a cell off along each axis of the grid. Only visible joints inside
    the cube count: the heat maps of the others have no peak.
    """
    num_cells, exact = heatmaps.shape[-1], without_rounding(placement)
    cell_voxels = placement.size / num_cells
    expected = to_voxels(raw[None], exact)[0] / cell_voxels
    counted = ((expected >= 0) & (expected < num_cells)).all(dim=1) & visible
    decoded = decode_joints(heatmaps[None], placement, decoding="argmax")
    off_cells = ((to_voxels(decoded, exact)[0] / cell_voxels) - expected)[counted].abs()
    is_counted = bool(counted.any())
    return {
        "cell_mm": placement.voxel_mm * cell_voxels / float(placement.scale[0]),
        "num_joints": int(visible.sum()),
        "num_joints_inside": int(counted.sum()),
        "target_off_cells": float(off_cells.max()) if is_counted else None,
        "target_off_max_mm": float((decoded[0] - raw).norm(dim=1)[counted].max()) if is_counted else None,
        "is_sound": bool((off_cells <= _HALF_A_CELL).all()) if is_counted else None,
    }


def measure_joint_errors(predicted: Tensor, true: Tensor, visible: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute the distance in mm of each decoded joint (J, 3) from the true one, by name, with mean and maximum."""
    error_mm = (predicted - true).norm(dim=1)
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
    """Describe the position of the cube, and how the figure in it was varied, in mm and degrees."""
    x, y, z = placement.reference_mm[0].tolist()
    neutral = (placement.grid_size - placement.size) / 2
    shift_mm = (placement.shift[0] - neutral) * placement.voxel_mm
    scale, degrees = float(placement.scale[0]), float(np.degrees(float(placement.angle_rad[0])))
    varied = []
    if scale != 1:
        varied.append(f"drawn {abs(scale - 1):.0%} {'larger' if scale > 1 else 'smaller'}")
    if degrees:
        varied.append(f"turned by {degrees:.0f} degrees")
    if bool(shift_mm.any()):
        varied.append(f"moved by {float(shift_mm.double().norm()):.0f} mm")
    where = f"cube of {placement.cube_mm:g} mm around the point x {x:.0f}, y {y:.0f}, z {z:.0f} mm"
    return f"{where}; the figure is {' and '.join(varied)}" if varied else where


def describe_round_trip(figures: Mapping[str, Any]) -> str:
    """Describe how many joints are inside the cube, and what a transform did to them if it moved any."""
    if figures["round_trip_mm"] is None:
        return "no joint is labelled"
    text = f"{figures['num_joints_inside']} of {figures['num_joints']} joints are in the cube"
    if figures["is_sound"]:
        return text
    return f"{text}; A TRANSFORM MOVED JOINTS BY {figures['round_trip_mm']:.1f} mm AGAINST THE IMAGE"


def describe_target(figures: Mapping[str, Any]) -> str:
    """Describe the errors of the joints decoded from the target."""
    if figures["is_sound"] is None:
        return "no labelled joint is in the cube"
    num_outside = figures["num_joints"] - figures["num_joints_inside"]
    text = (
        f"joints read from the heat maps are at most {figures['target_off_max_mm']:.1f} mm from the labels; a cell is "
        f"{figures['cell_mm']:.1f} mm wide"
    )
    text += f"; {num_outside} joints are outside of the cube" if num_outside else ""
    if figures["is_sound"]:
        return text
    off = f"{figures['target_off_cells']:.2f} of a cell along an axis"
    return f"MORE THAN HALF A CELL OFF, {off}: {text}: heat maps and labels disagree"


def describe_errors(figures: Mapping[str, Any]) -> str:
    """Describe the errors of the predicted joints."""
    if figures["mean_error_mm"] is None:
        return "no joint is labelled"
    worst = f"most of all {figures['worst_joint']}, by {figures['max_error_mm']:.1f} mm"
    return f"joints are {figures['mean_error_mm']:.1f} mm off on average, {worst}"


_ADDED_FIELDS = ("heatmaps", "volume", "placement")
"""Fields that transforms add; a stage is drawn by the first of these that its transform added."""
_MIN_DRAWN = 0.5


class DepthStages:
    """Stages of samples with a `depth` image, its `camera`, `joints` and which of them are `visible`."""

    kind = "depth frames"
    needs = frozenset({"depth", "camera", "joints", "visible"})

    def __init__(self, raw: Sample, info: DataInfo, facts: Mapping[str, Any]) -> None:
        self.whole: dict[str, str] = {}
        self._joints = raw["joints"].double().clone()  # a copy, which no transform can change
        self._visible = raw["visible"].bool().clone()
        self._y_is_up = float(raw["camera"][1]) < 0
        self.frame: Frame = "camera_y_up" if self._y_is_up else "camera_y_down"
        count = len(self._joints)
        self._names = tuple(facts.get("joint_names", map(str, range(count))))
        self._bones = tuple(tuple(bone) for bone in facts.get("bones", ()))
        self._unit = info.fields["depth"].unit if "depth" in info.fields else ""

    # --- stages -------------------------------------------------------------------------------------------------------

    def raw_stage(self, sample: Sample) -> Stage:
        """Build the stage of the measured points and joints in the camera frame, with the joints over the image."""
        return self._frame_stage("raw", sample)

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterator[Stage]:
        """Build the stage of what a transform added (placed cube, voxels or heat maps), else of the changed frame."""
        new = [name for name in _ADDED_FIELDS if name in sample and not _is_same(before.get(name), sample[name])]
        draw = {"heatmaps": self._target_stage, "volume": self._voxel_stage, "placement": self._cube_stage}
        yield draw[new[0]](stage, sample) if new else self._frame_stage(stage, sample)

    def prediction_stages(
        self, clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], predictor: SamplePredictor
    ) -> tuple[Stage, dict[str, Any]]:
        """Build the stage of the predicted heat maps and joints next to the true ones, with the joint errors in mm."""
        sample = {name: batch[name][0].cpu() for name in (*self.needs, "placement")}
        joints_mm = predictions["joints_mm"][0].double().cpu()
        figures = measure_joint_errors(joints_mm, self._joints, self._visible, self._names)
        placement = CubePlacement.from_rows(sample["placement"][None])
        maps = self._maps(predictions["likelihood"][0].float().cpu(), placement)
        is_found = (predictions["peaks"][0].cpu() >= MIN_PEAK).numpy()
        true_figure = self._true_figure(self._joints)
        predicted_figure = replace(self._decoded_figure("predicted joints", joints_mm), is_sure=is_found)
        depth, camera = self._image(sample)
        depth_picture = draw_joints(depth, camera, placement, [true_figure, predicted_figure])
        cloud = self._heatmap_stage("prediction", maps, placement, [true_figure, predicted_figure])
        description = describe_errors(figures)
        if lost := [name for name, is_sure in zip(self._names, is_found, strict=True) if not is_sure]:
            description += f"; not found, drawn hollow (peak below {MIN_PEAK:g}): {join_some(lost, most=4)}"
        return replace(
            cloud, description=description, panels=(depth_picture, *cloud.panels[:3]), figures=figures
        ), figures

    def _frame_stage(self, stage: str, sample: Sample) -> Stage:
        depth, camera = self._image(sample)
        points = depth_points(depth, camera)
        joints = sample["joints"].double()
        joint_distance = median_nearest_distance(joints[self._visible].numpy(), points)
        description = (
            ""
            if joint_distance is None
            else f"joints lie {joint_distance:.1f} {self._unit} from the measured surface (median)"
        )
        skeleton = self._true_figure(joints)
        return Stage(
            stage,
            points,
            (RgbColoring.from_values("depth", points[:, 2]),),
            self._unit,
            description,
            skeletons=(skeleton,),
            panels=(depth_panel("depth and joints", depth, camera, [skeleton]),),
            figures={"joint_to_surface_mm": joint_distance},
        )

    def _cube_stage(self, stage: str, sample: Sample) -> Stage:
        placement = CubePlacement.from_rows(sample["placement"][None])
        depth, camera = self._image(sample)
        points = _to_voxels(depth_points(depth, camera), placement)
        is_inside = ((points >= 0) & (points < placement.size)).all(axis=1)
        figures = measure_placement(placement, sample["joints"], self._joints, self._visible)
        figures |= {"num_points_inside": int(is_inside.sum())}
        image = np.zeros(depth.shape, dtype=bool)
        image[depth > 0] = is_inside
        cube, window = project_placement(placement, camera, depth)
        skeleton = self._true_figure(sample["joints"].double())
        crop = depth_panel("in the cube", depth, camera, [skeleton], window=window, is_inside=image, cube=cube)
        inside_points = points[is_inside]
        colors = (RgbColoring.from_values("depth", inside_points[:, 2]),)
        description = f"{describe_placement(placement)}; {describe_round_trip(figures)}"
        cloud = Stage(
            stage, inside_points, colors, "voxels", description, figures["is_sound"], panels=(crop,), figures=figures
        )
        return replace(cloud, skeletons=(self._to_grid(skeleton, placement),))

    def _voxel_stage(self, stage: str, sample: Sample) -> Stage:
        placement = CubePlacement.from_rows(sample["placement"][None])
        values = permute_axes(sample["volume"][0].float(), placement.axes).numpy()
        volume = Volume.from_voxels(values, is_y_up=self._y_is_up)
        middles, _ = volume.cell_centres_above(_MIN_DRAWN)
        figures = measure_placement(placement, sample["joints"], self._joints, self._visible)
        skeleton = self._to_grid(self._true_figure(sample["joints"].double()), placement)
        joint_distance = median_nearest_distance(skeleton.joints[self._visible.numpy()], middles)
        figures |= {
            "num_voxels": len(middles),
            "share": len(middles) / values.size,
            "joint_to_surface_voxels": joint_distance,
        }
        voxel_mm = placement.voxel_mm / float(placement.scale[0])
        filled = f"{len(middles):,} voxels of {voxel_mm:.1f} mm are filled"
        if joint_distance is not None:
            filled += f"; joints lie {joint_distance * voxel_mm:.1f} mm from the nearest (median)"
        return Stage(
            stage,
            middles,
            (RgbColoring.from_values("depth", middles[:, 2]),),
            "voxels",
            f"{filled}; {describe_round_trip(figures)}",
            figures["is_sound"],
            skeletons=(skeleton,),
            panels=tuple(volume_panels(volume, [skeleton])),
            figures=figures,
        )

    def _target_stage(self, stage: str, sample: Sample) -> Stage:
        placement = CubePlacement.from_rows(sample["placement"][None])
        figures = measure_target(sample["heatmaps"], placement, self._joints, self._visible)
        joints_mm = decode_joints(sample["heatmaps"][None], placement, decoding="argmax")[0]
        skeletons = [self._true_figure(self._joints), self._decoded_figure("joints read from the target", joints_mm)]
        maps = self._maps(sample["heatmaps"].float(), placement)
        cloud = self._heatmap_stage(stage, maps, placement, skeletons)
        return replace(cloud, description=describe_target(figures), is_right=figures["is_sound"], figures=figures)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _heatmap_stage(
        self, stage: str, maps: np.ndarray, placement: CubePlacement, skeletons: Sequence[JointFigure]
    ) -> Stage:
        """Build the stage of the cells above 0.5, coloured by joint; maps (J, V, V, V) are indexed x, y, z."""
        volume = Volume.from_heatmaps(maps, cell=placement.size / maps.shape[-1], is_y_up=self._y_is_up)
        middles, owners = volume.cell_centres_above(_MIN_DRAWN)
        grid_skeletons = [self._to_grid(skeleton, placement) for skeleton in skeletons]
        palette = PALETTE[np.arange(len(maps)) % len(PALETTE)]
        return Stage(
            stage,
            middles,
            (ClassColoring("joint", owners, self._names, np.arange(len(maps)), palette),),
            "voxels",
            skeletons=tuple(grid_skeletons),
            panels=tuple(volume_panels(volume, grid_skeletons)),
        )

    def _maps(self, maps: Tensor, placement: CubePlacement) -> np.ndarray:
        return permute_axes(maps, placement.axes).numpy()

    def _image(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return sample["depth"].float().numpy(), sample["camera"].double().numpy()

    def _true_figure(self, joints: Tensor) -> JointFigure:
        return JointFigure("true joints", joints.numpy(), self._visible.numpy(), self._bones, TRUE)

    def _decoded_figure(self, name: str, joints: Tensor) -> JointFigure:
        return JointFigure(name, joints.numpy(), self._visible.numpy(), self._bones, READ)

    def _to_grid(self, skeleton: JointFigure, placement: CubePlacement) -> JointFigure:
        return skeleton.with_joints(_to_voxels(skeleton.joints, placement))


def _is_same(before: Any, after: Tensor) -> bool:
    """Return True if both are the same memory in the same shape: a transform passed its tensor on."""
    return isinstance(before, Tensor) and before.data_ptr() == after.data_ptr() and before.shape == after.shape


def _to_voxels(points_mm: np.ndarray, placement: CubePlacement) -> np.ndarray:
    """Convert camera coordinates (P, 3) in mm to continuous voxel coordinates (P, 3) float64."""
    return to_voxels(torch.from_numpy(points_mm.astype(np.float64))[None], without_rounding(placement))[0].numpy()


# --- depth images of the user -----------------------------------------------------------------------------------------

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
