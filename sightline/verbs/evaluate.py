"""`sightline evaluate`: the metrics of a trained run, exactly as training reported them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sightline import registry
from sightline.config import RunConfig, read_config
from sightline.describe.difficulty import class_difficulty
from sightline.describe.mean_pose import pose_baselines
from sightline.doctor.checks.data.dataset_mismatch import CloudSample, compare_sets, dataset_mismatch, sample_clouds
from sightline.doctor.core.finding import FindingLocation
from sightline.engine.build import Data, DataSubset, build_part
from sightline.engine.distributed import start_world
from sightline.engine.evaluate import Evaluation, Evaluator, pool_evaluations
from sightline.engine.launcher import launch, resolve_num_processes
from sightline.engine.observers import describe_shares
from sightline.engine.precision import set_backends
from sightline.engine.run_loading import OpenRun, config_path_of_run, open_run, read_run
from sightline.engine.session import evaluation_document
from sightline.errors import ConfigError, UserError
from sightline.evaluation.box_results import DetectionWriter
from sightline.evaluation.folds import assert_folds, tested_folds
from sightline.evaluation.saved_predictions import MANIFEST, LabelWriter
from sightline.metrics.box_errors import BoxErrors
from sightline.optional_members import TaskMembers
from sightline.runs.checkpoint import list_checkpoints as kept_checkpoints
from sightline.runs.inputs import read_inputs
from sightline.runs.lineage import describe_lineage, read_lineage
from sightline.tasks.detect import Detect
from sightline.training.final_probe import probe_metrics
from sightline.training.published_results import beside_published, foreign_in_words, published_names
from sightline.types import ComponentConfig
from sightline.verbs.common import assert_writable, write_document
from sightline.verbs.detection_errors import bind_error_metric, show_errors
from sightline.verbs.output import print_note, show_difficulty, show_evaluation, show_findings
from sightline.verbs.score import score_files

__all__ = ["EvaluateOptions", "assert_about_evaluation", "evaluate"]


_MAY_CHANGE = (
    "evaluate.*",
    "transforms.evaluate*",
    "transforms.vote*",
    "data.root",
    "data.views",
    "loader.*",
    "log.*",
    "checks.skip",
    "teacher",
    "teacher.from",
)


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line asked for."""

    runs: tuple[Path, ...]
    overrides: tuple[str, ...] = ()
    which: str = "last"
    data: Path | None = None
    processes: int | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    json: Path | None = None
    save_predictions: bool = False
    out: Path | None = None
    ensemble: bool = False
    predictions: Path | None = None
    errors: bool = False
    against: str | None = None

    def arguments(self) -> list[str]:
        """The command line for each launched process."""
        words = ["evaluate", *map(str, self.runs), *self.overrides, "--checkpoint", self.which, "--device", self.device]
        words += ["--data", str(self.data)] if self.data else []
        words += ["--json", str(self.json)] if self.json else []
        words += ["--save-predictions"] if self.save_predictions else []
        words += ["--out", str(self.out)] if self.out else []
        words += ["--ensemble"] if self.ensemble else []
        words += ["--errors"] if self.errors else []
        words += ["--against", self.against] if self.against else []
        return [*words, *(word for plugin in self.plugins for word in ("--plugin", str(plugin)))]


@dataclass(frozen=True)
class EvaluatedRun:
    """A run, its checkpoint's evaluation, and the part of the data that it is of."""

    run: Path
    checkpoint: Path
    config: RunConfig
    data: Data
    part: DataSubset
    evaluation: Evaluation


def evaluate(options: EvaluateOptions) -> int:
    """Evaluate a checkpoint of a run on its test part, or on another config's; several runs as folds of one set."""
    if options.against not in (None, "published"):
        raise UserError(f"--against {options.against}: must be published")
    if options.predictions is not None:
        return _score(options.predictions, options)
    if not options.runs:
        raise UserError("evaluate: no run directory is given; sightline evaluate RUN [KEY=VALUE]...")
    _assert_place(options)
    if len(options.runs) > 1 and options.data is not None:
        raise UserError("evaluate: --data stands for the test part of one run; several runs are pooled over their own")
    configs = [_read(run, options) for run in options.runs]
    num_processes = resolve_num_processes(options.processes)
    if num_processes > 1:
        return launch(options.arguments(), num_processes)
    with start_world(device=options.device, timeout_s=configs[0][1].distributed.timeout_s) as world:
        for line in (line for _, _, notes in configs for line in notes):
            world.rank_zero_only(print_note)(f"warning: {line}")
        if len(options.runs) > 1:
            assert_folds(options.runs, [config for _, config, _ in configs])
        trials = []
        for run, (trained, config, _) in zip(options.runs, configs, strict=True):
            opened = open_run(run, config=config, checkpoint=options.which, world=world)
            trial = _try(opened, trained, options)
            if trial is None:
                return 1
            trials.append(trial)
        world.rank_zero_only(_report)(trials, options)
    return 0


