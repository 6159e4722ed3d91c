"""Stages of a point cloud sample, with the predictions of a model for its points or for the whole cloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import Batch, DataInfo, Sample
from sightline.draw.pictures import Frame, pad_to_3d
from sightline.parts.metrics.predicted_labels import predict_labels
from sightline.view.range_images import describe_image, image_panels, prediction_panels
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.stages import ClassColoring, Coloring, RgbColoring, Stage, error_coloring, height_coloring

TRUTH = "ground truth"
"""The name of the colouring by the labels of the data."""
_CLASSES_OF = {"label": (TRUTH, "class_names"), "part": ("part", "part_names"), "instance": ("instance", "")}
"""Fields with one class per point: the name of their colouring, and the fact that names the classes."""


class CloudStages:
    """Stages of samples with `points`."""

    kind = "clouds"
    needs = frozenset({"points"})

    def __init__(self, raw: Sample, info: DataInfo, facts: Mapping[str, Any]) -> None:
        self.facts = facts
        self.frame: Frame = facts.get("up_axis", "z")
        self.whole = _sample_labels(raw, facts)
        self._unit = _unit(info)
        self._surroundings = info.surroundings

    def raw_stage(self, sample: Sample) -> Stage:
        """Build the stage of the cloud as the data set returns it."""
        return self._cloud("raw", sample, unit=self._unit)

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterator[Stage]:
        """Build the stages of the cloud after a transform.

        If a sample has two views of its object, both are shown, coloured by height only: the rows of other fields do
        not match theirs.
        """
        if "other_points" in sample:
            for view, name in (("points", "first"), ("other_points", "second")):
                yield self._cloud(f"{stage}, {name}", {"points": sample[view]})
        elif "range_image" in sample and "range_image" not in before:
            full_scan = {**sample, "label": sample["whole_label"]} if "whole_label" in sample else sample
            panels = image_panels(sample, self.facts)
            cloud = self._cloud(stage, full_scan)
            yield replace(cloud, panels=panels, description=describe_image(sample), shows="range image")
        else:
            yield self._cloud(stage, sample)

    def prediction_stages(
        self, clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], predictor: SamplePredictor
    ) -> tuple[Stage, dict[str, Any]]:
        """Build the stage of the cloud coloured by its predictions, and the figures that go with it.

        `clouds` are the stages that the model's sample went through. Raises ConfigError for a task that gives no
        probability per class.
        """
        if "probabilities" not in predictions:
            raise ConfigError(
                f"the task predicts {', '.join(sorted(predictions))}; view shows classes of clouds, and needs theirs"
            )
        cloud, figures = _prediction_stage(clouds, batch, predictions, self.facts)
        if "range_image" in batch and "seen" in predictions:
            scan: Sample = {name: batch[name][0] for name in ("range_image", "label") if name in batch}
            seen = predictions["seen"].view(batch["range_image"].shape)[0].cpu().numpy()
            cloud = replace(cloud, panels=prediction_panels(scan, seen, self.facts))
        return cloud, figures

    def _cloud(self, stage: str, sample: Sample, *, unit: str = "") -> Stage:
        points = _array(sample["points"])
        if points.ndim != 2:
            raise DataError(f"view: points have the shape {points.shape}; a cloud is (points, 2) or (points, 3)")
        width = points.shape[1]
        description = {2: "drawn at z = 0"}.get(width, f"drawn by the first 3 of {width} columns" if width > 3 else "")
        colorings = tuple(_colorings(sample, points, self.facts))
        return Stage(stage, pad_to_3d(points), colorings, unit, description, surroundings=self._surroundings)


def _colorings(sample: Sample, points: np.ndarray, facts: Mapping[str, Any]) -> Iterator[Coloring]:
    """Iterate over the colourings that the fields of a sample allow: its own colours first, height last."""
    colours, normals = sample.get("colours"), sample.get("normals")
    if colours is not None and colours.shape == points.shape:
        yield RgbColoring("colours", _to_uint8(_array(colours)))
    for field, (name, fact) in _CLASSES_OF.items():
        values = sample.get(field)
        if isinstance(values, Tensor) and values.shape == points.shape[:1] and not values.is_floating_point():
            ignored = facts.get("ignore_index") if field == "label" else None
            yield ClassColoring.from_labels(name, values.numpy(), facts.get(fact, ()), ignore_index=ignored)
    if normals is not None and normals.shape == points.shape:
        yield RgbColoring("normals", _to_uint8((_array(normals) + 1) / 2))
    yield height_coloring(pad_to_3d(points), facts.get("up_axis", "z"))


def _to_uint8(shares: np.ndarray) -> np.ndarray:
    """Convert colours from [0, 1] to uint8; values outside are clipped."""
    return (np.nan_to_num(shares).clip(0, 1) * 255).round().astype(np.uint8)


def _array(values: Tensor) -> np.ndarray:
    """Convert a tensor to an array: float64 stays float64, every other dtype becomes float32."""
    return (values if values.dtype == torch.float64 else values.float()).numpy()


def _unit(info: DataInfo) -> str:
    """Return the unit that the data set states for its raw points; after transforms the unit is unknown."""
    return info.fields["points"].unit if "points" in info.fields else ""


def _sample_labels(sample: Sample, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the class of the whole sample, or the category of an object with parts, by name."""
    labels = {}
    for field, key, fact in (("label", "class", "class_names"), ("category", "category", "category_names")):
        value = sample.get(field)
        if value is not None and np.ndim(value) == 0:
            labels[key] = _class_name(int(value), facts.get(fact, ()))
    return labels


