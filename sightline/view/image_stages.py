"""What there is to see of a sample that is an image, and the pictures that its task draws of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.engine.train import Task
from sightline.members import TaskMembers
from sightline.pictures import Frame
from sightline.types import Batch, DataInfo, Sample
from sightline.view.clouds import ByColor, Cloud
from sightline.view.panels import Panel
from sightline.view.predictor import Predictor

__all__ = ["ImageStages", "draws_pictures"]

_NO_POINTS = np.zeros((0, 3), dtype=np.float32)


class ImageStages:
    """The stages of samples with an `image` (1 or 3, H, W), drawn from its lowest value, dark, to its highest."""

    needs = frozenset({"image"})

    def __init__(self, raw: Sample, info: DataInfo, facts: Mapping[str, Any]) -> None:
        self.frame: Frame = "camera_y_down"
        self.whole = {
            name: f"{value.item():.4g}{f' {unit}' if (unit := info.fields[name].unit) else ''}"
            for name, value in raw.items()
            if name in info.fields and isinstance(value, Tensor) and value.ndim == 0
        }

    def raw(self, sample: Sample) -> Cloud:
        """The image as the data set gives it."""
        return self._stage("raw", sample)

    def changed(self, stage: str, before: Sample, sample: Sample) -> Iterator[Cloud]:
        """The image after a transform."""
        yield self._stage(stage, sample)

    def predicted(
        self, clouds: Sequence[Cloud], batch: Batch, predictions: Mapping[str, Any], predictor: Predictor
    ) -> tuple[Cloud, dict[str, Any]]:
        """The pictures that the task draws of the prediction, and its numbers."""
        show = TaskMembers.show.of(predictor.task)
        pictures = [] if show is None else show(batch, predictions)
        figures = {
            name: predictions[name][0].double().cpu().tolist()
            for name in sorted(TaskMembers.predicts.of(predictor.task))
            if isinstance(predictions.get(name), Tensor) and predictions[name][0].numel() == 1
        }
        text = "; ".join([*(f"{name} {value:.4g}" for name, value in figures.items()), *(p.caption for p in pictures)])
        panels = tuple(Panel(each.name, each.pixels) for each in pictures)
        return _flat("prediction", text, panels), figures

    def _stage(self, stage: str, sample: Sample) -> Cloud:
        image = sample["image"].float()
        low, high = image.min(), image.max()
        pixels = ((image - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny) * 255).round().byte()
        pixels_HWC = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
        size = f"{image.shape[2]} x {image.shape[1]} pixels, {low:.4g} to {high:.4g}"
        return _flat(stage, size, (Panel(stage, pixels_HWC),))


def draws_pictures(task: Task) -> bool:
    """Whether a task draws pictures of its predictions."""
    return TaskMembers.show.of(task) is not None


def _flat(stage: str, text: str, panels: tuple[Panel, ...]) -> Cloud:
    """A stage of pictures alone."""
    return Cloud(
        stage, _NO_POINTS, (ByColor("image", np.zeros((0, 3), dtype=np.uint8)),), description=text, panels=panels
    )
