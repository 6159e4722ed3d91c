"""Errors of detectors have the kinds and gains of tidecv, and those worked by hand; the worst images are listed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.metrics.box_errors import KINDS, BoxErrors, classify_errors
from sightline.contract.metric import Meter, State
from tests.cases import run_each
from tests.metrics.box_references import Image
from tests.metrics.tide import NUM_DRAWS, draw_errors, saved_figures, tide_figures

ERRORS = BoxErrors(class_names=("person", "rider", "car", "bus"))


def state_of(*images: Image) -> State:
    meter = Meter(ERRORS)
    for index, image in enumerate(images):
        meter.update(
            detections=torch.from_numpy(image.detections),
            detection_offsets=torch.tensor([0, len(image.detections)]),
            truth=torch.from_numpy(image.truth),
            truth_offsets=torch.tensor([0, len(image.truth)]),
            sample_index=torch.tensor([index]),
        )
    return meter.state


def person(left: float, label: int = 0, is_ignored: int = 0) -> list[float]:
    """A label of 20 x 20 pixels, of which a detection of height h covers h / 20."""
    return [left, 0, left + 20, 20, label, 400, is_ignored]


def found(left: float, score: float, label: int = 0, height: float = 20) -> list[float]:
    return [left, 0, left + 20, height, score, label]


def assert_equals_tidecv(images: list[Image], expected: dict[str, float]) -> None:
    """Points of 100 to 1e-6, and counts; without any label ours are NaN, where tidecv has an AP of 0."""
    state = state_of(*images)
    figures = ERRORS.compute(state)
    counts = {f"count_{kind}": row["count"] for kind, row in ERRORS.tables(state)["box_errors"].items()}
    if not any((image.truth[:, 6] == 0).any() for image in images):
        expected = expected | dict.fromkeys(figures, math.nan)
    assert figures | counts == pytest.approx({**dict.fromkeys(counts, 0), **expected}, rel=0, abs=1e-8, nan_ok=True)


@run_each("seed", range(NUM_DRAWS))
def test_figures_are_those_of_tidecv(seed: int) -> None:
    images = draw_errors(seed)
    assert_equals_tidecv(images, saved_figures(images))


@pytest.mark.long
def test_figures_of_many_images_are_those_of_tidecv() -> None:
    """The saved figures are still tidecv's, and so are those of five times as many draws."""
    pytest.importorskip("tidecv")
    for seed in range(5 * NUM_DRAWS):
        images = draw_errors(seed)
        expected = tide_figures(images)
        assert seed >= NUM_DRAWS or saved_figures(images) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert_equals_tidecv(images, expected)


def test_draws_reach_what_they_are_for() -> None:
    """Of each kind at least ten draws have errors, and two thirds of those a gain; some labels are never detected."""
    rows = [saved_figures(draw_errors(seed)) for seed in range(NUM_DRAWS)]
    for kind in KINDS:
        counts = [row.get(f"count_{kind}", 0) for row in rows]
        gains = [row[f"gain_{kind}"] for row in rows]
        assert sum(count > 0 for count in counts) >= 10
        assert sum(gain > 0 for gain in gains) >= 5
    assert any(math.isnan(row["gain_missed"]) for row in rows)


def kinds_of(image: Image) -> list[str]:
    """The kind of each detection, in the order of the image; right ones are "right"."""
    state = state_of(image)
    errors = classify_errors(state["detections"], state["labels"], 4)
    order = np.argsort(-image.detections[:, 4], kind="stable")
    kinds = dict(zip(order.tolist(), errors.kind.tolist(), strict=True))
    return ["right" if kinds[row] < 0 else KINDS[kinds[row]] for row in range(len(order))]


@run_each(
    "height, label, kind",
    [
        (20, 0, "right"),
        (10, 0, "right"),
        (9, 0, "localisation"),
        (2, 0, "localisation"),
        (1, 0, "background"),
        (10, 1, "class"),
        (9, 1, "both"),
        (2, 1, "background"),
        (3, 1, "both"),
    ],
)
def test_kinds_at_their_limits(height: float, label: int, kind: str) -> None:
    """By hand: a detection that covers height / 20 of the only label; IoU of 0.1 and 0.5 are limits."""
    assert kinds_of(Image([person(0)], [found(0, 0.5, label, height)])) == [kind]


@run_each(
    "height, kind",
    [(20, "duplicate"), (11, "duplicate"), (10, "localisation")],
)
def test_kinds_beside_a_matched_label(height: float, kind: str) -> None:
    """By hand: a second detection; at an IoU of exactly 0.5 it is one of localisation, as in tidecv."""
    assert kinds_of(Image([person(0)], [found(0, 0.9), found(0, 0.5, 0, height)])) == ["right", kind]


def gains(*images: Image) -> dict[str, float]:
    """The gains that are not 0."""
    figures = ERRORS.compute(state_of(*images))
    return {
        name.removeprefix("gain_"): value for name, value in figures.items() if "gain" in name and abs(value) > 1e-9
    }


