"""Files of KITTI's object data set: labelled objects, calibration, and the type of every point that follows."""

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
"""The id of a type is its place here; Background is what no box holds."""
DONT_CARE = TYPES.index("DontCare")
OUTSIDE = len(TYPES)
"""The id of points that the image does not show: nobody labelled what is there."""
_NUM_COLUMNS = (15, 16)
"""Of a labelled object, and of one that a detector found, which has a score."""
_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_LARGEST_M = 1000.0
"""Of a side of an object: what is larger is in other units, or damaged."""
_FARTHEST = 1e9
"""Of a projection's numbers, of which KITTI's are below a thousand; one over it is the least length of a row."""
_FLATTEST = 1e-3
"""The least determinant of a projection over the product of its rows' lengths; that of KITTI's cameras is 0.7."""


class KittiObjects(NamedTuple):
    """The objects of a frame: `types` (M,) int64 places in `TYPES`, `boxes_image_px` (M, 4) left, top, right, bottom,
    `boxes_camera` (M, 7) as in geometry/boxes3d.py; of DontCare only the first two mean something."""

    types: np.ndarray
    boxes_image_px: np.ndarray
    boxes_camera: np.ndarray


class PointsInBoxRule(NamedTuple):
    """How points come by the type of a box: metres that it is widened, and metres above its bottom left out."""

    margin_m: float = 0.0
    ground_m: float = 0.0


def read_objects(path: Path) -> KittiObjects:
    """The objects of a label file. Raises DataError with the line for one that is none, or cannot hold anything."""
    types, numbers = [], []
    for number, line in enumerate(read_file(path).decode("ascii", "replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if words[0] not in TYPES[1:] or len(words) not in _NUM_COLUMNS:
            fault = (
                f"has {len(words)} columns, 15 are expected" if words[0] in TYPES else f"no type is '{words[0][:40]}'"
            )
            raise DataError(f"{path}:{number}: {fault}; types are {', '.join(TYPES[1:])}")
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(f"{path}:{number}: holds something else than numbers; get the file again") from None
        if fault := _fault_of(words[0], values):
            raise DataError(f"{path}:{number}: {fault}, so the {words[0]} would hold no point; mend the line")
        types.append(TYPES.index(words[0]))
        numbers.append(values[:14])
    table = np.array(numbers, dtype=np.float64).reshape(-1, 14)
    height, width, length = table[:, 7], table[:, 8], table[:, 9]
    boxes = np.column_stack([table[:, 10:13], length, height, width, table[:, 13]])
    return KittiObjects(np.array(types, dtype=np.int64), table[:, 3:7], boxes)


def _fault_of(kind: str, values: Sequence[float]) -> str:
    """The reason for which points could not be found in an object; empty where they can."""
    if not all(map(math.isfinite, values)):
        return "holds a number that is not finite"
    left, top, right, bottom, *sizes = values[3:10]
    if kind == TYPES[DONT_CARE]:
        is_region = left < right and top < bottom
        return "" if is_region else f"left, top, right, bottom are {left:g}, {top:g}, {right:g}, {bottom:g}"
    if all(0 < size <= _LARGEST_M for size in sizes):
        return ""
    return "height, width, length are {:g}, {:g}, {:g} m".format(*sizes)


def read_calibration(path: Path) -> Calibration:
    """The calibration of a frame.

    Raises DataError for a file without one of P2, R0_rect and Tr_velo_to_cam, and with the line for one of them that
    is not a rotation, or projects on a line.
    """
    rows, parts = read_matrices(path), {}
    for name, shape in _SHAPES.items():
        count = len(rows[name].numbers) if name in rows else 0
        if name not in rows or count != math.prod(shape):
            what = f"has {count} numbers in {name}" if name in rows else f"has no row '{name}'"
            where = rows[name].where if name in rows else path
            raise DataError(f"{where}: {what}, {math.prod(shape)} numbers are expected; get the file again")
        parts[name] = rows[name].numbers.reshape(shape)
    for name in ("R0_rect", "Tr_velo_to_cam"):
        check_pose(parts[name], where=f"{rows[name].where}: {name}")
    projection = parts["P2"]
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(projection[:, :3], axis=1)
        is_sized = lengths.min() > 1 / _FARTHEST and np.abs(projection).max() < _FARTHEST
        is_camera = is_sized and np.linalg.det(projection[:, :3]) > _FLATTEST * lengths.prod()
    if not is_camera:
        raise DataError(
            f"{rows['P2'].where}: P2 is not a camera: it maps space on a line or a point, or mirrors it; get it again"
        )
    return Calibration.from_matrices(
        velo_to_cam=parts["Tr_velo_to_cam"], rectification=parts["R0_rect"], projection=projection
    )


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its first bytes. Raises DataError for a file that is not a picture."""
    assert_regular(path)
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: does not read as a picture; get the file again") from error


def label_points_by_boxes(
    points: np.ndarray,
    objects: KittiObjects,
    calibration: Calibration,
    *,
    size_px: tuple[int, int],
    boxing: PointsInBoxRule,
) -> np.ndarray:
    """The type (N,) int64 of every point (N, 3) of a scan: a place in `TYPES`, or OUTSIDE.

    The smallest of several boxes wins. A point in no box has DontCare if it appears in a region so labelled, OUTSIDE if
    the image of `size_px` (width, height) does not show it, else Background.
    """
    camera = calibration.to_camera(points)
    pixels = calibration.to_image(camera)
    with np.errstate(invalid="ignore"):  # what is behind the camera is NaN, and in no region
        is_shown = ((pixels >= 0) & (pixels < size_px)).all(axis=1)
        types = np.where(is_shown, 0, OUTSIDE)
        for left, top, right, bottom in objects.boxes_image_px[objects.types == DONT_CARE]:
            is_within = (pixels >= (left, top)) & (pixels <= (right, bottom))
            types[is_shown & is_within.all(axis=1)] = DONT_CARE
    is_box = np.flatnonzero(objects.types != DONT_CARE)
    volumes = objects.boxes_camera[is_box, 3:6].prod(axis=1)
    for place in is_box[np.argsort(-volumes, kind="stable")]:
        box = objects.boxes_camera[place]
        types[points_in_box(camera, box, margin_m=boxing.margin_m, bottom_m=boxing.ground_m)] = objects.types[place]
    return types


def read_frame(
    scan: Path, label: Path, calib: Path, *, size_px: tuple[int, int], boxing: PointsInBoxRule, shown_only: bool = False
) -> RawScan:
    """A frame with the type of every point as its id; `shown_only` leaves out what the image does not show."""
    table = read_bin(scan, num_columns=4)
    objects, calibration = read_objects(label), read_calibration(calib)
    ids = label_points_by_boxes(table[:, :3], objects, calibration, size_px=size_px, boxing=boxing)
    if shown_only:
        table, ids = table[ids != OUTSIDE], ids[ids != OUTSIDE]
    return RawScan(table[:, :3], table[:, 3], ids)
