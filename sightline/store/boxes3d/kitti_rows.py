"""Boxes in rows like KITTI's, of any class, and labelCloud's two forms of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes3d.box_table import ImageBoxes
from sightline.store.boxes3d.conversions import FLAT_CAMERA, BoxReading, boxes_to_camera, boxes_to_labelcloud_camera
from sightline.store.boxes3d.label_rows import Form, LabelFile, StatedBox, check_sizes, parse_name, parse_words
from sightline.store.files.input_files import read_file
from sightline.store.files.scan_files import check_pose, read_matrices
from sightline.store.files.text_tables import split_lines
from sightline.store.remarks import CountRemark

_NUM_COLUMNS = (15, 16)
_REGION = "DontCare"
_STATED = frozenset({"size", "unit", "sense", "zero"})
KITTI_READING = BoxReading(centre="bottom", size="hwl", sense="cw", zero="-y")
_LABELCLOUD = BoxReading(centre="bottom", size="hwl", sense="cw", zero="y")
_UNTRANSFORMED = BoxReading(size="hwl")
_ALL = Form().is_stated
FLAT_CALIBRATION = (
    "P2: 1 0 0 0 0 1 0 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
)
"""Calibration of a camera that stands in the scanner, without an image."""


def is_kitti(content: bytes) -> bool:
    """Return True for text whose first row is a class and 14 or 15 numbers."""
    for line in split_lines(content.decode("utf-8", "replace")):
        words = line.split()
        if words:
            return len(words) in _NUM_COLUMNS and all(map(_is_number, words[1:])) and not _is_number(words[0])
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_transform(path: Path) -> np.ndarray:
    """Read the transform (4, 4) from the scanner to the rectified camera, by the names of its matrices.

    Raises DataError for a file without them, and for a matrix that is no rotation.
    """
    rows, whole = read_matrices(path), np.eye(4)
    for name, width in (("Tr_velo_to_cam", 4), ("R0_rect", 3)):
        if name not in rows:
            raise DataError(f"{path}: has no row '{name}', which leads from the scanner to the camera; add it")
        if len(rows[name].numbers) != 3 * width:
            raise DataError(f"{rows[name].where}: has {len(rows[name].numbers)} numbers, {3 * width} are needed")
        matrix = rows[name].numbers.reshape(3, width)
        check_pose(matrix, where=f"{rows[name].where}: {name}")
        padded = np.eye(4)
        padded[:3, :width] = matrix
        whole = padded @ whole
    return whole


class KittiRow(NamedTuple):
    """One row: class, what it states of the image, height, width and length, the middle of the bottom, and the turn.

    `corners_px` are left, top, right and bottom; `score` is NaN for rows of 15 words.
    """

    name: str
    truncated: float
    occluded: float
    alpha: float
    corners_px: tuple[float, ...]
    size_hwl: tuple[float, ...]
    bottom: tuple[float, ...]
    turn: float
    score: float

    @classmethod
    def parse(cls, words: Sequence[str], where: str) -> KittiRow:
        """Parse the 15 or 16 words of a row. Raises DataError at `where` for what is no number, and for no name."""
        values = parse_words(words[1:], where)
        score = values[14] if len(values) > 14 else math.nan
        corners_px, size_hwl, bottom = (tuple(values[first:last]) for first, last in ((3, 7), (7, 10), (10, 13)))
        truncated, occluded, alpha = values[:3]
        name = parse_name(words[0], f"{where}: class")
        return cls(name, truncated, occluded, alpha, corners_px, size_hwl, bottom, turn=values[13], score=score)


def read_kitti_rows(path: Path, *, calibration: Path | None = None) -> LabelFile:
    """Read rows like KITTI's; without a calibration they are of a camera that stands in the scanner.

    DontCare rows have no 3D box and are counted. Rows whose image boxes are all zeros are labelCloud's: of its form
    `kitti` with a calibration, else of `kitti_untransformed`; counts of points decide. Raises DataError with the line.
    """
    stated, num_regions = [], 0
    for number, line in enumerate(split_lines(read_file(path).decode("utf-8", "replace")), start=1):
        words, where = line.split(), f"{path}:{number}"
        if not words:
            continue
        if len(words) not in _NUM_COLUMNS:
            raise DataError(f"{where}: has {len(words)} columns; KITTI's rows have 15, or 16 with a score: correct it")
        row = KittiRow.parse(words, where)
        if row.name == _REGION:
            num_regions += 1
            continue
        numbers = (*row.bottom, *row.size_hwl, row.turn)
        check_sizes(numbers, where)
        if row.occluded != round(row.occluded) or abs(row.occluded) > 10:
            raise DataError(f"{where}: occluded is {row.occluded:g}, a whole number from 0 to 3 is needed; correct it")
        image = (*row.corners_px, row.truncated, row.occluded, row.alpha)
        stated.append(StatedBox(row.name, numbers, where, score=row.score, image=image))
    what = "are DontCare regions of the image, which have no 3D box, and are left out"
    notes = (CountRemark.make(num_regions, len(stated) + num_regions, what, noun="rows"),) if num_regions else ()
    return LabelFile(path, "kitti", {"": stated}, _list_forms(stated, calibration), notes)


def _list_forms(stated: Sequence[StatedBox], calibration: Path | None) -> dict[str, Form]:
    """List what the rows may mean, the likeliest first."""
    transform = FLAT_CAMERA if calibration is None else read_transform(calibration)
    to_rows = partial(move_to_scanner, camera_of_velodyne=transform)
    kitti = {"kitti": Form(KITTI_READING, _STATED, to_rows)}
    if not stated or any(any(box.image[:4]) for box in stated):
        return kitti
    from_camera = {"labelcloud_kitti": Form(_LABELCLOUD, _ALL, to_rows)}
    plain = {"labelcloud_kitti_untransformed": Form(_UNTRANSFORMED, _ALL)}
    return {**plain, **kitti} if calibration is None else {**from_camera, **plain, **kitti}


def move_to_scanner(rows: np.ndarray, *, camera_of_velodyne: np.ndarray) -> np.ndarray:
    """Return rows with their places in the scanner's frame."""
    moved = rows.copy()
    homogeneous = np.column_stack([rows[:, :3], np.ones(len(rows))])
    moved[:, :3] = (homogeneous @ np.linalg.inv(camera_of_velodyne).T)[:, :3]
    return moved


