"""One class for a whole file: its probability, and how far the next one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.engine.loading import TrainedRun
from sightline.errors import ConfigError
from sightline.predict.answers import ReadFile, Refusal
from sightline.predict.cloud_samples import FileSample
from sightline.types import Batch, Field

__all__ = ["ClassAnswers", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a run says of one file. `margin` is the highest probability less the next; `treatment` is in words."""

    file: Path
    label: int
    class_name: str
    probability: float
    margin: float
    probabilities: tuple[float, ...]
    num_points: int
    treatment: str


class ClassAnswers:
    """Makes a `Prediction` of a row of probabilities for each file.

    Raises ConfigError for a category, and for probabilities to be kept, which such runs always give.
    """

    draws_meshes = True
    hidden: frozenset[str] = frozenset()

    def __init__(self, run: TrainedRun, *, category: str | None, with_probabilities: bool) -> None:
        if category is not None or with_probabilities:
            option = "--probabilities" if category is None else f"--category {category}"
            raise ConfigError(
                f"{option}: is for runs that class points, {run.path} classes clouds and always gives its "
                "probabilities; leave it out"
            )
        self.run = run
        self.fields: dict[str, Field] = {}

    def read(self, path: Path, sample: FileSample) -> ReadFile:
        return ReadFile(path, sample._replace(origin=None), {})

    def __call__(
        self, files: Sequence[ReadFile], batch: Batch, predictions: Mapping[str, Any]
    ) -> dict[Path, Prediction | Refusal]:
        """Raises ConfigError where the task gives no probability per class."""
        table = predictions.get("probabilities")
        if table is None or table.ndim != 2:
            raise ConfigError(
                f"{self.run.path}: the task '{self.run.config.task.name}' predicts {', '.join(sorted(predictions))}, "
                "not one probability per class; predict tells classes"
            )
        rows = table.double().cpu().tolist()
        return {file.path: self._answer(file.path, file.sample, row) for file, row in zip(files, rows, strict=True)}

    def _answer(self, path: Path, sample: FileSample, row: list[float]) -> Prediction | Refusal:
        if not all(abs(value) <= 2 for value in row):  # NaN and infinity fail this too
            reason = f"{path}: the model's answer is not a finite number; are its weights sound?"
            return Refusal(path, reason, is_input=False)
        label = max(range(len(row)), key=row.__getitem__)
        next_best = max((value for index, value in enumerate(row) if index != label), default=0.0)
        names = self.run.class_names
        return Prediction(
            file=path,
            label=label,
            class_name=names[label] if label < len(names) else str(label),
            probability=row[label],
            margin=row[label] - next_best,
            probabilities=tuple(row),
            num_points=sample.num_points,
            treatment=sample.treatment,
        )
