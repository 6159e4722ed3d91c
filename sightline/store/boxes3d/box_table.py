"""The one table of a frame's 3D boxes, which readers return, and scores, pictures and writers take.

Metres and radians in the right-handed frame of the LiDAR: x to the front, y to the left, z up. A box is (x, y, z, dx,
dy, dz, yaw): the centre of its volume; its extent along its heading, to the left of it, and up; and the turn of the
heading from +x, counter-clockwise seen from above, from -pi to below pi.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["BoxTable", "ImageBoxes", "make_box_table", "wrap_yaw"]


@dataclass(frozen=True)
class ImageBoxes:
    """What KITTI's labels state of the same M objects in an image, each (M,); its scores need them.

    `corners_px` (M, 4) are left, top, right and bottom; `truncated` is a share, NaN if not stated; `occluded` is 0 to
    3, -1 if not stated; `alpha` is the angle of observation in radians, -10 if not stated.
    """

    corners_px: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class BoxTable:
    """The M boxes of one frame; rows of all arrays belong together, and all arrays are read-only.

    `boxes` (M, 7) float64. `label` (M,) int64 are indices into `class_names`, -1 for a region of no class. `score` (M,)
    float64 is NaN for a label. `is_ignored` (M,) bool: neither a target nor a mistake. `num_points` (M,) int64 are the
    points of the frame inside, -1 if they were not counted. `velocity` (M, 2) float64 in metres a second along x and
    y, NaN if not known. `track` (M,) int64 is the same number for one object in all frames, -1 if not known. `image` is
    what KITTI's rows state besides. `frame` and `sensor` name where the boxes come from.
    """

    boxes: np.ndarray
    label: np.ndarray
    class_names: tuple[str, ...]
    score: np.ndarray
    is_ignored: np.ndarray
    num_points: np.ndarray
    velocity: np.ndarray
    track: np.ndarray
    frame: str = ""
    sensor: str = ""
    image: ImageBoxes | None = None

    def __post_init__(self) -> None:
        for array in self._list_arrays():
            assert len(array) == len(self.boxes), f"{len(array)} rows beside {len(self.boxes)} boxes"
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: np.ndarray) -> BoxTable:
        """Return the rows of a mask or of indices, in their order."""
        changes = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        image = self.image and ImageBoxes(**{name: value[rows] for name, value in vars(self.image).items()})
        return replace(self, **changes, image=image)

    def _list_arrays(self) -> list[np.ndarray]:
        values = [*vars(self).values(), *(vars(self.image).values() if self.image else ())]
        return [value for value in values if isinstance(value, np.ndarray)]


def make_box_table(boxes: np.ndarray, label: np.ndarray, class_names: tuple[str, ...], **columns: Any) -> BoxTable:
    """Make a table of `boxes` (M, 7) and `label` (M,); columns that are not given are of what is not known."""
    num_boxes = len(boxes)
    unknown = {
        "score": np.full(num_boxes, np.nan),
        "is_ignored": np.zeros(num_boxes, dtype=bool),
        "num_points": np.full(num_boxes, -1, dtype=np.int64),
        "velocity": np.full((num_boxes, 2), np.nan),
        "track": np.full(num_boxes, -1, dtype=np.int64),
    }
    rows = np.array(boxes, dtype=np.float64).reshape(num_boxes, 7)
    rows[:, 6] = wrap_yaw(rows[:, 6])
    return BoxTable(rows, np.array(label, dtype=np.int64), class_names, **{**unknown, **columns})


def wrap_yaw(yaw: np.ndarray) -> np.ndarray:
    """Return angles in radians from -pi to below pi."""
    turned = (yaw + np.pi) % (2 * np.pi) - np.pi
    return np.where(turned >= np.pi, -np.pi, turned)
