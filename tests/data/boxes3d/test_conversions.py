"""Conversions of 3D boxes: numbers of public code, values by hand, and round trips."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.boxes3d.sets.kitti_boxes3d import crop_to_image
from sightline.store.boxes3d import conversions
from sightline.store.boxes3d.box_table import wrap_yaw
from sightline.store.boxes3d.conversions import (
    FLAT_CAMERA,
    BoxReading,
    box_of_vertices,
    boxes_from_camera,
    boxes_from_flat_camera,
    boxes_from_labelcloud_camera,
    boxes_from_older,
    boxes_to_camera,
    boxes_to_flat_camera,
    boxes_to_labelcloud_camera,
    boxes_to_older,
    vertices_of_box,
)
from sightline.store.boxes3d.kitti_objects import Calibration
from sightline.store.boxes3d.survey import FramePoints
from tests.golden_parity import Golden, load_golden

READINGS = [
    BoxReading(*values)
    for values in itertools.product(
        *(
            typing.get_args(alias)
            for alias in (
                conversions.BoxCentre,
                conversions.BoxSize,
                conversions.YawUnit,
                conversions.YawSense,
                conversions.YawZero,
            )
        )
    )
]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return load_golden(shared, "kitti_boxes", area="boxes3d")


def random_boxes(count: int = 300, seed: int = 5) -> np.ndarray:
    random = np.random.default_rng(seed)
    places, sizes = random.uniform(-80, 80, (count, 3)), random.uniform(0.2, 12, (count, 3))
    return np.column_stack([places, sizes, random.uniform(-np.pi, np.pi, count)])


def compare(boxes: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, angles by the shorter way."""
    difference = boxes - expected
    difference[:, 6] = wrap_yaw(difference[:, 6])
    return float(np.abs(difference).max())


@pytest.mark.parametrize("case", ["case00", "case01"])
def test_camera_boxes_are_those_of_public_code(golden: Golden, case: str) -> None:
    a = golden.arrays
    calibration = Calibration.from_matrices(
        velo_to_cam=a[f"{case}/in_Tr_velo_to_cam"], rectification=a[f"{case}/in_R0"], projection=a[f"{case}/in_P2"]
    )
    camera = a[f"{case}/in_boxes_camera"]
    boxes = boxes_from_camera(camera, calibration.camera_of_velodyne)
    assert compare(boxes, a[f"{case}/boxes_lidar"]) < 1e-9
    assert compare(boxes_to_camera(boxes, calibration.camera_of_velodyne), a[f"{case}/camera_back"]) < 1e-9
    flat = boxes_to_flat_camera(boxes)
    assert np.abs(flat[:, :3] - a[f"{case}/nocalib_location"]).max() < 1e-9
    assert np.abs(flat[:, 3:6] - a[f"{case}/nocalib_dimensions"]).max() < 1e-12
    assert np.abs(wrap_yaw(flat[:, 6] - a[f"{case}/nocalib_rotation_y"])).max() < 1e-9


@pytest.mark.parametrize("case", ["case00", "case01"])
def test_corners_and_the_field_of_view_are_those_of_public_code(golden: Golden, case: str) -> None:
    a = golden.arrays
    corners = np.stack([vertices_of_box(box) for box in a[f"{case}/boxes_lidar"]])
    theirs = a[f"{case}/corners_lidar"][:, [2, 3, 0, 1, 6, 7, 4, 5]]  # theirs begin at the front left, clockwise
    assert np.abs(corners - theirs).max() < 1e-9
    calibration = Calibration.from_matrices(
        velo_to_cam=a[f"{case}/in_Tr_velo_to_cam"], rectification=a[f"{case}/in_R0"], projection=a[f"{case}/in_P2"]
    )
    points, (height, width) = a[f"{case}/in_points"], golden.info["cases"][int(case[-2:])]["image_h_w"]
    assert np.abs(calibration.to_camera(points) - a[f"{case}/points_rect"]).max() < 1e-9
    kept = crop_to_image(FramePoints(points), calibration, (width, height)).points
    assert kept.tolist() == points[a[f"{case}/fov_flag"].astype(bool)].tolist()


def test_a_box_by_hand() -> None:
    """A car 4 m long heads to the left of a scanner, 10 m ahead; its middle is 0.5 m above the origin."""
    box = np.array([[10.0, 0.0, 0.5, 4.0, 2.0, 1.6, np.pi / 2]])
    assert compare(boxes_to_flat_camera(box), np.array([[0.0, 0.3, 10.0, 4.0, 1.6, 2.0, -np.pi]])) < 1e-12
    assert compare(boxes_to_older(box, centre="bottom"), np.array([[10, 0, -0.3, 2.0, 4.0, 1.6, -np.pi]])) < 1e-12
    assert compare(boxes_to_labelcloud_camera(box, FLAT_CAMERA), np.array([[0, 0.3, 10, 4, 1.6, 2, 0.0]])) < 1e-12
    stated = BoxReading(centre="bottom", size="hwl", unit="deg", sense="cw", zero="y").from_boxes(box)
    assert compare(stated, np.array([[10.0, 0.0, -0.3, 1.6, 2.0, 4.0, 0.0]])) < 1e-12
    # its back right corner is at the front right of the scanner: 2 m to the right, 1 m further ahead
    assert np.abs(vertices_of_box(box[0])[0] - [11.0, -2.0, -0.3]).max() < 1e-12
    assert np.abs(vertices_of_box(box[0])[6] - [9.0, 2.0, 1.3]).max() < 1e-12


ROUND_TRIPS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "flat camera": (boxes_to_flat_camera, boxes_from_flat_camera),
    "older": (lambda b: boxes_to_older(b, centre="centre"), lambda b: boxes_from_older(b, centre="centre")),
    "older bottom": (lambda b: boxes_to_older(b, centre="bottom"), lambda b: boxes_from_older(b, centre="bottom")),
    "labelCloud camera": (
        lambda b: boxes_to_labelcloud_camera(b, FLAT_CAMERA),
        lambda b: boxes_from_labelcloud_camera(b, FLAT_CAMERA),
    ),
    "vertices": (
        lambda b: np.array([vertices_of_box(box) for box in b]),
        lambda v: np.array([box_of_vertices(each)[0] for each in v]),
    ),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_conversions_have_inverses(name: str) -> None:
    to, back = ROUND_TRIPS[name]
    boxes = random_boxes()
    assert compare(back(to(boxes)), boxes) < 1e-9


def test_every_reading_has_an_inverse_and_is_another() -> None:
    boxes = random_boxes(40)
    seen = set()
    for reading in READINGS:
        rows = reading.from_boxes(boxes)
        assert compare(reading.to_boxes(rows), boxes) < 1e-9
        seen.add(rows.round(6).tobytes())
    assert len(seen) == len(READINGS) == 128
