"""Named conversions between the product's boxes and those of other tools, each with its inverse.

A box of the product is a row of `BoxTable.boxes`: (x, y, z, dx, dy, dz, yaw) in metres and radians of the LiDAR. All
functions take and return (M, 7) float64, and wrap the angle to [-pi, pi) where it is the product's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from sightline.store.boxes3d.box_table import wrap_yaw

__all__ = [
    "BoxCentre",
    "BoxReading",
    "BoxSize",
    "YawSense",
    "YawUnit",
    "YawZero",
    "box_of_vertices",
    "boxes_from_camera",
    "boxes_from_flat_camera",
    "boxes_from_labelcloud_camera",
    "boxes_from_older",
    "boxes_to_camera",
    "boxes_to_flat_camera",
    "boxes_to_labelcloud_camera",
    "boxes_to_older",
    "vertices_of_box",
]

BoxCentre: TypeAlias = Literal["centre", "bottom"]
"""The point that x, y, z state: the centre of the volume, or the middle of the bottom face."""
BoxSize: TypeAlias = Literal["lwh", "wlh", "hwl", "hlw"]
"""What the three stated sizes are: l along the heading, w to its left, h up."""
YawUnit: TypeAlias = Literal["rad", "deg"]
YawSense: TypeAlias = Literal["ccw", "cw"]
"""The sense in which angles grow, seen from above."""
YawZero: TypeAlias = Literal["x", "y", "-x", "-y"]
"""The axis along which the heading lies at angle 0."""
_ZERO_RAD = {"x": 0.0, "y": np.pi / 2, "-x": np.pi, "-y": -np.pi / 2}


@dataclass(frozen=True)
class BoxReading:
    """A reading of seven numbers in the LiDAR's frame: which point, which order of sizes, which angle.

    At sense `ccw` an angle a of zero axis z is the yaw z + a, at `cw` it is z - a. The default is the product's own.
    """

    centre: BoxCentre = "centre"
    size: BoxSize = "lwh"
    unit: YawUnit = "rad"
    sense: YawSense = "ccw"
    zero: YawZero = "x"

    def to_boxes(self, rows: np.ndarray) -> np.ndarray:
        """Return the product's boxes (M, 7) of rows (M, 7) that are read so."""
        boxes = np.array(rows, dtype=np.float64).reshape(-1, 7)
        for axis, letter in enumerate("lwh"):
            boxes[:, 3 + axis] = rows[:, 3 + self.size.index(letter)]
        boxes[:, 2] += boxes[:, 5] / 2 * (self.centre == "bottom")
        angle = np.deg2rad(rows[:, 6]) if self.unit == "deg" else rows[:, 6]
        boxes[:, 6] = wrap_yaw(_ZERO_RAD[self.zero] + (angle if self.sense == "ccw" else -angle))
        return boxes

    def from_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return rows (M, 7) that are read so as these boxes: the inverse of `to_boxes`, angles from -pi or -180."""
        rows = np.array(boxes, dtype=np.float64).reshape(-1, 7)
        for axis, letter in enumerate("lwh"):
            rows[:, 3 + self.size.index(letter)] = boxes[:, 3 + axis]
        rows[:, 2] -= boxes[:, 5] / 2 * (self.centre == "bottom")
        angle = wrap_yaw((boxes[:, 6] - _ZERO_RAD[self.zero]) * (1 if self.sense == "ccw" else -1))
        rows[:, 6] = np.rad2deg(angle) if self.unit == "deg" else angle
        return rows

    def options(self) -> dict[str, str]:
        """Return the options of the sets by which a user states this reading."""
        names = {
            "centre": "box_centre",
            "size": "box_size",
            "unit": "yaw_unit",
            "sense": "yaw_sense",
            "zero": "yaw_zero",
        }
        return {option: getattr(self, name) for name, option in names.items()}


OLDER_CENTRE = BoxReading(centre="centre", size="wlh", sense="cw", zero="-y")
OLDER_BOTTOM = BoxReading(centre="bottom", size="wlh", sense="cw", zero="-y")
"""Boxes x y z w l h with the yaw clockwise from -y: SECOND, MMDetection3D below 1.0 (bottom); CenterPoint, Det3D."""


def boxes_from_older(rows: np.ndarray, *, centre: BoxCentre) -> np.ndarray:
    """Convert rows x y z w l h yaw of the older convention: yaw = -old - pi/2. Source: SECOND, MMDetection3D < 1.0."""
    return (OLDER_CENTRE if centre == "centre" else OLDER_BOTTOM).to_boxes(rows)


def boxes_to_older(boxes: np.ndarray, *, centre: BoxCentre) -> np.ndarray:
    """Convert boxes to rows x y z w l h yaw of the older convention: the inverse of `boxes_from_older`."""
    return (OLDER_CENTRE if centre == "centre" else OLDER_BOTTOM).from_boxes(boxes)


def boxes_from_camera(boxes_camera: np.ndarray, camera_of_velodyne: np.ndarray) -> np.ndarray:
    """Convert KITTI's boxes to the scanner's frame: x, y, z of the bottom, length, height, width, turn about y.

    `camera_of_velodyne` (4, 4) leads from the scanner to the rectified camera. Half of the height is added along the
    scanner's z after the transform, and yaw = -ry - pi/2: the frames' axes are parallel to about a degree only.
    Source: the object development kit of KITTI (Geiger et al. 2012), as OpenPCDet reads it.
    """
    boxes = np.array(boxes_camera, dtype=np.float64).reshape(-1, 7)
    homogeneous = np.column_stack([boxes[:, :3], np.ones(len(boxes))])
    bottom = (homogeneous @ np.linalg.inv(camera_of_velodyne).T)[:, :3]
    length, height, width = boxes[:, 3:6].T
    lifted = bottom + np.outer(height / 2, (0, 0, 1))
    return np.column_stack([lifted, length, width, height, wrap_yaw(-boxes[:, 6] - np.pi / 2)])


def boxes_to_camera(boxes: np.ndarray, camera_of_velodyne: np.ndarray) -> np.ndarray:
    """Convert boxes to KITTI's camera frame: the inverse of `boxes_from_camera`."""
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 7)
    bottom = boxes[:, :3] - np.outer(boxes[:, 5] / 2, (0, 0, 1))
    camera = (np.column_stack([bottom, np.ones(len(boxes))]) @ camera_of_velodyne.T)[:, :3]
    return np.column_stack([camera, boxes[:, 3], boxes[:, 5], boxes[:, 4], wrap_yaw(-boxes[:, 6] - np.pi / 2)])