@run_each(
    "detections, expected",
    [
        ([found(0, 0.9)], {"missed": 0.5, "false_negative": 0.5}),
        ([found(0, 0.9), found(50, 0.8, 0, 8)], {"localisation": 0.5, "false_negative": 0.5}),
        ([found(0, 0.9), found(50, 0.8, 0, 8), found(50, 0.7, 0, 9)], {"localisation": 0.5, "false_negative": 0.5}),
        ([found(0, 0.9), found(0, 0.8), found(50, 0.7)], {"duplicate": 0.17, "false_positive": 0.17}),
        ([found(0, 0.9), found(90, 0.8), found(50, 0.7)], {"background": 0.17, "false_positive": 0.17}),
        ([found(0, 0.9), found(50, 0.8, 0, 8), found(50, 0.7)], {"localisation": 0.17, "false_positive": 0.17}),
    ],
)
def test_gains_by_hand(detections: list[list[float]], expected: dict[str, float]) -> None:
    """Two labels; a wrong detection between two right ones costs a third of the precision at the second half.

    The last: of two detections about a label the second matches it, so that the first is dropped, not moved.
    """
    figures = ERRORS.compute(state_of(Image([person(0), person(50)], detections)))
    ap50 = 0.5 if len([row for row in detections if row[3] == 20]) == 1 else 0.83
    assert figures["error_ap50"] == pytest.approx(ap50, abs=0.01)
    assert gains(Image([person(0), person(50)], detections)) == pytest.approx(expected, abs=0.011)


def test_only_the_best_detection_about_a_label_is_moved() -> None:
    """A label of a person that a rider's box covers best, and a cut box of a person at a lower score.

    Both are about it; mending localisation drops its box, as the other would be moved. tidecv counts alike.
    """
    figures = gains(Image([person(0), person(50)], [found(0, 0.9), found(50, 0.8, 1), found(50, 0.7, 0, 8)]))
    assert "localisation" not in figures
    assert figures["class"] >= 0.5


def test_detections_inside_ignored_labels_have_a_kind_and_cost_nothing() -> None:
    """By hand: one is inside by more than half, one by exactly half, which tidecv does not ignore."""
    crowd = [100, 0, 140, 20, -1, 800, 1]
    image = Image([person(0), crowd], [found(0, 0.5), found(100, 0.9), found(130, 0.8)])
    state = state_of(image)
    assert ERRORS.tables(state)["box_errors"]["background"] == {"count": 2, "ignored": 1, "at_best_score": 1}
    assert ERRORS.compute(state)["error_ap50"] == pytest.approx(0.5)
    assert gains(image) == pytest.approx({"background": 0.5, "false_positive": 0.5})


def test_a_figure_that_is_missing_has_a_reason() -> None:
    """Without a detection nothing is left once missed labels are dropped, where tidecv divides by zero."""
    state = state_of(Image([person(0)], []))
    figures, reasons = ERRORS.compute(state), ERRORS.tables(state)["scored_boxes_errors"]["undefined"]
    assert {name for name, value in figures.items() if math.isnan(value)} == reasons.keys()
    assert reasons.keys() == {"gain_missed", "gain_false_negative"}
    assert ERRORS.tables(state_of(Image([], [found(0, 0.9)])))["scored_boxes_errors"]["undefined"].keys() == {"all"}


def test_the_worst_images_have_the_most_errors_from_the_best_score_on() -> None:
    """By hand: from 0.5 on, F1 is largest, 14 of 17; from 0.8 on it is 9 of 12.5.

    Errors below it do not count, and a label that is found below it is missed.
    """
    sure = [person(30 * place) for place in range(4)]
    images = [
        Image(sure, [found(30 * place, 0.9) for place in range(4)]),
        Image(sure, [found(0, 0.8), found(0, 0.7), found(30, 0.6, 1), found(60, 0.5), found(90, 0.1)]),
        Image(sure, [*(found(30 * place, 0.9) for place in range(4)), *(found(200, 0.1) for _ in range(30))]),
        Image([], [found(0, 0.55), found(40, 0.55)]),
        Image(sure, [found(30 * place, 0.5) for place in range(4)]),
    ]
    worst, table = ERRORS.worst_samples(state_of(*images)), ERRORS.tables(state_of(*images))["box_errors"]
    assert {kind: sum(samples.values()) for kind, samples in worst.of_kind.items()} == {
        kind: row["at_best_score"] for kind, row in table.items()
    }
    assert (table["missed"]["count"], table["background"]["count"]) == (0, 32)
    assert worst.min_score == (0.5 + 0.1) / 2
    listed: dict[str, Any] = {kind: dict(samples) for kind, samples in worst.of_kind.items() if samples}
    assert listed == {"class": {1: 1}, "duplicate": {1: 1}, "background": {3: 2}, "missed": {1: 1}}
    assert worst.list_counts() == {1: {"class": 1, "duplicate": 1, "missed": 1}, 3: {"background": 2}}
    assert worst.to_dict("image {}".format)["kinds"]["background"] == [{"name": "image 3", "count": 2}]
