"""Base class of predictors: one per task, from files to samples and from predictions to rows, JSON and files."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from sightline.config.key_values import read_key_values
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError, UserError, escape_to_one_line
from sightline.contract.schema import signature_parameters
from sightline.contract.task import Tiling
from sightline.contract.types import Batch, DataInfo, Field, Sample
from sightline.engine.run_loading import TrainedRun
from sightline.store.files.atomic_write import REPEAT, disk_failure
from sightline.store.loading.transform_pipeline import NamedTransform


def output_names(files: Sequence[Path], out: Path, *, endings: Collection[str]) -> dict[Path, Path]:
    """Choose the path without ending of each prediction's files: in `out`, named by the stem of its file.

    The written files have one of the `endings`. Files of one folder with the same stem keep their suffixes; if names
    still collide, as many parent folders are added as make them unique. Raises UserError if `out` is a file, and if a
    written file would replace one that is to be read, or its labels (.label).
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    names = {file: out / name for file, name in _make_unique_names(files).items()}
    input_files = [*files, *(file.with_suffix(".label") for file in files)]
    inputs = {os.path.realpath(file) for file in input_files if os.path.lexists(file)}
    for name in names.values():
        for ending in endings:
            target = name.with_name(name.name + ending)
            if os.path.realpath(target) in inputs:
                raise UserError(
                    f"--out {out}: {target} {_describe_input(target)} and would be overwritten; give another"
                )
    return names


def _describe_input(target: Path) -> str:
    """Describe the input file that would be overwritten."""
    return "contains the labels of a file to predict" if target.suffix == ".label" else "is a file to predict"


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Raise RunError for a write error of the disk, DataError for a name that is too long for it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{path}: this name is too long for the disk; shorten that of the file to predict"
            ) from error
        raise disk_failure(error, path, again=REPEAT) from error


def _make_unique_names(files: Sequence[Path]) -> Mapping[Path, str]:
    """Choose a unique name for each file; two spellings of one path share a name."""
    paths = {file: Path(os.path.normpath(file.absolute())) for file in files}
    different = set(paths.values())
    stems = Counter(path.parent / path.stem for path in different)
    name_paths = {path: path if stems[path.parent / path.stem] > 1 else path.parent / path.stem for path in different}
    num_parts = dict.fromkeys(different, 1)
    while True:
        names = {path: "/".join(name_paths[path].parts[1:][-count:]) for path, count in num_parts.items()}
        times = Counter(names.values())
        clashes = [path for path, name in names.items() if times[name] > 1]
        if not clashes:
            return {file: names[path] for file, path in paths.items()}
        for path in clashes:
            num_parts[path] += 1


PredictionT = TypeVar("PredictionT")


@dataclass(frozen=True)
class Refusal:
    """File without a prediction, and the reason; `is_input` is true if the file is the cause, not the model."""

    file: Path
    reason: str
    is_input: bool = True


@dataclass(frozen=True)
class Predictions(Generic[PredictionT]):
    """Predictions and refusals of all given files, each in the order of the files."""

    predicted: tuple[PredictionT, ...]
    refused: tuple[Refusal, ...]

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if every file has a prediction, 2 if an input was refused, else 1 (not finite)."""
        return compute_exit_code(self.refused)


def compute_exit_code(refused: Sequence[Refusal]) -> int:
    """Return 0 if nothing was refused, 2 if an input was, else 1."""
    if any(refusal.is_input for refusal in refused):
        return 2
    return 1 if refused else 0


def refuse_non_finite(file: Path) -> Refusal:
    """Make the refusal of a file for which the model's output is NaN or infinite."""
    return Refusal(file, f"{file}: the model's output is not finite; are its weights sound?", is_input=False)


class ReadFile(NamedTuple):
    """File as a sample of the run's data set, and `source`: further data of the file for its predictor."""

    path: Path
    sample: Sample
    source: Any = None


class Inference(NamedTuple):
    """One pass of a batch: the batch after the transforms, and the predictions of the task."""

    batch: Batch
    predictions: Mapping[str, Any]


