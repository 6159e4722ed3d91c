"""A predictor per task: it reads files into samples, and turns what the task predicts into rows, JSON and files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from sightline import registry
from sightline.aliases import old_names, renamed
from sightline.config.key_values import read_key_values
from sightline.data.loading.batch_reader import NamedTransform
from sightline.engine.run_loading import TrainedRun
from sightline.errors import ConfigError, UserError
from sightline.optional_members import TaskMembers
from sightline.predict.output_names import output_names
from sightline.runs.inputs import read_inputs
from sightline.schema import signature_parameters
from sightline.types import Batch, DataInfo, Field, Sample

__all__ = [
    "CommandLine",
    "Inference",
    "Predictions",
    "Predictor",
    "ReadFile",
    "Refusal",
    "exit_code_of",
    "parse_options",
    "predictor_class",
    "refuse_non_finite",
]

PredictionT = TypeVar("PredictionT")


@dataclass(frozen=True)
class Refusal:
    """A file without a prediction, and the reason; `is_input` where the file is the cause, not the model."""

    file: Path
    reason: str
    is_input: bool = True


@dataclass(frozen=True)
class Predictions(Generic[PredictionT]):
    """Every file given, in one of the two lists, each in the order of the files."""

    predicted: tuple[PredictionT, ...]
    refused: tuple[Refusal, ...]

    @property
    def exit_code(self) -> int:
        """0 where every file has a prediction, 2 where an input was refused, else 1: a prediction is not finite."""
        return exit_code_of(self.refused)


def exit_code_of(refused: Sequence[Refusal]) -> int:
    """0 where nothing was refused, 2 where an input was, else 1."""
    if any(refusal.is_input for refusal in refused):
        return 2
    return 1 if refused else 0


def refuse_non_finite(file: Path) -> Refusal:
    """The refusal of a file for which the model gives NaN or infinity."""
    return Refusal(file, f"{file}: the model's output is not finite; are its weights sound?", is_input=False)


class ReadFile(NamedTuple):
    """A file as a sample of the run's data set, and `source`: what else its predictor needs of the file later."""

    path: Path
    sample: Sample
    source: Any = None


class Inference(NamedTuple):
    """One pass of a batch: the batch after the transforms, what the task predicts of it, and the milliseconds taken.

    `ms` has the stages `transforms`, `network` and `decode`; it is empty unless the predictor is timed.
    """

    batch: Batch
    predictions: Mapping[str, Any]
    ms: Mapping[str, float]


class CommandLine(NamedTuple):
    """What `sightline predict` was given for the predictor: flags with their values, KEY=VALUE words, plugin files."""

    flags: Mapping[str, Any]
    key_values: Sequence[str] = ()
    plugins: Sequence[Path] = ()


