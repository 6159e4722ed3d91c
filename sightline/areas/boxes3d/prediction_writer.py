"""Files of an evaluation's 3D detections: our own form, and KITTI's rows for frames with a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.boxes3d.metrics.rows import DetectionColumn
from sightline.areas.boxes3d.scored_frames import LabelledFrames
from sightline.contract.metric import sorted_rows
from sightline.contract.types import Batch
from sightline.engine.distributed import World
from sightline.engine.evaluate import Evaluation
from sightline.engine.run_data import DataSubset
from sightline.store.boxes3d.box_table import BoxTable, make_box_table
from sightline.store.boxes3d.image_boxes import add_image_boxes, make_image_boxes
from sightline.store.boxes3d.results import OWN_JSON, format_json, format_kitti
from sightline.workbench.evaluate.saved_predictions import MANIFEST

__all__ = ["Box3dWriter"]

_KITTI_FOLDER = "kitti"
_NUM_COLUMNS = (9, 5)
"""Of `detections3d`, and of `detections3d_image`."""


class Box3dWriter:
    """Writer of an evaluation's 3D detections as `boxes3d.json`, called by an `Evaluator` batch by batch.

    Frames with a calibration get `kitti/FRAME.txt` too, their image boxes from their camera where a task predicts none.
    Each record names its frame, one without detections, too. The manifest is written last.
    """

    writes = "detections3d"
    """Predictions of a task that are written."""

    def __init__(self, path: Path, part: DataSubset, world: World) -> None:
        self.path = path
        self._part, self._world = part, world
        self._rows: list[Tensor] = [torch.zeros(0, 1 + sum(_NUM_COLUMNS), dtype=torch.float64)]
        self._directory = world.run_directory(path)
        self._directory.remove(MANIFEST)

    def __call__(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """Store the detections of a batch."""
        rows = predictions["detections3d"].double().cpu()
        image = predictions.get("detections3d_image")
        image = rows.new_full((len(rows), _NUM_COLUMNS[1]), torch.nan) if image is None else image.double().cpu()
        index = batch["sample_index"].cpu().repeat_interleave(predictions["detections3d_offsets"].cpu().diff())
        self._rows.append(torch.cat([index.double()[:, None], rows, image], dim=1))

    def finish(self, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
        """Write all frames of the part, and the manifest, which begins with `about`. Called on every process."""
        gathered, _ = self._world.gather_rows(torch.cat(self._rows).to(self._world.device), operation="detections")
        rows = sorted_rows(gathered).cpu().numpy()
        names = tuple(self._part.dataset.info.facts["class_names"])
        tables = {}
        for index in map(int, self._part.indices):
            frame, dataset = self._part.sample_name(index), self._part.dataset
            tables[frame] = _make_table(rows[rows[:, 0] == index, 1:], names, frame)
            calibration = dataset.calibration(index) if isinstance(dataset, LabelledFrames) else None
            if calibration is not None:
                text = format_kitti(add_image_boxes(tables[frame], calibration), calibration.camera_of_velodyne)
                self._directory.write_text(f"{_KITTI_FOLDER}/{frame}.txt", text)
        self._directory.write_text(OWN_JSON, format_json(tables))
        counts = {"num_frames": len(tables), "num_detections": len(rows), "file": OWN_JSON}
        self._directory.write_json(MANIFEST, {**about, "class_names": list(names), **counts})


def _make_table(rows: np.ndarray, names: tuple[str, ...], frame: str) -> BoxTable:
    image = rows[:, _NUM_COLUMNS[0] :]
    return make_box_table(
        rows[:, DetectionColumn.BOX],
        rows[:, DetectionColumn.CLASS].astype(np.int64),
        names,
        score=rows[:, DetectionColumn.SCORE].copy(),
        frame=frame,
        image=None if np.isnan(image).all() else make_image_boxes(image),
    )
