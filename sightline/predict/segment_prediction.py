"""Prediction of the task `segment`: the class of every point of a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

__all__ = ["SegmentPrediction"]


@dataclass(frozen=True, eq=False)
class SegmentPrediction:
    """Predicted class of every point of one file, all N in the order of the file.

    `points` (N, 3) float64 are in the file's own coordinates. `labels` (N,) int64 are the most probable classes, among
    the parts of `category` if the run's set has categories. `probability` (N,) float32 is that of the label among all
    classes. `treatment` describes what was done to the points.
    """

    file: Path
    points: np.ndarray
    labels: np.ndarray
    probability: np.ndarray
    class_names: tuple[str, ...]
    category: str | None
    treatment: str
    table_rows: np.ndarray
    """Row of `table` for each point (N,)."""
    table: np.ndarray | None = None
    """Model probabilities (K, C) float32 of every class, K at most N; None unless requested."""

    @property
    def num_points(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> np.ndarray | None:
        """Probabilities (N, C) float32 of every class and point, a new array; None unless requested."""
        return None if self.table is None else self.table[self.table_rows]

    @cached_property
    def mean_probability(self) -> float:
        """Mean of `probability` over all points."""
        return float(self.probability.mean(dtype=np.float64))

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the points of each class that occurs, the largest first."""
        counts = np.bincount(self.labels)
        order = np.argsort(-counts, kind="stable")
        return {
            self.name_of(label): float(counts[label]) / self.num_points for label in order.tolist() if counts[label]
        }

    def name_of(self, label: int) -> str:
        """Return the name of a class; its number if the run's set has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)