def _score(predictions: Path, options: EvaluateOptions) -> int:
    """Score files without a run. Raises UserError for what is about runs."""
    is_out_wrong = (options.out is None) == options.errors
    if options.errors and is_out_wrong:
        raise UserError("--errors: of --predictions go beside no run; say where with --out DIR")
    if options.runs or options.save_predictions or options.ensemble or options.against or is_out_wrong:
        raise UserError("--predictions: scores files, not a run; give --data CONFIG and leave out what is about a run")
    if options.data is None:
        raise UserError("--predictions: of which data? give --data CONFIG, a file with the sections data and metrics")
    return score_files(
        *(options.data, predictions),
        overrides=options.overrides,
        plugins=options.plugins,
        json=options.json,
        errors=options.out,
    )


def _report(trials: Sequence[EvaluatedRun], options: EvaluateOptions) -> None:
    """Print the figures, and write them to the file of `--json`."""
    document = _document(trials, options)
    if options.against:
        document["published"] = _published(trials, document["metrics"], options)
    if len(trials) == 1 and "mean_error_mm" in document["metrics"]:
        document |= pose_baselines(trials[0].part, trials[0].data)
    show_evaluation(document, title=_title(trials), dataset=trials[0].part.dataset)
    if len(trials) == 1:
        print_note(
            f"time: {trials[0].evaluation.seconds:.1f} s ({describe_shares(trials[0].evaluation.phase_seconds)})"
        )
        document |= _explained(trials[0])
        if options.errors:
            folder = options.out or trials[0].run / "errors" / trials[0].part.split
            show_errors(trials[0].evaluation, trials[0].part, document, folder)
    write_document(options.json, document)


def _published(
    trials: Sequence[EvaluatedRun], metrics: Mapping[str, float], options: EvaluateOptions
) -> list[dict[str, Any]]:
    """The published rows that fit; a line where none does."""
    first, name = trials[0], trials[0].config.data.name
    tested = [fold for trial in trials for fold in tested_folds(trial.part)]
    lineage = read_lineage(first.run)
    rows = beside_published(
        first.config, first.part, metrics, which=options.which, lineage=lineage, tested=sorted(tested)
    )
    known = published_names()
    if name not in known:
        print_note(f"--against published: no figure is published on '{name}'; the table has {', '.join(known)}")
    elif reason := foreign_in_words(first.config.data, first.part.dataset.info):
        print_note(f"--against published: the data are not the '{name}' that figures are published on: {reason}")
    elif not rows:
        print_note(
            f"--against published: the figures published on '{name}' are of other metrics than {', '.join(metrics)}"
        )
    return rows


def _read(run: Path, options: EvaluateOptions) -> tuple[RunConfig, RunConfig, list[str]]:
    """The config that a run was trained with, the one to evaluate it by, and notes on its plugins."""
    trained, notes = read_run(run, options.plugins)
    assert_about_evaluation(options.overrides, trained.task, verb="evaluate", also=("metrics",))
    path = config_path_of_run(run if options.data is None else options.data)
    return trained, _with_overrides(trained, options.overrides, path, is_other=bool(options.data)), notes


