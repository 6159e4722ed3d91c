"""Boxes are scored as COCO's own evaluation scores them, by either form, in whatever order images come."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline import numba_kernels
from sightline.metrics.base import State, sorted_rows
from sightline.metrics.box_ap import BoxAp, _curves
from sightline.metrics.box_groups import match_predictions
from tests.metrics.box_references import COCO_NAMES, Image, coco_evaluation, spread_regions

SIZES = ("", "_small", "_medium", "_large")


def scored(
    images: list[Image], num_classes: int = 1, order: list[int] | None = None, **arguments: Any
) -> dict[str, float]:
    metric = BoxAp(class_names=tuple(f"class {number}" for number in range(num_classes)), **arguments)
    return metric.compute(state_of(images, num_classes, order))


def state_of(images: list[Image], num_classes: int, order: list[int] | None = None) -> State:
    """The metric's rows of these images, in the order of samples whatever order they come in."""
    metric = BoxAp(class_names=("any",) * num_classes)
    state = metric.new_state()
    for index in order if order is not None else range(len(images)):
        metric.update(
            state,
            detections=torch.from_numpy(images[index].detections),
            detection_offsets=torch.tensor([0, len(images[index].detections)]),
            truth=torch.from_numpy(images[index].truth),
            truth_offsets=torch.tensor([0, len(images[index].truth)]),
            sample_index=torch.tensor([index]),
        )
    return {name: sorted_rows(rows) for name, rows in state.items()}


def toy() -> list[Image]:
    """The spec's toy of two images; the ignored region is the last label of the first."""
    first = [[0, 0, 10, 20, 0, 200, 0], [12, 0, 22, 20, 0, 200, 0], [50, 50, 90, 90, 0, 1600, 1]]
    second = [[0, 0, 20, 40, 0, 800, 0]]
    found = [[0, 0, 10, 20, 0.9, 0], [0, 0, 10, 18, 0.8, 0], [60, 60, 70, 80, 0.7, 0], [13, 0, 23, 20, 0.6, 0]]
    return [Image(first, found), Image(second, [[50, 0, 60, 20, 0.95, 0], [0, 0, 20, 38, 0.5, 0]])]


def test_the_toy_of_the_spec() -> None:
    """Numbers computed with pycocotools; -1 there is NaN here."""
    expected = [0.509703, 0.6, 0.6, 0.509703, -1, -1, 0.333333, 0.9, 0.9, 0.9, -1, -1]
    found = scored(toy())
    for name, value in zip(COCO_NAMES, expected, strict=True):
        assert found[name] == pytest.approx(value, abs=5e-7) if value >= 0 else math.isnan(found[name]), name


CASES = range(26)


@pytest.mark.parametrize("case", CASES)
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


