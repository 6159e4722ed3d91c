"""Boxes are scored as COCO's own evaluation scores them, by either form."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline import numba_kernels
from sightline.metrics.base import Meter, State
from sightline.metrics.box_ap import BoxAp, _curves
from sightline.metrics.box_groups import match_predictions
from tests.metrics.box_references import COCO_NAMES, Image, coco_evaluation, draw_images, spread_regions

SIZES = ("", "_small", "_medium", "_large")


def scored(images: list[Image], num_classes: int = 1, **arguments: Any) -> dict[str, float]:
    metric = BoxAp(class_names=tuple(f"class {number}" for number in range(num_classes)), **arguments)
    return metric.compute(state_of(images, num_classes))


def state_of(images: list[Image], num_classes: int) -> State:
    """The metric's rows of these images."""
    meter = Meter(BoxAp(class_names=("any",) * num_classes))
    for index, image in enumerate(images):
        meter.update(
            detections=torch.from_numpy(image.detections),
            detection_offsets=torch.tensor([0, len(image.detections)]),
            truth=torch.from_numpy(image.truth),
            truth_offsets=torch.tensor([0, len(image.truth)]),
            sample_index=torch.tensor([index]),
        )
    return meter.state


@pytest.mark.parametrize("case", range(26))
def test_equals_what_pycocotools_gave(shared: Path, case: int) -> None:
    """Empty images, crowds, areas that are not width times height, exactly 32^2."""
    arrays = np.load(shared / "golden" / "detect" / "eval_coco.npz", allow_pickle=False)
    labels = arrays[f"case{case:02d}/gt_image_x_y_w_h_cat_area_crowd_id"].reshape(-1, 9)
    found = arrays[f"case{case:02d}/det_image_x_y_w_h_score_cat"].reshape(-1, 7)
    numbers = sorted({*labels[:, 0], *found[:, 0]})
    classes = sorted({*labels[:, 5], *found[:, 6]})
    images = []
    for number in numbers:
        own, its = labels[labels[:, 0] == number], found[found[:, 0] == number]
        corners = [np.column_stack([each[:, 1:3], each[:, 1:3] + each[:, 3:5]]) for each in (own, its)]
        truth = np.column_stack([corners[0], [classes.index(each) for each in own[:, 5]], own[:, 6:8]])
        images.append(Image(truth, np.column_stack([corners[1], its[:, 5], [classes.index(c) for c in its[:, 6]]])))
    for most, key in ((100, "stats12"), (500, "stats12_maxdets_1_10_500")):
        theirs = list(arrays[f"case{case:02d}/{key}"])
        if most == 500:
            theirs[0] = scored(images, len(classes))["ap"]  # its first line looks for 100, and finds nothing
        assert_same(scored(images, len(classes), most=most), theirs)
    assert_curves(images, classes, {name: arrays[f"case{case:02d}/{name}_T_K_A_M"] for name in CURVES})


CURVES = ("precision_mean_over_recall", "recall")


def assert_curves(images: list[Image], classes: list[float], published: dict[str, np.ndarray]) -> None:
    """Precision, a mean over recalls, and recall by threshold, class from 1, size, and 1, 10 or 100 detections."""
    curves = _curves(state_of(images, len(classes)), 100, len(classes))
    for number, size, (place, most) in itertools.product(range(len(classes)), SIZES, enumerate((1, 10, 100))):
        precision, recall = curves.curve(number, size, most)
        at = slice(None), int(classes[number]) - 1, SIZES.index(size), place
        assert precision.mean(axis=1) == pytest.approx(published["precision_mean_over_recall"][at], abs=1e-9)
        assert recall == pytest.approx(published["recall"][at], abs=1e-9)


def assert_same(found: dict[str, float], expected: list[float]) -> None:
    """Twelve numbers to 1e-9; -1 there is NaN here."""
    for name, value in zip(COCO_NAMES, expected, strict=True):
        assert found[name] == pytest.approx(value, abs=1e-9) if value >= 0 else math.isnan(found[name]), name


