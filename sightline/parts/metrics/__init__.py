"""Metrics: states that add up exactly over batches and processes, and the numbers computed from them once."""

from __future__ import annotations

from sightline.contract.metric import MeanMetric, Meter, Metric, State
from sightline.parts.metrics.accuracy import Accuracy
from sightline.parts.metrics.calibration import Calibration
from sightline.parts.metrics.confusion import class_ious, confusion_matrix, mean_class_accuracy, overall_accuracy
from sightline.parts.metrics.iou import IoU
from sightline.parts.metrics.part_iou import PartIoU, category_means, shape_ious

__all__ = [
    "Accuracy",
    "Calibration",
    "IoU",
    "MeanMetric",
    "Meter",
    "Metric",
    "PartIoU",
    "State",
    "category_means",
    "class_ious",
    "confusion_matrix",
    "mean_class_accuracy",
    "overall_accuracy",
    "shape_ious",
]
