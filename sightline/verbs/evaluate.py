"""`sightline evaluate`: compute the metrics of a trained run, exactly as training reported them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sightline.commands.run import EvaluateOptions
from sightline.contract.catalogue import load_members
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.plugins import load_plugins
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.evaluate import Evaluation, pool_evaluations
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.observers import describe_shares
from sightline.engine.process_inputs import describe_command
from sightline.engine.run_data import DataSubset, build_part
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.output_files import assert_writable, write_document
from sightline.runs.run_files import RunFiles, assert_no_run
from sightline.runs.run_records import describe_unfinished
from sightline.training.evaluation_settings import assert_about_evaluation, override_evaluation
from sightline.training.mean_pose import pose_baselines
from sightline.training.probe_metrics import probe_metrics
from sightline.training.published_results import explain_no_rows, list_published
from sightline.training.run_evaluation import compare_training_data
from sightline.verbs.output import print_note, show_evaluation, show_findings
from sightline.verbs.score import assert_against
from sightline.workbench.check.other_set_rules import CODE
from sightline.workbench.evaluate.documents import evaluation_document
from sightline.workbench.evaluate.saved_predictions import MANIFEST, assert_folds, tested_folds
from sightline.workbench.evaluate.surroundings import evaluate_with_surroundings


@dataclass(frozen=True)
class EvaluatedRun:
    """Evaluation of a run's checkpoint on one subset of the data."""

    files: RunFiles
    run: OpenRun
    part: DataSubset
    evaluation: Evaluation


def evaluate(options: EvaluateOptions) -> int:
    """Evaluate a checkpoint of a run on its test split or another config's; several runs as folds of one data set."""
    assert_against(options.against)
    if not options.runs:
        raise UserError("evaluate: no run directory is given; sightline evaluate RUN [KEY=VALUE]...")
    _assert_output(options)
    if len(options.runs) > 1 and options.data is not None:
        raise UserError("evaluate: --data works with one run; several runs are pooled over their own test splits")
    configs = []
    for path in options.runs:
        files = RunFiles(path)
        notes = files.check_plugins(load_plugins(options.plugins))
        assert_about_evaluation(options.overrides, files.config.task, verb="evaluate", also=("metrics",))
        configs.append((files, override_evaluation(files, options.overrides, options.data), notes))
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        return launch(options.command_line(), num_processes)
    flags = {"ensemble": options.ensemble, "save-predictions": options.save_predictions}
    describe = partial(describe_command, "evaluate", *(config for _, config, _ in configs), **flags)
    timeout_s = configs[0][1].distributed.timeout_s
    with start_world(device=options.device, timeout_s=timeout_s, describe=describe) as world:
        for line in (line for _, _, notes in configs for line in notes):
            world.rank_zero_only(print_note)(f"warning: {line}")
        for line in filter(None, (describe_unfinished(files.path) for files, _, _ in configs)):
            world.rank_zero_only(print_note)(line)
        if len(options.runs) > 1:
            assert_folds(options.runs, [config for _, config, _ in configs])
        trials = []
        for files, config, _ in configs:
            opened = open_run(files, config=config, checkpoint=options.checkpoint, world=world)
            trial = _evaluate_run(opened, files, options)
            if trial is None:
                return 1
            trials.append(trial)
        world.rank_zero_only(_report)(trials, options)
    return 0


def _report(trials: Sequence[EvaluatedRun], options: EvaluateOptions) -> None:
    """Print the metrics, and write them to the file of `--json`."""
    document = _document(trials, options)
    if options.against:
        document["published"] = _published_rows(trials, document["metrics"])
    if len(trials) == 1 and "mean_error_mm" in document["metrics"]:
        document |= pose_baselines(trials[0].part, trials[0].run.data)
    show_evaluation(document, title=_title(trials), dataset=trials[0].part.dataset)
    if len(trials) == 1:
        print_note(
            f"time: {trials[0].evaluation.seconds:.1f} s ({describe_shares(trials[0].evaluation.phase_seconds)})"
        )
    write_document(options.json, document)


