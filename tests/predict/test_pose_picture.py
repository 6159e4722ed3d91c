"""Pictures of joints in a depth image: joints at their pixels, the cube's frame, what lies in it."""

from __future__ import annotations

import numpy as np

from sightline.draw.pictures import PALETTE
from sightline.predict.pose import draw_pose

CAMERA = np.array([100.0, -100.0, 40.0, 30.0])


def drawn(depth: np.ndarray, joints: np.ndarray) -> np.ndarray:
    return draw_pose(
        depth,
        joints,
        ((0, 1), (1, 2), (0, 3)),
        reference_mm=np.array([0.0, 0.0, 400.0]),
        camera=CAMERA,
        cube_mm=160.0,
    )


def test_joints_are_drawn_on_their_pixels_in_the_colours_of_their_branches() -> None:
    joints = np.array([[40.0, 40.0], [30.0, 30.0], [25.0, 20.0], [52.0, 22.0]])
    picture = drawn(np.zeros((60, 80), dtype=np.float32), joints)
    assert picture.shape == (480, 640, 3)
    for joint, color in ((1, PALETTE[0]), (2, PALETTE[0]), (3, PALETTE[1])):
        u, v = ((joints[joint] + 0.5) * 8).astype(int)
        assert np.abs(picture[v, u].astype(int) - color).max() < 8, joint
    assert picture[324, 324].min() > 240  # the root is white
    between = (joints[1] + joints[2]) / 2
    u, v = ((between + 0.5) * 8).astype(int)
    assert np.abs(picture[v, u].astype(int) - PALETTE[0]).max() < 40


def test_the_cube_has_a_frame_and_what_lies_outside_is_dim() -> None:
    """Its half of 80 mm is 20 pixels at 400 mm: from 20 to 60 in columns, from 10 to 50 in rows."""
    depth = np.full((60, 80), 400.0, dtype=np.float32)
    depth[:, 60:], depth[25:35, 25:30], depth[0] = 900, 330, 0
    picture = drawn(depth, np.full((4, 2), -50.0)).astype(int)
    assert np.ptp(picture[160, 300]) == 0
    assert picture[30 * 8, 27 * 8].mean() > picture[160, 300].mean() > picture[160, 620].mean() > 40
    assert picture[2, 320].max() < 40  # not measured
    blue = picture[:, :, 2] - picture[:, :, 0] > 60
    rows, columns = np.nonzero(blue)
    assert (columns.min() // 4, columns.max() // 4) == (41, 121)  # 20.5 and 60.5 pixels
    assert (rows.min() // 4, rows.max() // 4) == (21, 101)


def test_joints_far_outside_do_no_harm() -> None:
    assert drawn(np.zeros((60, 80), dtype=np.float32), np.full((4, 2), 1e30)).shape == (480, 640, 3)
