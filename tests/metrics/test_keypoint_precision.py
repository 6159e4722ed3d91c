"""Average precision of key points: COCO's own numbers, and cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.errors import DataError
from sightline.metrics.box_groups import match_predictions, precision_and_recall
from sightline.metrics.joints import MAX_DETECTIONS, PersonLabels, keypoint_average_precision, oks_matrix
from tests.golden_parity import load_golden

NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")


@pytest.mark.shared
@pytest.mark.parametrize("number", range(5))
def test_the_summary_is_that_of_coco(shared: Path, number: int) -> None:
    arrays = load_golden(shared, "fn_oks", area="pose").arrays

    def of(name: str) -> np.ndarray:
        return arrays[f"case{number}.{name}"]

    people, found, scores = [], [], []
    for image in np.union1d(of("gt_image"), of("dt_image")):
        mine, theirs = of("gt_image") == image, of("dt_image") == image
        joints = of("gt_keypoints")[mine]
        crowd = of("gt_crowd")[mine].astype(bool)
        people.append(
            PersonLabels(joints[..., :2], joints[..., 2] > 0, of("gt_area")[mine], of("gt_bbox")[mine], crowd)
        )
        found.append(of("dt_keypoints")[theirs][..., :2])
        scores.append(of("dt_score")[theirs])
        if f"case{number}.image{image}_oks" in arrays:
            order = np.argsort(-scores[-1], kind="stable")
            made = oks_matrix(people[-1], found[-1], of("sigmas"))[order]
            np.testing.assert_allclose(made, of(f"image{image}_oks"), rtol=1e-9, atol=1e-15)
    images = [
        match_predictions(
            oks_matrix(each, joints, of("sigmas")),
            score,
            is_ignored=~each.is_labelled.any(axis=1) | each.is_crowd,
            is_crowd=each.is_crowd,
            is_outside_area=np.zeros(len(score), dtype=bool),
            max_detections=MAX_DETECTIONS,
        )
        for each, joints, score in zip(people, found, scores, strict=True)
    ]
    precision, recall = precision_and_recall(images)
    np.testing.assert_allclose(precision, of("precision"), rtol=1e-12)
    np.testing.assert_allclose(recall, of("recall"), rtol=1e-12)
    result = keypoint_average_precision(people, found, scores, of("sigmas"))
    np.testing.assert_allclose([result[name] for name in NAMES], of("stats"), rtol=1e-12, atol=1e-12)


def test_a_perfect_answer_a_false_one_and_one_that_is_missing() -> None:
    """Found, false, found, with falling scores, of three labels: precision 1 up to a recall of 1/3, 2/3 up to 2/3."""
    similarity = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    nothing = np.zeros(3, dtype=bool)
    found = match_predictions(
        similarity,
        np.array([0.9, 0.8, 0.7]),
        is_ignored=nothing,
        is_crowd=nothing,
        is_outside_area=nothing,
        max_detections=20,
    )
    precision, recall = precision_and_recall([found])
    assert recall == pytest.approx([2 / 3] * 10)
    assert precision[0] == pytest.approx([1.0] * 34 + [2 / 3] * 33 + [0.0] * 34)


def test_what_is_ignored_counts_for_nothing_and_a_crowd_takes_many() -> None:
    yes, no = np.array([True]), np.array([False])
    similarity = np.array([[0.9], [0.8]])
    scores, neither = np.array([0.9, 0.8]), np.zeros(2, dtype=bool)
    crowd = match_predictions(
        similarity, scores, is_ignored=yes, is_crowd=yes, is_outside_area=neither, max_detections=20
    )
    assert crowd.is_ignored[0].tolist() == [True, True]
    alone = match_predictions(
        similarity, scores, is_ignored=yes, is_crowd=no, is_outside_area=neither, max_detections=20
    )
    assert alone.is_ignored[0].tolist() == [True, False]
    assert (crowd.num_labels, alone.num_labels) == (0, 0)
    assert (precision_and_recall([crowd])[0] == -1).all()


def test_only_the_surest_answers_are_looked_at() -> None:
    no = np.array([False])
    similarity, scores = np.array([[0.0], [1.0]]), np.array([0.9, 0.1])
    neither = np.zeros(2, dtype=bool)
    one = match_predictions(similarity, scores, is_ignored=no, is_crowd=no, is_outside_area=neither, max_detections=1)
    assert not one.is_found.any()


def test_of_equally_similar_labels_the_last_is_taken() -> None:
    """As COCO's evaluation does. The second answer is like the first label alone, which the first answer left it."""
    similarity, scores = np.array([[0.8, 0.8], [0.8, 0.2]]), np.array([0.9, 0.5])
    neither = np.zeros(2, dtype=bool)
    found = match_predictions(
        similarity, scores, is_ignored=neither, is_crowd=neither, is_outside_area=neither, max_detections=20
    )
    assert found.is_found[0].tolist() == [True, True]
    first = match_predictions(
        similarity[:, ::-1], scores, is_ignored=neither, is_crowd=neither, is_outside_area=neither, max_detections=20
    )
    assert first.is_found[0].tolist() == [True, False]


def test_lists_of_other_images_are_refused() -> None:
    with pytest.raises(DataError, match="1 images of people, 0 of predictions"):
        keypoint_average_precision([PersonLabels(*(np.zeros((0, 1)),) * 5)], [], [], np.ones(1))