def write_kitti_rows(
    names: Sequence[str], boxes: np.ndarray, scores: np.ndarray, *, image: ImageBoxes | None, form: str
) -> bytes:
    """Write the boxes (M, 7) of a frame for a camera that stands in the scanner.

    Without image boxes KITTI's rows have `0 0 50 50`, which its rules for LiDAR alone expect, labelCloud's have zeros.
    """
    if form == "labelcloud_kitti_untransformed":
        rows = np.column_stack([boxes[:, :3], boxes[:, [3, 5, 4]], boxes[:, 6]])
    else:
        rows = {"kitti": boxes_to_camera, "labelcloud_kitti": boxes_to_labelcloud_camera}[form](boxes, FLAT_CAMERA)
    lines = []
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        x, y, z, length, height, width, turn = row
        if form != "kitti":
            head = "0 0 0 0 0 0 0"
        elif image is None:
            head = f"0 0 {math.remainder(turn - math.atan2(x, z), 2 * math.pi):.9g} 0 0 50 50"
        else:
            corners = " ".join(f"{value:.9g}" for value in image.corners_px[index])
            head = f"{image.truncated[index]:.9g} {image.occluded[index]} {image.alpha[index]:.9g} {corners}"
        numbers = " ".join(f"{value:.9g}" for value in (height, width, length, x, y, z, turn))
        score = f" {scores[index]:.9g}" if math.isfinite(scores[index]) else ""
        lines.append(f"{'_'.join(name.split())} {head} {numbers}{score}\n")
    return "".join(lines).encode()
