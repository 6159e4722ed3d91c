"""Why is a class hard? Its IoU beside how much of it was trained on, how much of it lies at boundaries, and what it is
taken for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.engine.build import Data, DataSubset
from sightline.engine.evaluate import Evaluation, MetricResult
from sightline.geometry.packed import packed_nearest_neighbours
from sightline.layers.cloud import as_packed
from sightline.optional_members import DataMembers, MetricMembers
from sightline.types import SampleKey

__all__ = ["ClassRow", "Difficulty", "boundary_mask", "class_difficulty", "rank_correlation"]

_MOST_SAMPLES = 256
_NUM_NEIGHBOURS = 8
_NUM_HARDEST = 5
_NUM_CONFUSIONS = 3


@dataclass(frozen=True)
class ClassRow:
    """One class of scenes, or one category of objects; `trained_on` counts points, or objects.

    `boundary_share` is the share of its points that have one of another label among their nearest; `confusions` are
    the most frequent wrong predictions: label, prediction, share of the label's points.
    """

    name: str
    iou: float
    num_points: int
    trained_on: int
    boundary_share: float
    confusions: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Difficulty:
    """What `sightline evaluate` prints of the classes of a segmentation.

    Correlations are Spearman's, of the IoU with a column, over the classes that have both; NaN below three classes.
    `hardest` are samples with the lowest IoU; boundaries were sought in `num_surveyed` samples.
    """

    rows: tuple[ClassRow, ...]
    hardest: tuple[tuple[str, float], ...]
    with_trained_on: float
    with_boundary_share: float
    unit: str
    num_surveyed: int

    def summary(self) -> str:
        """The correlations, in a line; empty where there are none."""
        count = sum(not np.isnan(row.iou) for row in self.rows)
        found = {f"training {self.unit}": self.with_trained_on, "share at boundaries": self.with_boundary_share}
        parts = [f"{value:+.2f} with {name}" for name, value in found.items() if not np.isnan(value)]
        return f"rank correlation of IoU over {count} classes: {', '.join(parts)}" if parts else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number is None."""
        return {
            "classes": {
                row.name: {
                    "iou": _or_none(row.iou),
                    "num_points": row.num_points,
                    "trained_on": row.trained_on,
                    "boundary_share": _or_none(row.boundary_share),
                    "confusions": [{"label": a, "answer": b, "share": share} for a, b, share in row.confusions],
                }
                for row in self.rows
            },
            "trained_on_unit": self.unit,
            "hardest": [{"sample": name, "iou": iou} for name, iou in self.hardest],
            "rank_correlation_of_iou": {
                "trained_on": _or_none(self.with_trained_on),
                "boundary_share": _or_none(self.with_boundary_share),
            },
            "num_samples_surveyed": self.num_surveyed,
        }


