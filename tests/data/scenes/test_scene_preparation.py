"""Scenes measured from their lowest corner: the differences of float64, rounded once."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.data.scenes import labelled_scenes
from sightline.data.scenes.labelled_scenes import from_lowest_corner


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_points_are_measured_from_their_lowest_corner(
    monkeypatch: pytest.MonkeyPatch, is_compiled: bool, dtype: str
) -> None:
    if not is_compiled:
        monkeypatch.setattr(labelled_scenes, "can_use_numba", lambda *tensors: False)
    far = np.array([5e5, -4e6, 120.0])
    points = (far + np.random.default_rng(0).uniform(0, 30, (500, 3))).astype(dtype)
    moved, corner = from_lowest_corner(points, scale=0.25)
    exact = points.astype(np.float64)
    assert np.array_equal(corner, exact.min(axis=0))
    assert moved.dtype == np.float32
    assert np.array_equal(moved, ((exact - exact.min(axis=0)) * 0.25).astype(np.float32))
    assert moved.min(axis=0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_is_too_large_for_float32_becomes_infinite(monkeypatch: pytest.MonkeyPatch, is_compiled: bool) -> None:
    if not is_compiled:
        monkeypatch.setattr(labelled_scenes, "can_use_numba", lambda *tensors: False)
    moved, _ = from_lowest_corner(np.array([[0.0, 0, 0], [1e300, 1, 1]]))
    assert moved[1].tolist() == [np.inf, 1, 1]
