"""Rows of YOLO text files: class and box, a polygon, or a box with key points, in shares of width and height."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes.label_table import AnnotationFaults, LabelledBox
from sightline.store.boxes.tools.boxes import is_upright
from sightline.store.boxes.yolo_ids import RowIds
from sightline.store.files.input_files import open_regular, read_file

_BOX_WORDS = 5
"""Words of a row of class, centre and size."""
_TURNED_WORDS = 9
"""Words of a row of class and four corners, those of a turned box."""
_MARGIN = 0.01
"""Tolerance of relative coordinates outside 0 to 1: annotation tools round. Source: ultralytics, data/utils.py."""
_HEAD_BYTES = 2**16
"""Bytes by which a text file is known to hold rows."""
_MAX_KEY_POINTS = 1000
"""Points of a row above which it is a polygon."""
_ROUNDING = 1e-4
"""Tolerance of points at the border of their box: files hold four to six decimals."""


def read_rows(
    path: Path,
    *,
    ids: RowIds,
    faults: AnnotationFaults,
    unread: Counter[str],
    has_key_points: bool,
    signs: KeyPointSigns,
) -> list[LabelledBox]:
    """Read the boxes of a text file, in shares of width and height."""
    boxes = []
    for number, line in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not line.split():
            continue
        try:
            label, (left, top, right, bottom) = _parse_row(line, has_key_points=has_key_points)
            class_name = ids.find_name(label)
        except ValueError as error:
            faults.add("impossible rows", f"{path}:{number}: '{line[:60]}' ({error})")
            continue
        is_turned, words = False, line.split()
        if len(words) > _BOX_WORDS:
            is_box = len(words) == _TURNED_WORDS and not has_key_points
            is_turned = is_box and not is_upright(np.array(words[1:], dtype=np.float64).reshape(4, 2))
            what = "key points" if has_key_points else "polygons, but the boxes about them"
            unread[what] += not is_box
            signs.add(line, f"{path}:{number}")
        boxes.append(LabelledBox(class_name, (left, top, right, bottom), line=number, is_turned=is_turned))
    return boxes


def has_rows(path: Path) -> bool:
    """Return True if a text file begins with rows of boxes, with a score or not, or of polygons; or holds nothing.

    False for a file that cannot be read.
    """
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD_BYTES)
    except (DataError, OSError):
        return False
    lines = head.decode("utf-8-sig", "replace").splitlines()
    whole = lines[:-1] if len(head) == _HEAD_BYTES else lines
    return not lines or (bool(whole) and all(_is_row(line.split()) for line in whole if line.strip()))


def _is_row(words: Sequence[str]) -> bool:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    has_length = len(words) in (_BOX_WORDS, _BOX_WORDS + 1) or (len(words) > _BOX_WORDS and len(words) % 2 == 1)
    return has_length and numbers[0].is_integer() and all(-_MARGIN <= number <= 1 + _MARGIN for number in numbers[1:])


def _parse_row(line: str, *, has_key_points: bool) -> tuple[int, list[float]]:
    """Parse a row into class and relative box (4,) xyxy: from centre and size, or from the corners of a polygon.

    With key points, centre and size come first, and the rest is left out.
    """
    values = np.array(line.split(), dtype=np.float64)
    numbers = values[1:5] if has_key_points else values[1:]
    if len(numbers) == 5:
        raise ValueError(
            "a sixth number is a score, which labels have not, or an angle: take it out, or write the four corners of "
            "the turned box, class x1 y1 x2 y2 x3 y3 x4 y4, in shares"
        )
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(
            "class, centre x, centre y, width and height, or class and corners, are needed; with key points, state "
            "kpt_shape in the YAML file"
        )
    if not np.isfinite(values).all() or values[0] != int(values[0]):
        raise ValueError("a whole number and finite shares are needed")
    if numbers.min() < -_MARGIN or numbers.max() > 1 + _MARGIN:
        raise ValueError("shares of the image from 0 to 1 are needed, not pixels")
    centre, half = numbers[:2], numbers[2:4] / 2
    corners = numbers.reshape(-1, 2)
    box = np.concatenate(
        [centre - half, centre + half] if len(numbers) == 4 else [corners.min(axis=0), corners.max(axis=0)]
    )
    if not (box[2:] > box[:2]).all():
        raise ValueError("width and height above 0 are needed")
    return int(values[0]), box.tolist()


class KeyPointSigns:
    """Test of whether rows longer than a box are boxes with key points in two dimensions, if nothing states it.

    They may be if all rows are equally long, and the first four numbers of a row are a box in the image that
    holds all further points; points at (0, 0) are not labelled. Polygons that `cross` themselves are no polygons.
    """

    def __init__(self) -> None:
        self.num_rows, self.num_words, self.first = 0, 0, ""
        self.cross = False
        self._is_refuted = False

    @property
    def are_possible(self) -> bool:
        return self.num_rows > 0 and not self._is_refuted

    def refute(self) -> None:
        self._is_refuted = True

    def add(self, line: str, where: str) -> None:
        """Count a row that is longer than a box, of finite numbers."""
        if self._is_refuted:
            return
        corners = np.array(line.split()[1:], dtype=np.float64).reshape(-1, 2)
        self.num_rows, self.num_words = self.num_rows + 1, self.num_words or corners.size
        self.first = self.first or where
        centre, half, points = corners[0], corners[1] / 2, corners[2:]
        labelled = points[points.any(axis=1)]
        is_inside = (centre - half >= -_MARGIN).all() and (centre + half <= 1 + _MARGIN).all()
        is_held = (abs(labelled - centre) <= half + _ROUNDING).all()
        self._is_refuted = (
            corners.size != self.num_words or len(points) > _MAX_KEY_POINTS or not (is_inside and is_held)
        )
        self.cross = self.cross or (not self._is_refuted and _crosses_itself(corners))


def _crosses_itself(corners: np.ndarray) -> bool:
    """Return whether two sides of a polygon (P, 2), which are not neighbours, meet."""
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]  # a closed one repeats its first corner
    starts, ends = corners, np.roll(corners, -1, axis=0)

    def find_sides(points: np.ndarray) -> np.ndarray:
        """Return the side, -1 to 1, on which points (P, 2) are of all edges: (edges, P)."""
        edge, offset = (ends - starts)[:, None], points[None] - starts[:, None]
        cross = edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]
        return np.sign(np.where(abs(cross) < _ROUNDING**2, 0.0, cross))

    parts = find_sides(starts) * find_sides(ends) <= 0
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    overlap = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(axis=2)
    steps = abs(np.subtract.outer(np.arange(len(corners)), np.arange(len(corners))))
    is_apart = (steps > 1) & (steps < len(corners) - 1)
    return bool((parts & parts.T & overlap & is_apart).any())
