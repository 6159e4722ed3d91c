"""Boxes in image files: a table, COCO's file of results, and the images with the boxes drawn on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline import registry
from sightline.arguments import Probability
from sightline.box_pictures import DrawnBox, draw_boxes
from sightline.data.boxes.detections import Detections, ImageRef
from sightline.data.boxes.records import BOX_FIELDS
from sightline.data.files.atomic_write import open_atomic
from sightline.data.files.image_files import IMAGE_SUFFIXES, read_header, read_image
from sightline.engine.run_loading import TrainedRun
from sightline.pictures import PALETTE, encode_png
from sightline.predict.output_names import report_write_errors
from sightline.predict.predictor import Inference, Predictor, ReadFile, Refusal, refuse_non_finite

__all__ = ["BoxPredictor", "ImagePrediction"]

_OF_BOXES = {
    "boxes": torch.zeros(0, 4),
    "label": torch.zeros(0, dtype=torch.int64),
    "is_ignored": torch.zeros(0, dtype=torch.bool),
}
"""What transforms move with the pixels; a file has none of it."""


@dataclass(frozen=True)
class ImagePrediction:
    """The boxes found in one file, the surest first, and the class of each by its name; `pixels` (H, W, 3) uint8."""

    file: Path
    detections: Detections
    class_names: tuple[str, ...]
    pixels: np.ndarray | None = field(default=None, repr=False)


@registry.predictors.add("detect")
class BoxPredictor(Predictor[ImagePrediction]):
    """An `ImagePrediction` for each image, turned upright as its EXIF data say; boxes are in its pixels.

    `score` is the least one of what is kept: for looking at, not for scoring. `--out` has the images with their boxes,
    JSON also rows as COCO's files of results have them; image ids count the files of a document from 1.
    Source: made here.
    """

    reads = frozenset({"detections", "detection_offsets"})
    suffixes = tuple(sorted(IMAGE_SUFFIXES))
    endings = (".boxes.png",)
    hidden = frozenset({*_OF_BOXES, BOX_FIELDS["boxes"].offsets})
    noun = "image"
    columns = ("file", "boxes", "classes", "highest score")
    csv_columns = ("file", "height", "width", "num_boxes")

    def __init__(self, *, run: TrainedRun, score: Probability = 0.3) -> None:
        super().__init__(run=run)
        self.score = score
        self.fields = {name: each for name, each in BOX_FIELDS.items() if not name.startswith("truth")}
        self.names = run.class_names or tuple(map(str, range(run.facts["num_classes"])))
        self._numbers: dict[Path, int] = {}

    def start(self, files: Sequence[Path]) -> None:
        """The number of each file is its image id."""
        self._numbers = {file: number for number, file in enumerate(files, start=1)}

    def read(self, path: Path) -> ReadFile:
        """The image at its own size, without boxes."""
        pixels = read_image(path, orientation=read_header(path).orientation)
        sample = {
            "image": torch.from_numpy(pixels),
            "to_canvas": torch.eye(3, dtype=torch.float64)[:2],
            "file_px": torch.tensor(pixels.shape[:2]),
            **_OF_BOXES,
        }
        return ReadFile(path, sample, pixels)

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[ImagePrediction | Refusal]:
        """The detections of each file that reach `score`."""
        rows = inference.predictions["detections"].double().cpu().numpy()
        spans = pairwise(inference.predictions["detection_offsets"].tolist())
        return [self._of(file, rows[first:last]) for file, (first, last) in zip(files, spans, strict=True)]

    def _of(self, file: ReadFile, rows: np.ndarray) -> ImagePrediction | Refusal:
        if not np.isfinite(rows).all():
            return refuse_non_finite(file.path)
        sure = rows[rows[:, 4] >= self.score]
        height, width = file.source.shape[:2]
        image = ImageRef(file.path.stem, self._numbers.get(file.path, 1), height, width)
        found = Detections(image, sure[:, :4], sure[:, 4], sure[:, 5].astype(np.int64))
        return ImagePrediction(file.path, found, self.names, file.source)

    def compact(self, prediction: ImagePrediction) -> ImagePrediction:
        """Without the pixels."""
        return ImagePrediction(prediction.file, prediction.detections, prediction.class_names)

    def document(self, prediction: ImagePrediction) -> dict[str, Any]:
        """The file, its size, and its boxes as COCO's files of results have them: left, top, width, height."""
        found = prediction.detections
        return {
            "file": str(prediction.file),
            "image_id": found.image.image_id,
            "height": found.image.height,
            "width": found.image.width,
            "num_boxes": len(found.boxes),
            "boxes": found.to_coco(range(len(self.names))),
        }

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """How many boxes there are of each class."""
        labels = [box["category_id"] for box in document["boxes"]]
        counts = {self.names[label]: labels.count(label) for label in sorted({*labels})}
        highest = max((box["score"] for box in document["boxes"]), default="")
        return [document["file"], len(labels), ", ".join(f"{n} {name}" for name, n in counts.items()), highest]

    def write(self, prediction: ImagePrediction, name: Path) -> dict[str, Path]:
        """The image with its boxes."""
        assert prediction.pixels is not None
        found = prediction.detections
        boxes = []
        for corners, score, label in zip(found.boxes.tolist(), found.scores, found.label, strict=True):
            red, green, blue = PALETTE[label % len(PALETTE)].tolist()
            boxes.append(DrawnBox(tuple(corners), (red, green, blue), f"{self.names[label]} {score:.2f}"))
        path = name.with_name(name.name + self.endings[0])
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with report_write_errors(path), open_atomic(path) as file:
            file.write(encode_png(draw_boxes(prediction.pixels, boxes[::-1])))
        return {"picture": path}
