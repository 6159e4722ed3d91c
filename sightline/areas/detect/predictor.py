"""Photos of the user: boxes predicted in them, as a table, COCO results and drawn images, and their view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sightline.contract import registry
from sightline.contract.arguments import Count, FractionBelowOne, Probability
from sightline.contract.task import Tiling
from sightline.draw.boxes import DrawnBox, draw_boxes, name_class
from sightline.draw.pictures import PALETTE, encode_png
from sightline.engine.run_loading import TrainedRun
from sightline.engine.tiles import make_tiling
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.detections import Detections, ImageRef
from sightline.store.files.atomic_write import open_atomic
from sightline.store.files.image_files import DEPTH_MODES, IMAGE_SUFFIXES, read_header, read_image
from sightline.view.image_stages import picture_stage
from sightline.view.panels import ImagePanel
from sightline.view.stages import ViewedSample
from sightline.workbench.predict.predictor import (
    Inference,
    Predictor,
    ReadFile,
    Refusal,
    refuse_non_finite,
    report_write_errors,
)

_NO_BOXES = {
    "boxes": torch.zeros(0, 4),
    "label": torch.zeros(0, dtype=torch.int64),
    "is_ignored": torch.zeros(0, dtype=torch.bool),
}
"""Box fields that transforms move with the pixels, empty because a file has no labels."""


@dataclass(frozen=True)
class ImagePrediction:
    """Detections of one file, highest-scoring first, with the class names; `pixels` (H, W, 3) uint8."""

    file: Path
    detections: Detections
    class_names: tuple[str, ...]
    pixels: np.ndarray | None = field(default=None, repr=False)


@registry.predictors.add("detect")
class BoxPredictor(Predictor[ImagePrediction]):
    """Predictor of an `ImagePrediction` per image, made upright by its EXIF orientation; boxes are in its pixels.

    `score` is the minimum score of a detection, for viewing and not for evaluation. With `tile`, photos of more pixels
    in a side are also predicted in tiles of `tile` x `tile` pixels, which share at least `tile_overlap` of their sides,
    and the boxes of all are suppressed together. `--out` writes the images with their boxes, JSON also has rows in the
    form of COCO's results; image ids count the files of a document from 1.
    Source: made here.
    """

    reads = frozenset({"detections", "detection_offsets"})
    suffixes = tuple(sorted(IMAGE_SUFFIXES))
    endings = (".boxes.png",)
    hidden = frozenset({*_NO_BOXES, BOX_FIELDS["boxes"].offsets})
    noun = "image"
    columns = ("file", "boxes", "classes", "highest score")

    def __init__(
        self,
        *,
        run: TrainedRun,
        score: Probability = 0.3,
        tile: Count | None = None,
        tile_overlap: FractionBelowOne = 0.4,
    ) -> None:
        super().__init__(run=run)
        self.score = score
        self._tile: dict[str, Any] | None = None if tile is None else {"size_px": tile, "overlap": tile_overlap}
        self.fields = {name: field_spec for name, field_spec in BOX_FIELDS.items() if not name.startswith("truth")}
        self.names = run.class_names or tuple(map(str, range(run.facts["num_classes"])))
        self._numbers: dict[Path, int] = {}

    def start(self, files: Sequence[Path]) -> None:
        """Give the files numbers from 1, which are their image ids."""
        self._numbers = {file: number for number, file in enumerate(files, start=1)}

    def read(self, path: Path) -> ReadFile:
        """Read the image at its own size, without boxes."""
        orientation = read_header(path).orientation
        pixels = read_image(path, orientation=orientation)
        sample = {
            "image": torch.from_numpy(pixels),
            "to_canvas": torch.eye(3, dtype=torch.float64)[:2],
            "file_px": torch.tensor(pixels.shape[:2]),
            **_NO_BOXES,
        }
        return ReadFile(path, sample, pixels)

    def make_tiling(self, task: Any) -> Tiling | None:
        """Make the tiling of photos of more than `tile` pixels. Raises ConfigError for a task that has none."""
        if self._tile is None:
            return None
        option, name = f"tile={self._tile['size_px']}", self.run.config.task.name
        return make_tiling(task, name=name, option=option, min_score=self.score, **self._tile)

    def about(self) -> dict[str, Any]:
        """Return how large photos are tiled; empty if each is predicted as a whole."""
        return {} if self._tile is None else {"tile": self._tile}

    def sample_size(self, file: ReadFile) -> int:
        """Return the number of blocks of 8 x 8 pixels, so that a batch of photos has at most 2^24 pixels."""
        height, width = file.source.shape[:2]
        return int(height * width // 64)

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[ImagePrediction | Refusal]:
        """Select the detections of each file that reach `score`."""
        rows = inference.predictions["detections"].double().cpu().numpy()
        spans = pairwise(inference.predictions["detection_offsets"].tolist())
        return [self._make_prediction(file, rows[first:last]) for file, (first, last) in zip(files, spans, strict=True)]

    def _make_prediction(self, file: ReadFile, rows: np.ndarray) -> ImagePrediction | Refusal:
        if not np.isfinite(rows).all():
            return refuse_non_finite(file.path)
        selected = rows[rows[:, 4] >= self.score]
        height, width = file.source.shape[:2]
        image = ImageRef(file.path.stem, self._numbers.get(file.path, 1), height, width)
        detections = Detections(image, selected[:, :4], selected[:, 4], selected[:, 5].astype(np.int64))
        return ImagePrediction(file.path, detections, self.names, file.source)

    def compact(self, prediction: ImagePrediction) -> ImagePrediction:
        """Return the prediction without the pixels."""
        return ImagePrediction(prediction.file, prediction.detections, prediction.class_names)

    def document(self, prediction: ImagePrediction) -> dict[str, Any]:
        """Return the file, its size, and its boxes as in COCO's results: left, top, width, height."""
        detections = prediction.detections
        return {
            "file": str(prediction.file),
            "image_id": detections.image.image_id,
            "height": detections.image.height,
            "width": detections.image.width,
            "num_boxes": len(detections.boxes),
            "boxes": detections.to_coco(range(len(self.names))),
        }

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return the number of boxes, in total and of each class, and the highest score."""
        labels = [box["category_id"] for box in document["boxes"]]
        counts = {self.names[label]: labels.count(label) for label in sorted({*labels})}
        highest = max((box["score"] for box in document["boxes"]), default="")
        return [document["file"], len(labels), ", ".join(f"{n} {name}" for name, n in counts.items()), highest]

    def write(self, prediction: ImagePrediction, name: Path) -> dict[str, Path]:
        """Write the image with its boxes."""
        assert prediction.pixels is not None
        detections = prediction.detections
        boxes = []
        for corners, score, label in zip(detections.boxes.tolist(), detections.scores, detections.label, strict=True):
            red, green, blue = PALETTE[label % len(PALETTE)].tolist()
            boxes.append(DrawnBox(tuple(corners), (red, green, blue), name_class(label, self.names, score)))
        path = name.with_name(name.name + self.endings[0])
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with report_write_errors(path), open_atomic(path) as file:
            file.write(encode_png(draw_boxes(prediction.pixels, boxes[::-1])))
        return {"picture": path}


def view_photo(path: Path, *, name: str) -> ViewedSample | None:
    """View a photo upright, as `predict` sees it; None for a file of another kind, such as a depth image.

    Raises DataError for a damaged one.
    """
    suffix = path.suffix.lower()
    header = read_header(path) if suffix in IMAGE_SUFFIXES else None
    if header is None or header.mode in DEPTH_MODES.get(suffix, ()):
        return None
    pixels = read_image(path, orientation=header.orientation)
    height, width = pixels.shape[:2]
    turned = ", turned as its EXIF orientation says" if header.orientation > 1 else ""
    text = f"{width} x {height} pixels, {header.mode}{turned}"
    panel, figures = ImagePanel("photo", pixels, is_photo=True), {"height_px": height, "width_px": width}
    stage = picture_stage("as read", text, (panel,), figures | {"mode": header.mode})
    return ViewedSample(name, (stage,), "camera_y_down", {"file": str(path)})
