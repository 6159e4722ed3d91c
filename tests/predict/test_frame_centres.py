"""Where figures are looked for: near the last answer while there is one, and in words what was done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.data.depth.references import CentreOfMass
from sightline.errors import DataError
from sightline.predict.frame_centres import (
    CentreOfMassFinder,
    FileCentreFinder,
    RefinedCentreFinder,
    TrackingCentreFinder,
)

CAMERA = np.array([100.0, 100.0, 40.0, 30.0])
FILE = Path("a.npy")
MOVED = np.array([1.0, 2.0, 3.0])
SURE, DEAD = np.ones(4), np.array([0.05, 0.05, 0.9, 0.9])


def blob(*places: tuple[int, int, float]) -> np.ndarray:
    """Squares of nine pixels about columns and rows, at depths."""
    depth = np.zeros((60, 80), dtype=np.float32)
    for u, v, z in places:
        depth[v - 1 : v + 2, u - 1 : u + 2] = z
    return depth


def point(u: float, v: float, z: float) -> np.ndarray:
    return np.array([(u - 40) * z / 100, (v - 30) * z / 100, z])


def mass(**arguments: float) -> CentreOfMassFinder:
    return CentreOfMassFinder(CentreOfMass(**arguments), CAMERA, cube_mm=100.0)  # type: ignore[arg-type]


def test_the_centre_of_mass_starts_from_the_whole_image() -> None:
    found = mass()(FILE, blob((40, 30, 400.0)))
    np.testing.assert_allclose(found.point_mm, point(40, 30, 400), atol=1e-9)
    assert found.source == "centre of mass"


def test_nothing_in_reach_is_told_in_one_line() -> None:
    with pytest.raises(DataError, match=r"a\.npy: has no measured pixel between 450 and 500 mm, .* reference.far_mm="):
        mass(near_mm=450, far_mm=500)(FILE, blob((40, 30, 400.0)))
    with pytest.raises(DataError, match="has no measured pixel, so that there is no figure in it"):
        mass()(FILE, np.zeros((60, 80), dtype=np.float32))


def test_a_figure_is_followed_past_what_lies_elsewhere() -> None:
    """A second thing in view draws the mean of all between the two; from the last answer it is not in reach."""
    centres = TrackingCentreFinder(mass())
    first = centres(FILE, blob((20, 30, 400.0)))
    assert first.source == "centre of mass (first frame)"
    centres.update(np.stack([first.point_mm] * 4), SURE)
    both = blob((22, 31, 402.0), (70, 30, 400.0))
    followed = centres(FILE, both)
    assert followed.source == "previous frame"
    np.testing.assert_allclose(followed.point_mm, point(22, 31, 402), atol=1e-9)
    alone = mass()(FILE, both).point_mm
    assert np.abs(alone - point(22, 31, 402)).max() > 50


def test_a_frame_between_that_cannot_be_read_loses_nothing() -> None:
    centres = TrackingCentreFinder(mass())
    centres.update(np.stack([point(20, 30, 400.0)] * 4), SURE)
    with pytest.raises(DataError, match="has no measured pixel"):
        centres(FILE, blob())
    assert centres(FILE, blob((21, 30, 400.0))).source == "previous frame"


@pytest.mark.parametrize(
    ("peaks", "where", "told"),
    [
        (DEAD, (20, 30, 400.0), "previous prediction lost: 2 of 4 peaks below 0.1"),
        (SURE, (70, 30, 400.0), "previous prediction lost: no measured pixel near it"),
    ],
)
def test_a_lost_answer_falls_back_and_says_so(peaks: np.ndarray, where: tuple[int, int, float], told: str) -> None:
    centres = TrackingCentreFinder(mass())
    centres.update(np.stack([point(20, 30, 400.0)] * 4), peaks)
    found = centres(FILE, blob(where))
    assert found.source == f"centre of mass ({told})"
    np.testing.assert_allclose(found.point_mm, point(*where), atol=1e-9)


def test_points_of_a_file_are_those_of_its_lines(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("1 2 400\ninvalid 0 0 0\n")
    files = [Path("b.npy"), Path("a.npy")]
    centres = FileCentreFinder(
        tmp_path / "c.txt", files, mass(), camera=CAMERA, cube_mm=100.0, flip_y=lambda points: points * [1, -1, 1]
    )
    depth = blob((40, 30, 400.0))
    assert centres(files[0], depth).point_mm.tolist() == [1, -2, 400]
    assert centres(files[0], depth).source == "c.txt:1"
    found = centres(files[1], depth)
    assert found.source == "centre of mass (invalid in c.txt)"
    np.testing.assert_allclose(found.point_mm, point(40, 30, 400), atol=1e-9)


def test_a_refiner_is_given_what_the_others_find() -> None:
    start = TrackingCentreFinder(mass())
    centres = RefinedCentreFinder(start, lambda path, depth, found: found + MOVED)
    assert centres.is_sequential
    first = centres(FILE, blob((40, 30, 400.0)))
    np.testing.assert_allclose(first.point_mm, point(40, 30, 400) + MOVED, atol=1e-9)
    assert first.source == "centre of mass (first frame), refined"
    centres.update(np.stack([first.point_mm] * 4), SURE)
    assert centres(FILE, blob((40, 30, 400.0))).source == "previous frame, refined"
