"""Answers for the user's own files: read as the run's data was, transformed as for evaluation, batched by size."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sightline import registry
from sightline.binding import Offer, outputs_of
from sightline.data.cloud_files import CLOUD_SUFFIXES, told_passed_over
from sightline.data.cloud_samples import read_sample
from sightline.data.collate import batch_keys
from sightline.data.reading import BatchReader, Pipeline
from sightline.engine.answers import Answers, Predictions, ReadFile, Refusal
from sightline.engine.class_answers import ClassAnswers, Prediction
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.inputs import read_inputs
from sightline.engine.loading import LoadedRun
from sightline.engine.point_answers import PointAnswers, SegmentPrediction
from sightline.engine.precision import Precision
from sightline.errors import ConfigError, DataError, UserError
from sightline.types import Batch, DataInfo, Sample, SampleKey

__all__ = [
    "Prediction",
    "Predictions",
    "Refusal",
    "SegmentPrediction",
    "answers_points",
    "files_of",
    "predict_each",
    "predict_files",
]

logger = logging.getLogger(__name__)
_MAX_WAITING_BATCHES = 8
"""So many batches' worth of clouds of different sizes may wait for others of their size."""
_MOST_POINTS = 2**18
"""So many points go through the model at once, whatever the batch size, unless a single cloud has more; twice as many
may wait."""


def answers_points(run: LoadedRun) -> bool:
    """Whether a run says a class for every point of a cloud, not for the cloud."""
    return "cloud_offsets" in getattr(registry.tasks.entry(run.config.task).builder, "predicts", ())


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
    category: str | None = None,
    with_probabilities: bool = False,
) -> Predictions[Any]:
    """The answer to each file, all of them in memory: a `Prediction`, or a `SegmentPrediction` of a run on points.

    Arguments and errors are those of `predict_each`; `paths` may be folders.
    """
    files, refused = files_of(paths)
    answers = dict(
        predict_each(
            run,
            files,
            world=world,
            batch_size=batch_size,
            columns=columns,
            to_sphere=to_sphere,
            category=category,
            with_probabilities=with_probabilities,
        )
    )
    found = [answers[path] for path in files]
    refused += [answer for answer in found if isinstance(answer, Refusal)]
    return Predictions(tuple(answer for answer in found if not isinstance(answer, Refusal)), tuple(refused))


def predict_each(
    run: LoadedRun,
    files: Iterable[Path],
    *,
    world: World | None = None,
    batch_size: int | None = None,
    columns: Sequence[str] | None = None,
    to_sphere: bool = False,
    category: str | None = None,
    with_probabilities: bool = False,
) -> Iterator[tuple[Path, Any | Refusal]]:
    """Files and their answers as they come, by the run's own preparation, evaluation transforms and weights; no votes.

    A file's answer does not depend on the others. One that is damaged or outside what the run was trained on is
    refused with its reason, and the others go on. Held in memory are one large file, or a few batches of small ones.
    `columns` names the columns of files without names; `to_sphere` moves every cloud to its mean and scales it to
    radius 1. `batch_size` is that of evaluation where it is None. Of a run on points, `category` is that of all
    files, by name, and `with_probabilities` keeps every class's probabilities.
    Raises ConfigError for a run whose data, model or task takes no clouds or gives no classes, and for arguments that
    it has no use for.
    """
    info = read_inputs(run.path, run.config)
    if "points" not in info.fields:
        raise ConfigError(f"{run.path}: was trained on {', '.join(info.fields)}, not on points; predict takes clouds")
    answers: Answers
    if answers_points(run):
        answers = PointAnswers(run, info, category=category, with_probabilities=with_probabilities)
    else:
        answers = ClassAnswers(run, category=category, with_probabilities=with_probabilities)
    predictor = _Predictor(run, info, answers, world or World(), columns=columns, to_sphere=to_sphere)
    waiting = _Waiting(batch_size or run.config.evaluate.batch_size, is_ragged=predictor.is_ragged)
    try:
        for path in files:
            try:
                file = predictor.read(path)
            except DataError as error:
                yield path, Refusal(path, str(error))
                continue
            for group in waiting.add(file):
                yield from predictor(group).items()
                group.clear()  # or its files would be held beside the next one
            del file
        for group in waiting.rest():
            yield from predictor(group).items()
            group.clear()
    finally:
        run.model.cpu()  # where a loaded run promises it to be