class CommandLine(NamedTuple):
    """Arguments of `sightline predict` for the predictor: flags with values, KEY=VALUE arguments, plugin files."""

    flags: Mapping[str, Any]
    key_values: Sequence[str] = ()
    plugins: Sequence[Path] = ()


class Predictor(Generic[PredictionT]):
    """Base class of predictors. A subclass is registered under the task's name: `@register.predictor("classify")`.

    Its constructor takes `run`, the `TrainedRun` that predicts, and keyword-only options, which the user gives as
    KEY=VALUE on the command line or as arguments of `LoadedRun.predict`; facts of the run's data set, and `world`, are
    passed to every constructor that names them, as for every component.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    """Keys of the task's predictions that it needs.

    A task without a predictor of its own name gets the one that needs the most of what the task `predicts`.
    """
    suffixes: tuple[str, ...] = ()
    """Suffixes of the files that are taken from folders."""
    endings: tuple[str, ...] = ()
    """Endings of the files that `write` makes; without any, `--out` is refused."""
    noun: str = "sample"
    """Noun for the content of a file, for messages."""
    hidden: ClassVar[frozenset[str]] = frozenset()
    """Keys of the batch that are passed to transforms but not to the model."""
    columns: tuple[str, ...] = ("file",)
    """Columns of the table on the screen."""

    def __init__(self, *, run: TrainedRun) -> None:
        self.run = run
        self.info: DataInfo = run.files.inputs
        """The data set of the run: fields and features of a sample, recorded when it was trained."""
        self.fields: dict[str, Field] = {}
        """Fields of a sample from a file: batch key -> Field, with dtype and collation."""
        self.draw_names: dict[Path, str] = {}
        """Names by which files draw that have other names on this disk, as uploads of a server."""

    @classmethod
    def options(cls, run: TrainedRun, line: CommandLine) -> dict[str, Any]:
        """Parse the constructor's options from the command line. Raises ConfigError for arguments that do not fit."""
        arguments = read_key_values(
            run.config.task.name, cls, line.key_values, command="predict", exclude=(*registry.FACTS, *FLAGS)
        )
        return {**line.flags, **arguments}

    def start(self, files: Sequence[Path]) -> None:
        """Prepare for all files; called once, before the first is read.

        Raises UserError for options that do not fit them.
        """

    def close(self) -> None:
        """Clean up; called once after the last file, also after an error."""

    def read(self, path: Path) -> ReadFile:
        """Read the sample of a file. Raises DataError for a file that cannot be predicted."""
        raise NotImplementedError

    def draw_name(self, path: Path) -> str:
        """Return the name that seeds the random draws of a file: that of the file without its ending."""
        return self.draw_names.get(path, path.stem)

    def predict(self, files: Sequence[ReadFile], inference: Inference) -> list[PredictionT | Refusal]:
        """Make the prediction of each file of a batch, in order."""
        raise NotImplementedError

    def transforms(self) -> Sequence[NamedTransform]:
        """Return the transforms of samples of files: those of the run's evaluation."""
        return self.run.transforms

    def make_task(self) -> Any:
        """Make the task whose predictions are read; None for that of the run."""
        return None

    def make_tiling(self, task: Any) -> Tiling | None:
        """Make the tiling of large samples that the options state; None to predict each as a whole."""
        return None

    def sample_size(self, file: ReadFile) -> int:
        """Return the size of a sample; a batch has at most 2^18 in total, regardless of the batch size."""
        return 0

    def batch_key(self, file: ReadFile) -> Hashable:
        """Return the key that files of a batch share: the shapes of all fields that are not concatenated."""
        return tuple(
            np.shape(file.sample[name]) for name, field in self.fields.items() if field.collate != "concatenate"
        )

    def compact(self, prediction: PredictionT) -> PredictionT:
        """Return the prediction in the form that is kept in memory with those of other files."""
        return prediction

    def document(self, prediction: PredictionT) -> dict[str, Any]:
        """Return the prediction as plain values for JSON, with the key `file`; rows are made from it."""
        raise NotImplementedError

    def full_document(self, prediction: PredictionT) -> dict[str, Any]:
        """Return the document with what `write` would put into files."""
        return self.document(prediction)

    def row(self, document: Mapping[str, Any]) -> Sequence[Any]:
        """Return the cells of `columns`."""
        return [document[name] for name in self.columns]

    def csv_cells(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the cells of a row of the CSV file by their columns: the single values of the document."""
        return {name: value for name, value in document.items() if not isinstance(value, list | dict)}

    def output_names(self, files: Sequence[Path], out: Path) -> Mapping[Path, Path]:
        """Choose the path without ending of each prediction's files; called once, before any prediction.

        Raises UserError if a file cannot be written there.
        """
        return output_names(files, out, endings=self.endings)

    def write(self, prediction: PredictionT, name: Path) -> dict[str, Path]:
        """Write the files of a prediction, `name` with one of `endings` each; return their paths by kind.

        Raises RunError if the disk refuses a file, DataError for a name that is too long for it.
        """
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """Return the further entries of the JSON document, for all files."""
        return {}

    def notes(self) -> list[str]:
        """Return notes for the user, before any prediction."""
        return []

    def summary(self, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return lines of text about all predictions together."""
        return []


FLAGS = {
    "columns": "--columns",
    "to_sphere": "--unit-sphere",
}
"""Options of predictors that have a flag of their own on the command line."""


def parse_options(predictor: type[Predictor[Any]], run: TrainedRun, line: CommandLine) -> dict[str, Any]:
    """Parse the constructor's options from the command line. Raises UserError for a flag that is not an option."""
    taken = [name for name in FLAGS if name in signature_parameters(predictor)]
    for flag in line.flags:
        if flag not in taken:
            takes = f"; it takes {', '.join(FLAGS[name] for name in taken)}" if taken else ""
            raise UserError(
                f"{FLAGS[flag]}: predict has no such option for the task '{run.config.task.name}'{takes}; leave it out "
                f"({run.path})"
            )
    return predictor.options(run, line)


def predictor_class(run: TrainedRun) -> type[Predictor[Any]]:
    """Return the predictor class for a run's task. Raises ConfigError if there is none."""
    task, names = run.config.task, registry.predictors.names()
    classes: dict[str, type[Predictor[Any]]] = {
        name: registry.predictors.get_entry(name).builder  # type: ignore[misc]
        for name in names
    }
    if task.name in classes:
        return classes[task.name]
    predicted_keys = registry.tasks.get_class(task).predicts
    matches = [candidate for candidate in classes.values() if candidate.reads and candidate.reads <= predicted_keys]
    if not matches:
        raise ConfigError(
            f"{run.path}: the task '{task.name}' has no predictor; tasks with one: {', '.join(names)}; a plugin "
            f"registers its own with sightline.register.predictor('{task.name}')"
        )
    return max(matches, key=lambda candidate: len(candidate.reads))


def build_document(
    predictor: Predictor[Any], documents: Sequence[dict[str, Any]], refused: Sequence[Refusal]
) -> dict[str, Any]:
    """Build the document of `predict --json`."""
    run = predictor.run
    return {
        "run": str(run.path),
        "checkpoint": str(run.checkpoint),
        "class_names": list(run.class_names),
        "votes": 1,
        **predictor.about(),
        "predictions": list(documents),
        "refused": [{"file": str(r.file), "reason": r.reason} for r in refused],
    }


def format_csv(predictor: Predictor[Any], documents: Sequence[Mapping[str, Any]], refused: Sequence[Refusal]) -> str:
    """Format the CSV text: a row per file, line breaks in its name escaped; refused files have only their reason."""
    rows = [predictor.csv_cells(document) for document in documents]
    rows += [{"file": str(refusal.file), "refused": refusal.reason} for refusal in refused]
    columns = [*dict.fromkeys(name for row in rows for name in row if name != "refused"), "refused"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _format_csv_cell(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def _format_csv_cell(cell: Any) -> Any:
    """Format a cell: text on one line, a float with all its digits."""
    if isinstance(cell, float):
        return repr(float(cell))
    return escape_to_one_line(cell) if isinstance(cell, str) else cell
