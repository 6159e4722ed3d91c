"""What pictures of scans and rooms leave out: far returns, and the walls and the ceiling in front of the room."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.draw.drawn_rows import are_drawn, find_shell, guess_surroundings, near_objects
from sightline.draw.pictures import Frame
from tests.draw.rooms import SIDES, make_room

VIEWER = np.array([np.cos(np.radians(35)), np.sin(np.radians(35))])
"""Direction of the viewer in the plan: 35 degrees from x towards y."""


@pytest.mark.parametrize("angle_deg", [0, 20, 90, 200])
@pytest.mark.parametrize("has_ceiling", [True, False])
def test_walls_towards_the_viewer_and_the_ceiling_are_left_out(angle_deg: float, has_ceiling: bool) -> None:
    points, part = make_room(angle_deg=angle_deg, has_ceiling=has_ceiling)
    is_drawn = are_drawn(points, "room", "z")
    shares = {name: is_drawn[part == name].mean() for name in np.unique(part)}
    assert shares["floor"] == shares["table"] == 1
    assert shares.get("ceiling", 0) < 0.01
    turn = np.radians(angle_deg)
    for name, (x, y) in SIDES.items():
        facing = (x * np.cos(turn) - y * np.sin(turn)) * VIEWER[0] + (x * np.sin(turn) + y * np.cos(turn)) * VIEWER[1]
        assert shares[name] < 0.08 if facing > 0.2 else shares[name] > 0.7, name  # a strip stays with the floor


@pytest.mark.parametrize(("frame", "order"), [("y", (1, 2, 0)), ("x", (2, 0, 1))])
def test_other_axes_may_be_up(frame: Frame, order: tuple[int, int, int]) -> None:
    """Cyclic exchanges of the axes keep the viewer's side."""
    points, _ = make_room()
    assert np.array_equal(are_drawn(points[:, order], "room", frame), are_drawn(points, "room", "z"))


def test_what_has_no_walls_is_drawn_whole() -> None:
    generator = np.random.default_rng(0)
    ground = np.column_stack([generator.uniform(-5, 5, (3000, 2)), generator.normal(0, 0.05, 3000)])
    tree = generator.normal((0, 0, 2), 0.3, (1000, 3))
    assert are_drawn(np.concatenate([ground, tree]), "room", "z").all()
    assert are_drawn(ground, "room", "z").all()
    assert are_drawn(np.zeros((0, 3)), "room", "z").shape == (0,)
    assert are_drawn(np.zeros((500, 3)), "room", "z").all()


def test_the_farthest_returns_of_a_scan_are_left_out_but_objects_are_not() -> None:
    generator = np.random.default_rng(0)
    near, far = generator.uniform(-20, 20, (1900, 3)), generator.uniform(70, 80, (20, 3))
    points = np.concatenate([near, far])
    is_drawn = near_objects(points, [])
    assert is_drawn[:1900].mean() > 0.95
    assert not is_drawn[1900:].any()
    assert near_objects(points, [np.array([[81.0, 81, 81]])]).all()


@pytest.mark.parametrize("yaw_deg", [35, 125, 215, 305])
def test_from_every_side_the_walls_there_are_left_out_and_from_below_the_floor(yaw_deg: float) -> None:
    points, part = make_room()
    shell = find_shell(points)
    assert shell is not None
    plan = np.array([np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))])
    for height in (0.5, -0.5):
        is_hidden = shell.hides(points, np.array([*plan, height]))
        shares = {name: is_hidden[part == name].mean() for name in np.unique(part)}
        assert shares["table"] == 0
        assert (shares["ceiling"] > 0.99, shares["floor"] == 1) == (height > 0, height < 0)
        for name, side in SIDES.items():
            assert shares[name] > 0.9 if plan @ side > 0.2 else shares[name] < 0.3, name


def test_points_that_are_not_finite_are_in_no_picture() -> None:
    points, _ = make_room()
    gaps = np.insert(points, 100, np.nan, axis=0)
    for surroundings in ("none", "scan", "room"):
        is_drawn = are_drawn(gaps, surroundings, "z")
        assert not is_drawn[100]
        assert np.array_equal(np.delete(is_drawn, 100), are_drawn(points, surroundings, "z"))


def test_a_file_is_of_a_room_if_it_is_closed_and_as_high_as_one() -> None:
    """Not without a ceiling or a wall, nor a box that is scanned from outside, nor one in centimetres."""
    points, part = make_room()
    assert guess_surroundings(points, "z") == "room"
    assert guess_surroundings(np.insert(points, 5, np.nan, axis=0), "z") == "room"
    assert guess_surroundings(points[:, [1, 2, 0]], "y") == "room"
    for left_out in (["ceiling"], ["floor"], ["front x", "back x"], ["table"]):
        assert guess_surroundings(points[~np.isin(part, left_out)], "z") == "none", left_out
    for size in (0.01, 0.5, 100):
        assert guess_surroundings(size * points, "z") == "none"
    assert guess_surroundings(points[:0], "z") == "none"
