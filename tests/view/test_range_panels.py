"""Range images on their panels: empty pixels black, classes in their colours, and only labelled pixels wrong."""

from __future__ import annotations

import numpy as np
import torch

from sightline.draw.pictures import PALETTE, UNLABELLED
from sightline.tasks.segment import WRONG
from sightline.view.cloud_stages import describe_image, image_panels, prediction_panels

EMPTY = np.array([28, 31, 36], dtype=np.uint8)
FACTS = {"ignore_index": 0}
SCAN = {
    "points": torch.zeros(10, 3),
    "range_image": torch.tensor([[1.0, -1.0, 30.0], [5.0, 5.0, -1.0]]),
    "label": torch.tensor([[1, 0, 2], [0, 2, 0]]),
}


def test_distances_and_labels() -> None:
    distances, labels = (panel.pixels for panel in image_panels(SCAN, FACTS))
    assert (distances[[0, 1], [1, 2]] == EMPTY).all()
    assert (distances[1, 0] == distances[1, 1]).all(), "equal distances have one colour"
    assert distances[0, 0].sum() < distances[0, 2].sum(), "what is near is darker"
    assert (labels[[0, 1], [1, 2]] == EMPTY).all()
    assert (labels[0, 0] == PALETTE[1]).all()
    assert (labels[1, 0] == UNLABELLED).all(), "a point without a label is grey"
    assert describe_image(SCAN) == "2 x 3 pixels, 66.7% filled, 40.0% of the points shown"


def test_only_labelled_pixels_are_wrong() -> None:
    seen = np.array([[1, 1, 1], [2, 2, 2]])
    classes, wrong = (panel.pixels for panel in prediction_panels(SCAN, seen, FACTS))
    assert (classes[0, 0] == PALETTE[1]).all()
    assert (wrong == WRONG).all(axis=-1).tolist() == [[False, False, True], [False, False, False]]
    assert (wrong[[0, 1], [1, 2]] == EMPTY).all()


def test_an_empty_scan_is_black() -> None:
    scan = {"points": torch.zeros(0, 3), "range_image": torch.full((2, 3), -1.0)}
    (panel,) = image_panels(scan, FACTS)
    assert (panel.pixels == EMPTY).all()
    assert describe_image(scan) == "2 x 3 pixels, 0.0% filled, 0.0% of the points shown"
