"""Which answer stands for which point of a file."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from sightline.predict.cloud_samples import PointOrigin
from sightline.predict.segment import nearest_predicted_row


def test_points_that_were_answered_for_keep_their_own_answer_and_others_take_the_nearest() -> None:
    """Worked by hand: five points on a line, of which the sample holds 4, 0, 2, and the model saw its rows 2 and 0."""
    points = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3.5, 0, 0], [4, 0, 0]])
    rows = np.array([4, 0, 2])
    answered = nearest_predicted_row(PointOrigin(points, points[rows], rows), np.array([2, 0]))
    assert answered.tolist() == [0, 0, 0, 1, 1], "answer 0 is of the point at 2, answer 1 of the one at 4"


def test_of_points_at_one_place_each_has_its_own_answer() -> None:
    points = np.zeros((4, 3))
    rows = np.arange(4)
    assert nearest_predicted_row(PointOrigin(points, points, rows), np.array([3, 1])).tolist() == [0, 1, 0, 0]


def test_a_point_that_was_seen_several_times_has_the_first_answer() -> None:
    points = np.random.default_rng(0).standard_normal((3, 3))
    assert nearest_predicted_row(PointOrigin(points, points, np.arange(3)), np.array([1, 0, 1, 2, 0])).tolist() == [
        1,
        0,
        3,
    ]


@pytest.mark.parametrize("offset", [0.0, 5e6])
def test_the_nearest_is_that_of_scipy_however_far_from_the_origin(offset: float) -> None:
    draw = np.random.default_rng(1)
    points = draw.standard_normal((2000, 3)) + offset
    rows = draw.permutation(2000)[:300]
    numbers = draw.permutation(300)[:100]
    answered = nearest_predicted_row(PointOrigin(points, points[rows], rows), numbers)
    distances = np.linalg.norm(points - points[rows[numbers]][answered], axis=1)
    assert np.array_equal(distances, cKDTree(points[rows[numbers]]).query(points)[0])
    assert answered[rows[numbers]].tolist() == list(range(100))


def test_corners_of_a_mesh_take_the_nearest_point_that_was_drawn() -> None:
    draw = np.random.default_rng(2)
    corners, drawn = draw.standard_normal((50, 3)), draw.standard_normal((400, 3))
    answered = nearest_predicted_row(PointOrigin(corners, drawn, None), np.arange(400)[::-1])
    assert answered.tolist() == (399 - cKDTree(drawn).query(corners)[1]).tolist()