class _Waiting:
    """Files that wait for others which can go through the model with them: of their size, or of any if ragged."""

    def __init__(self, batch_size: int, *, is_ragged: bool) -> None:
        self.batch_size = batch_size
        self.is_ragged = is_ragged
        self.groups: dict[int, list[ReadFile]] = {}

    def add(self, file: ReadFile) -> Iterator[list[ReadFile]]:
        """Groups that are full with this file, or would be too large, or the largest where too many files wait."""
        kind = 0 if self.is_ragged else file.sample.num_points
        if _num_points(self.groups.get(kind, [])) + file.sample.num_points > _MOST_POINTS and kind in self.groups:
            yield self.groups.pop(kind)
        group = self.groups.setdefault(kind, [])
        group.append(file)
        if len(group) >= self.batch_size or _num_points(group) >= _MOST_POINTS:
            yield self.groups.pop(kind)
        waiting = [each for group in self.groups.values() for each in group]
        if len(waiting) >= _MAX_WAITING_BATCHES * self.batch_size or _num_points(waiting) > 2 * _MOST_POINTS:
            yield self.groups.pop(max(self.groups, key=lambda kind: len(self.groups[kind])))

    def rest(self) -> Iterator[list[ReadFile]]:
        """Every group, full or not."""
        while self.groups:
            yield self.groups.pop(next(iter(self.groups)))


def _num_points(files: Sequence[ReadFile]) -> int:
    return sum(file.sample.num_points for file in files)


class _Group:
    """The files of a batch as a data set that is read once, in order."""

    def __init__(self, info: DataInfo, files: Sequence[ReadFile]) -> None:
        self.info = info
        self._size = len(files)
        self._samples = iter([{**file.sample.fields, **file.given} for file in files])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: SampleKey) -> Sample:
        return next(self._samples)


class _Predictor:
    """A run on a device, with what its evaluation does to a batch."""

    def __init__(
        self,
        run: LoadedRun,
        info: DataInfo,
        answers: Answers,
        world: World,
        *,
        columns: Sequence[str] | None,
        to_sphere: bool,
    ) -> None:
        self.run = run
        self.answers = answers
        self.device = world.device
        self.precision = Precision(run.config.train.precision)
        self.columns = columns
        self.to_sphere = to_sphere
        # A run whose own transforms normalise gives one answer at every scale.
        self.any_scale = any(transform.name == "normalize_unit_sphere" for transform in run.transforms)
        fields = {name: info.fields[name] for name in ("points", *info.features)} | dict(answers.fields)
        self.info = dataclasses.replace(info, fields=fields)
        self.is_ragged = info.fields["points"].collate == "concatenate"
        added = Pipeline(run.transforms, fields, source="a cloud from a file").added
        self.model = run.model.to(self.device)
        self.task = _task_of(run, batch_keys(fields | added, info.features) - answers.hidden)

    def read(self, path: Path) -> ReadFile:
        """Raises DataError for a file that cannot be predicted."""
        sample = read_sample(
            path,
            self.info,
            columns=self.columns,
            to_sphere=self.to_sphere,
            any_scale=self.any_scale,
            draws_meshes=self.answers.draws_meshes,
        )
        return self.answers.read(path, sample)

    def __call__(self, files: Sequence[ReadFile]) -> dict[Path, Any | Refusal]:
        """The answer to each file; where the model refuses several at once, each is asked for alone."""
        try:
            batch, predictions = self._predict(files)
        except (UserError, ValueError) as error:
            if len(files) > 1:
                return {path: answer for file in files for path, answer in self([file]).items()}
            path, told = files[0].path, " ".join(str(error).split())
            return {path: Refusal(path, f"{path}: the model takes no such cloud: {told}")}
        return self.answers(files, batch, predictions)

    def _predict(self, files: Sequence[ReadFile]) -> tuple[Batch, Mapping[str, Any]]:
        """The files as a batch, and what the task says of it."""
        keys = [SampleKey(_index_of(file.path), 0, self.run.config.seed) for file in files]
        batch = BatchReader(_Group(self.info, files), self.run.transforms)(keys)
        seen = {name: value for name, value in batch.items() if name not in self.answers.hidden}
        seen = to_device(seen, self.device, floats=self.precision.parameters)
        with torch.no_grad(), self.precision.autocast(self.device):
            return batch, self.task.predict(self.model, seen)


def _task_of(run: LoadedRun, keys: frozenset[str]) -> Any:
    """The run's task without losses, bound to what a file can offer."""
    owner = f"model '{run.config.model.name}'"
    wiring = {
        "model": run.model,
        "losses": {},
        "batch_keys": Offer("a cloud from a file", keys),
        "output_keys": Offer(owner, outputs_of(run.model.forward, owner=owner)),
    }
    return registry.tasks.build(run.config.task, facts={**run.facts, **wiring})


def _index_of(path: Path) -> int:
    """Stands for a sample's index where transforms draw: of the file's name alone, whatever else is predicted."""
    return int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:7], "little")
