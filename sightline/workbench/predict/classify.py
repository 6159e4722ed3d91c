"""Predictor of the task `classify`: one class per cloud, with probability and margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.engine.run_loading import TrainedRun
from sightline.store.files.cloud_files import CLOUD_SUFFIXES
from sightline.store.files.scan_reading import SCAN_SUFFIXES, NoReturn
from sightline.workbench.predict.file_samples import FileSample, read_sample, read_scan_sample, scan_inputs
from sightline.workbench.predict.predictor import Inference, Predictor, ReadFile, Refusal, refuse_non_finite

Prediction = TypeVar("Prediction")


class CloudPredictor(Predictor[Prediction]):
    """Base class of predictors that read clouds as the run's data were prepared.

    `columns` names the columns of files without names; `to_sphere` centres every cloud and scales it to
    radius 1. Raises ConfigError for a run that was not trained on points.
    """

    suffixes = CLOUD_SUFFIXES
    noun = "cloud"
    draws_meshes = True
    """True if points are sampled from a mesh, False if its vertices are the points."""
    no_return: NoReturn | None = None

    def __init__(self, run: TrainedRun, *, columns: Sequence[str] | None, to_sphere: bool) -> None:
        super().__init__(run=run)
        if "points" not in self.info.fields:
            raise ConfigError(
                f"{run.path}: was trained on {', '.join(self.info.fields)}, not on points; predict takes clouds"
            )
        self.fields = {name: self.info.fields[name] for name in ("points", *self.info.features)}
        if self.info.scans is not None:
            if to_sphere:
                raise ConfigError("--unit-sphere: the run was trained on scans, whose size has a meaning; leave it out")
            self.noun, self.suffixes = "scan", SCAN_SUFFIXES
            self.fields = scan_inputs(self.info, run.config)
        self._file_fields = self.fields
        self.columns_of_files = columns
        self.to_sphere = to_sphere
        # A run whose own transforms normalise predicts the same at every scale.
        self.any_scale = any(block.name == "normalize_unit_sphere" for block in run.config.transforms.evaluate)

    def read(self, path: Path) -> ReadFile:
        """Read the sample of a file, with the extra fields; `source` is its `FileSample`."""
        if self.info.scans is not None:
            sample = read_scan_sample(
                path,
                self.info,
                self._file_fields,
                columns=self.columns_of_files,
                no_return=self.no_return,
            )
        else:
            sample = read_sample(
                path,
                self.info,
                columns=self.columns_of_files,
                to_sphere=self.to_sphere,
                any_scale=self.any_scale,
                draws_meshes=self.draws_meshes,
                name=self.draw_name(path),
            )
        return ReadFile(path, {**sample.fields, **self.make_extra_fields(path, sample)}, sample)

    def make_extra_fields(self, path: Path, sample: FileSample) -> dict[str, Any]:
        """Make the fields that are not read from the file. Raises DataError for a file that lacks their source."""
        return {}

    def sample_size(self, file: ReadFile) -> int:
        """Return the number of points."""
        return int(file.source.num_points)


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