def _class_name(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


# --- predictions -----------------------------------------------------------------------------------------------------


def _prediction_stage(
    clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Stage, dict[str, Any]]:
    prediction = predict_labels(batch, predictions, facts)[0].cpu()
    if prediction.ndim == 0:
        return _whole_prediction_stage(clouds[-1], int(prediction), batch, predictions, facts)
    target = predictions.get("target")
    labels = None if target is None else target.cpu().numpy()
    cloud = _find_predicted_cloud(clouds, len(prediction), labels)
    names, ignored = facts.get("class_names", ()), facts.get("ignore_index")
    labels_predicted = prediction.numpy()
    colorings: list[Coloring] = [ClassColoring.from_labels("prediction", labels_predicted, names)]
    figures: dict[str, Any] = {"num_points": len(labels_predicted)}
    description = ""
    if labels is not None:
        counted = labels if ignored is None else np.where(labels == ignored, -1, labels)
        error = error_coloring(labels_predicted, counted, int(facts["num_classes"]))
        truth = ClassColoring.from_labels(TRUTH, labels, names, ignore_index=ignored)
        colorings = [truth, *colorings, error]
        num_counted = int((error.codes >= 0).sum())
        figures["accuracy"] = float((error.codes == 0).sum() / num_counted) if num_counted else None
        description = f"{figures['accuracy']:.1%} of its points right" if num_counted else "no point with a label"
    without_truth = [coloring for coloring in cloud.colorings if coloring.name != TRUTH]
    stage = Stage("prediction", cloud.points, (*colorings, *without_truth), cloud.unit, description)
    return replace(stage, surroundings=cloud.surroundings), figures


def _whole_prediction_stage(
    cloud: Stage, prediction: int, batch: Batch, predictions: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Stage, dict[str, Any]]:
    """Build the stage of the cloud that the model read, with the class that it predicted."""
    names = facts.get("class_names", ())
    probability = float(predictions["probabilities"][0, prediction])
    figures: dict[str, Any] = {"class": _class_name(prediction, names), "probability": probability}
    description, is_right = f"predicted {figures['class']} ({probability:.2f})", None
    if "label" in batch:
        label = int(batch["label"][0])
        is_right = label == prediction
        figures |= {"true_class": _class_name(label, names), "is_right": is_right}
        description += ", right" if is_right else f", is {figures['true_class']}"
    return Stage("prediction", cloud.points, cloud.colorings, cloud.unit, description, is_right), figures


def _find_predicted_cloud(clouds: Sequence[Stage], num_points: int, labels: np.ndarray | None) -> Stage:
    """Find the last stage with one point per prediction and the labels of the targets: later ones were thinned."""
    for cloud in reversed(clouds):
        truth = cloud.coloring(TRUTH)
        if len(cloud.points) != num_points:
            continue
        if labels is None or not isinstance(truth, ClassColoring) or _has_labels(truth, labels):
            return cloud
    stage_sizes = ", ".join(f"{cloud.stage} {len(cloud.points)}" for cloud in clouds)
    raise DataError(f"the task predicts {num_points} points, but no stage of the sample has as many: {stage_sizes}")


def _has_labels(truth: ClassColoring, labels: np.ndarray) -> bool:
    """Return True if `labels` equal those of a colouring, except at points without a class."""
    shown = truth.labels()
    return bool(((shown == labels) | (shown < 0)).all())
