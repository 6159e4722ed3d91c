"""What `sightline predict` tells of files: the rows of its table, its JSON and its CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.files.cloud_files import check_columns
from sightline.engine.distributed import World
from sightline.engine.loading import TrainedRun
from sightline.errors import DataError
from sightline.predict.answers import Refusal
from sightline.predict.point_answers import SegmentPrediction
from sightline.predict.prediction import files_of, predict_each, predict_files
from sightline.verbs.point_files import output_names, write_answer

__all__ = ["Options", "Told", "exact", "tell_classes", "tell_points"]

_NUM_TOLD = 3


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    run: Path
    paths: tuple[Path, ...]
    which: str = "last"
    plugins: tuple[Path, ...] = ()
    batch_size: int | None = None
    columns: str | None = None
    to_sphere: bool = False
    category: str | None = None
    out: Path | None = None
    probabilities: str | None = None
    device: str = "auto"
    json: Path | None = None
    csv: Path | None = None
    overrides: tuple[str, ...] = ()
    reference: str | None = None
    centres: Path | None = None
    refiner: Path | None = None

    def column_names(self) -> tuple[str, ...] | None:
        """The names of columns, one by one. Raises ConfigError for those that are no cloud's."""
        return None if self.columns is None else check_columns(self.columns.split(","))


@dataclass(frozen=True)
class Told:
    """Of every file a row, an object or a line, in the order of the files; and those that were refused.

    `about` is what the document says of all files.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    documents: Sequence[dict[str, Any]]
    csv_columns: tuple[str, ...]
    csv_rows: Sequence[Sequence[Any]]
    refused: Sequence[Refusal]
    about: Mapping[str, Any] = field(default_factory=dict)


def tell_classes(run: TrainedRun, options: Options, world: World) -> Told:
    """Of a run that classes clouds: class, probability and margin."""
    found = predict_files(
        run,
        options.paths,
        world=world,
        batch_size=options.batch_size,
        columns=options.column_names(),
        to_sphere=options.to_sphere,
        category=options.category,
        with_probabilities=options.probabilities is not None,
    )
    documents = [
        {
            "file": str(p.file),
            "class": p.class_name,
            "label": p.label,
            "probability": p.probability,
            "margin": p.margin,
            "num_points": p.num_points,
            "treatment": p.treatment,
            "probabilities": list(p.probabilities),
        }
        for p in found.predicted
    ]
    csv_columns = ("file", "class", "label", "probability", "margin", "num_points", "treatment")
    return Told(
        columns=("file", "class", "probability", "margin"),
        rows=[(str(p.file), p.class_name, p.probability, p.margin) for p in found.predicted],
        documents=documents,
        csv_columns=csv_columns,
        csv_rows=[[exact(row[name]) for name in csv_columns] for row in documents],
        refused=found.refused,
    )


def tell_points(run: TrainedRun, options: Options, world: World) -> Told:
    """Of a run that classes points: the share of each class; labels and clouds are written as they come.

    Raises UserError for an output that cannot be, before anything is predicted; RunError where the disk refuses one.
    """
    files, refused = files_of(options.paths)
    names = {} if options.out is None else output_names(files, options.out)
    kind = None if options.probabilities is None else np.dtype(options.probabilities).newbyteorder("<")
    documents: dict[Path, dict[str, Any]] = {}
    refusals: dict[Path, Refusal] = {}
    for path, answer in predict_each(
        run,
        files,
        world=world,
        batch_size=options.batch_size,
        columns=options.column_names(),
        to_sphere=options.to_sphere,
        category=options.category,
        with_probabilities=options.probabilities is not None,
    ):
        if isinstance(answer, Refusal):
            refusals[path] = answer
        else:
            try:
                written = write_answer(answer, names[path], probabilities=kind) if names else {}
            except DataError as error:
                refusals[path] = Refusal(path, f"{path}: {error}")
                continue
            documents[path] = _point_document(answer) | {"written": {k: str(v) for k, v in written.items()}}
        del answer  # or it would be held while the next file is read
    ordered = [documents[path] for path in files if path in documents]
    return _points_told(run, ordered, [*refused, *(refusals[path] for path in files if path in refusals)])


def _point_document(answer: SegmentPrediction) -> dict[str, Any]:
    return {
        "file": str(answer.file),
        "category": answer.category,
        "num_points": answer.num_points,
        "mean_probability": answer.mean_probability,
        "shares": answer.shares,
        "treatment": answer.treatment,
    }


def _points_told(run: TrainedRun, documents: Sequence[dict[str, Any]], refused: Sequence[Refusal]) -> Told:
    numbers = range(run.facts["num_classes"])
    classes = run.class_names or tuple(str(number) for number in numbers)
    plain = ("file", "category", "num_points", "mean_probability", "treatment")
    return Told(
        columns=("file", "points", "classes", "mean probability"),
        rows=[(row["file"], row["num_points"], _mostly(row["shares"]), row["mean_probability"]) for row in documents],
        documents=documents,
        csv_columns=(*plain, *(f"share of {name}" for name in classes)),
        csv_rows=[
            [exact(row[name]) for name in plain] + [exact(row["shares"].get(name, 0.0)) for name in classes]
            for row in documents
        ],
        refused=refused,
    )


def _mostly(shares: dict[str, float]) -> str:
    """The largest shares in words, and how many classes more there are."""
    told = [f"{name} {share:.0%}" for name, share in list(shares.items())[:_NUM_TOLD]]
    more = len(shares) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def exact(value: Any) -> Any:
    """A number with all its digits."""
    return repr(float(value)) if isinstance(value, float) else value
