"""Predictor of the task `classify`: one class per file, with probability and margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.engine.run_loading import TrainedRun
from sightline.errors import ConfigError
from sightline.predict.clouds import CloudPredictor
from sightline.predict.predictor import Inference, ReadFile, Refusal, refuse_non_finite

__all__ = ["ClassPrediction", "ClassPredictor"]


@dataclass(frozen=True)
class ClassPrediction:
    """Predicted class of one file.

    `margin` is the highest probability minus the second; `treatment` describes what was done to the points.
    """

    file: Path
    label: int
    class_name: str
    probability: float
    margin: float
    probabilities: tuple[float, ...]
    num_points: int
    treatment: str


@registry.predictors.add("classify")
class ClassPredictor(CloudPredictor[ClassPrediction]):
    """Predictor of a `ClassPrediction` per cloud, from the `probabilities` (B, C) of the task. Source: made here."""

    reads = frozenset({"probabilities"})
    columns = ("file", "class", "probability", "margin")
    csv_columns = ("file", "class", "label", "probability", "margin", "num_points", "treatment")

    def __init__(self, *, run: TrainedRun, columns: Sequence[str] | None = None, to_sphere: bool = False) -> None:
        super().__init__(run, columns=columns, to_sphere=to_sphere)

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[ClassPrediction | Refusal]:
        """Build the prediction of each file. Raises ConfigError if the task predicts no class probabilities."""
        table = inference.predictions.get("probabilities")
        if table is None or table.ndim != 2:
            raise ConfigError(
                f"{self.run.path}: the task '{self.run.config.task.name}' predicts "
                f"{', '.join(sorted(inference.predictions))}, not one probability per class"
            )
        return [
            self._make_prediction(file, row) for file, row in zip(files, table.double().cpu().tolist(), strict=True)
        ]

    def _make_prediction(self, file: ReadFile, row: list[float]) -> ClassPrediction | Refusal:
        if not all(abs(value) <= 2 for value in row):  # NaN and infinity fail this too
            return refuse_non_finite(file.path)
        label = max(range(len(row)), key=row.__getitem__)
        next_best = max((value for index, value in enumerate(row) if index != label), default=0.0)
        names = self.run.class_names
        return ClassPrediction(
            file=file.path,
            label=label,
            class_name=names[label] if label < len(names) else str(label),
            probability=row[label],
            margin=row[label] - next_best,
            probabilities=tuple(row),
            num_points=file.source.num_points,
            treatment=file.source.treatment,
        )

    def document(self, prediction: ClassPrediction) -> dict[str, Any]:
        """Return all fields; the class name is called `class`."""
        return {
            "file": str(prediction.file),
            "class": prediction.class_name,
            "label": prediction.label,
            "probability": prediction.probability,
            "margin": prediction.margin,
            "num_points": prediction.num_points,
            "treatment": prediction.treatment,
            "probabilities": list(prediction.probabilities),
        }