def _published_rows(trials: Sequence[EvaluatedRun], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the published rows of this data set and these metrics; print the reason if there are none."""
    config, info = trials[0].run.config, trials[0].part.dataset.info
    rows = list_published(config.data, info, metrics, model=config.model)
    if not rows:
        print_note(f"--against published: {explain_no_rows(config.data, info, metrics)}")
    return rows


def _evaluate_run(run: OpenRun, files: RunFiles, options: EvaluateOptions) -> EvaluatedRun | None:
    """Evaluate one run; return None if the other data (`--data`) differ too much from its training data."""
    config, world, path = run.config, run.world, run.path
    set_backends(config.train)
    part = run.data.test if options.data is None else build_part(config, "test")
    if config.data != files.config.data and not _is_comparable(run, files, part):
        return None
    evaluator = run.evaluator(part)
    if options.ensemble:
        evaluator = dataclasses.replace(evaluator, ensemble_models=_ensemble_models(run))
    writer: Any = None
    if options.save_predictions:
        writer = _make_writer(part, options.out or path / "predictions" / part.split, run)
    evaluation = evaluate_with_surroundings(run, part, evaluator, on_batch=writer)
    more = probe_metrics(config, world, print_note, run.model)
    evaluation = dataclasses.replace(evaluation, metrics={**evaluation.metrics, **more})
    if writer is not None:
        checkpoint = str(run.checkpoint_path.resolve())
        provenance = {"run": str(path), "checkpoint": checkpoint, "data": config.data.name, "split": part.split}
        members = map(str, map(Path.resolve, run.other_checkpoints))
        averaged = {"averaged_with": list(members)} if options.ensemble else {}
        settings = {"votes": config.evaluate.votes, "tile": config.evaluate.tile, "overrides": list(options.overrides)}
        writer.finish(evaluation, {**provenance, **averaged, **settings})
        world.rank_zero_only(print_note)(f"predictions: {writer.path}")
    return EvaluatedRun(files, run, part, evaluation)


def _ensemble_models(run: OpenRun) -> tuple[nn.Module, ...]:
    """Load the models of the run's other checkpoints. Raises UserError if there is nothing to average."""
    config = run.config
    if run.task.vote is None:
        raise UserError(f"--ensemble: the task '{config.task.name}' does not define how to average predictions")
    if config.evaluate.tile is not None:
        raise UserError("--ensemble: averages checkpoints, and evaluate.tile adds passes; give only one of them")
    checkpoints = run.other_checkpoints
    if not checkpoints:
        raise UserError(
            f"--ensemble: {run.path} has only one checkpoint; train with checkpoint.keep_last=10, as pose configs do"
        )
    if config.evaluate.votes > 1:
        raise UserError("--ensemble: averages checkpoints, and evaluate.votes averages passes; give only one of them")
    members = tuple(map(run.model_at, checkpoints))
    names = ", ".join(folder.name for folder in checkpoints)
    run.world.rank_zero_only(print_note)(f"ensemble: {names} and {run.checkpoint_path.resolve().name}")
    return members


def _make_writer(part: DataSubset, path: Path, run: OpenRun) -> Any:
    """Make the writer of a run's predictions. Raises ConfigError for a task without classes or boxes."""
    predicts = run.task.predicts
    for writer in load_members("prediction_writers"):
        if writer.writes in predicts:
            return writer(path, part, run.world)
    outputs = ", ".join(sorted(predicts)) or "no classes"
    raise ConfigError(
        f"{run.path}: the task '{run.config.task.name}' predicts {outputs}; --save-predictions writes "
        "boxes, and classes computed from probabilities"
    )


def _assert_output(options: EvaluateOptions) -> None:
    """Raise UserError if predictions cannot be written to `--out`, or need it and it is missing."""
    if options.out is None:
        if options.save_predictions and options.data is not None:
            raise UserError("--save-predictions: with --data there is no folder to write to; give --out DIR")
        return
    if not options.save_predictions:
        raise UserError("--out: is the folder of --save-predictions, which is not given")
    if len(options.runs) > 1:
        raise UserError("--out: works with one run; leave it out, and predictions go into each run's folder")
    assert_no_run(options.out)
    assert_writable(options.out / MANIFEST, option="--out")


def _document(trials: Sequence[EvaluatedRun], options: EvaluateOptions) -> dict[str, Any]:
    """Build the document of `--json`: for one run, or for all runs pooled."""
    first = trials[0]
    evaluation = first.evaluation if len(trials) == 1 else pool_evaluations([trial.evaluation for trial in trials])
    facts = first.run.facts if len(trials) == 1 else {}  # runs of several folds were trained on different samples
    document = evaluation_document(first.run.config, evaluation, first.part, options.checkpoint, facts=facts)
    document |= {"overrides": list(options.overrides)} if options.overrides else {}
    if len(trials) > 1:
        document["folds"] = [
            {"run": str(run), "tested": list(tested_folds(trial.part)), "metrics": dict(trial.evaluation.metrics)}
            for run, trial in zip(options.runs, trials, strict=True)
        ]
    for trial in trials:
        for line in trial.files.list_lineage_notes():
            print_note(line)
    if len(trials) == 1 and first.files.lineage is not None:
        document["lineage"] = first.files.lineage
    return document


def _title(trials: Sequence[EvaluatedRun]) -> str:
    if len(trials) == 1:
        return f"{trials[0].run.checkpoint_path} on {trials[0].part.split}"
    return f"{len(trials)} runs, each on the samples that it was not trained on, from summed counts"


def _is_comparable(run: OpenRun, files: RunFiles, part: DataSubset) -> bool:
    """Return True if data of another config may be evaluated; print findings on how they differ."""
    on_first = run.world.rank_zero_only
    findings = compare_training_data(run, files, part, note=on_first(print_note))
    on_first(show_findings)(findings)
    is_refused = any(finding.severity == "error" for finding in findings)
    if is_refused:
        on_first(print_note)(f"evaluation skipped; to run it anyway: 'checks.skip=[{CODE}]'")
    return not is_refused
