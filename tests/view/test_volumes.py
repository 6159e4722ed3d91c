"""Projections of volumes: against sums written out by hand, on sides of three different lengths."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.draw.pictures import PALETTE
from sightline.view.panels import depth_panel, volume_panels
from sightline.view.skeletons import TRUE, JointFigure
from sightline.view.volumes import PLANES, Plane, Volume
from tests.cases import run_each

# Voxels (x, y, z) of a volume of 2 x 3 x 4: two in one column along z, one apart.
FILLED = [(0, 2, 0), (0, 2, 3), (1, 0, 1)]

# Rows from above, written by hand. y up: the row of y = 2 comes first. The far z comes first in the view from above.
BY_HAND: dict[Plane, list[list[int]]] = {
    "xy": [[1, 0], [0, 0], [0, 1]],
    "xz": [[1, 0], [0, 0], [0, 1], [1, 0]],
    "yz": [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]],
}


def volume(*, is_y_up: bool = True) -> Volume:
    values = np.zeros((2, 3, 4), dtype=np.float32)
    for place in FILLED:
        values[place] = 1
    return Volume.from_voxels(values, is_y_up=is_y_up)


@pytest.mark.parametrize("plane", PLANES)
def test_projections_are_the_sums_that_a_hand_writes_down(plane: Plane) -> None:
    values, _ = volume().projection(plane)
    assert values.tolist() == BY_HAND[plane]


def test_where_y_points_down_its_rows_count_from_above() -> None:
    down = volume(is_y_up=False)
    assert down.projection("xy")[0].tolist() == BY_HAND["xy"][::-1]
    assert down.projection("yz")[0].tolist() == BY_HAND["yz"][::-1]
    assert down.projection("xz")[0].tolist() == BY_HAND["xz"]  # seen from above either way


@run_each("is_y_up", [True, False])
@run_each("plane", PLANES)
def test_a_point_appears_in_the_cell_that_holds_it(plane: Plane, is_y_up: bool) -> None:
    shown = volume(is_y_up=is_y_up)
    for place in FILLED:
        column, row = np.floor(shown.to_pixels(np.array([place]) + 0.5, plane)[0]).astype(int)
        assert shown.projection(plane)[0][row, column] == 1
    corner = shown.to_pixels(np.array([[0.25, 0.25, 0.25]]), plane)[0]
    rows = shown.projection(plane)[0].shape[0]
    assert corner.tolist() == [0.25, rows - 0.25 if is_y_up or plane == "xz" else 0.25]


def test_each_cell_has_the_colour_of_the_joint_that_is_largest_there() -> None:
    maps = np.zeros((3, 2, 3, 4), dtype=np.float32)
    maps[1, 0, 2, 0], maps[2, 0, 2, 3], maps[0, 1, 0, 1] = 0.5, 0.9, 1.0
    shown = Volume.from_heatmaps(maps, cell=2.0, is_y_up=True)
    values, owners = shown.projection("xy")
    assert values[0, 0] == np.float32(0.9)
    assert (owners[0, 0], owners[2, 1]) == (2, 0)
    assert np.array_equal(shown.colors(values, owners)[2, 1], PALETTE[0])
    middles, whose = shown.cell_centres_above(0.5)
    assert middles.tolist() == [[1.0, 5.0, 7.0], [3.0, 1.0, 3.0]]
    assert whose.tolist() == [2, 0]


def test_a_map_above_one_is_divided_by_its_peak_and_none_is_negative() -> None:
    maps = np.array([4.0, 2.0, -1.0, 0.0], dtype=np.float32).reshape(1, 1, 1, 4)
    assert Volume.from_heatmaps(maps, cell=1.0, is_y_up=True).values.ravel().tolist() == [1, 0.5, 0, 0]


@pytest.mark.parametrize("plane", PLANES)
def test_a_joint_is_drawn_at_the_pixel_of_its_voxel(plane: Plane) -> None:
    """352 // 4 = 88 pixels a cell from the side and from above, 352 // 3 = 117 from the front."""
    place = (1, 0, 1)
    joint = JointFigure("true", np.array([place]) + 0.5, np.array([True]), (), TRUE)
    panel = volume_panels(volume(), [joint])[list(PLANES).index(plane)]
    times = 352 // max(volume().projection(plane)[0].shape)
    row, column = np.argwhere(np.array(BY_HAND[plane]) == 1)[-1 if plane != "xz" else 1]
    middle = panel.pixels[int((row + 0.5) * times), int((column + 0.5) * times)]
    assert np.array_equal(middle, PALETTE[0])  # the joint's own colour
    assert panel.pixels.shape[:2] == tuple(times * side for side in np.array(BY_HAND[plane]).shape)


@pytest.mark.parametrize("far", [(100.0, 0.0, 10.0), (0.0, -100.0, 10.0), (1.0, 1.0, -10.0), (0.0, 1.0, 0.0)])
def test_joints_outside_of_the_frame_leave_no_line_in_it(far: tuple[float, float, float]) -> None:
    """Right of it, above it, behind the camera (where a projection is mirrored into the frame), and in its plane."""
    depth, camera = np.full((8, 10), 10.0), np.array([10.0, 10.0, 4.0, 4.0])
    inside = np.array([(-2.0, 0.0, 10.0), (1.0, 2.0, 10.0)])

    def drawn(joints: np.ndarray, bones: tuple[tuple[int, int], ...]) -> np.ndarray:
        figure = JointFigure("true", joints, np.ones(len(joints), dtype=bool), bones, TRUE)
        return depth_panel("depth", depth, camera, [figure]).pixels

    expected = drawn(inside, ((0, 1),))
    assert (expected == TRUE).all(axis=2).any()
    assert np.array_equal(drawn(np.array([*inside, far]), ((0, 1), (1, 2))), expected)
