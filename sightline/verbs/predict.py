"""`sightline predict`: the predictions of a run for the user's own files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sightline.data.files.cloud_files import check_columns
from sightline.engine.distributed import World, start_world
from sightline.engine.precision import set_backends
from sightline.engine.run_loading import TrainedRun, open_trained
from sightline.errors import DataError, RunError, UserError, escape_to_one_line
from sightline.predict.files import collect_files
from sightline.predict.prediction import build_predictor, predict_each
from sightline.predict.predictor import (
    CommandLine,
    Predictor,
    Refusal,
    compute_exit_code,
    parse_options,
    predictor_class,
)
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.verbs.common import write_document, write_file
from sightline.verbs.output import print_note, show_table

__all__ = ["PredictOptions", "predict"]


@dataclass(frozen=True)
class PredictOptions:
    """What the command line asked for; `flags` are those of predictors, by the names of their options."""

    run: Path
    paths: tuple[Path, ...]
    which: str = "last"
    plugins: tuple[Path, ...] = ()
    batch_size: int | None = None
    out: Path | None = None
    device: str = "auto"
    json: Path | None = None
    csv: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def predict(options: PredictOptions) -> int:
    """Predict every file that can be; the others are named with their reason. The exit code."""
    flags = _checked(options)
    run = open_trained(options.run, checkpoint=options.which, plugins=options.plugins)
    given = parse_options(predictor_class(run), run, CommandLine(flags, options.words, options.plugins))
    set_backends(determinism=run.config.train.determinism, cudnn=run.config.train.cudnn)
    with start_world(device=options.device) as world:
        predictor = build_predictor(run, world=world, **given)
        if options.out is not None and not predictor.endings:
            raise UserError(
                f"--out {options.out}: predict of the task '{run.config.task.name}' writes no files; give --json or "
                "--csv"
            )
        for line in [*_notes(run), *predictor.notes()]:
            print_note(line)
        try:
            documents, refused = _predict(run, predictor, options, world)
        except torch.OutOfMemoryError as error:
            raise RunError("predict: the GPU's memory is full; lower --batch-size") from error
    for line in predictor.summary(documents):
        print_note(line)
    # The files come first: whoever reads the table may close it.
    write_document(options.json, _document(run, predictor, documents, refused))
    write_file(options.csv, _csv(predictor, documents, refused))
    _show(run, predictor, documents, refused)
    for refusal in refused:
        print_note(f"refused: {escape_to_one_line(refusal.reason)}")
    return compute_exit_code(refused)


def _predict(
    run: TrainedRun, predictor: Predictor[Any], options: PredictOptions, world: World
) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """The documents of the files that were predicted, and the others, in the order of the files.

    The files of predictions are written as these come. Raises UserError for an output that cannot be, before anything
    is predicted; RunError where the disk refuses one.
    """
    files, refused = collect_files(options.paths, suffixes=predictor.suffixes)
    names = {} if options.out is None else predictor.output_names(files, options.out)
    documents: dict[Path, dict[str, Any]] = {}
    refusals: dict[Path, Refusal] = {}
    found = predict_each(run, files, predictor=predictor, world=world, batch_size=options.batch_size)
    for path, prediction in found:
        if isinstance(prediction, Refusal):
            refusals[path] = prediction
            continue
        try:
            written = predictor.write(prediction, names[path]) if names else {}
        except DataError as error:
            refusals[path] = Refusal(path, f"{path}: {error}")
            continue
        documents[path] = predictor.document(prediction)
        if predictor.endings:
            documents[path]["written"] = {kind: str(place) for kind, place in written.items()}
        del prediction  # or it would be held while the next file is read
    ordered = [documents[path] for path in files if path in documents]
    return ordered, [*refused, *(refusals[path] for path in files if path in refusals)]


def _checked(options: PredictOptions) -> dict[str, Any]:
    """The flags with their values as options want them. Raises UserError for what cannot go together."""
    flags = dict(options.flags)
    if "columns" in flags:
        flags["columns"] = check_columns(flags["columns"].split(","))
    if not options.paths:
        raise UserError("predict: no file is given; sightline predict RUN PATH... [KEY=VALUE]...")
    if options.json is not None and options.csv is not None and options.json.resolve() == options.csv.resolve():
        raise UserError(f"--csv {options.csv}: is the file of --json too; give another")
    if "probabilities" in flags and options.out is None:
        raise UserError("--probabilities: is written into the folder of --out; give --out DIR")
    return flags


def _notes(run: TrainedRun) -> list[str]:
    """What a reader of any run's predictions should know."""
    lineage = read_lineage(run.path)
    notes = [] if lineage is None else [describe_lineage(lineage)]
    if up_axis := run.facts.get("up_axis"):
        notes.append(f"the run was trained on clouds with {up_axis} up; files must have it up too")
    if run.config.evaluate.votes > 1:
        notes.append(f"one pass a file: evaluate.votes ({run.config.evaluate.votes}) is not applied")
    return notes


def _show(
    run: TrainedRun, predictor: Predictor[Any], documents: Sequence[Mapping[str, Any]], refused: Sequence[Refusal]
) -> None:
    """The table of what was predicted, under the checkpoint's path as one would type it; none where nothing was."""
    checkpoint = run.checkpoint
    here = Path.cwd()
    path = checkpoint.relative_to(here) if checkpoint.is_relative_to(here) else checkpoint
    title = f"{path}: {len(documents)} of {len(documents) + len(refused)} files"
    if not documents:
        print_note(title)
        return
    show_table(title, predictor.columns, map(predictor.row, documents))


def _document(
    run: TrainedRun, predictor: Predictor[Any], documents: Sequence[dict[str, Any]], refused: Sequence[Refusal]
) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "checkpoint": str(run.checkpoint),
        "class_names": list(run.class_names),
        "votes": 1,
        **predictor.about(),
        "predictions": list(documents),
        "refused": [{"file": str(r.file), "reason": r.reason} for r in refused],
    }


def _csv(predictor: Predictor[Any], documents: Sequence[Mapping[str, Any]], refused: Sequence[Refusal]) -> str:
    """Every file on a line, line breaks in its name as escapes; those that were refused have only their reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*predictor.csv_columns, "refused"))
    rows: list[Sequence[Any]] = [[*predictor.csv_row(document), ""] for document in documents]
    rows += [(str(r.file), *[""] * (len(predictor.csv_columns) - 1), r.reason) for r in refused]
    writer.writerows([[_csv_cell(cell) for cell in row] for row in rows])
    return text.getvalue()


def _csv_cell(cell: Any) -> Any:
    """Text in one line, a number with all its digits."""
    if isinstance(cell, float):
        return repr(float(cell))
    return escape_to_one_line(cell) if isinstance(cell, str) else cell