def random_images(seed: int, num_classes: int) -> list[Image]:
    """Images with doubled boxes, crowds, equal scores, no boxes; sizes on both sides of the areas' borders."""
    draw = np.random.default_rng(seed)
    images = []
    for _ in range(int(draw.integers(1, 7))):
        count = int(draw.integers(0, 9)) if draw.random() > 0.15 else 0
        corners = draw.integers(0, 100, (count, 2)).astype(float)
        sizes = draw.choice([8.0, 20, 32, 50, 96, 130], (count, 2))
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        if count > 2 and draw.random() < 0.4:
            boxes[1] = boxes[0]
        areas = sizes.prod(axis=1) * draw.choice([1.0, 0.7], count)
        classes, crowd = draw.integers(0, num_classes, count), draw.random(count) < 0.25
        truth = np.column_stack([boxes, classes, areas, crowd])
        near = boxes[draw.integers(0, max(count, 1), int(draw.integers(0, 15)))] if count else np.zeros((0, 4))
        near = near + draw.normal(0, draw.choice([0.5, 4.0]), near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = np.round(draw.random(len(near)), int(draw.choice([1, 6])))
        images.append(Image(truth, np.column_stack([near, scores, draw.integers(0, num_classes, len(near))])))
    images.append(Image(np.zeros((0, 7)), [[0, 0, 5, 5, 0.5, 0]]))
    return images


@pytest.mark.parametrize("seed", range(50))
def test_equals_pycocotools(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    num_classes = 1 + seed % 3
    images = random_images(seed, num_classes)
    expected = coco_evaluation(images, num_classes).stats
    for has_numba in (True, False):
        monkeypatch.setattr(numba_kernels, "_has_numba", lambda has=has_numba: has)
        assert_same(scored(images, num_classes), expected)


def test_the_order_of_images_changes_no_bit() -> None:
    images = random_images(11, 2)
    assert str(scored(images, 2)) == str(scored(images, 2, order=list(range(len(images)))[::-1]))


def test_crowds_of_more_than_a_hundred_are_counted_when_asked() -> None:
    """250 people found one by one: with the usual 100 detections an image at most 0.4 of them are recalled."""
    boxes = [[10 * k, 0, 10 * k + 8, 20] for k in range(250)]
    image = Image([[*box, 0, 160, 0] for box in boxes], [[*box, 1 - k / 1000, 0] for k, box in enumerate(boxes)])
    assert scored([image])["ar"] == pytest.approx(0.4)
    assert scored([image], most=500)["ar"] == scored([image], most=500)["ap"] == 1.0


def test_nothing_to_count_is_no_number() -> None:
    assert all(
        math.isnan(value) for value in BoxAp(class_names=("a",)).compute(BoxAp(class_names=("a",)).new_state()).values()
    )
    assert math.isnan(scored([Image([], [[0, 0, 5, 5, 0.5, 0]])])["ap"])
    assert scored([Image([[0, 0, 5, 5, 0, 25, 0]], [])])["ap"] == 0


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


def test_each_class_has_its_own_figures() -> None:
    metric = BoxAp(class_names=("person", "car"))
    state = metric.new_state()
    truth = [[0, 0, 10, 10, 0, 100, 0], [20, 0, 30, 10, 1, 100, 0], [50, 0, 60, 10, 1, 100, 1]]
    metric.update(
        state,
        detections=torch.tensor([[0.0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 1]]),
        detection_offsets=torch.tensor([0, 2]),
        truth=torch.tensor(truth),
        truth_offsets=torch.tensor([0, 3]),
        sample_index=torch.tensor([4]),
    )
    figures = metric.per_class(state)
    assert figures["person"] == pytest.approx({"ap": 1.0, "ap50": 1.0, "count": 1})
    assert figures["car"] == {"ap": 0.0, "ap50": 0.0, "count": 1}


def two_classes(region_class: int) -> list[Image]:
    """A person and a car, each found; before them, by score, a detection of either class in an ignored region."""
    truth = [[0, 0, 10, 10, 0, 100, 0], [20, 0, 30, 10, 1, 100, 0], [50, 50, 90, 90, region_class, 1600, 1]]
    found = [[0, 0, 10, 10, 0.5, 0], [20, 0, 30, 10, 0.5, 1], [60, 60, 70, 80, 0.9, 0], [60, 60, 70, 80, 0.9, 1]]
    return [Image(truth, found)]


@pytest.mark.parametrize(("region_class", "ap50"), [(-1, (1.0, 1.0)), (0, (1.0, 0.5)), (1, (0.5, 1.0))])
def test_an_ignored_region_absorbs_its_class_or_all(region_class: int, ap50: tuple[float, float]) -> None:
    """By hand: one wrong detection ahead of the right one halves the precision at every recall."""
    metric = BoxAp(class_names=("person", "car"))
    state = metric.new_state()
    (image,) = two_classes(region_class)
    metric.update(
        state,
        detections=torch.from_numpy(image.detections),
        detection_offsets=torch.tensor([0, 4]),
        truth=torch.from_numpy(image.truth),
        truth_offsets=torch.tensor([0, 3]),
        sample_index=torch.tensor([0]),
    )
    figures = metric.per_class(state)
    assert [figures[name]["ap50"] for name in ("person", "car")] == pytest.approx(ap50)
    assert [figures[name]["count"] for name in ("person", "car")] == [1, 1]
    scored_boxes = metric.tables(state)["scored_boxes"]
    assert (scored_boxes["num_boxes"], scored_boxes["num_ignored"]) == (2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_region_of_no_class_is_one_of_each_class(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equals pycocotools, given a crowd of every class."""
    images = random_images(seed, 3)
    for image in images:
        image.truth[image.truth[:, 6] > 0, 4] = -1
    expected = coco_evaluation(spread_regions(images, 3), 3).stats
    for has_numba in (True, False):
        monkeypatch.setattr(numba_kernels, "_has_numba", lambda has=has_numba: has)
        assert_same(scored(images, 3), expected)
