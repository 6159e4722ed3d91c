"""Answers for the user's own files: read as the run's data was, transformed as for evaluation, batched by size."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline import registry
from sightline.data.files.cloud_files import CLOUD_SUFFIXES, is_cloud_file, told_passed_over
from sightline.engine.distributed import World
from sightline.engine.loading import TrainedRun
from sightline.errors import ConfigError, UserError
from sightline.members import TaskMembers
from sightline.predict.answers import Answers, Predictions, ReadFile, Refusal
from sightline.predict.applied import AppliedRun
from sightline.predict.class_answers import ClassAnswers, Prediction
from sightline.predict.cloud_samples import read_sample
from sightline.predict.grouping import Waiting, answer_each
from sightline.predict.point_answers import PointAnswers, SegmentPrediction
from sightline.runs.inputs import read_inputs
from sightline.types import DataInfo

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


def answers_points(run: TrainedRun) -> bool:
    """Whether a run says a class for every point of a cloud, not for the cloud."""
    return "cloud_offsets" in TaskMembers.predicts.of(registry.tasks.entry(run.config.task).builder)


def files_of(paths: Iterable[Path], *, suffixes: Sequence[str] = CLOUD_SUFFIXES) -> tuple[list[Path], list[Refusal]]:
    """The files named and, sorted, those of clouds in and below the folders named, each once; and what is not there.

    Numbers in names are sorted as numbers: frame_10 follows frame_9. A file that is named is never passed over,
    whatever its ending; those of other kinds in a folder are told. Broken links and pipes are among the files.
    """
    files: dict[Path, None] = {}
    refused = []
    for path in paths:
        if not os.path.isdir(path):  # not the path's own question, which raises for a name that is too long
            files.setdefault(path)
            continue
        held = (each for each in path.rglob("*") if is_cloud_file(each, suffixes=suffixes))
        inside = sorted(held, key=_order_of)
        files |= dict.fromkeys(inside)
        if passed_over := told_passed_over(path, suffixes=suffixes):
            logger.warning("%s: %s", path, passed_over)
        if not inside:
            refused.append(Refusal(path, f"{path}: holds no file of the kinds {', '.join(suffixes)}"))
    return list(files), refused


def _order_of(path: Path) -> tuple[list[list[tuple[bool, int, str]]], Path]:
    """What paths are sorted by: folder after folder, in which whole numbers come first, by their size."""
    parts = [[part for part in re.split(r"(\d+)", name) if part] for name in path.parts]
    told = [[(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name] for name in parts]
    return told, path


def predict_files(
    run: TrainedRun,
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
    run: TrainedRun,
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
    waiting = Waiting[ReadFile](
        batch_size or run.config.evaluate.batch_size,
        kind_of=lambda file: 0 if predictor.is_ragged else file.sample.num_points,
        size_of=lambda file: file.sample.num_points,
        most_at_once=_MOST_POINTS,
        most_batches=_MAX_WAITING_BATCHES,
    )
    try:
        yield from answer_each(files, predictor, waiting)
    finally:
        run.model.cpu()  # where a loaded run promises it to be


class _Predictor:
    """Reads clouds from files as the run's data was prepared, and answers for them."""

    def __init__(
        self,
        run: TrainedRun,
        info: DataInfo,
        answers: Answers,
        world: World,
        *,
        columns: Sequence[str] | None,
        to_sphere: bool,
    ) -> None:
        self.answers = answers
        self.columns = columns
        self.to_sphere = to_sphere
        # A run whose own transforms normalise gives one answer at every scale.
        self.any_scale = any(transform.name == "normalize_unit_sphere" for transform in run.transforms)
        self.is_ragged = info.fields["points"].collate == "concatenate"
        fields = {name: info.fields[name] for name in ("points", *info.features)} | dict(answers.fields)
        self.applied = AppliedRun(run, info, world, fields=fields, told="a cloud from a file", hidden=answers.hidden)

    def read(self, path: Path) -> ReadFile:
        """Raises DataError for a file that cannot be predicted."""
        sample = read_sample(
            path,
            self.applied.info,
            columns=self.columns,
            to_sphere=self.to_sphere,
            any_scale=self.any_scale,
            draws_meshes=self.answers.draws_meshes,
        )
        return self.answers.read(path, sample)

    def __call__(self, files: Sequence[ReadFile]) -> dict[Path, Any | Refusal]:
        """The answer to each file; where the model refuses several at once, each is asked for alone."""
        try:
            samples = [{**file.sample.fields, **file.given} for file in files]
            batch = self.applied.read([file.path for file in files], samples)
            predictions = self.applied.predict(self.applied.seen(batch))
        except (UserError, ValueError, MemoryError) as error:
            if len(files) > 1:
                return {path: answer for file in files for path, answer in self([file]).items()}
            path, told = files[0].path, " ".join(str(error).split())
            return {path: Refusal(path, f"{path}: the model takes no such cloud: {told}")}
        return self.answers(files, batch, predictions)
