"""`sightline predict`: the classes of the user's own files, or of their points, or the joints in depth images."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sightline.engine.distributed import World, start_world
from sightline.engine.loading import TrainedRun, open_trained
from sightline.engine.precision import set_backends
from sightline.errors import RunError, UserError, in_one_line
from sightline.predict.answers import exit_code_of
from sightline.predict.frame_prediction import answers_joints, refines_centres
from sightline.predict.prediction import answers_points
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.verbs.common import write_document, write_file
from sightline.verbs.frames import assert_no_frames, tell_joints
from sightline.verbs.output import note, show_table
from sightline.verbs.predictions import Options, Told, tell_classes, tell_points

__all__ = ["Options", "predict"]


def predict(options: Options) -> int:
    """Predict every file that can be; the others are named with their reason. The exit code."""
    _assert_consistent(options)
    run = open_trained(options.run, checkpoint=options.which, plugins=options.plugins)
    tell = _teller(run, options)
    set_backends(determinism=run.config.train.determinism, cudnn=run.config.train.cudnn)
    _tell(run)
    with start_world(device=options.device) as world:
        try:
            told = tell(run, options, world)
        except torch.OutOfMemoryError as error:
            raise RunError("predict: the GPU's memory is full; lower --batch-size") from error
    write_document(options.json, _document(run, told))  # first: whoever reads the table may close it
    write_file(options.csv, _table(told))
    _show(run, told)
    for refusal in told.refused:
        note(f"refused: {in_one_line(refusal.reason)}")
    return exit_code_of(told.refused)


def _teller(run: TrainedRun, options: Options) -> Callable[[TrainedRun, Options, World], Told]:
    """What answers for the files of a run's kind. Raises UserError for options that are for those of another."""
    if answers_joints(run):
        return tell_joints
    assert_no_frames(run, options)
    if refines_centres(run):
        raise UserError(f"{run.path}: refines reference points; give it by --refiner {run.path} beside a run of poses")
    if answers_points(run):
        return tell_points
    if options.out is not None:
        raise UserError(f"--out {options.out}: is for runs that class points or find joints; give --json or --csv")
    return tell_classes


def _assert_consistent(options: Options) -> None:
    """Raises UserError for options that cannot go together, before anything is read."""
    options.column_names()
    if not options.paths:
        raise UserError("predict: no file is given; sightline predict RUN PATH... [KEY=VALUE]...")
    if options.json is not None and options.csv is not None and options.json.resolve() == options.csv.resolve():
        raise UserError(f"--csv {options.csv}: is the file of --json too; give another")
    if options.probabilities is not None and options.out is None:
        raise UserError("--probabilities: is written into the folder of --out; give --out DIR")


def _tell(run: TrainedRun) -> None:
    """What a reader of the answers must know of how they come about."""
    lineage = read_lineage(run.path)
    if lineage is not None:
        note(describe_lineage(lineage))
    if up_axis := run.facts.get("up_axis"):
        note(f"the run was trained on clouds with {up_axis} up; files must have it up too")
    if run.config.evaluate.votes > 1:
        note(f"one pass a file: evaluate.votes ({run.config.evaluate.votes}) is not applied")


def _show(run: TrainedRun, told: Told) -> None:
    """The table of what was predicted, under the checkpoint's path as one would type it; none where nothing was."""
    checkpoint = run.checkpoint
    here = Path.cwd()
    path = checkpoint.relative_to(here) if checkpoint.is_relative_to(here) else checkpoint
    title = f"{path}: {len(told.rows)} of {len(told.rows) + len(told.refused)} files"
    if not told.rows:
        note(title)
        return
    show_table(title, told.columns, told.rows)


def _document(run: TrainedRun, told: Told) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "checkpoint": str(run.checkpoint),
        "class_names": list(run.class_names),
        "votes": 1,
        **told.about,
        "predictions": list(told.documents),
        "refused": [{"file": str(r.file), "reason": r.reason} for r in told.refused],
    }


def _table(told: Told) -> str:
    """Every file on a line, line breaks in its name as escapes; those that were refused have only their reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*told.csv_columns, "refused"))
    rows = [(*row, "") for row in told.csv_rows]
    rows += [(str(r.file), *[""] * (len(told.csv_columns) - 1), r.reason) for r in told.refused]
    for row in rows:
        writer.writerow([in_one_line(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()
