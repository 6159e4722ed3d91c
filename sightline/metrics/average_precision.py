"""Average precision as COCO counts it: predictions matched to labels by a similarity, at ten levels of it.

What the similarity is (overlap of boxes, likeness of key points) is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["IOU_THRESHOLDS", "RECALLS", "Matches", "cumulative_tp_fp", "match_predictions", "precision_and_recall"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Similarities from which on a prediction counts as found."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Where the curve of precision over recall is read."""


@dataclass(frozen=True)
class Matches:
    """One image: the scores of its predictions, falling, and for every level which of them found a label (L, D).

    A prediction that `is_ignored` (L, D) counts neither as right nor as wrong. `num_labels` does not count ignored
    ones. `label` (L, D) is the label that each prediction found, -1 for none, where that was noted.
    """

    scores: np.ndarray
    is_found: np.ndarray
    is_ignored: np.ndarray
    num_labels: int
    label: np.ndarray | None = None


def match_predictions(
    similarity: np.ndarray,
    scores: np.ndarray,
    *,
    is_ignored: np.ndarray,
    is_crowd: np.ndarray,
    is_outside_area: np.ndarray,
    max_detections: int,
    iou_thresholds: np.ndarray = IOU_THRESHOLDS,
) -> Matches:
    """Give each prediction of an image, the surest first, the label that it is most similar to and that is still free.

    `similarity` (D, G) of predictions and labels. A label that `is_ignored` is taken only where no other is left, and
    turns its prediction into one that does not count; a crowd may be taken any number of times. Predictions of another
    size, `is_outside_area` (D), that found nothing do not count either. The `max_detections` surest predictions are
    looked at; among
    equally similar labels the last is taken, as COCO does. Source: Lin et al. 2014, COCO, and its published evaluation.
    """
    answers = np.argsort(-scores, kind="stable")[:max_detections]
    labels = np.argsort(is_ignored, kind="stable")
    alike = similarity[np.ix_(answers, labels)]
    ignored, crowd = is_ignored[labels], is_crowd[labels]
    found = np.full((len(iou_thresholds), len(answers)), -1)
    for row, level in enumerate(iou_thresholds):
        is_taken = np.zeros(len(labels), dtype=bool)
        for column, each in enumerate(alike):
            free = (~is_taken | crowd) & (each >= min(level, 1 - 1e-10))
            choices = free & ~ignored if (free & ~ignored).any() else free
            if not choices.any():
                continue
            best = len(each) - 1 - int(np.argmax(np.where(choices, each, -np.inf)[::-1]))
            found[row, column], is_taken[best] = best, True
    is_found = found >= 0
    into_ignored = is_found & (ignored[found] if len(labels) else False)
    does_not_count = into_ignored | (~is_found & is_outside_area[answers])
    label = np.append(labels, -1)[found]
    return Matches(scores[answers], is_found, does_not_count, int((~ignored).sum()), label)


def cumulative_tp_fp(images: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (D) of all images, falling, and how many predictions down to each are right and wrong (L, D).

    Equal scores keep the order of the images.
    """
    scores = np.concatenate([image.scores for image in images])
    order = np.argsort(-scores, kind="stable")
    is_found = np.concatenate([image.is_found for image in images], axis=1)[:, order]
    counts = ~np.concatenate([image.is_ignored for image in images], axis=1)[:, order]
    return scores[order], (is_found & counts).cumsum(axis=1), (~is_found & counts).cumsum(axis=1)


def precision_and_recall(images: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (L, 101) at `RECALLS` and the recall reached (L), over all images; -1 where there is no label.

    Precision at a recall is the highest at that recall or a larger one; 0 where none so large is reached.
    """
    num_labels = sum(image.num_labels for image in images)
    num_levels = len(images[0].is_found) if images else len(IOU_THRESHOLDS)
    precision, recall = np.full((num_levels, len(RECALLS)), -1.0), np.full(num_levels, -1.0)
    if num_labels == 0:
        return precision, recall
    _, right, wrong = cumulative_tp_fp(images)
    for row in range(num_levels):
        reached = right[row] / num_labels
        share = right[row] / (right[row] + wrong[row] + np.spacing(1))
        best_from = np.maximum.accumulate(share[::-1])[::-1]
        place = np.searchsorted(reached, RECALLS, side="left")
        recall[row] = reached[-1] if len(reached) else 0.0
        precision[row] = np.append(best_from, 0.0)[place]
    return precision, recall
