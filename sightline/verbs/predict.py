"""`sightline predict`: the predictions of a run for the user's files, or the reference points of a data set."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sightline.commands.run import PredictOptions
from sightline.contract.catalogue import load_member
from sightline.contract.errors import DataError, RunError, UserError, escape_to_one_line
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import World, start_world
from sightline.engine.run_loading import TrainedRun, open_trained
from sightline.runs.output_files import assert_writable, write_document, write_file
from sightline.store.files.cloud_files import check_columns
from sightline.verbs.output import list_unapplied_passes, load_config, print_note, show_table, split_options
from sightline.workbench.export.onnx_file import open_run_or_file
from sightline.workbench.predict.prediction import build_predictor, collect_files, iterate_predictions
from sightline.workbench.predict.predictor import (
    FLAGS,
    CommandLine,
    Predictor,
    Refusal,
    build_document,
    compute_exit_code,
    format_csv,
    parse_options,
    predictor_class,
)

_FILE_SPLITS = ("train", "test")
_FILE_OPTIONS = ("batch_size", "csv", *FLAGS)


def predict(options: PredictOptions) -> int:
    """Predict all files that can be predicted, name the others with their reason, and return the exit code."""
    flags = _parse_flags(options)
    run = open_run_or_file(options.run_path, checkpoint=options.checkpoint, plugins=options.plugins)
    predictor_options = parse_options(predictor_class(run), run, CommandLine(flags, options.words, options.plugins))
    if predictor_options.get("probabilities") is not None and options.out is None:
        raise UserError("probabilities: are written into the folder of --out; give --out DIR")
    set_backends(run.config.train)
    with start_world(device=options.device) as world:
        predictor = build_predictor(run, world=world, **predictor_options)
        if not options.paths:
            raise UserError(
                f"predict: no file is given; a run of the task '{run.config.task.name}' reads one {predictor.noun} "
                f"from each file ({' '.join(predictor.suffixes)}), or folders of them: sightline predict "
                f"{shlex.quote(str(options.run_path))} {predictor.noun}{predictor.suffixes[0]}"
            )
        if options.out is not None and not predictor.endings:
            raise UserError(
                f"--out {options.out}: predictions of the task '{run.config.task.name}' are not written to files; give "
                "--json or --csv"
            )
        for line in [*_notes(run, predictor), *predictor.notes()]:
            print_note(line)
        try:
            documents, refused = _predict_files(run, predictor, options, world)
        except torch.OutOfMemoryError as error:
            raise RunError("predict: the GPU's memory is full; lower --batch-size") from error
    for line in predictor.summary(documents):
        print_note(line)
    document, text = build_document(predictor, documents, refused), format_csv(predictor, documents, refused)
    # Files are written first: the reader of the table may close the pipe.
    write_document(options.json, document)
    write_file(options.csv, text)
    _show_predictions(run, predictor, documents, refused)
    for refusal in refused:
        print_note(f"refused: {escape_to_one_line(refusal.reason)}")
    print_note(f"{len(documents)} predicted, {len(refused)} refused")
    return compute_exit_code(refused)


def _predict_files(
    run: TrainedRun, predictor: Predictor[Any], options: PredictOptions, world: World
) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """Predict files one by one; return the documents of predicted files and the refusals, in the order of the files.

    Output files are written at once. Raises UserError for an impossible output before anything is predicted, RunError
    if the disk cannot be written.
    """
    files, refused = collect_files(options.paths, suffixes=predictor.suffixes)
    for flag, result in (("--json", options.json), ("--csv", options.csv)):
        if result is not None and os.path.realpath(result) in map(os.path.realpath, files):
            raise UserError(f"{flag} {result}: is a file to predict and would be overwritten; give another")
    names = {} if options.out is None else predictor.output_names(files, options.out)
    documents: dict[Path, dict[str, Any]] = {}
    refusals: dict[Path, Refusal] = {}
    outcomes = iterate_predictions(run, files, predictor=predictor, world=world, batch_size=options.batch_size)
    for path, prediction in outcomes:
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
            documents[path]["written"] = {kind: str(output_path) for kind, output_path in written.items()}
        del prediction  # frees its memory before the next file is read
    ordered = [documents[path] for path in files if path in documents]
    return ordered, [*refused, *(refusals[path] for path in files if path in refusals)]


def _parse_flags(options: PredictOptions) -> dict[str, Any]:
    """Return the flags with parsed values. Raises UserError for options that do not go together."""
    values = {name: getattr(options, name) for name in FLAGS}
    flags = {name: value for name, value in values.items() if value is not None and value is not False}
    if "columns" in flags:
        flags["columns"] = check_columns(flags["columns"].split(","))
    return flags


def _notes(run: TrainedRun, predictor: Predictor[Any]) -> list[str]:
    """List notes on a run's predictions: its lineage, up axis, votes and tiles."""
    notes = run.files.list_lineage_notes()
    if up_axis := run.facts.get("up_axis"):
        notes.append(f"the run was trained on clouds with {up_axis} up; files must have the same up axis")
    is_tiled = predictor.about().get("tile") is not None
    return [*notes, *(line for line in list_unapplied_passes(run.config, "file") if not is_tiled)]


def _show_predictions(
    run: TrainedRun, predictor: Predictor[Any], documents: Sequence[Mapping[str, Any]], refused: Sequence[Refusal]
) -> None:
    """Print the table of predictions under the checkpoint's relative path; only a line if nothing was predicted."""
    checkpoint = run.checkpoint
    working_directory = Path.cwd()
    path = checkpoint.relative_to(working_directory) if checkpoint.is_relative_to(working_directory) else checkpoint
    title = f"{path}: {len(documents)} of {len(documents) + len(refused)} files"
    if not documents:
        print_note(title)
        return
    show_table(title, predictor.columns, map(predictor.row, documents))


# --- reference points of a data set ----------------------------------------------------------------------------------


def predict_centres(options: PredictOptions) -> int:
    """Write one line per frame of a split of a config's data set; the file is complete or not written."""
    assert options.data is not None
    unused = [*map(str, options.paths), *(f"--{n.replace('_', '-')}" for n in _FILE_OPTIONS if getattr(options, n))]
    if unused:
        raise UserError(f"predict: {unused[0]}: has no use with --data, which predicts the frames of a data set")
    if options.out is None:
        raise UserError("predict: --data: writes the reference points of a data set; give their file with --out FILE")
    assert_writable(options.out, option="--out")
    values, overrides = split_options(options.words, ("split",))
    split = values.get("split", "test")
    if split not in _FILE_SPLITS:
        raise UserError(f"split={split}: allowed are {', '.join(_FILE_SPLITS)}; validation frames are in train")
    refiner = open_trained(options.run_path, checkpoint=options.checkpoint, plugins=options.plugins)
    config = load_config(options.data, overrides, options.plugins)
    set_backends(refiner.config.train)
    with start_world(device=options.device) as world:
        predicted = load_member("tools", "find_centres")(refiner, config, split=split, world=world)
    write_file(options.out, predicted.to_text())
    for line in predicted.notes:
        print_note(escape_to_one_line(f"look at this: {line}"))
    rows = [("frames", len(predicted.points_mm)), ("points", int(predicted.is_known.sum()))]
    show_table(f"{options.out}: {config.data.name}, {split}", ("what", "value"), rows)
    source = {"file": str(options.out), "run": str(options.run_path), "data": config.data.name, "split": split}
    write_document(options.json, {**source, **dict(rows), "notes": list(predicted.notes)})
    return 0