def _try(run: OpenRun, trained: RunConfig, options: EvaluateOptions) -> EvaluatedRun | None:
    """The evaluation of one run; None where other data are too unlike those that it was trained on."""
    config, world, path = run.config, run.world, run.path
    set_backends(determinism=config.train.determinism, cudnn=config.train.cudnn)
    part = run.data.test if options.data is None else build_part(config, "test")
    if config.data != trained.data and not _is_alike(run, trained, part):
        return None
    evaluator = run.evaluator(part)
    if options.errors:
        evaluator = _with_errors(evaluator, run, part)
    if options.ensemble:
        evaluator = dataclasses.replace(evaluator, ensemble_models=_members(run))
    folder: LabelWriter | DetectionWriter | None = None
    if options.save_predictions:
        folder = _folder(part, options.out or path / "predictions" / part.split, run)
    evaluation = evaluator(run.model, world, on_batch=folder)
    more = probe_metrics(config, world, world.run_directory(path), print_note, run.model)
    evaluation = dataclasses.replace(evaluation, metrics={**evaluation.metrics, **more})
    if folder is not None:
        checkpoint = str(run.checkpoint_path.resolve())
        about = {"run": str(path), "checkpoint": checkpoint, "data": config.data.name, "split": part.split}
        folder.finish(evaluation, {**about, "votes": config.evaluate.votes, "overrides": list(options.overrides)})
        world.rank_zero_only(print_note)(f"predictions: {folder.path}")
    return EvaluatedRun(path, run.checkpoint_path, config, run.data, part, evaluation)


def _with_errors(evaluator: Evaluator, run: OpenRun, part: DataSubset) -> Evaluator:
    """An evaluator that also counts errors. Raises UserError for a task that is not about boxes."""
    if not isinstance(run.task, Detect):
        raise UserError(f"--errors: is about boxes; the task '{run.config.task.name}' does not predict any")
    run.task.keeps_candidates = True
    others = [meter for meter in evaluator.metrics if not isinstance(meter.metric, BoxErrors)]
    return dataclasses.replace(evaluator, metrics=[*others, bind_error_metric(part)])


def _members(run: OpenRun) -> tuple[nn.Module, ...]:
    """The models of the other checkpoints that a run keeps. Raises UserError where there is nothing to average."""
    config = run.config
    if TaskMembers.vote.get(run.task) is None:
        raise UserError(f"--ensemble: the task '{config.task.name}' does not say how answers are averaged")
    last = run.checkpoint_path.resolve()
    others = [folder for folder in kept_checkpoints(run.path) if folder.resolve() != last]
    if not others:
        raise UserError(
            f"--ensemble: {run.path} keeps one checkpoint; train with checkpoint.keep_last=10, the recipes of pose do"
        )
    if config.evaluate.votes > 1:
        raise UserError("--ensemble: averages checkpoints, evaluate.votes averages passes; give one of the two")
    members = tuple(map(run.model_at, others))
    run.world.rank_zero_only(print_note)(f"ensemble: {', '.join(folder.name for folder in others)} and {last.name}")
    return members


def _folder(part: DataSubset, path: Path, run: OpenRun) -> LabelWriter | DetectionWriter:
    """What keeps the predictions of a run. Raises ConfigError for a task without classes or boxes to keep."""
    predicts = TaskMembers.predicts.get(run.task)
    if "detections" in predicts:
        return DetectionWriter(path, part, run.world)
    if "probabilities" not in predicts:
        outputs = ", ".join(sorted(predicts)) or "no classes"
        raise ConfigError(
            f"{run.path}: the task '{run.config.task.name}' predicts {outputs}; --save-predictions keeps boxes, and "
            "classes, which it takes from probabilities"
        )
    return LabelWriter(path, part, run.world)


def _assert_place(options: EvaluateOptions) -> None:
    """Raises UserError where predictions cannot go to `--out`, or have no place without it."""
    if options.out is None:
        if options.errors and (options.data is not None or len(options.runs) > 1):
            raise UserError("--errors: of other data (--data) go beside no run, and are of one run; give --out DIR")
        if options.save_predictions and options.data is not None:
            raise UserError("--save-predictions: of other data (--data) go beside no run; say where with --out DIR")
        return
    if not options.save_predictions and not options.errors:
        raise UserError("--out: says where --save-predictions and --errors write; neither is given")
    if len(options.runs) > 1:
        raise UserError("--out: is for one run; the predictions of several go into each run's own folder without it")
    assert_writable(options.out / MANIFEST, option="--out")


def _document(trials: Sequence[EvaluatedRun], options: EvaluateOptions) -> dict[str, Any]:
    """What `--json` holds: of one run, or of all of them pooled."""
    first = trials[0]
    evaluation = first.evaluation if len(trials) == 1 else pool_evaluations([trial.evaluation for trial in trials])
    document = evaluation_document(first.config, evaluation, first.part, options.which)
    document |= {"overrides": list(options.overrides)} if options.overrides else {}
    if len(trials) > 1:
        document["folds"] = [
            {"run": str(trial.run), "tested": list(tested_folds(trial.part)), "metrics": dict(trial.evaluation.metrics)}
            for trial in trials
        ]
    for trial in trials:
        lineage = read_lineage(trial.run)
        if lineage is not None:
            print_note(describe_lineage(lineage))
            if len(trials) == 1:
                document["lineage"] = lineage
    return document


