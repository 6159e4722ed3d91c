"""The average precision of boxes with 7 numbers is that of 4, where they are upright and one metre high."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.contract.metric import Meter
from sightline.ops import numba_kernels
from sightline.parts.metrics.box_curves import BoxCurves, box_sizes
from sightline.parts.metrics.box_groups import BoxRows, group_boxes, iou_or_ioa
from tests.metrics.box_references import Image, draw_images
from tests.metrics.test_boxes import coco_state

RANGES = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}


class SpaceRows(BoxRows):
    """Rows of boxes in space; what they score is the test's."""

    num_sides = 7

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"num_labels": float(len(state["labels"]))}


def lift(rows: np.ndarray) -> np.ndarray:
    """Rows whose first four are corners, with seven instead: a box of a metre in height, yaw 0; exact for integers."""
    corners = rows[:, :4]
    middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    z, height, yaw = (np.full((len(rows), 1), value) for value in (-1.0, 1.0, 0.0))
    return np.concatenate([middle, z, sides, height, yaw, rows[:, 4:]], axis=1)


def overlap(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The IoU (D, G) of boxes with yaw 0 and equal heights."""
    flat = [np.concatenate([b[:, :2] - b[:, 3:5] / 2, b[:, :2] + b[:, 3:5] / 2], axis=1) for b in (boxes, labels)]
    return iou_or_ioa(*flat, False)


@pytest.mark.parametrize(("seed", "has_numba"), [(0, True), (1, True), (2, False)])
def test_curves_are_those_of_images(seed: int, has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_numba:
        monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    images = []
    for sample in draw_images(np.random.default_rng(seed)):
        truth, detections = sample["truth"].copy(), sample["detections"].copy()
        truth[:, 4], truth[:, 6] = truth[:, 4].clip(0), 0  # crowds are of images alone
        for rows in (truth, detections):
            rows[:, :4] = np.rint(rows[:, :4])
        images.append(Image(truth, detections))
    meter = Meter(SpaceRows())
    for index, image in enumerate(images):
        meter.update(
            detections=torch.from_numpy(lift(image.detections)),
            detection_offsets=torch.tensor([0, len(image.detections)]),
            truth=torch.from_numpy(lift(image.truth)),
            truth_offsets=torch.tensor([0, len(image.truth)]),
            sample_index=torch.tensor([index]),
        )
    state = meter.state
    assert state["detections"].shape[1] == 10
    assert state["labels"].shape[1] == 11
    num_classes = 3
    groups = group_boxes(state["detections"], state["labels"], num_classes, num_sides=7)
    found = BoxCurves.of(groups, RANGES, most=100, overlaps=overlap)
    expected = BoxAp(class_names=("any",) * num_classes).match(coco_state(images, num_classes))
    num_found = 0
    for number in range(num_classes):
        for size in RANGES:
            for curve, other in zip(found.curve(number, size, 100), expected.curve(number, size, 100), strict=True):
                assert np.array_equal(curve, other)
                num_found += int((curve > 0).sum())
    assert num_found > 100


def test_rows_of_other_columns() -> None:
    with pytest.raises(ValueError, match="scores of 1 of 1 are NaN"):
        Meter(SpaceRows()).update(
            detections=torch.tensor([[0.0, 0, 0, 1, 1, 1, 0, torch.nan, 0]]),
            detection_offsets=torch.tensor([0, 1]),
            truth=torch.zeros(0, 10),
            truth_offsets=torch.tensor([0, 0]),
            sample_index=torch.tensor([0]),
        )
    assert box_sizes(np.array([[9.0, 9, 9, 2, 3, 4, 1]])).tolist() == [24]
    assert box_sizes(np.array([[1.0, 1, 3, 5]])).tolist() == [8]
