"""Predictions of a frame beside its labels, as tables that pictures draw, and their errors by kind in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.boxes3d.metrics.boxes3d_errors import KINDS, classify
from sightline.areas.boxes3d.metrics.rows import group_frames
from sightline.store.boxes3d.box_table import BoxTable, make_box_table

__all__ = ["SHOWN_SCORE", "PredictedFrame", "read_frame"]

SHOWN_SCORE = 0.3
"""Least score of a detection that is drawn, by default."""


@dataclass(frozen=True, eq=False)
class PredictedFrame:
    """Labels of a frame and what is `found` from `score` on; `num_hidden` score less, up to `highest_hidden`."""

    labels: BoxTable
    found: BoxTable
    score: float
    num_hidden: int
    highest_hidden: float

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of labels, of labels that are found, and of errors by kind, as the metric `boxes3d_errors` has."""
        columns = (
            (self.found.boxes, self.found.score, self.found.label),
            (*(self.labels.boxes, self.labels.label, self.labels.is_ignored),),
        )
        detections, truths = (np.column_stack([np.zeros(len(each[0])), *each]) for each in columns)
        errors = classify(group_frames(torch.from_numpy(detections), torch.from_numpy(truths)))
        kinds = errors.kind[errors.is_counted]
        counts = {kind: int((kinds == number).sum()) for number, kind in enumerate(KINDS)}
        counts |= {"reversed": int(errors.is_reversed.sum()), "missed": int(errors.is_missed.sum())}
        return {"labels": int(errors.is_real.sum()), "found": int((kinds < 0).sum()), **counts}

    @property
    def description(self) -> str:
        """What is found and which errors are made, in words."""
        counts = self.counts
        errors = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        texts = [f"{counts['found']} of {counts['labels']} labels found", *([f"errors: {errors}"] if errors else [])]
        if self.num_hidden:
            below = f"{self.num_hidden} below the score {self.score:.3g} not drawn, up to {self.highest_hidden:.2g}"
            texts.append(below)
        return "; ".join(texts)


def read_frame(
    predictions: Mapping[str, Any], class_names: tuple[str, ...], *, index: int = 0, score: float = SHOWN_SCORE
) -> PredictedFrame:
    """Read the frame `index` of a batch's predictions. Raises KeyError without `truth3d`."""
    found, truth = (_read_rows(predictions, name, index) for name in ("detections3d", "truth3d"))
    is_shown = found[:, 7] >= score
    shown, hidden = found[is_shown], found[~is_shown, 7]
    return PredictedFrame(
        make_box_table(truth[:, :7], truth[:, 7], class_names, is_ignored=truth[:, 8] > 0),
        make_box_table(shown[:, :7], shown[:, 8], class_names, score=shown[:, 7].copy()),
        score,
        len(hidden),
        float(hidden.max(initial=0.0)),
    )


def _read_rows(predictions: Mapping[str, Any], name: str, index: int) -> np.ndarray:
    offsets: Tensor = predictions[f"{name}_offsets"]
    first, last = offsets[index : index + 2].tolist()
    rows: np.ndarray = predictions[name][first:last].double().cpu().numpy()
    return rows