def test_crowds_of_more_than_a_hundred_are_counted_when_asked() -> None:
    """250 people found one by one: with the usual 100 detections an image at most 0.4 of them are recalled."""
    boxes = [[10 * k, 0, 10 * k + 8, 20] for k in range(250)]
    image = Image([[*box, 0, 160, 0] for box in boxes], [[*box, 1 - k / 1000, 0] for k, box in enumerate(boxes)])
    assert scored([image])["ar"] == pytest.approx(0.4)
    assert scored([image], most=500)["ar"] == scored([image], most=500)["ap"] == 1.0


@pytest.mark.parametrize("has_numba", [True, False])
def test_an_iou_equal_to_a_level_finds_the_label(has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 200 of 400 and 300 of 400 square pixels are the levels 0.50 and 0.75; at a little less one level fewer.

    Of the other levels the one above is not reached; a region absorbs a detection by half of it, too.
    """
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: has_numba)
    label = [0, 0, 20, 20, 0, 400, 0]
    for bottom, num_levels in ((10, 1), (9.999, 0), (15, 6), (14.999, 5), (20, 10)):
        figures = scored([Image([label], [[0, 0, 20, bottom, 0.9, 0]])])
        assert figures["ap"] == pytest.approx(num_levels / 10), bottom
        assert figures["ap50"] == pytest.approx(float(num_levels > 0))
        alike = np.array([[20 * bottom / 400]])
        none = np.zeros(1, dtype=bool)
        plain = match_predictions(
            alike, np.array([0.9]), is_ignored=none, is_crowd=none, is_outside_area=none, max_detections=1
        )
        assert int(plain.is_found.sum()) == num_levels
    for right, ap50 in ((40, 1.0), (40.01, 0.5)):  # of a detection before the right one, half lies in a region, or less
        region = [100, 0, 120, 20, -1, 400, 1]
        found = [[100, 0, 60 + right + 40, 20, 0.9, 0], [0, 0, 20, 20, 0.5, 0]]
        assert scored([Image([label, region], found)])["ap50"] == pytest.approx(ap50)


def two_classes(region_class: int) -> list[Image]:
    """A person and a car, each found; before them, by score, a detection of either class in an ignored region."""
    truth = [[0, 0, 10, 10, 0, 100, 0], [20, 0, 30, 10, 1, 100, 0], [50, 50, 90, 90, region_class, 1600, 1]]
    found = [[0, 0, 10, 10, 0.5, 0], [20, 0, 30, 10, 0.5, 1], [60, 60, 70, 80, 0.9, 0], [60, 60, 70, 80, 0.9, 1]]
    return [Image(truth, found)]


@pytest.mark.parametrize(("region_class", "ap50"), [(-1, (1.0, 1.0)), (0, (1.0, 0.5)), (1, (0.5, 1.0))])
def test_an_ignored_region_absorbs_its_class_or_all(region_class: int, ap50: tuple[float, float]) -> None:
    """By hand: one wrong detection ahead of the right one halves the precision at every recall."""
    metric = BoxAp(class_names=("person", "car"))
    state = state_of(two_classes(region_class), 2)
    figures = metric.per_class(state)
    assert [figures[name]["ap50"] for name in ("person", "car")] == pytest.approx(ap50)
    assert [figures[name]["count"] for name in ("person", "car")] == [1, 1]
    scored_boxes = metric.tables(state)["scored_boxes"]
    assert (scored_boxes["num_boxes"], scored_boxes["num_ignored"]) == (2, 1)


@pytest.mark.parametrize("seed", range(20))
def test_without_numba_equals_pycocotools(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a region of no class, which is one of each. The exam of metrics holds the compiled form to the same."""
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    images = [Image(one["truth"], one["detections"]) for one in draw_images(np.random.default_rng(seed))]
    assert_same(scored(images, 3), coco_evaluation(spread_regions(images, 3), 3).stats)
