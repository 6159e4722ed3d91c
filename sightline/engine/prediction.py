"""Classes for the user's own files: read as the run's data was, transformed as for evaluation, batched by size."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline import registry
from sightline.binding import Offer, outputs_of
from sightline.data.cloud_files import CLOUD_SUFFIXES, told_passed_over
from sightline.data.cloud_samples import FileSample, read_sample
from sightline.data.reading import Pipeline
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.inputs import read_inputs
from sightline.engine.loading import LoadedRun
from sightline.engine.precision import Precision
from sightline.errors import ConfigError, DataError, UserError
from sightline.types import Batch, SampleKey

__all__ = ["Prediction", "Predictions", "Refusal", "files_of", "predict_files"]

logger = logging.getLogger(__name__)
_MAX_WAITING_BATCHES = 8
"""So many batches' worth of clouds of different sizes may wait for others of their size."""


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


@dataclass(frozen=True)
class Refusal:
    """A file that got no prediction, and why; `is_input` where the file is the cause, not the model."""

    file: Path
    reason: str
    is_input: bool = True


@dataclass(frozen=True)
class Predictions:
    """Every file given, in one of the two lists, each in the order of the files."""

    predicted: tuple[Prediction, ...]
    refused: tuple[Refusal, ...]

    @property
    def exit_code(self) -> int:
        """0 where every file got a prediction, 2 where an input was refused, else 1: the model answered no number."""
        if any(refusal.is_input for refusal in self.refused):
            return 2
        return 1 if self.refused else 0


def files_of(paths: Iterable[Path]) -> tuple[list[Path], list[Refusal]]:
    """The files named and, sorted, every cloud file in and below the folders named, each once; and what is not there.

    A file that is named is never passed over, whatever its ending; those of other kinds in a folder are told.
    """
    files: dict[Path, None] = {}
    refused = []
    for path in paths:
        if not path.is_dir():
            files.setdefault(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in CLOUD_SUFFIXES and p.is_file())
        files |= dict.fromkeys(inside)
        if passed_over := told_passed_over(path):
            logger.warning("%s: %s", path, passed_over)
        if not inside:
            refused.append(Refusal(path, f"{path}: holds no file of the kinds {', '.join(CLOUD_SUFFIXES)}"))
    return list(files), refused


def predict_files(
    run: LoadedRun,
    paths: Iterable[Path],
    *,
    world: World | None = None,
    batch_size: int | None = None,
    columns: Sequence[str] | None = None,
    to_sphere: bool = False,
) -> Predictions:
    """One prediction per file, by the run's own preparation, evaluation transforms and weights; one pass, no votes.

    A file's prediction does not depend on the others. One that is damaged or outside what the run was trained on is
    refused with its reason, and the others go on. `columns` names the columns of files without names; `to_sphere`
    moves every cloud to its mean and scales it to radius 1. `batch_size` is that of evaluation where it is None.
    Raises ConfigError for a run whose data, model or task takes no clouds or gives no classes.
    """
    files, refused = files_of(paths)
    classifier = _Classifier(run, world or World(), columns=columns, to_sphere=to_sphere)
    size = batch_size or run.config.evaluate.batch_size
    try:
        answers = _answers(classifier, files, size)
    finally:
        run.model.cpu()  # where a loaded run promises it to be
    found = [answers[path] for path in files]
    refused += [answer for answer in found if isinstance(answer, Refusal)]
    return Predictions(tuple(answer for answer in found if isinstance(answer, Prediction)), tuple(refused))


def _answers(classifier: _Classifier, files: Sequence[Path], size: int) -> dict[Path, Prediction | Refusal]:
    """The answer to every file; read one by one, so that only batches of them are held in memory."""
    answers: dict[Path, Prediction | Refusal] = {}
    waiting: dict[int, list[tuple[Path, FileSample]]] = {}
    for path in files:
        try:
            sample = classifier.read(path)
        except DataError as error:
            answers[path] = Refusal(path, str(error))
        else:
            waiting.setdefault(sample.num_points, []).append((path, sample))
        for group in _ready(waiting, size):
            answers |= classifier(group)
    for group in waiting.values():
        answers |= classifier(group)
    return answers


