"""What pictures of scans and rooms leave out: far returns, and the walls and the ceiling in front of the room."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.draw.pictures import Frame
from sightline.view.drawn_rows import behind_near_walls, near_objects

VIEWER = np.array([np.cos(np.radians(35)), np.sin(np.radians(35))])
"""Direction of the viewer in the plan: 35 degrees from x towards y."""
SIDES = {"back x": (-1, 0), "back y": (0, -1), "front x": (1, 0), "front y": (0, 1)}


def room(*, angle_deg: float = 0.0, has_ceiling: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Points of a room of 5 x 4 x 2.5 m turned about its middle, and the name of the surface that each is on."""
    generator = np.random.default_rng(0)
    plan = generator.uniform((-2.5, -2), (2.5, 2), (2000, 2))
    parts = {"floor": np.column_stack([plan, np.zeros(2000)])}
    if has_ceiling:
        parts["ceiling"] = np.column_stack([plan, np.full(2000, 2.5)])
    for name, (x, y) in SIDES.items():
        along, height = generator.uniform(-1, 1, 1000), generator.uniform(0.2, 2.5, 1000)
        parts[name] = np.column_stack([2.5 * (x + along * (x == 0)), 2 * (y + along * (y == 0)), height])
    parts["table"] = generator.uniform((-0.5, -0.5, 0.7), (0.5, 0.5, 0.8), (500, 3))
    points = np.concatenate([*parts.values()])
    turn = np.radians(angle_deg)
    points[:, :2] = points[:, :2] @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points, np.repeat([*parts], [len(part) for part in parts.values()])


@pytest.mark.parametrize("angle_deg", [0, 20, 90, 200])
@pytest.mark.parametrize("has_ceiling", [True, False])
def test_walls_towards_the_viewer_and_the_ceiling_are_left_out(angle_deg: float, has_ceiling: bool) -> None:
    points, part = room(angle_deg=angle_deg, has_ceiling=has_ceiling)
    is_drawn = behind_near_walls(points, "z")
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
    points, _ = room()
    assert np.array_equal(behind_near_walls(points[:, order], frame), behind_near_walls(points, "z"))


def test_what_has_no_walls_is_drawn_whole() -> None:
    generator = np.random.default_rng(0)
    ground = np.column_stack([generator.uniform(-5, 5, (3000, 2)), generator.normal(0, 0.05, 3000)])
    tree = generator.normal((0, 0, 2), 0.3, (1000, 3))
    assert behind_near_walls(np.concatenate([ground, tree]), "z").all()
    assert behind_near_walls(ground, "z").all()
    assert behind_near_walls(np.zeros((0, 3)), "z").shape == (0,)
    assert behind_near_walls(np.zeros((500, 3)), "z").all()


def test_the_farthest_returns_of_a_scan_are_left_out_but_objects_are_not() -> None:
    generator = np.random.default_rng(0)
    near, far = generator.uniform(-20, 20, (1900, 3)), generator.uniform(70, 80, (20, 3))
    points = np.concatenate([near, far])
    is_drawn = near_objects(points, [])
    assert is_drawn[:1900].mean() > 0.95
    assert not is_drawn[1900:].any()
    assert near_objects(points, [np.array([[81.0, 81, 81]])]).all()
