"""How often each class occurs in each part of the data: in all samples where these are few or known, else in some."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sightline.checks.survey import PartSurvey, labels_of_all, survey_part

__all__ = ["Census", "census_of"]

_MOST_SECONDS = 5.0  # of this thread's own time for a part, where a check takes its time
_EVERY_SAMPLE = 2**31


class Census(NamedTuple):
    """Of each class the `targets` (points, or samples) of a part that have it, and the `samples` that show it.

    `looked_at` says how many samples were counted; `is_whole` that these were all of them.
    """

    split: str
    targets: np.ndarray
    samples: np.ndarray
    looked_at: str
    is_whole: bool


def census_of(survey: PartSurvey, *, seed: int, takes_time: bool) -> Census | None:
    """The census of a surveyed part; more samples are read where it `takes_time`. None without labels of classes."""
    num_classes = survey.part.dataset.info.facts.get("num_classes")
    if not isinstance(num_classes, int) or not survey.labellings:
        return None
    split, size = survey.part.split, len(survey.part.indices)
    labels = labels_of_all(survey)
    if labels is not None:
        counts = np.bincount(labels[(labels >= 0) & (labels < num_classes)].astype(np.int64), minlength=num_classes)
        return Census(split, counts, counts, f"{size} of {size} samples of the {split} part", is_whole=True)
    if takes_time and not survey.is_whole:
        survey = survey_part(survey.part, seed=seed, most_samples=_EVERY_SAMPLE, most_seconds=_MOST_SECONDS)
    targets, samples = np.zeros(num_classes, dtype=np.int64), np.zeros(num_classes, dtype=np.int64)
    ignored = survey.part.dataset.info.facts.get("ignore_index")
    for labelling in survey.labellings:
        is_class = (labelling.classes >= 0) & (labelling.classes < num_classes) & (labelling.classes != ignored)
        targets[labelling.classes[is_class]] += labelling.counts[is_class]
        samples[labelling.classes[is_class]] += 1
    return Census(split, targets, samples, survey.extent, survey.is_whole)
