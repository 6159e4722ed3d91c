"""A room of points whose surfaces are known by name."""

from __future__ import annotations

import numpy as np

__all__ = ["SIDES", "make_room"]

SIDES = {"back x": (-1, 0), "back y": (0, -1), "front x": (1, 0), "front y": (0, 1)}


def make_room(*, angle_deg: float = 0.0, has_ceiling: bool = True) -> tuple[np.ndarray, np.ndarray]:
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
