"""Errors at the limits of their kinds, their tables, and a repair, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sightline.metrics.base import State
from sightline.metrics.box_errors import KINDS, BoxErrors, classify_errors

METRIC = BoxErrors(class_names=("person", "rider", "car"))


def state_of(labels: np.ndarray, detections: np.ndarray) -> State:
    unknown = np.full((len(labels), 2), np.nan)
    images = np.unique(np.concatenate([labels[:, 0], detections[:, 0]]))
    rows = {"labels": np.hstack([labels, unknown]), "detections": detections}
    rows["images"] = np.column_stack([images, np.full((len(images), 2), 900)])
    return {name: torch.from_numpy(each) for name, each in rows.items()}


def test_a_repaired_detection_must_not_become_a_second_one() -> None:
    """By hand: the label is found at 0.6; another detection beside it, moved onto it, would be a duplicate."""
    labels = np.array([[0, 0, 0, 40, 40, 0, 1600, 0]], dtype=float)
    found = np.array([[0, 20, 0, 60, 40, 0.9, 0], [0, 0, 0, 40, 40, 0.6, 0]], dtype=float)
    figures = METRIC.compute(state_of(labels, found))
    assert figures["error_ap50"] == pytest.approx(0.5)
    assert figures["gain_localisation"] == pytest.approx(0.5)
    assert figures["gain_missed"] == 0


def test_suppressed_labels_are_counted() -> None:
    """Two people side by side, of whom suppression left one; a third was never found. By hand."""
    state = METRIC.new_state()
    truth = torch.tensor([[0, 0, 40, 80, 0, 3200, 0], [10, 0, 50, 80, 0, 3200, 0], [200, 0, 240, 80, 0, 3200, 0.0]])
    candidates = torch.tensor([[0, 0, 40, 80, 0.9, 0], [10, 0, 50, 80, 0.8, 0], [200, 0, 240, 80, 0.7, 1]])
    arguments: dict[str, Any] = {
        "detections": candidates[:1],
        "detection_offsets": torch.tensor([0, 1]),
        "truth": truth,
        "truth_visible": torch.tensor([1, 0.5, 1]),
        "truth_offsets": torch.tensor([0, 3]),
        "file_px": torch.tensor([[100, 300]]),
        "sample_index": torch.tensor([0]),
    }
    METRIC.update(state, **arguments, candidates=candidates, candidate_offsets=torch.tensor([0, 3]))
    about = METRIC.tables(state)["box_errors"]
    assert about["labels"]["all"] == {"labels": 3, "not_found": 2, "missed": 2, "suppressed": 1}
    assert about["labels"]["density >= 0.5"] == {"labels": 2, "not_found": 1, "missed": 1, "suppressed": 1}
    assert about["labels"]["visible 0.2 to 0.65"]["suppressed"] == 1
    state = METRIC.new_state()
    METRIC.update(state, **arguments)
    assert METRIC.tables(state)["box_errors"]["labels"]["all"]["suppressed"] is None


def test_curves_are_those_of_all_detections() -> None:
    """By hand: of two labels one is found first, then a detection is wrong, one is ignored, one finds it again."""
    labels = [[0, 0, 0, 40, 40, 0, 1600, 0], [1, 0, 0, 40, 40, 0, 1600, 0], [1, 90, 0, 130, 40, 0, 1600, 1]]
    places = [(0, 0, 0.9), (1, 200, 0.8), (1, 90, 0.7), (0, 0, 0.6)]
    found = [[image, left, 0, left + 40, 40, score, 0] for image, left, score in places]
    about = METRIC.tables(state_of(np.array(labels, dtype=float), np.array(found)))["box_errors"]
    assert about["curve"] == {
        "score": [0.9, 0.8, 0.6],
        "recall": [0.5, 0.5, 0.5],
        "precision": [1, 1 / 2, 1 / 3],
        "false_per_image": [0, 0.5, 1],
    }
    assert {kind: count for kind, count in about["counts"].items() if count} == {
        "background": 1,
        "duplicate": 1,
        "missed": 1,
    }


def test_an_iou_equal_to_a_limit_has_its_kind() -> None:
    """By hand: detections that overlap a label of 20 x 20 by exactly 1/2 or 1/10, each in an image of its own."""
    found = [
        ("classification", [0, 0, 20, 10], 1),
        ("localisation", [0, 0, 20, 2], 0),
        ("background", [0, 0, 20, 2], 1),
        ("duplicate", [0, 0, 20, 10], 0),
    ]
    labels = np.array([[image, 0, 0, 20, 20, 0, 400, 0] for image in range(4)], dtype=float)
    rows = [[image, *box, 0.5, label] for image, (_, box, label) in enumerate(found)]
    errors = classify_errors(state_of(labels, np.array([*rows, [3, 0, 0, 20, 20, 0.9, 0]], dtype=float)), 3, 100)
    image = errors.groups.boxes[:, 0].astype(int)
    kinds = {(int(at), KINDS[kind] if kind >= 0 else "right") for at, kind in zip(image, errors.kind, strict=True)}
    assert kinds == {*((at, kind) for at, (kind, *_) in enumerate(found)), (3, "right")}