def _ready(waiting: dict[int, list[tuple[Path, FileSample]]], size: int) -> Iterator[list[tuple[Path, FileSample]]]:
    """Groups of clouds of one size that are full, or the largest where too many clouds wait."""
    for num_points in [n for n, group in waiting.items() if len(group) >= size]:
        yield waiting.pop(num_points)
    if sum(map(len, waiting.values())) >= _MAX_WAITING_BATCHES * size:
        yield waiting.pop(max(waiting, key=lambda num_points: len(waiting[num_points])))


class _Classifier:
    """A run on a device, with what its evaluation does to a batch."""

    def __init__(self, run: LoadedRun, world: World, *, columns: Sequence[str] | None, to_sphere: bool) -> None:
        self.run = run
        self.device = world.device
        self.precision = Precision(run.config.train.precision)
        self.info = read_inputs(run.path, run.config)
        self.columns = columns
        self.to_sphere = to_sphere
        if "points" not in self.info.fields:
            raise ConfigError(
                f"{run.path}: was trained on {', '.join(self.info.fields)}, not on points; predict takes clouds"
            )
        # A run whose own transforms normalise gives one answer at every scale.
        self.any_scale = any(transform.name == "normalize_unit_sphere" for transform in run.transforms)
        keys = {"points", *self.info.features, "sample_index"}
        self.pipeline = Pipeline(run.transforms, keys, source="a cloud from a file")
        self.model = run.model.to(self.device)
        self.task = _task_of(run, keys | ({"features"} if self.info.features else set()))

    def read(self, path: Path) -> FileSample:
        return read_sample(path, self.info, columns=self.columns, to_sphere=self.to_sphere, any_scale=self.any_scale)

    def __call__(self, group: Sequence[tuple[Path, FileSample]]) -> dict[Path, Prediction | Refusal]:
        """The answer to each file of a group of one size; what the model refuses, it refuses for all of them."""
        try:
            predictions = self._predict([path for path, _ in group], [sample for _, sample in group])
        except (UserError, ValueError) as error:
            told = " ".join(str(error).split())
            return {path: Refusal(path, f"{path}: the model takes no such cloud: {told}") for path, _ in group}
        table = _probabilities(predictions, self.run)
        return {
            path: self._answer(path, sample, row) for (path, sample), row in zip(group, table.tolist(), strict=True)
        }

    def _predict(self, paths: Sequence[Path], samples: Sequence[FileSample]) -> Mapping[str, Any]:
        keys = [SampleKey(_index_of(path), 0, self.run.config.seed) for path in paths]
        batch: Batch = {
            name: torch.stack([torch.from_numpy(sample.fields[name]) for sample in samples])
            for name in samples[0].fields
        }
        batch["sample_index"] = torch.tensor([key.index for key in keys], dtype=torch.int64)
        batch = self.pipeline(batch, keys)
        if self.info.features:
            batch = {**batch, "features": torch.cat([batch[name] for name in self.info.features], dim=-1)}
        batch = to_device(batch, self.device, floats=self.precision.parameters)
        with torch.no_grad(), self.precision.autocast(self.device):
            return self.task.predict(self.model, batch)

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


def _task_of(run: LoadedRun, keys: set[str]) -> Any:
    """The run's task without losses, bound to what a file can offer."""
    owner = f"model '{run.config.model.name}'"
    wiring = {
        "model": run.model,
        "losses": {},
        "batch_keys": Offer("a cloud from a file", frozenset(keys)),
        "output_keys": Offer(owner, outputs_of(run.model.forward, owner=owner)),
    }
    return registry.tasks.build(run.config.task, facts={**run.facts, **wiring})


def _probabilities(predictions: Mapping[str, Any], run: LoadedRun) -> torch.Tensor:
    table = predictions.get("probabilities")
    if table is None or table.ndim != 2:
        raise ConfigError(
            f"{run.path}: the task '{run.config.task.name}' predicts {', '.join(sorted(predictions))}, not one "
            "probability per class; predict tells classes"
        )
    return table.double().cpu()


def _index_of(path: Path) -> int:
    """Stands for a sample's index where transforms draw: of the file's name alone, whatever else is predicted."""
    return int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:7], "little")
