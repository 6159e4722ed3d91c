"""Files of KITTI's object data set: labelled objects, calibration, and the type of every point that follows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sightline.data.files.input_files import BoundedFile, assert_regular, read_file
from sightline.data.files.scan_files import read_bin, read_matrices
from sightline.data.scans.samples import RawScan
from sightline.errors import DataError
from sightline.geometry.scans.boxes3d import Calibration, inside_box

__all__ = ["DONT_CARE", "OUTSIDE", "TYPES", "Boxing", "Objects", "image_size_px", "read_calibration", "read_frame"]
__all__ += ["read_objects", "types_of_points"]

TYPES = ("Background", "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
"""The id of a type is its place here; Background is what no box holds."""
DONT_CARE = TYPES.index("DontCare")
OUTSIDE = len(TYPES)
"""The id of points that the image does not show: nobody labelled what is there."""
_NUM_COLUMNS = (15, 16)
"""Of a labelled object, and of one that a detector found, which has a score."""
_SHAPES = {"P2": 12, "R0_rect": 9, "Tr_velo_to_cam": 12}


class Objects(NamedTuple):
    """The objects of a frame: `types` (M,) int64 places in `TYPES`, `boxes_image_px` (M, 4) left, top, right, bottom,
    `boxes_camera` (M, 7) as in geometry/boxes3d.py; of DontCare only the first two mean something."""

    types: np.ndarray
    boxes_image_px: np.ndarray
    boxes_camera: np.ndarray


class Boxing(NamedTuple):
    """How points come by the type of a box: metres that it is widened, and metres above its bottom left out."""

    margin_m: float = 0.0
    ground_m: float = 0.0


def read_objects(path: Path) -> Objects:
    """The objects of a label file. Raises DataError with the line for one that is none."""
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
            values = [float(word) for word in words[1:15]]
        except ValueError:
            raise DataError(f"{path}:{number}: holds something else than numbers; get the file again") from None
        types.append(TYPES.index(words[0]))
        numbers.append(values)
    table = np.array(numbers, dtype=np.float64).reshape(-1, 14)
    height, width, length = table[:, 7], table[:, 8], table[:, 9]
    boxes = np.column_stack([table[:, 10:13], length, height, width, table[:, 13]])
    return Objects(np.array(types, dtype=np.int64), table[:, 3:7], boxes)


def read_calibration(path: Path) -> Calibration:
    """The calibration of a frame. Raises DataError for a file without one of P2, R0_rect and Tr_velo_to_cam."""
    rows = read_matrices(path)
    for name, count in _SHAPES.items():
        if len(rows.get(name, ())) != count:
            found = f"has {len(rows[name])} numbers in {name}" if name in rows else f"has no row '{name}'"
            raise DataError(f"{path}: {found}, {count} numbers are expected; get the file again")
    return Calibration.of_parts(
        velo_to_cam=rows["Tr_velo_to_cam"].reshape(3, 4),
        rectification=rows["R0_rect"].reshape(3, 3),
        projection=rows["P2"].reshape(3, 4),
    )


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its first bytes. Raises DataError for a file that is not a picture."""
    assert_regular(path)
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: does not read as a picture; get the file again") from error


def types_of_points(
    points: np.ndarray, objects: Objects, calibration: Calibration, *, size_px: tuple[int, int], boxing: Boxing
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
        types[inside_box(camera, box, margin_m=boxing.margin_m, bottom_m=boxing.ground_m)] = objects.types[place]
    return types


def read_frame(
    scan: Path, label: Path, calib: Path, *, size_px: tuple[int, int], boxing: Boxing, shown_only: bool = False
) -> RawScan:
    """A frame with the type of every point as its id; `shown_only` leaves out what the image does not show."""
    table = read_bin(scan, num_columns=4)
    objects, calibration = read_objects(label), read_calibration(calib)
    ids = types_of_points(table[:, :3], objects, calibration, size_px=size_px, boxing=boxing)
    if shown_only:
        table, ids = table[ids != OUTSIDE], ids[ids != OUTSIDE]
    return RawScan(table[:, :3], table[:, 3], ids)
