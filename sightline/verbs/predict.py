"""`sightline predict`: the classes of the user's own files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.data.cloud_files import check_columns
from sightline.engine.distributed import start_world
from sightline.engine.lineage import describe_lineage, read_lineage
from sightline.engine.loading import LoadedRun, load_run
from sightline.engine.precision import set_determinism
from sightline.engine.prediction import Predictions, predict_files
from sightline.errors import RunError, UserError
from sightline.verbs.common import write_document, write_file
from sightline.verbs.output import note, show_table

__all__ = ["predict"]

_CSV_COLUMNS = ("file", "class", "label", "probability", "margin", "num_points", "treatment", "refused")


def predict(
    run: Path,
    paths: Sequence[Path],
    *,
    which: str,
    plugins: Sequence[Path],
    batch_size: int | None,
    columns: str | None,
    to_sphere: bool,
    device: str,
    json: Path | None,
    csv: Path | None,
) -> int:
    """Predict every file that can be; the others are named with their reason. The exit code."""
    names = None if columns is None else check_columns(columns.split(","))
    if json is not None and csv is not None and json.resolve() == csv.resolve():
        raise UserError(f"--csv {csv}: is the file of --json too; give another")
    loaded = load_run(run, checkpoint=which, plugins=plugins)
    set_determinism(loaded.config.train.determinism)
    _tell(loaded)
    with start_world(device=device) as world:
        try:
            found = predict_files(loaded, paths, world=world, batch_size=batch_size, columns=names, to_sphere=to_sphere)
        except torch.OutOfMemoryError as error:
            raise RunError("predict: the GPU's memory is full; lower --batch-size") from error
    _show(loaded, found)
    write_document(json, _document(loaded, found))
    write_file(csv, _table(found))
    for refusal in found.refused:
        note(f"refused: {refusal.reason}")
    return found.exit_code


def _tell(run: LoadedRun) -> None:
    """What a reader of the answers must know of how they come about."""
    lineage = read_lineage(run.path)
    if lineage is not None:
        note(describe_lineage(lineage))
    if up_axis := run.facts.get("up_axis"):
        note(f"the run was trained on clouds with {up_axis} up; files must have it up too")
    if run.config.evaluate.votes > 1:
        note(f"one pass a file: evaluate.votes ({run.config.evaluate.votes}) is not applied")


def _show(run: LoadedRun, found: Predictions) -> None:
    """The table of what was predicted, under the checkpoint's path as one would type it; none where nothing was."""
    checkpoint = run.checkpoint
    here = Path.cwd()
    told = checkpoint.relative_to(here) if checkpoint.is_relative_to(here) else checkpoint
    title = f"{told}: {len(found.predicted)} of {len(found.predicted) + len(found.refused)} files"
    if not found.predicted:
        note(title)
        return
    rows = [(str(p.file), p.class_name, p.probability, p.margin) for p in found.predicted]
    show_table(title, ("file", "class", "probability", "margin"), rows)


def _document(run: LoadedRun, found: Predictions) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "checkpoint": str(run.checkpoint),
        "class_names": list(run.class_names),
        "votes": 1,
        "predictions": [
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
        ],
        "refused": [{"file": str(r.file), "reason": r.reason} for r in found.refused],
    }


def _table(found: Predictions) -> str:
    """Every file on a line; those that were refused have only their reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for p in found.predicted:
        numbers = (p.label, repr(p.probability), repr(p.margin), p.num_points)
        writer.writerow((str(p.file), p.class_name, *numbers, p.treatment, ""))
    for r in found.refused:
        writer.writerow((str(r.file), "", "", "", "", "", "", r.reason))
    return text.getvalue()