FLAT_CAMERA = np.array([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
"""The camera that stands in the scanner without any calibration: x to the right, y down, z forward."""


def boxes_from_flat_camera(boxes_camera: np.ndarray) -> np.ndarray:
    """Convert boxes of a camera in the scanner, without calibration: the inverse of `boxes_to_flat_camera`."""
    return boxes_from_camera(boxes_camera, FLAT_CAMERA)


def boxes_to_flat_camera(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes to a camera in the scanner, x = -y, y = -(z - dz/2), z = x, by which KITTI's rules score them."""
    return boxes_to_camera(boxes, FLAT_CAMERA)


def boxes_from_labelcloud_camera(boxes_camera: np.ndarray, camera_of_velodyne: np.ndarray) -> np.ndarray:
    """Convert boxes of labelCloud's form `kitti`, whose ry is -(yaw - pi/2): half a turn from KITTI's."""
    turned = np.array(boxes_camera, dtype=np.float64).reshape(-1, 7)
    turned[:, 6] += np.pi
    return boxes_from_camera(turned, camera_of_velodyne)


def boxes_to_labelcloud_camera(boxes: np.ndarray, camera_of_velodyne: np.ndarray) -> np.ndarray:
    """Convert boxes to labelCloud's form `kitti`: the inverse of `boxes_from_labelcloud_camera`."""
    camera = boxes_to_camera(boxes, camera_of_velodyne)
    camera[:, 6] = wrap_yaw(camera[:, 6] - np.pi)
    return camera


_CORNERS = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) / 2
"""Corners of labelCloud's bottom face in lengths and widths, in its order; those of the top face follow."""


def vertices_of_box(box: np.ndarray) -> np.ndarray:
    """Return the corners (8, 3) of a box (7,) in labelCloud's order: back right, back left, front left, front right."""
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    along, across = (_CORNERS * box[3:5]).T
    plane = np.stack([box[0] + cosine * along - sine * across, box[1] + sine * along + cosine * across], axis=1)
    heights = np.repeat([box[2] - box[5] / 2, box[2] + box[5] / 2], 4)
    return np.column_stack([np.tile(plane, (2, 1)), heights])


def box_of_vertices(vertices: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the upright box (7,) of corners (8, 3) in labelCloud's order, and the largest distance of a corner in m.

    Length, width and height are those of the edges from the first corner, the heading points from it to the fourth.
    """
    first, left, front, top = vertices[0], vertices[1], vertices[3], vertices[4]
    ahead = front - first
    sizes = [np.linalg.norm(end - first) for end in (front, left, top)]
    box = np.array([*vertices.mean(axis=0), *sizes, np.arctan2(ahead[1], ahead[0])])
    box[6] = wrap_yaw(box[6])
    return box, float(np.linalg.norm(vertices_of_box(box) - vertices, axis=1).max())
