"""Class difficulty of a segmentation: IoU, amount of training data, share at boundaries, and confusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.members import DataMembers, MetricMembers
from sightline.contract.types import SampleKey
from sightline.engine.build import Data, DataSubset
from sightline.engine.evaluate import Evaluation, MetricResult
from sightline.layers.mlp import as_packed
from sightline.ops.neighbours import packed_nearest_neighbours

_MAX_SAMPLES = 256
_NUM_NEIGHBOURS = 8
_NUM_HARDEST = 5
_NUM_CONFUSIONS = 3


@dataclass(frozen=True)
class ClassRow:
    """Row of one class of scenes (`trained_on` in points) or one category of objects (`trained_on` in objects).

    `boundary_share` is the share of its points with a point of another label among their nearest neighbours;
    `confusions` are the most frequent wrong predictions: label, prediction, share of the label's points.
    """

    name: str
    iou: float
    num_points: int
    trained_on: int
    boundary_share: float
    confusions: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of the classes of a segmentation, as `sightline evaluate` prints it.

    Correlations are Spearman's, of the IoU with a column, over the classes that have both; NaN below three classes.
    `hardest` are the samples with the lowest IoU; boundaries were searched in `num_surveyed` samples.
    """

    rows: tuple[ClassRow, ...]
    hardest: tuple[tuple[str, float], ...]
    with_trained_on: float
    with_boundary_share: float
    unit: str
    num_surveyed: int

    def summary(self) -> str:
        """Format the correlations as one line; empty if there are none."""
        count = sum(not np.isnan(row.iou) for row in self.rows)
        correlations = {f"training {self.unit}": self.with_trained_on, "share at boundaries": self.with_boundary_share}
        parts = [f"{value:+.2f} with {name}" for name, value in correlations.items() if not np.isnan(value)]
        return f"rank correlation of IoU over {count} classes: {', '.join(parts)}" if parts else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
        return {
            "classes": {
                row.name: {
                    "iou": _none_if_nan(row.iou),
                    "num_points": row.num_points,
                    "trained_on": row.trained_on,
                    "boundary_share": _none_if_nan(row.boundary_share),
                    "confusions": [{"label": a, "answer": b, "share": share} for a, b, share in row.confusions],
                }
                for row in self.rows
            },
            "trained_on_unit": self.unit,
            "hardest": [{"sample": name, "iou": iou} for name, iou in self.hardest],
            "rank_correlation_of_iou": {
                "trained_on": _none_if_nan(self.with_trained_on),
                "boundary_share": _none_if_nan(self.with_boundary_share),
            },
            "num_samples_surveyed": self.num_surveyed,
        }


