"""Reader of KITTI object files: labelled objects, calibration, and the resulting type of every point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sightline.data.files.input_files import BoundedFile, assert_regular, read_file
from sightline.data.files.scan_files import check_pose, read_bin, read_matrices
from sightline.data.scans.scan_samples import RawScan
from sightline.errors import DataError
from sightline.geometry.scans.boxes3d import Calibration, points_in_box

__all__ = [
    "DONT_CARE",
    "OUTSIDE",
    "TYPES",
    "KittiObjects",
    "PointsInBoxRule",
    "image_size_px",
    "read_calibration",
    "read_frame",
]
__all__ += ["label_points_by_boxes", "read_objects"]

TYPES = ("Background", "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
"""Types of objects; the id of a type is its index. Background are the points in no box."""
DONT_CARE = TYPES.index("DontCare")
OUTSIDE = len(TYPES)
"""Id of points outside the image, where nothing is labelled."""
_NUM_COLUMNS = (15, 16)
"""Columns of a labelled object, and of a detection, which also has a score."""
_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_MAX_SIDE_M = 1000.0
"""Largest side of an object; larger values are in other units, or damaged."""
_MAX_ENTRY = 1e9
"""Largest entry of a projection matrix (KITTI's are below a thousand); its inverse is the minimum length of a row."""
_MIN_DETERMINANT = 1e-3
"""Minimum determinant of a projection divided by the product of its row lengths; 0.7 for KITTI's cameras."""


class KittiObjects(NamedTuple):
    """Labelled objects of a frame.

    `types` (M,) int64 are indices into `TYPES`, `boxes_image_px` (M, 4) left, top, right, bottom, `boxes_camera` (M, 7)
    as in geometry/scans/boxes3d.py. `boxes_camera` is meaningless for DontCare.
    """

    types: np.ndarray
    boxes_image_px: np.ndarray
    boxes_camera: np.ndarray


class PointsInBoxRule(NamedTuple):
    """Rule for the points of a box: it is widened by `margin_m`, and its lowest `ground_m` are left out."""

    margin_m: float = 0.0
    ground_m: float = 0.0


def read_objects(path: Path) -> KittiObjects:
    """Read the objects of a label file. Raises DataError with the line for an invalid object or an empty box."""
    types, numbers = [], []
    for number, line in enumerate(read_file(path).decode("ascii", "replace").splitlines(), start=1):
        tokens = line.split()
        if not tokens:
            continue
        if tokens[0] not in TYPES[1:] or len(tokens) not in _NUM_COLUMNS:
            fault = (
                f"has {len(tokens)} columns, 15 are expected"
                if tokens[0] in TYPES
                else f"no type is '{tokens[0][:40]}'"
            )
            raise DataError(f"{path}:{number}: {fault}; types are {', '.join(TYPES[1:])}")
        try:
            values = [float(token) for token in tokens[1:]]
        except ValueError:
            raise DataError(f"{path}:{number}: contains values that are not numbers; get the file again") from None
        if fault := _describe_fault(tokens[0], values):
            raise DataError(f"{path}:{number}: {fault}, so the {tokens[0]} can contain no point; correct the line")
        types.append(TYPES.index(tokens[0]))
        numbers.append(values[:14])
    table = np.array(numbers, dtype=np.float64).reshape(-1, 14)
    height, width, length = table[:, 7], table[:, 8], table[:, 9]
    boxes = np.column_stack([table[:, 10:13], length, height, width, table[:, 13]])
    return KittiObjects(np.array(types, dtype=np.int64), table[:, 3:7], boxes)


def _describe_fault(kind: str, values: Sequence[float]) -> str:
    """Describe why an object cannot contain points; "" if it can."""
    if not all(map(math.isfinite, values)):
        return "holds a number that is not finite"
    left, top, right, bottom, *sizes = values[3:10]
    if kind == TYPES[DONT_CARE]:
        is_region = left < right and top < bottom
        return "" if is_region else f"left, top, right, bottom are {left:g}, {top:g}, {right:g}, {bottom:g}"
    if all(0 < size <= _MAX_SIDE_M for size in sizes):
        return ""
    return "height, width, length are {:g}, {:g}, {:g} m".format(*sizes)


def read_calibration(path: Path) -> Calibration:
    """Read the calibration of a frame.

    Raises DataError for a file without P2, R0_rect or Tr_velo_to_cam, and with the line for a matrix that is not a
    rotation, or a projection that is singular.
    """
    rows, parts = read_matrices(path), {}
    for name, shape in _SHAPES.items():
        count = len(rows[name].numbers) if name in rows else 0
        if name not in rows or count != math.prod(shape):
            fault = f"has {count} numbers in {name}" if name in rows else f"has no row '{name}'"
            where = rows[name].where if name in rows else path
            raise DataError(f"{where}: {fault}, {math.prod(shape)} numbers are expected; get the file again")
        parts[name] = rows[name].numbers.reshape(shape)
    for name in ("R0_rect", "Tr_velo_to_cam"):
        check_pose(parts[name], where=f"{rows[name].where}: {name}")
    projection = parts["P2"]
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(projection[:, :3], axis=1)
        is_sized = lengths.min() > 1 / _MAX_ENTRY and np.abs(projection).max() < _MAX_ENTRY
        is_camera = is_sized and np.linalg.det(projection[:, :3]) > _MIN_DETERMINANT * lengths.prod()
    if not is_camera:
        raise DataError(
            f"{rows['P2'].where}: P2 is not a camera: it maps space on a line or a point, or mirrors it; get it again"
        )
    return Calibration.from_matrices(
        velo_to_cam=parts["Tr_velo_to_cam"], rectification=parts["R0_rect"], projection=projection
    )


def image_size_px(path: Path) -> tuple[int, int]:
    """Read width and height of an image from its header. Raises DataError for a file that is not an image."""
    assert_regular(path)
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image; get the file again") from error


def label_points_by_boxes(
    points: np.ndarray,
    objects: KittiObjects,
    calibration: Calibration,
    *,
    size_px: tuple[int, int],
    box_rule: PointsInBoxRule,
) -> np.ndarray:
    """Compute the type (N,) int64 of every point (N, 3) of a scan: an index into `TYPES`, or OUTSIDE.

    The smallest of several boxes wins. A point in no box is DontCare if it projects into such a region, OUTSIDE if it
    is not in the image of `size_px` (width, height), else Background.
    """
    camera = calibration.to_camera(points)
    pixels = calibration.to_image(camera)
    with np.errstate(invalid="ignore"):  # points behind the camera are NaN, and in no region
        visible_mask = ((pixels >= 0) & (pixels < size_px)).all(axis=1)
        types = np.where(visible_mask, 0, OUTSIDE)
        for left, top, right, bottom in objects.boxes_image_px[objects.types == DONT_CARE]:
            in_region_mask = (pixels >= (left, top)) & (pixels <= (right, bottom))
            types[visible_mask & in_region_mask.all(axis=1)] = DONT_CARE
    box_indices = np.flatnonzero(objects.types != DONT_CARE)
    volumes = objects.boxes_camera[box_indices, 3:6].prod(axis=1)
    for index in box_indices[np.argsort(-volumes, kind="stable")]:
        box = objects.boxes_camera[index]
        types[points_in_box(camera, box, margin_m=box_rule.margin_m, bottom_m=box_rule.ground_m)] = objects.types[index]
    return types


def read_frame(
    scan: Path,
    label: Path,
    calib: Path,
    *,
    size_px: tuple[int, int],
    box_rule: PointsInBoxRule,
    visible_only: bool = False,
) -> RawScan:
    """Read a scan with the type of every point as its id; `visible_only` leaves out points outside the image."""
    table = read_bin(scan, num_columns=4)
    objects, calibration = read_objects(label), read_calibration(calib)
    ids = label_points_by_boxes(table[:, :3], objects, calibration, size_px=size_px, box_rule=box_rule)
    if visible_only:
        table, ids = table[ids != OUTSIDE], ids[ids != OUTSIDE]
    return RawScan(table[:, :3], table[:, 3], ids)
