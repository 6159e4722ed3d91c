"""What there is to see of a sample that is an image, and the pictures that its task draws of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from sightline.box_pictures import Box, draw_boxes
from sightline.engine.train import Task
from sightline.members import TaskMembers
from sightline.pictures import Frame, stretched
from sightline.tasks.box_stages import COLORS
from sightline.types import Batch, DataInfo, Sample
from sightline.view.clouds import ByColor, Cloud
from sightline.view.panels import Panel
from sightline.view.predictor import Predictor

__all__ = ["ImageStages", "draws_pictures", "target_stages"]

_NO_POINTS = np.zeros((0, 3), dtype=np.float32)


class ImageStages:
    """The stages of samples with an `image` (1 or 3, H, W) or (H, W, 3), from its lowest value, dark, to its highest.

    Boxes are drawn on it; each stage is drawn as it is, so that a box that did not move with its pixels is seen.
    """

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
            if isinstance(predictions.get(name), Tensor) and len(predictions[name]) == predictions[name].numel() == 1
        }
        text = "; ".join([*(f"{name} {value:.4g}" for name, value in figures.items()), *(p.caption for p in pictures)])
        panels = tuple(Panel(each.name, each.pixels) for each in pictures)
        return _flat("prediction", text, panels), figures

    def _stage(self, stage: str, sample: Sample) -> Cloud:
        image = sample["image"].float()
        rows_of_colors = image if image.shape[0] not in (1, 3) else image.expand(3, -1, -1).permute(1, 2, 0)
        pixels, low, high = stretched(rows_of_colors.numpy()), image.min(), image.max()
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels, {low:.4g} to {high:.4g}"
        if "boxes" in sample:
            pixels, size = draw_boxes(pixels, _boxes(sample)), f"{size}, {len(sample['boxes'])} boxes"
        return _flat(stage, size, (Panel(stage, pixels),))


def _boxes(sample: Sample) -> list[Box]:
    """The boxes of a sample: green, and hatched grey where they are ignored."""
    ignored = sample["is_ignored"].tolist() if "is_ignored" in sample else [False] * len(sample["boxes"])
    truth, hidden = Box((), COLORS["truth"]), Box((), COLORS["ignored"], style="hatched")
    corners = map(tuple, sample["boxes"].tolist())
    found = [replace(hidden if each else truth, corners=own) for own, each in zip(corners, ignored, strict=True)]
    return sorted(found, key=lambda box: box.style)


def target_stages(task: Task, batch: Batch) -> Iterator[Cloud]:
    """What a task works out of a batch before the forward pass, where it draws that."""
    show_targets = TaskMembers.show_targets.of(task)
    for stage, (pictures, figures) in ({} if show_targets is None else show_targets(batch)).items():
        panels = tuple(Panel(each.name, each.pixels) for each in pictures)
        text = "; ".join(f"{each.name}: {each.caption}" for each in pictures)
        yield _flat(stage, text, panels, figures)


def draws_pictures(task: Task) -> bool:
    """Whether a task draws pictures of its predictions."""
    return TaskMembers.show.of(task) is not None


def _flat(stage: str, text: str, panels: tuple[Panel, ...], figures: Mapping[str, Any] | None = None) -> Cloud:
    """A stage of pictures alone."""
    none = ByColor("image", np.zeros((0, 3), dtype=np.uint8))
    return Cloud(stage, _NO_POINTS, (none,), description=text, panels=panels, figures=figures or {})
