"""Range images on their panels: empty pixels black, classes in their colours, and only labelled pixels wrong."""

from __future__ import annotations

import numpy as np
import torch

from sightline.draw.pictures import PALETTE, UNLABELLED
from sightline.parts.tasks.segment import WRONG
from sightline.view.panels import ImagePanel
from sightline.view.range_images import describe_image, image_panels, prediction_panels

EMPTY = np.array([28, 31, 36], dtype=np.uint8)
FACTS = {"ignore_index": 0}
SCAN = {
    "points": torch.zeros(10, 3),
    "range_image": torch.tensor([[1.0, -1.0, 30.0], [5.0, 5.0, -1.0]]),
    "label": torch.tensor([[1, 0, 2], [0, 2, 0]]),
}


def scan_rows(panel: ImagePanel) -> np.ndarray:
    """The two rows of the scan, which are drawn 32 times each."""
    rows: np.ndarray = panel.pixels[::32]
    assert (panel.pixels == rows.repeat(32, axis=0)).all()
    return rows


def test_few_rows_are_drawn_high_enough_to_be_seen() -> None:
    for shape, height in (((16, 256), 64), ((16, 2048), 80), ((64, 512), 64), ((64, 2048), 64), ((100, 50), 100)):
        scan = {"range_image": torch.ones(shape)}
        (panel,) = image_panels(scan, FACTS)
        assert panel.pixels.shape == (height, shape[1], 3)


def test_distances_and_labels() -> None:
    distances, labels = map(scan_rows, image_panels(SCAN, FACTS))
    assert (distances[[0, 1], [1, 2]] == EMPTY).all()
    assert (distances[1, 0] == distances[1, 1]).all(), "equal distances have one colour"
    assert distances[0, 0].sum() < distances[0, 2].sum(), "what is near is darker"
    assert (labels[[0, 1], [1, 2]] == EMPTY).all()
    assert (labels[0, 0] == PALETTE[1]).all()
    assert (labels[1, 0] == UNLABELLED).all(), "a point without a label is grey"
    assert describe_image(SCAN) == "2 x 3 pixels, 66.7% filled, 40.0% of the points shown"


def test_only_labelled_pixels_are_wrong() -> None:
    seen = np.array([[1, 1, 1], [2, 2, 2]])
    classes, wrong = map(scan_rows, prediction_panels(SCAN, seen, FACTS))
    assert (classes[0, 0] == PALETTE[1]).all()
    assert (wrong == WRONG).all(axis=-1).tolist() == [[False, False, True], [False, False, False]]
    assert (wrong[[0, 1], [1, 2]] == EMPTY).all()


def test_an_empty_scan_is_black() -> None:
    scan = {"points": torch.zeros(0, 3), "range_image": torch.full((2, 3), -1.0)}
    (panel,) = image_panels(scan, FACTS)
    assert (panel.pixels == EMPTY).all()
    assert describe_image(scan) == "2 x 3 pixels, 0.0% filled, 0.0% of the points shown"
