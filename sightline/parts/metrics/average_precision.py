"""COCO average precision: predictions matched to labels by a similarity, at ten thresholds.

What the similarity is (overlap of boxes, likeness of key points) is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Similarity thresholds of a match."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which the precision-recall curve is sampled."""


@dataclass(frozen=True)
class Matches:
    """Matches of one image: scores of its predictions, falling, and a mask (L, D) of those matched at each threshold.

    A prediction that `is_ignored` (L, D) counts neither as a true nor as a false positive. `num_labels` does not count
    ignored ones. `label` (L, D) is the matched label of each prediction, -1 for none, if it was recorded.
    """

    scores: np.ndarray
    is_matched: np.ndarray
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
    """Match each prediction of an image, highest score first, to the most similar label that is still free.

    `similarity` (D, G) of predictions and labels. A label that `is_ignored` (G,) is used only if no other is left, and
    turns its prediction into one that does not count; a crowd, `is_crowd` (G,), may be matched any number of times.
    Unmatched predictions of another size, `is_outside_area` (D,), do not count either. Only the `max_detections`
    highest-scoring predictions take part; among equally similar labels the last is matched, as in COCO.
    Source: Lin et al. 2014, COCO, and its published evaluation.
    """
    ranked = np.argsort(-scores, kind="stable")[:max_detections]
    labels = np.argsort(is_ignored, kind="stable")
    sorted_similarity = similarity[np.ix_(ranked, labels)]
    ignored, crowd = is_ignored[labels], is_crowd[labels]
    matched_label = np.full((len(iou_thresholds), len(ranked)), -1)
    for row, level in enumerate(iou_thresholds):
        is_taken = np.zeros(len(labels), dtype=bool)
        for column, similarities in enumerate(sorted_similarity):
            free = (~is_taken | crowd) & (similarities >= min(level, 1 - 1e-10))
            choices = free & ~ignored if (free & ~ignored).any() else free
            if not choices.any():
                continue
            best = len(similarities) - 1 - int(np.argmax(np.where(choices, similarities, -np.inf)[::-1]))
            matched_label[row, column], is_taken[best] = best, True
    is_matched = matched_label >= 0
    into_ignored = is_matched & (ignored[matched_label] if len(labels) else False)
    does_not_count = into_ignored | (~is_matched & is_outside_area[ranked])
    label = np.append(labels, -1)[matched_label]
    return Matches(scores[ranked], is_matched, does_not_count, int((~ignored).sum()), label)


def cumulative_tp_fp(images: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores (D,) of all images, falling, and cumulative true and false positives (L, D).

    Equal scores keep the order of the images.
    """
    scores = np.concatenate([image.scores for image in images])
    order = np.argsort(-scores, kind="stable")
    is_matched = np.concatenate([image.is_matched for image in images], axis=1)[:, order]
    counts = ~np.concatenate([image.is_ignored for image in images], axis=1)[:, order]
    return scores[order], (is_matched & counts).cumsum(axis=1), (~is_matched & counts).cumsum(axis=1)


def precision_and_recall(
    images: Sequence[Matches], *, recalls_sampled: np.ndarray = RECALLS
) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision (L, R) at sampled recalls (R,) and the final recall (L,), over all images; -1 without a label.

    Precision at a recall is the highest at that recall or a larger one; 0 if no such recall is reached.
    """
    num_labels = sum(image.num_labels for image in images)
    num_levels = len(images[0].is_matched) if images else len(IOU_THRESHOLDS)
    precision, recall = np.full((num_levels, len(recalls_sampled)), -1.0), np.full(num_levels, -1.0)
    if num_labels == 0:
        return precision, recall
    _, true_positives, false_positives = cumulative_tp_fp(images)
    for row in range(num_levels):
        recalls = true_positives[row] / num_labels
        share = true_positives[row] / (true_positives[row] + false_positives[row] + np.spacing(1))
        best_from = np.maximum.accumulate(share[::-1])[::-1]
        index = np.searchsorted(recalls, recalls_sampled, side="left")
        recall[row] = recalls[-1] if len(recalls) else 0.0
        precision[row] = np.append(best_from, 0.0)[index]
    return precision, recall
