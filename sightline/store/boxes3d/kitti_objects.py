"""Files of KITTI's object data set: labels, calibrations by the names of their matrices, and the frames of a tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.files.image_files import read_header
from sightline.store.files.input_files import list_files, list_named_files, read_file
from sightline.store.files.scan_files import check_pose, read_matrices
from sightline.store.prepared.prepared_set import describe_contents

TYPES = ("Background", "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
"""Types of objects; the id of a type is its index. Background are the points in no box."""
DONT_CARE = TYPES.index("DontCare")
_NUM_COLUMNS = (15, 16)
"""Columns of a labelled object, and of a detection, which also has a score."""
_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
_MAX_SIDE_M = 1000.0
"""Largest side of an object; larger values are in other units, or damaged."""
_MAX_ENTRY = 1e9
"""Largest entry of a projection matrix (KITTI's are below a thousand); its inverse is the minimum length of a row."""
_MIN_DETERMINANT = 1e-3
"""Minimum determinant of a projection divided by the product of its row lengths; 0.7 for KITTI's cameras."""


class Calibration(NamedTuple):
    """Calibration: `camera_of_velodyne` (4, 4), scanner to rectified camera; `projection` (3, 4), camera to pixels.

    The rectified camera's frame is in metres, x right, y down, z forward. A box is x, y, z of the middle of its bottom,
    length, height, width, and the turn about y: at zero its length lies along x. `image_px` are the width and height of
    the image, None where they are not known.
    Source: Geiger et al. 2012, the object development kit's readme.
    """

    camera_of_velodyne: np.ndarray
    projection: np.ndarray
    image_px: tuple[int, int] | None = None

    @classmethod
    def from_matrices(
        cls, *, velo_to_cam: np.ndarray, rectification: np.ndarray, projection: np.ndarray
    ) -> Calibration:
        """Build a calibration from the file's Tr_velo_to_cam (3, 4), R0_rect (3, 3) and P2 (3, 4), all float64."""
        moved, turned = np.eye(4), np.eye(4)
        moved[:3] = velo_to_cam
        turned[:3, :3] = rectification
        return cls(turned @ moved, projection)

    def to_camera(self, points_velodyne: np.ndarray) -> np.ndarray:
        """Transform scanner points (N, 3) to the rectified camera's frame, (N, 3) float64."""
        matrix = self.camera_of_velodyne
        with np.errstate(invalid="ignore"):  # a point that is not finite stays so; NumPy would warn
            return points_velodyne.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]

    def to_image(self, points_camera: np.ndarray) -> np.ndarray:
        """Project camera points (N, 3) to column and row (N, 2) in pixels, centres at integers.

        NaN for points not in front.
        """
        homogeneous = points_camera @ self.projection[:, :3].T + self.projection[:, 3]
        is_ahead = (points_camera[:, 2] > 0) & (homogeneous[:, 2] > 0)
        pixels = np.full((len(points_camera), 2), np.nan)
        pixels[is_ahead] = homogeneous[is_ahead, :2] / homogeneous[is_ahead, 2:]
        return pixels


class KittiObjects(NamedTuple):
    """Labelled objects of a frame.

    `types` (M,) int64 are indices into `TYPES`, `boxes_image_px` (M, 4) left, top, right, bottom, `boxes_camera` (M, 7)
    as in `Calibration`. `boxes_camera` is meaningless for DontCare. `views` (M, 3) are the share that is truncated, how
    much is occluded (0 to 3), and the angle of observation in radians, as the file has them.
    """

    types: np.ndarray
    boxes_image_px: np.ndarray
    boxes_camera: np.ndarray
    views: np.ndarray


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
    return KittiObjects(np.array(types, dtype=np.int64), table[:, 3:7], boxes, table[:, :3])


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


def read_calibrations(folder: Path) -> dict[str, Calibration]:
    """Read the calibrations of a folder: frame → calibration. Raises DataError for a folder without any."""
    files = list_files(folder, {".txt"}) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: {describe_contents(folder)}; KITTI's calibrations are needed, FRAME.txt for each")
    return {file.stem: read_calibration(file) for file in files}


def image_size_px(path: Path) -> tuple[int, int]:
    """Read width and height of an image from its header. Raises DataError for a file that is not an image."""
    header = read_header(path)
    return header.width, header.height


_SUFFIX_BY_FOLDER = {"velodyne": ".bin", "label_2": ".txt", "calib": ".txt", "image_2": ".png"}
_MAX_NAMED = 10


def find_frame_folder(root: Path) -> Path:
    """Find the folder with the frames of a tree. Raises DataError if there is none."""
    for folder in (root / "training", root):
        if (folder / "velodyne").is_dir():
            return folder
    raise DataError(
        f"{root}: {describe_contents(root)}; velodyne, label_2, calib and image_2 are needed, in it or in training"
    )


def find_complete_frames(folder: Path, *, needs_image: bool) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Return the files of every complete frame, and a note that names the incomplete frames."""
    needed = [part for part in _SUFFIX_BY_FOLDER if part != "image_2" or needs_image]
    frames = list_named_files(folder, _SUFFIX_BY_FOLDER)
    missing_by_frame = {frame: [part for part in needed if part not in paths] for frame, paths in frames.items()}
    complete = {frame: paths for frame, paths in frames.items() if not missing_by_frame[frame]}
    lines = [f"{frame} lacks {', '.join(parts)}" for frame, parts in missing_by_frame.items() if parts]
    if not complete:
        first = f"; {lines[0]}" if lines else ""
        advice = "; if there are no images, give their size: image_px=[1242, 375]" if needs_image else ""
        raise DataError(f"{folder}: no frame has all of {', '.join(needed)}{first}{advice}")
    more = f", and {len(lines) - _MAX_NAMED} more" if len(lines) > _MAX_NAMED else ""
    return complete, [f"{len(lines)} frames left out: {'; '.join(lines[:_MAX_NAMED])}{more}"] if lines else []
