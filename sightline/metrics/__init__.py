"""Metrics: states that add up exactly over batches and processes, and the numbers computed from them once."""

from __future__ import annotations

from sightline.metrics.accuracy import Accuracy
from sightline.metrics.base import Metric, State
from sightline.metrics.confusion import confusion_matrix, mean_class_accuracy, overall_accuracy

__all__ = ["Accuracy", "Metric", "State", "confusion_matrix", "mean_class_accuracy", "overall_accuracy"]