@renamed(kind_of="batch_key", size_of="sample_size")
class Predictor(Generic[PredictionT]):
    """What `predict` needs of a task. A subclass is registered under the task's name: `@predictors.add("classify")`.

    Its constructor takes `run`, the `TrainedRun` that predicts, and keyword-only options, which the user gives as
    KEY=VALUE on the command line or as arguments of `LoadedRun.predict`; facts of the run's data set, and `world`, are
    given to whoever names them, as to every component.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    """The keys of the task's predictions that it needs. A task without a predictor of its own name is served by the one
    that needs the most of what the task `predicts`."""
    suffixes: tuple[str, ...] = ()
    """The endings of the files that are taken from folders."""
    endings: tuple[str, ...] = ()
    """The endings of the files that `write` makes; without any, `--out` is refused."""
    noun: str = "sample"
    """What a file holds, for messages."""
    is_timed: bool = False
    """Whether the stages of inference are timed; the first pass then runs twice, the first time to warm up."""
    is_sequential: bool = False
    """Whether a file's prediction depends on the one before; files then go through the model one by one, in order."""
    hidden: ClassVar[frozenset[str]] = frozenset()
    """Keys of the batch that transforms see and the model does not."""
    columns: tuple[str, ...] = ("file",)
    """The columns of the table on the screen."""
    csv_columns: tuple[str, ...] = ("file",)
    """The columns of the CSV file."""

    def __init__(self, *, run: TrainedRun) -> None:
        self.run = run
        self.info: DataInfo = read_inputs(run.path, run.config)
        """The data set of the run: fields and features of a sample, recorded when it was trained."""
        self.fields: dict[str, Field] = {}
        """What a sample of a file offers: its keys, with types and the way they become a batch."""

    @classmethod
    def flags(cls) -> frozenset[str]:
        """The options among `FLAGS` that it takes."""
        return frozenset(FLAGS.keys() & signature_parameters(cls).keys())

    @classmethod
    def options(cls, run: TrainedRun, line: CommandLine) -> dict[str, Any]:
        """The constructor's options from the command line. Raises ConfigError for words that do not fit."""
        words = read_key_values(
            run.config.task.name, cls, line.key_values, command="predict", exclude=(*registry.FACTS, *FLAGS)
        )
        return {**line.flags, **words}

    def start(self, files: Sequence[Path]) -> None:
        """Called once with all files, before the first is read. Raises UserError for options that do not fit them."""

    def close(self) -> None:
        """Called once after the last file, also after an error."""

    def read(self, path: Path) -> ReadFile:
        """The sample of a file. Raises DataError for a file that cannot be predicted."""
        raise NotImplementedError

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[PredictionT | Refusal]:
        """The prediction of each file of a batch, in order."""
        raise NotImplementedError

    def transforms(self) -> Sequence[NamedTransform]:
        """The transforms that samples of files go through: those of the run's evaluation."""
        return self.run.transforms

    def sample_size(self, file: ReadFile) -> int:
        """The size of a sample, of which so many go through the model at once: 2^18 in all, whatever the batch size."""
        return 0

    def batch_key(self, file: ReadFile) -> Hashable:
        """What files have in common that can share a batch: the shapes of all fields that are not concatenated."""
        return tuple(
            np.shape(file.sample[name]) for name, field in self.fields.items() if field.collate != "concatenate"
        )

    def compact(self, prediction: PredictionT) -> PredictionT:
        """The prediction as it is held in memory beside those of many other files."""
        return prediction

    def document(self, prediction: PredictionT) -> dict[str, Any]:
        """The prediction as plain values for JSON, with the key `file`; rows are made from it."""
        raise NotImplementedError

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """The cells of `columns`."""
        return [document[name] for name in self.columns]

    def csv_row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """The cells of `csv_columns`; floats are written with all their digits."""
        return [document[name] for name in self.csv_columns]

    def output_names(self, files: Sequence[Path], out: Path) -> Mapping[Path, Path]:
        """Where the files of each prediction go, without an ending; called once, before anything is predicted.

        Raises UserError where one cannot go there.
        """
        return output_names(files, out, endings=self.endings)

    def write(self, prediction: PredictionT, name: Path) -> dict[str, Path]:
        """Write the files of a prediction: `name` with one of `endings` each. What was written, by kind.

        Raises RunError where the disk refuses a file, DataError for a name that is too long for it.
        """
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What the JSON document has besides, for all files."""
        return {}

    def notes(self) -> list[str]:
        """Notes for the user, before any prediction."""
        return []

    def summary(self, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        """What there is to report about all predictions together."""
        return []


FLAGS = {
    "columns": "--columns",
    "to_sphere": "--unit-sphere",
    "category": "--category",
    "probabilities": "--probabilities",
    "score": "--score",
    "reference": "--reference",
    "centres": "--centres",
    "refiner": "--refiner",
}
"""The options of predictors that have a flag of their own on the command line."""


def parse_options(predictor: type[Predictor[Any]], run: TrainedRun, line: CommandLine) -> dict[str, Any]:
    """The constructor's options from the command line. Raises UserError for a flag that the predictor does not take."""
    for flag in line.flags:
        if flag not in predictor.flags():
            taken = ", ".join(FLAGS[name] for name in FLAGS if name in predictor.flags())
            raise UserError(
                f"{FLAGS[flag]}: predict has no such option for the task '{run.config.task.name}'"
                f"{f'; it takes {taken}' if taken else ''}; leave it out ({run.path})"
            )
    return predictor.options(run, line)


def predictor_class(run: TrainedRun) -> type[Predictor[Any]]:
    """The predictor for a run's task. Raises ConfigError where there is none."""
    task, names = run.config.task, registry.predictors.names()
    classes: dict[str, type[Predictor[Any]]] = {
        name: registry.predictors.get_entry(name).builder  # type: ignore[misc]
        for name in names
    }
    if task.name in classes:
        return classes[task.name]
    offered = TaskMembers.predicts.get(registry.tasks.entry(task).builder)
    serving = [each for each in classes.values() if each.reads and each.reads <= offered]
    if not serving:
        raise ConfigError(
            f"{run.path}: the task '{task.name}' has no predictor; tasks with one: {', '.join(names)}; a plugin "
            f"registers its own with predictors.add('{task.name}')"
        )
    return max(serving, key=lambda each: len(each.reads))


__getattr__ = old_names(__name__)
