"""Colours of labels, answers and numbers, and the figures of a caption, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.draw.pictures import PALETTE, UNLABELLED
from sightline.parts.tasks.segment import WRONG
from sightline.view.stages import ClassColoring, RgbColoring, Stage, ViewedSample, error_coloring, height_coloring

CLOUD = np.array([[0.0, 1, 2], [4, 5, 6], [np.nan, 0, 0], [-1, 8, 3]], dtype=np.float32)


def test_labels_have_the_colours_of_the_palette_and_the_names_of_the_set() -> None:
    found = ClassColoring.from_labels("truth", np.array([1, 0, 1, -1]), ("floor", "wall"))
    assert np.array_equal(found.colors(), [PALETTE[1], PALETTE[0], PALETTE[1], UNLABELLED])
    assert found.counts() == {"floor": 1, "wall": 2, "unlabelled": 1}
    assert np.array_equal(found.labels(), [1, 0, 1, -1])


def test_an_ignored_label_is_no_class() -> None:
    found = ClassColoring.from_labels("truth", np.array([255, 1]), ("floor", "wall"), ignore_index=255)
    assert found.counts() == {"wall": 1, "unlabelled": 1}


def test_labels_beyond_the_names_are_called_by_their_number() -> None:
    """Such as a raw data set's own numbers; a huge one makes no huge table."""
    found = ClassColoring.from_labels("truth", np.array([0, 2**40, 7, 7]), ("floor", "wall"))
    assert found.counts() == {"floor": 1, "7": 2, str(2**40): 1}
    assert np.array_equal(found.labels(), [0, 2**40, 7, 7])
    assert np.array_equal(found.colors()[2], PALETTE[7])


def test_errors_are_red_what_is_right_is_grey_and_what_is_no_class_does_not_count() -> None:
    found = error_coloring(np.array([0, 1, 2, 0]), np.array([0, 2, 2, -1]), 3)
    assert found.counts() == {"right": 2, "wrong": 1, "unlabelled": 1}
    assert np.array_equal(found.colors()[1], WRONG)
    red, green, blue = found.colors()[0].astype(int)
    assert max(red, green, blue) - min(red, green, blue) < 20
    assert np.array_equal(found.colors()[3], UNLABELLED)


def test_numbers_run_from_dark_to_light_and_heights_along_the_axis_that_is_up() -> None:
    colors = RgbColoring.from_values("intensity", np.array([3.0, 1.0, 2.0])).colors().astype(int).sum(axis=1)
    assert colors[1] < colors[2] < colors[0]
    light = height_coloring(CLOUD[[0, 1, 3]], "x").colors().astype(int).sum(axis=1)
    assert light[2] < light[0] < light[1]
    assert len(np.unique(RgbColoring.from_values("flat", np.ones(5)).colors(), axis=0)) == 1


def test_the_numbers_of_a_caption() -> None:
    truth = ClassColoring.from_labels("ground truth", np.array([0, 0, 1, 1]), ("floor", "wall"))
    cloud = Stage("raw", CLOUD, (truth,), unit="m", description="as it is")
    assert cloud.to_dict() == {
        "stage": "raw",
        "num_points": 4,
        "num_not_finite": 1,
        "extent": {"min": [-1.0, 1.0, 2.0], "max": [4.0, 8.0, 6.0]},
        "unit": "m",
        "description": "as it is",
        "classes": {"ground truth": {"floor": 2, "wall": 2}},
    }
    assert cloud.lines() == ["4 points, 1 of them not finite", "x -1 to 4, y 1 to 8, z 2 to 6 (m)", "as it is"]
    assert ViewedSample("a", (cloud,), facts={"index": 3}).to_dict()["index"] == 3


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.full((2, 3), np.nan)])
def test_a_cloud_without_finite_points_has_no_extent(points: np.ndarray) -> None:
    cloud = Stage("raw", points, (height_coloring(points, "z"),))
    assert cloud.extent() is None
    assert cloud.to_dict()["extent"] is None
    assert cloud.colorings[0].colors().shape == points.shape