def _explained(trial: EvaluatedRun) -> dict[str, Any]:
    """For a segmentation, why its classes are hard, shown and as part of the document."""
    difficulty = class_difficulty(trial.evaluation, trial.part, trial.data)
    if difficulty is None:
        return {}
    show_difficulty(difficulty)
    return {"difficulty": difficulty.to_dict()}


def _title(trials: Sequence[EvaluatedRun]) -> str:
    if len(trials) == 1:
        return f"{trials[0].checkpoint} on {trials[0].part.split}"
    return f"{len(trials)} runs, each on the part that it was not trained on, from summed counts"


def _is_alike(run: OpenRun, trained: RunConfig, part: DataSubset) -> bool:
    """Whether other data may be evaluated; findings on how they differ are printed.

    Compares with the training data where it can be read, else with what the run noted of it.
    """
    config, on_first = run.config, run.world.rank_zero_only
    if dataset_mismatch.is_skipped(config):
        return True
    name = f"{trained.data.name}/train"
    try:
        known = sample_clouds(build_part(trained, "train"), trained, is_training=True)
    except UserError:
        known = CloudSample(read_inputs(run.path, trained), name)
        on_first(print_note)(
            f"{name}, which the run was trained on, cannot be read; compared is what the run noted of it"
        )
    findings = compare_sets(known, sample_clouds(part, config), place=partial(_place, config))
    on_first(show_findings)(findings)
    is_refused = any(finding.severity == "error" for finding in findings)
    if is_refused:
        on_first(print_note)(f"evaluation skipped; to run it anyway: 'checks.skip=[{dataset_mismatch.code}]'")
    return not is_refused


def _place(config: RunConfig, path: str, **more: Any) -> FindingLocation:
    where = config.data.origins.get("root", config.data.location)
    return FindingLocation(file=where.source, line=where.line, config_path=path, **more)


def assert_about_evaluation(
    overrides: Sequence[str], task: ComponentConfig, *, verb: str, also: Sequence[str] = ()
) -> None:
    """Raises UserError for a key that would make it another run, or that says how the run of a task was trained.

    `also` are keys that this verb may change beside those of evaluation.
    """
    own = TaskMembers.evaluation_arguments.get(registry.tasks.entry(task).builder)
    patterns = (*_MAY_CHANGE, *also, *(f"task.{name}" for name in sorted(own)))
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "evaluate.select":
            raise UserError(f"{verb}: evaluate.select is how the run chose its best weights; that cannot change now")
        is_own = key.startswith("task.") and key.split(".")[1] in own  # also a value inside a block
        if not is_own and not any(fnmatchcase(key, pattern) for pattern in patterns):
            raise UserError(f"{verb}: found {override!r}, allowed is key=value with {', '.join(patterns)}")


def _with_overrides(config: RunConfig, overrides: Sequence[str], path: Path, *, is_other: bool) -> RunConfig:
    """The run's config with the data and transforms of the config at `path`, and of its other sections what is given.

    `path` is what the overrides are laid over: the run's own config, or with `is_other` that of other data.
    """
    if not overrides and not is_other:
        return config
    given = read_config(path, overrides)
    if not is_other:
        return given
    changed: dict[str, Any] = {"data": given.data, "transforms": given.transforms}
    for section in ("evaluate", "loader", "log", "checks"):
        keys = {o.partition("=")[0].strip().partition(".")[2] for o in overrides if o.strip().startswith(f"{section}.")}
        values = {key: getattr(getattr(given, section), key) for key in keys}
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    if any(o.partition("=")[0].strip() == "metrics" for o in overrides):
        changed["metrics"] = given.metrics
    if any(o.partition("=")[0].strip() in ("teacher", "teacher.from") for o in overrides):
        ours, theirs = config.teacher, given.teacher
        changed["teacher"] = ours and theirs and dataclasses.replace(ours, source=theirs.source)
    of_task = {o.partition("=")[0].strip() for o in overrides if o.strip().startswith("task.")}
    names = {key.split(".")[1] for key in of_task}
    own = {name: value for name, value in given.task.arguments.items() if name in names}
    changed["task"] = dataclasses.replace(config.task, arguments={**config.task.arguments, **own})
    return dataclasses.replace(config, **changed)