def class_difficulty(evaluation: Evaluation, part: DataSubset, data: Data) -> Difficulty | None:
    """Compute the difficulty from an evaluation of `part`; None if its metrics are not those of a segmentation.

    Reads up to 256 samples of the subset again and, to count points, of the training split.
    """
    result = next(
        (m for m in evaluation.results if not m.suffix and MetricMembers.per_sample.get(m.metric.metric)), None
    )
    facts = part.dataset.info.facts
    compute_per_class = None if result is None else MetricMembers.per_class.get(result.metric.metric)
    if result is None or compute_per_class is None or "class_names" not in facts:
        return None
    members = facts.get("parts_of_category")
    names = tuple(facts["category_names"] if members else facts["class_names"])
    groups = [list(parts) for parts in members] if members else [[index] for index in range(len(names))]
    confusion = result.state["confusion"]
    boundary_counts, point_counts, num_surveyed = _count_boundaries(part, len(confusion))
    per_class = compute_per_class(result.state)
    unit = "objects" if members else "points"
    trained_on = _count_objects(data.train, len(names)) if members else _count_points(data.train, len(names))
    class_names = tuple(facts["class_names"])
    rows = tuple(
        ClassRow(
            name=name,
            iou=per_class[name]["miou" if members else "iou"],
            num_points=int(confusion[group].sum()),
            trained_on=int(trained_on[index]),
            boundary_share=_divide(boundary_counts[group].sum(), point_counts[group].sum()),
            confusions=_list_confusions(confusion, group, class_names),
        )
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    )
    ious = [row.iou for row in rows]
    return Difficulty(
        rows=rows,
        hardest=_find_hardest(result, part),
        with_trained_on=rank_correlation(ious, [row.trained_on for row in rows]),
        with_boundary_share=rank_correlation(ious, [row.boundary_share for row in rows]),
        unit=unit,
        num_surveyed=num_surveyed,
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute Spearman's rank correlation of the finite pairs; NaN for fewer than three or a constant side.

    Equal values share the mean of their ranks. Source: Spearman 1904.
    """
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3:
        return float("nan")
    ranks = np.stack([_compute_ranks(row) for row in pairs])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    return float(centred[0] @ centred[1] / lengths.prod()) if lengths.all() else float("nan")


def boundary_mask(points: Tensor, label: Tensor, offsets: Tensor, *, num_neighbours: int = _NUM_NEIGHBOURS) -> Tensor:
    """Compute the boundary mask (P,) bool: points with another label among the nearest neighbours in their cloud.

    `points` (P, 3), `label` (P,) and `offsets` (S+1,) are those of concatenated (packed) clouds.
    """
    neighbours = packed_nearest_neighbours(points, offsets=offsets, num_neighbours=num_neighbours)
    return ((label[neighbours.index] != label[:, None]) & neighbours.is_valid).any(dim=1)


def _count_boundaries(part: DataSubset, num_classes: int) -> tuple[Tensor, Tensor, int]:
    """Count boundary points and all points per class over evenly spaced samples, and these samples."""
    boundary_counts, point_counts = (
        torch.zeros(num_classes, dtype=torch.int64),
        torch.zeros(num_classes, dtype=torch.int64),
    )
    num_surveyed = 0
    for key in _spaced_keys(part):
        batch = part.reader([key])
        points, _, offsets = as_packed(batch["points"], None, batch.get("offsets"))
        has_pixels = batch["label"].numel() != len(points) and "whole_label" in batch
        label = batch["whole_label" if has_pixels else "label"].flatten()
        is_class = (label >= 0) & (label < num_classes)  # ignored points are excluded
        is_boundary = boundary_mask(points, label, offsets) & is_class
        boundary_counts += torch.bincount(label[is_boundary], minlength=num_classes)
        point_counts += torch.bincount(label[is_class], minlength=num_classes)
        num_surveyed += 1
    return boundary_counts, point_counts, num_surveyed


def _count_objects(train: DataSubset, num_categories: int) -> np.ndarray:
    """Count the training objects of each category."""
    strata = DataMembers.strata.get(train.dataset)
    if strata is None:
        strata = np.array([int(train.dataset[key]["category"]) for key in _spaced_keys(train)])
        return np.bincount(strata, minlength=num_categories)
    return np.bincount(np.asarray(strata)[train.indices], minlength=num_categories)


def _count_points(train: DataSubset, num_classes: int) -> np.ndarray:
    """Count the training points of each class: from the data set's facts, else over evenly spaced samples."""
    stated = train.dataset.info.facts.get("class_counts")
    if stated is not None:
        return np.array(stated)
    counts = np.zeros(num_classes, dtype=np.int64)
    for key in _spaced_keys(train):
        label = np.asarray(train.dataset[key]["label"]).ravel()
        counts += np.bincount(label[(label >= 0) & (label < num_classes)], minlength=num_classes)
    return counts


def _spaced_keys(part: DataSubset) -> Iterator[SampleKey]:
    for index in part.evenly_spaced_indices(_MAX_SAMPLES):
        yield SampleKey(int(index), 0, 0)


def _list_confusions(
    confusion: Tensor, group: Sequence[int], names: Sequence[str]
) -> tuple[tuple[str, str, float], ...]:
    """List the most frequent wrong predictions for the labels of a group."""
    confusions = []
    for label in group:
        total = int(confusion[label].sum())
        for prediction, count in enumerate(confusion[label].tolist()):
            if count and prediction != label:
                confusions.append((count, names[label], names[prediction], count / total))
    confusions.sort(key=lambda item: (-item[0], item[1], item[2]))
    return tuple(item[1:] for item in confusions[:_NUM_CONFUSIONS])


def _find_hardest(measured: MetricResult, part: DataSubset) -> tuple[tuple[str, float], ...]:
    """List the samples with the lowest IoU in ascending order, by name."""
    ious = measured.metric.metric.per_sample(measured.state).numpy()  # type: ignore[attr-defined]
    order = np.argsort(ious, kind="stable")  # NaN last
    worst = [int(index) for index in order[:_NUM_HARDEST] if not np.isnan(ious[index])]
    return tuple((part.sample_name(index), float(ious[index])) for index in worst)


def _compute_ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[index]


def _divide(part: Tensor, total: Tensor) -> float:
    return float(part / total) if total else float("nan")


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
