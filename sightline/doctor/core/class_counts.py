"""Class counts of each split: over all samples if these are few or their labels are listed, else over some."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sightline.doctor.core.sample_statistics import PartStatistics, all_labels

__all__ = ["ClassCounts", "count_classes"]


class ClassCounts(NamedTuple):
    """Counts per class of a split: `targets` (points or samples) of the class, and `samples` that contain it.

    `looked_at` states how many samples were counted; `is_whole` is True if these were all samples. Of `num_labelled`
    samples with labels of points, `num_single` contain one class only.
    """

    split: str
    targets: np.ndarray
    samples: np.ndarray
    looked_at: str
    is_whole: bool
    num_single: int = 0
    num_labelled: int = 0


def count_classes(survey: PartStatistics, thoroughly: Callable[[PartStatistics], PartStatistics]) -> ClassCounts | None:
    """Count the classes of a split; None without class labels.

    If the data set does not list all labels, the statistics that `thoroughly` returns are counted.
    """
    num_classes = survey.part.dataset.info.facts.get("num_classes")
    if not isinstance(num_classes, int) or not survey.labellings:
        return None
    split, size = survey.part.split, len(survey.part.indices)
    labels = all_labels(survey)
    if labels is not None:
        counts = np.bincount(labels[(labels >= 0) & (labels < num_classes)].astype(np.int64), minlength=num_classes)
        return ClassCounts(split, counts, counts, f"{size} of {size} samples of the {split} part", is_whole=True)
    survey = thoroughly(survey)
    targets, samples = np.zeros(num_classes, dtype=np.int64), np.zeros(num_classes, dtype=np.int64)
    ignored = survey.part.dataset.info.facts.get("ignore_index")
    num_single = num_labelled = 0
    for labelling in survey.labellings:
        is_class = (labelling.classes >= 0) & (labelling.classes < num_classes) & (labelling.classes != ignored)
        targets[labelling.classes[is_class]] += labelling.counts[is_class]
        samples[labelling.classes[is_class]] += 1
        if labelling.counts.sum() > 1:
            num_single += int(is_class.sum() == 1)
            num_labelled += 1
    return ClassCounts(split, targets, samples, survey.coverage_text, survey.is_whole, num_single, num_labelled)
