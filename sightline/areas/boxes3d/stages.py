"""Stages of LiDAR frames with 3D boxes: the turning cloud with the edges of boxes, and the frame from above."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sightline.areas.boxes3d.pictures import draw_from_above, list_box_figures
from sightline.areas.boxes3d.predicted_frames import SHOWN_SCORE, read_frame
from sightline.contract.types import Batch, Sample
from sightline.draw.boxes import name_class
from sightline.draw.pictures import INK
from sightline.ops import points_in_boxes
from sightline.store.boxes3d.box_sample import read_table
from sightline.store.boxes3d.box_table import BoxTable
from sightline.view.cloud_stages import CloudStages
from sightline.view.panels import ImagePanel
from sightline.view.sample_predictor import SamplePredictor
from sightline.view.stages import ClassColoring, Stage


class BoxStages(CloudStages):
    """Stages of samples with `points` and the 3D `boxes` of objects among them."""

    kind = "boxes in clouds"
    needs = frozenset({"points", "boxes"})

    def raw_stage(self, sample: Sample) -> Stage:
        """Build the stage of the cloud and its boxes as the data set returns them."""
        return self._add_boxes(self._cloud("raw", _without_boxes(sample), unit=self._unit), sample)

    def after_transform(self, stage: str, before: Sample, sample: Sample) -> Iterator[Stage]:
        """Build the stage of the cloud and its boxes after a transform."""
        yield self._add_boxes(self._cloud(stage, _without_boxes(sample)), sample)

    def prediction_stages(
        self, clouds: Sequence[Stage], batch: Batch, predictions: Mapping[str, Any], predictor: SamplePredictor
    ) -> tuple[Stage, dict[str, Any]]:
        """Build the stage of the cloud with predicted boxes beside the labels, which are dark."""
        if "detections3d" not in predictions:
            return super().prediction_stages(clouds, batch, predictions, predictor)
        score = SHOWN_SCORE if predictor.score is None else predictor.score
        frame = read_frame(predictions, tuple(self.facts.get("class_names", ())), score=score)
        points = np.asarray(clouds[-1].points, dtype=np.float32)
        figures = {**frame.counts, "score": score, "not_drawn": frame.num_hidden}
        stage = replace(
            clouds[-1],
            stage="prediction",
            description=frame.description,
            skeletons=(
                *list_box_figures(frame.labels, word="labels", color=INK),
                *list_box_figures(frame.found, word="predicted"),
            ),
            panels=(ImagePanel("from above", draw_from_above(points, frame.labels, frame.found), is_large=True),),
            figures=figures,
        )
        return stage, figures

    def _add_boxes(self, stage: Stage, sample: Sample) -> Stage:
        names = tuple(self.facts.get("class_names", ()))
        table = read_table(sample, names)
        points = np.asarray(stage.points, dtype=np.float32)
        boxes = torch.tensor(table.boxes, dtype=torch.float32)
        inside = points_in_boxes(torch.from_numpy(points), boxes, frame="lidar").numpy()
        labels = np.append(np.where(table.is_ignored, -1, table.label), -1)[inside]
        return replace(
            stage,
            colorings=(*stage.colorings, ClassColoring.from_labels("class of the box", labels, names)),
            description="; ".join(text for text in (stage.description, _describe(table)) if text),
            skeletons=list_box_figures(table),
            panels=(ImagePanel("from above", draw_from_above(points, table), is_large=True),),
            figures={"num_boxes": len(table), "num_points_in_boxes": int((inside >= 0).sum())},
        )


def _without_boxes(sample: Sample) -> Sample:
    """Return the fields of points: those of boxes may have as many rows by chance."""
    return {name: value for name, value in sample.items() if name not in ("label", "is_ignored")}


def _describe(table: BoxTable) -> str:
    """Count the boxes of each class, and the ignored ones."""
    counts = Counter(
        "ignored" if is_ignored else name_class(label, table.class_names) or "of no class"
        for label, is_ignored in zip(table.label.tolist(), table.is_ignored.tolist(), strict=True)
    )
    named = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{len(table)} boxes: {named}" if named else "no boxes"