def class_difficulty(evaluation: Evaluation, part: DataSubset, data: Data) -> Difficulty | None:
    """Of an evaluation of `part`; None where the metrics are not those of a segmentation.

    Reads up to 256 samples of the part once more, and of the training part for its points.
    """
    measured = next(
        (m for m in evaluation.results if not m.suffix and MetricMembers.per_sample.get(m.metric.metric)), None
    )
    facts = part.dataset.info.facts
    per_class_of = None if measured is None else MetricMembers.per_class.get(measured.metric.metric)
    if measured is None or per_class_of is None or "class_names" not in facts:
        return None
    members = facts.get("parts_of_category")
    names = tuple(facts["category_names"] if members else facts["class_names"])
    groups = [list(parts) for parts in members] if members else [[index] for index in range(len(names))]
    confusion = measured.state["confusion"]
    at, of, num_surveyed = _boundaries(part, len(confusion))
    per_class = per_class_of(measured.state)
    unit = "objects" if members else "points"
    trained_on = _objects(data.train, len(names)) if members else _points(data.train, len(names))
    class_names = tuple(facts["class_names"])
    rows = tuple(
        ClassRow(
            name=name,
            iou=per_class[name]["miou" if members else "iou"],
            num_points=int(confusion[group].sum()),
            trained_on=int(trained_on[index]),
            boundary_share=_share(at[group].sum(), of[group].sum()),
            confusions=_confusions(confusion, group, class_names),
        )
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    )
    ious = [row.iou for row in rows]
    return Difficulty(
        rows=rows,
        hardest=_hardest(measured, part),
        with_trained_on=rank_correlation(ious, [row.trained_on for row in rows]),
        with_boundary_share=rank_correlation(ious, [row.boundary_share for row in rows]),
        unit=unit,
        num_surveyed=num_surveyed,
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of the pairs that are numbers; NaN for fewer than three, or where one side is constant.

    Equal values share the mean of their ranks. Source: Spearman 1904.
    """
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3:
        return float("nan")
    ranks = np.stack([_ranks(row) for row in pairs])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    return float(centred[0] @ centred[1] / lengths.prod()) if lengths.all() else float("nan")


def boundary_mask(points: Tensor, label: Tensor, offsets: Tensor, *, num_neighbours: int = _NUM_NEIGHBOURS) -> Tensor:
    """Which points (P,) have a point of another label among their nearest in their own cloud: bool (P,).

    `points` (P, 3), `label` (P,) and `offsets` (S+1,) of clouds one after another.
    """
    near = packed_nearest_neighbours(points, offsets=offsets, num_neighbours=num_neighbours)
    return ((label[near.index] != label[:, None]) & near.is_valid).any(dim=1)


def _boundaries(part: DataSubset, num_classes: int) -> tuple[Tensor, Tensor, int]:
    """Points at boundaries and points in all, per class, of samples spread over the part; and how many samples."""
    at, of = torch.zeros(num_classes, dtype=torch.int64), torch.zeros(num_classes, dtype=torch.int64)
    num_surveyed = 0
    for key in _spread(part):
        batch = part.reader([key])
        points, _, offsets = as_packed(batch["points"], None, batch.get("offsets"))
        has_pixels = batch["label"].numel() != len(points) and "whole_label" in batch
        label = batch["whole_label" if has_pixels else "label"].flatten()
        is_class = (label >= 0) & (label < num_classes)  # not what is ignored
        is_at = boundary_mask(points, label, offsets) & is_class
        at += torch.bincount(label[is_at], minlength=num_classes)
        of += torch.bincount(label[is_class], minlength=num_classes)
        num_surveyed += 1
    return at, of, num_surveyed


def _objects(train: DataSubset, num_categories: int) -> np.ndarray:
    """Training objects of each category."""
    strata = DataMembers.strata.get(train.dataset)
    if strata is None:
        strata = np.array([int(train.dataset[key]["category"]) for key in _spread(train)])
        return np.bincount(strata, minlength=num_categories)
    return np.bincount(np.asarray(strata)[train.indices], minlength=num_categories)


def _points(train: DataSubset, num_classes: int) -> np.ndarray:
    """Training points of each class, as the data set states them, else of samples spread over the part."""
    stated = train.dataset.info.facts.get("class_counts")
    if stated is not None:
        return np.array(stated)
    counts = np.zeros(num_classes, dtype=np.int64)
    for key in _spread(train):
        label = np.asarray(train.dataset[key]["label"]).ravel()
        counts += np.bincount(label[(label >= 0) & (label < num_classes)], minlength=num_classes)
    return counts


def _spread(part: DataSubset) -> Iterator[SampleKey]:
    for index in part.evenly_spaced_indices(_MOST_SAMPLES):
        yield SampleKey(int(index), 0, 0)


def _confusions(confusion: Tensor, group: Sequence[int], names: Sequence[str]) -> tuple[tuple[str, str, float], ...]:
    """The most frequent wrong predictions for the labels of a group."""
    found = []
    for label in group:
        total = int(confusion[label].sum())
        for answer, count in enumerate(confusion[label].tolist()):
            if count and answer != label:
                found.append((count, names[label], names[answer], count / total))
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    return tuple(item[1:] for item in found[:_NUM_CONFUSIONS])


def _hardest(measured: MetricResult, part: DataSubset) -> tuple[tuple[str, float], ...]:
    """The samples with the lowest IoU, the lowest first, by name where the data set has names."""
    ious = measured.metric.metric.per_sample(measured.state).numpy()  # type: ignore[attr-defined]
    order = np.argsort(ious, kind="stable")  # NaN last
    worst = [int(index) for index in order[:_NUM_HARDEST] if not np.isnan(ious[index])]
    return tuple((part.sample_name(index), float(ious[index])) for index in worst)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
