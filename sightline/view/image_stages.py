"""Stages of an image sample, and the pictures that its task draws of a prediction."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from sightline.contract.binding import select_arguments
from sightline.contract.task import Task
from sightline.contract.types import Batch, DataInfo, Sample
from sightline.draw.boxes import COLORS, DrawnBox, draw_boxes, name_class
from sightline.draw.pictures import Frame
from sightline.view.panels import ImagePanel
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.stages import RgbColoring, Stage

_NO_POINTS = np.zeros((0, 3), dtype=np.float32)


_SLACK = 0.02


class ImageStages:
    """Stages of samples with an `image` (1 or 3, H, W) or (H, W, 3), drawn alike.

    Stages share a scale: the bounds of the field if it has any, else the lowest and highest value of the raw image. A
    stage in another unit, such as a normalised one, is drawn from its own lowest to its own highest value. Boxes are
    drawn on each stage as it is, so that a box that did not move with its pixels is seen.
    """

    kind = "images"
    needs = frozenset({"image"})

    def __init__(self, raw: Sample, info: DataInfo, facts: Mapping[str, Any]) -> None:
        self.frame: Frame = "camera_y_down"
        self.whole = {
            name: f"{value.item():.4g}{f' {unit}' if (unit := info.fields[name].unit) else ''}"
            for name, value in raw.items()
            if name in info.fields and isinstance(value, Tensor) and value.ndim == 0
        }
        promise, values = info.fields.get("image"), raw["image"].float()
        low = values.min().item() if promise is None or promise.low is None else promise.low
        high = values.max().item() if promise is None or promise.high is None else promise.high
        self._low, self._high = low, high
        self._class_names: Sequence[str] = facts.get("class_names", ())
        self.pixels = self._draw(raw["image"])
        """Pixels (H, W, 3) uint8 of the stage that was drawn last, without boxes."""

    def raw_stage(self, sample: Sample) -> Stage:
        """Build the stage of the image as the data set returns it."""
        return self._stage("raw", sample)

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterator[Stage]:
        """Build the stage of the image after a transform."""
        yield self._stage(stage, sample)

    def prediction_stages(
        self, clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], predictor: SamplePredictor
    ) -> tuple[Stage, dict[str, Any]]:
        """Build the stage of the pictures that the task draws of the prediction, and return its numbers."""
        show = predictor.task.show
        optional_arguments = {"pixels": self.pixels, **({} if predictor.score is None else {"score": predictor.score})}
        pictures = [] if show is None else show(batch, predictions, **select_arguments(show, optional_arguments))
        figures = {
            name: predictions[name][0].double().cpu().tolist()
            for name in sorted(predictor.task.predicts)
            if isinstance(predictions.get(name), Tensor) and len(predictions[name]) == predictions[name].numel() == 1
        }
        text = "; ".join([*(f"{name} {value:.4g}" for name, value in figures.items()), *(p.caption for p in pictures)])
        panels = tuple(ImagePanel(picture.name, picture.pixels, is_photo=True) for picture in pictures)
        return picture_stage("prediction", text, panels), figures

    def _draw(self, image: Tensor) -> np.ndarray:
        """Draw an image as pixels (H, W, 3) uint8, in the scale of all stages if its values are within it."""
        values, low, high = _rows_of_colors(image), self._low, self._high
        slack = _SLACK * (high - low)
        is_within = values.min() >= low - slack and values.max() <= high + slack
        if not is_within or (0 < np.ptp(values) < slack):
            low, high = float(values.min()), float(values.max())
        span = max(high - low, float(np.finfo(np.float32).tiny))
        return ((values.astype(np.float64) - low) / span * 255).clip(0, 255).round().astype(np.uint8)

    def _stage(self, stage: str, sample: Sample) -> Stage:
        image = sample["image"]
        self.pixels = self._draw(image)
        low, high = image.float().min(), image.float().max()
        pixels = self.pixels
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels, {low:.4g} to {high:.4g}"
        if "boxes" in sample:
            boxes = _sample_boxes(sample, self._class_names)
            pixels, size = draw_boxes(pixels, boxes), f"{size}, {len(boxes)} boxes"
        return picture_stage(stage, size, (ImagePanel(stage, pixels, is_photo=True),))


def _rows_of_colors(image: Tensor) -> np.ndarray:
    """Convert an image (1 or 3, H, W) or (H, W, 3) to (H, W, 3) float32."""
    values = image.float()
    return (values if values.shape[0] not in (1, 3) else values.expand(3, -1, -1).permute(1, 2, 0)).numpy()


def _sample_boxes(sample: Sample, class_names: Sequence[str]) -> list[DrawnBox]:
    """Build the drawn boxes of a sample: green with the name of their class, and hatched grey if they are ignored."""
    count = len(sample["boxes"])
    ignored = sample["is_ignored"].tolist() if "is_ignored" in sample else [False] * count
    labels = sample["label"].tolist() if "label" in sample and sample["label"].shape == (count,) else [-1] * count
    boxes = [
        DrawnBox(tuple(corners), COLORS["ignored"], style="hatched")
        if is_ignored
        else DrawnBox(tuple(corners), COLORS["truth"], name_class(label, class_names))
        for corners, is_ignored, label in zip(sample["boxes"].tolist(), ignored, labels, strict=True)
    ]
    return sorted(boxes, key=lambda box: box.style)


def target_stages(
    task: Task, batch: Batch, *, pixels: np.ndarray | None = None, all_stages: bool = False, is_trained: bool = False
) -> Iterator[Stage]:
    """Build the stages of a task's targets (such as an assignment) if it draws them, on `pixels` (H, W, 3) uint8.

    `all_stages` also builds those that are to be compared with the task's own. `is_trained`: the task's model has the
    weights of a run.
    """
    show_targets = task.show_targets
    if show_targets is None:
        return
    optional = {"all_stages": all_stages, "is_trained": is_trained} | ({} if pixels is None else {"pixels": pixels})
    for stage, (pictures, figures) in show_targets(batch, **select_arguments(show_targets, optional)).items():
        panels = tuple(
            ImagePanel(picture.name, picture.pixels, is_photo=not picture.is_drawing, is_large=picture.is_drawing)
            for picture in pictures
        )
        text = "; ".join(f"{picture.name}: {picture.caption}" for picture in pictures)
        if len(panels) == 1:  # with room for the beginning of its caption
            panels = (replace(panels[0], caption=text.partition(";")[0]),)
        yield picture_stage(stage, text, panels, figures)


def has_more_targets(task: Task) -> bool:
    """Return True if a task draws more of its targets where all stages are asked for."""
    return task.show_targets is not None and "all_stages" in inspect.signature(task.show_targets).parameters


def draws_pictures(task: Task) -> bool:
    """Return True if a task draws pictures of its predictions."""
    return task.show is not None


def takes_score(task: Task) -> bool:
    """Return True if a task can draw only detections above a given score."""
    show = task.show
    return show is not None and "score" in inspect.signature(show).parameters


def picture_stage(
    stage: str, text: str, panels: tuple[ImagePanel, ...], figures: Mapping[str, Any] | None = None
) -> Stage:
    """Build a stage that has pictures only."""
    none = RgbColoring("image", np.zeros((0, 3), dtype=np.uint8))
    return Stage(stage, _NO_POINTS, (none,), description=text, panels=panels, figures=figures or {})
