"""The count test: counts of public code, the seven wrong readings of real frames, and what cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.ops.boxes.points_in_boxes import points_in_boxes
from sightline.store.boxes3d.conversions import BoxReading
from sightline.store.boxes3d.count_test import Choice, CountedFrame, Hypothesis, choose_reading, count_inside
from sightline.store.boxes3d.kitti_objects import DONT_CARE, read_calibration, read_objects
from sightline.store.boxes3d.label_rows import Form
from sightline.store.boxes3d.txt_boxes import exceeds_turn, guess_unit
from tests.data.boxes3d.box_writers import make_boxes, make_cloud
from tests.golden_parity import load_golden

OPEN = Form(is_stated=frozenset())
REAL = {"000000": [377], "000001": [71, 9, 18], "000002": [1349, 67], "000003": [674]}
"""Points in the boxes of real frames by the specification, DontCare left out."""


@pytest.fixture(scope="module")
def frames(shared: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points (N, 3) and boxes (M, 7) of the real frames, in the scanner's frame."""
    from sightline.store.boxes3d.conversions import boxes_from_camera

    folder, read = shared / "data/kitti_object_mini", []
    for name in REAL:
        points = np.fromfile(folder / f"velodyne/{name}.bin", "<f4").reshape(-1, 4)[:, :3].astype(np.float64)
        objects = read_objects(folder / f"label_2/{name}.txt")
        camera = objects.boxes_camera[objects.types != DONT_CARE]
        transform = read_calibration(folder / f"calib/{name}.txt").camera_of_velodyne
        read.append((points, boxes_from_camera(camera, transform)))
    return read


def test_golden_boxes_have_their_points(shared: Path) -> None:
    golden = load_golden(shared, "own_formats", area="boxes3d").arrays
    points, boxes = golden["count_test/in_points"], golden["count_test/in_boxes"]
    shifted, turned, quarter = boxes.copy(), boxes.copy(), boxes.copy()
    shifted[:, 2] -= boxes[:, 5] / 2
    turned[:, 6] *= -1
    quarter[:, 6] += np.pi / 2
    raised = boxes.copy()
    raised[:, 2] += boxes[:, 5] / 2
    of_hypothesis = [boxes, raised, shifted, turned, quarter, boxes[:, [0, 1, 2, 4, 3, 5, 6]]]
    of_hypothesis.append(boxes[:, [0, 1, 2, 5, 4, 3, 6]])
    for expected, changed in zip(golden["count_test/counts"], of_hypothesis, strict=True):
        assert count_inside(points, changed).tolist() == expected.tolist()


def test_real_boxes_have_the_specifications_points(frames: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for (points, boxes), expected in zip(frames, REAL.values(), strict=True):
        assert count_inside(points, boxes).tolist() == expected
        for index, box in enumerate(boxes):  # the operator's rule, in the same frame
            first = points_in_boxes(torch.from_numpy(points), torch.from_numpy(box)[None], frame="lidar")
            assert int((first == 0).sum()) == expected[index]


def choose(frames: list[tuple[np.ndarray, np.ndarray]], written: BoxReading, **stated: str) -> Choice:
    """The choice for true boxes that are written by a reading."""
    counted = [CountedFrame(points, {"txt": written.from_boxes(boxes)}) for points, boxes in frames]
    angles = np.concatenate([frame.rows["txt"][:, 6] for frame in counted]).tolist()
    form = Form(BoxReading(unit=guess_unit(angles)), frozenset())
    return choose_reading(counted, {"txt": form}, stated, excludes_rad=exceeds_turn(angles))


WRONG = {
    "bottom": (BoxReading(centre="bottom"), 1642),
    "yaw is ry": (BoxReading(sense="cw", zero="-y"), 1135),
    "yaw is -ry": (BoxReading(zero="y"), 1203),
    "yaw is ry + pi/2": (BoxReading(sense="cw", zero="x"), 2346),
    "l and w exchanged": (BoxReading(size="wlh"), 1203),
    "h, w, l": (BoxReading(size="hwl"), 897),
}
"""How the boxes are written, and the points inside by the specification where they are read as the product's."""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_readings_of_real_frames_are_named(frames: list[tuple[np.ndarray, np.ndarray]], name: str) -> None:
    written, by_default = WRONG[name]
    choice = choose(frames, written)
    assert choice.count_of(Hypothesis("txt", BoxReading())) == by_default
    assert (choice.taken.reading, choice.count, choice.is_told) == (written, 2565, True)
    assert "by the count test" in choice.describe()


def test_degrees_and_radians_are_told_from_each_other(frames: list[tuple[np.ndarray, np.ndarray]]) -> None:
    choice = choose(frames, BoxReading(unit="deg"))
    assert (choice.taken.reading, choice.count) == (BoxReading(unit="deg"), 2565)
    total = 0
    for points, boxes in frames:
        rows = boxes.copy()  # degrees of -ry - pi/2, which is up to a quarter of a turn, for radians
        rows[:, 6] = np.rad2deg(np.where(boxes[:, 6] > np.pi / 2, boxes[:, 6] - 2 * np.pi, boxes[:, 6]))
        total += int(count_inside(points, rows).sum())
    assert total == 1929
    stated = choose(frames, BoxReading(), unit="deg")  # never overruled, but contradicted with both counts
    assert stated.taken.reading.unit == "deg"
    assert stated.count == 2398
    assert stated.better is not None
    assert stated.better.reading == BoxReading()
    assert stated.count_of(stated.better) == 2565


def test_the_right_reading_stays_and_the_half_turn_cannot_be_told(frames: list[tuple[np.ndarray, np.ndarray]]) -> None:
    right, turned = choose(frames, BoxReading()), choose(frames, BoxReading(zero="-x"))
    for choice in (right, turned):
        assert (choice.taken.reading, choice.count, choice.better) == (BoxReading(), 2565, None)
        assert "front and back, half a turn, cannot be told by points" in choice.describe()
    stated = choose(frames, BoxReading(zero="-x"), zero="-x")
    assert stated.taken.reading.zero == "-x"
    assert stated.count == 2565


def test_too_few_points_tell_nothing() -> None:
    boxes = make_boxes(0)
    bare = [(np.zeros((0, 3)), boxes), (make_cloud(boxes[:1], 0, per_box=8)[:, :3].astype(np.float64), boxes)]
    choice = choose(bare, BoxReading(centre="bottom"))
    assert choice.taken.reading == BoxReading()
    assert not choice.is_told
    assert "cannot be told by so few points" in choice.describe()
    assert "there is no box to test it by" in choose_reading([], {"txt": OPEN}, {}).describe()
