"""Scans of the user: 3D boxes predicted in them, as a table, KITTI's rows and a picture from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.areas.boxes3d.pictures import draw_from_above
from sightline.contract import registry
from sightline.contract.arguments import Count, Probability
from sightline.contract.errors import DataError, UserError
from sightline.draw.pictures import encode_png
from sightline.engine.run_loading import TrainedRun
from sightline.store.boxes3d.box_table import BoxTable, make_box_table
from sightline.store.boxes3d.conversions import FLAT_CAMERA
from sightline.store.boxes3d.image_boxes import add_image_boxes
from sightline.store.boxes3d.kitti_objects import read_calibrations
from sightline.store.boxes3d.results import format_kitti
from sightline.store.files.atomic_write import open_atomic
from sightline.store.files.input_files import expand_home
from sightline.store.files.scan_reading import NoReturn
from sightline.workbench.predict.classify import CloudPredictor
from sightline.workbench.predict.file_samples import FileSample
from sightline.workbench.predict.predictor import Inference, ReadFile, Refusal, refuse_non_finite, report_write_errors

_ENDINGS = {"picture": ".boxes.png", "kitti": ".txt"}


@dataclass(frozen=True)
class Boxes3dPrediction:
    """Boxes predicted in one scan, highest score first, in its own frame; `points` (N, 3) of the scan.

    `highest` is the largest score of all that the task predicted, also of what is not given; None without any.
    """

    file: Path
    table: BoxTable
    num_points: int
    treatment: str
    highest: float | None
    points: np.ndarray = field(repr=False)


@registry.predictors.add("detect3d")
class Box3dPredictor(CloudPredictor[Boxes3dPrediction]):
    """Predictor of a `Boxes3dPrediction` per scan, in the frame of its sensor: x to the front, y to the left, z up.

    `score` is the least score of a box that is given; the task's own `score` bounds it from below. `files` are the
    kinds of files that `--out` gets for each scan: a `picture` from above with the boxes and their headings, and
    `kitti`'s rows of 16 words. With `calibrations`, a folder of KITTI's files of the scans' names, these are in the
    frame of their camera and state image boxes, cut at the borders of an image of `image_px`, width and height; without
    it they are as of a camera that stands in the sensor, and state no image box. A scan without a calibration there is
    refused. For scans, `no_return=nan` treats points that are NaN at x, y and z as missing returns. Source: made here.
    """

    reads = frozenset({"detections3d", "detections3d_offsets"})
    columns = ("file", "points", "boxes", "classes", "highest score")

    def __init__(
        self,
        *,
        run: TrainedRun,
        columns: Sequence[str] | None = None,
        to_sphere: bool = False,
        score: Probability = 0.3,
        files: tuple[Literal["picture", "kitti"], ...] = ("picture", "kitti"),
        calibrations: str | None = None,
        image_px: tuple[Count, Count] | None = None,
        no_return: NoReturn | None = None,
    ) -> None:
        super().__init__(run, columns=columns, to_sphere=to_sphere)
        self.score, self.kinds, self.no_return = score, files, no_return
        if image_px is not None and calibrations is None:
            raise UserError("image_px= cuts boxes in an image, which calibrations=FOLDER makes; give it, too")
        cameras = {} if calibrations is None else read_calibrations(expand_home(calibrations))
        self.cameras = {name: camera._replace(image_px=image_px) for name, camera in cameras.items()}
        self.endings = tuple(_ENDINGS[kind] for kind in files)
        self.names = run.class_names or tuple(map(str, range(run.facts["num_classes"])))

    def make_extra_fields(self, path: Path, sample: FileSample) -> dict[str, Any]:
        """Return nothing. Raises DataError for a scan without a calibration, where others have one."""
        if self.cameras and path.stem not in self.cameras:
            raise DataError(f"{path}: calibrations= has none of {path.stem}; copy {path.stem}.txt there")
        return {}

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[Boxes3dPrediction | Refusal]:
        """Select the boxes of each scan that reach `score`."""
        rows = inference.predictions["detections3d"].double().cpu().numpy()
        spans = pairwise(inference.predictions["detections3d_offsets"].tolist())
        return [self._make_prediction(file, rows[slice(*span)]) for file, span in zip(files, spans, strict=True)]

    def _make_prediction(self, file: ReadFile, rows: np.ndarray) -> Boxes3dPrediction | Refusal:
        if not np.isfinite(rows).all():
            return refuse_non_finite(file.path)
        highest = float(rows[:, 7].max()) if len(rows) else None
        rows = rows[rows[:, 7] >= self.score]
        label = rows[:, 8].astype(np.int64)
        table = make_box_table(rows[:, :7], label, self.names, score=rows[:, 7].copy(), frame=file.path.stem)
        points = np.asarray(file.source.fields["points"])
        return Boxes3dPrediction(file.path, table, file.source.num_points, file.source.treatment, highest, points)

    def compact(self, prediction: Boxes3dPrediction) -> Boxes3dPrediction:
        """Return the prediction without the points."""
        return replace(prediction, points=np.zeros((0, 3), dtype=np.float32))

    def document(self, prediction: Boxes3dPrediction) -> dict[str, Any]:
        """Return the file and its boxes: centre and size in metres, yaw in radians, score and class."""
        table = prediction.table
        boxes = [
            {
                "class": self.names[label],
                "score": score,
                "centre_m": box[:3],
                "size_m": box[3:6],
                "yaw_rad": box[6],
            }
            for box, score, label in zip(table.boxes.tolist(), table.score.tolist(), table.label.tolist(), strict=True)
        ]
        return {
            "file": str(prediction.file),
            "num_points": prediction.num_points,
            "treatment": prediction.treatment,
            "highest_score": prediction.highest,
            "num_boxes": len(boxes),
            "boxes": boxes,
        }

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return the number of points and boxes, in total and of each class, and the highest score of any box."""
        found = [box["class"] for box in document["boxes"]]
        counts = ", ".join(f"{found.count(name)} {name}" for name in self.names if name in found)
        highest = document["highest_score"]
        return [document["file"], document["num_points"], len(found), counts, "" if highest is None else highest]

    def write(self, prediction: Boxes3dPrediction, name: Path) -> dict[str, Path]:
        """Write the picture and the rows, each whole or not."""
        paths: dict[str, Path] = {kind: name.with_name(name.name + _ENDINGS[kind]) for kind in self.kinds}
        for kind, path in paths.items():
            with report_write_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
            with report_write_errors(path), open_atomic(path) as file:
                file.write(self._encode(kind, prediction))
        return paths

    def _encode(self, kind: str, prediction: Boxes3dPrediction) -> bytes:
        if kind == "kitti":
            camera = self.cameras.get(prediction.table.frame)
            matrix = FLAT_CAMERA if camera is None else camera.camera_of_velodyne
            return format_kitti(add_image_boxes(prediction.table, camera), matrix).encode()
        return encode_png(draw_from_above(prediction.points, prediction.table))
