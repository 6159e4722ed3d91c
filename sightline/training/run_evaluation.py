"""Evaluation of a trained run, and scoring of prediction files, without printing.

Evaluation settings that may be changed afterwards.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.config import RunConfig, read_config
from sightline.contract import registry
from sightline.contract.errors import DataError, UserError
from sightline.contract.plugins import load_plugins
from sightline.contract.types import ComponentConfig
from sightline.doctor.finding import Finding
from sightline.engine.build import DataSubset, build_part
from sightline.engine.device import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.process_inputs import describe_command
from sightline.engine.run_loading import OpenRun, open_run
from sightline.runs.run_files import RunFiles, config_path_of_run
from sightline.store.loading.batch_reader import BatchReader
from sightline.training.config_source import ConfigSource
from sightline.training.probe_metrics import probe_metrics
from sightline.workbench.check.other_set_rules import CODE, CloudSample, compare_sets, sample_clouds
from sightline.workbench.evaluate.documents import evaluation_document, score_document
from sightline.workbench.evaluate.scoring import find_scoring
from sightline.workbench.evaluate.surroundings import evaluate_with_surroundings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_EVALUATION_KEYS = (
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


@dataclass(frozen=True, repr=False)
class RunEvaluation:
    """Figures of an evaluation or of scored files; `document` is what the command writes with `--json`."""

    title: str
    document: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures by name."""
        metrics: Mapping[str, float] = self.document["metrics"]
        return metrics

    @property
    def per_class(self) -> Mapping[str, Mapping[str, float]]:
        """The figures of each class or joint."""
        rows: Mapping[str, Mapping[str, float]] = self.document["per_class"]
        return rows

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        samples = self.document["data"]["num_samples"]
        return f"RunEvaluation({self.title}, {samples} samples: {figures})"


def evaluate_run(
    path: Path,
    checkpoint: str,
    *,
    data: ConfigSource | None,
    overrides: Sequence[str],
    plugins: Sequence[Path],
    device: str | torch.device,
) -> RunEvaluation:
    """Evaluate a checkpoint of a run on its test split, or on that of another config.

    Raises UserError for a key that defines the training, DataError for data unlike those of the training.
    """
    files = RunFiles(path)
    for line in files.check_plugins(load_plugins(plugins)):
        logger.warning("%s", line)
    assert_about_evaluation(overrides, files.config.task, verb="evaluate", also=("metrics",))
    source = Path(data) if isinstance(data, str) else data
    config = override_evaluation(files, overrides, source)
    with start_world(device=device, describe=partial(describe_command, "evaluate", config)) as world:
        run = open_run(files, config=config, checkpoint=checkpoint, world=world)
        set_backends(config.train)
        part = run.data.test if data is None else build_part(config, "test")
        if config.data != files.config.data:
            findings = compare_training_data(run, files, part, note=logger.warning)
            errors = [finding for finding in findings if finding.severity == "error"]
            if errors:
                raise DataError(f"{errors[0]}; to evaluate it anyway: 'checks.skip=[{CODE}]'")
            for finding in findings:
                logger.warning("%s", finding)
        evaluation = evaluate_with_surroundings(run, part)
        more = probe_metrics(config, world, logger.info, run.model)
        evaluation = dataclasses.replace(evaluation, metrics={**evaluation.metrics, **more})
    document = evaluation_document(config, evaluation, part, checkpoint, facts=run.facts)
    document |= {"overrides": list(overrides)} if overrides else {}
    return RunEvaluation(f"{path}, {checkpoint} on {part.split}", document)


def score_predictions(path: Path, config: RunConfig) -> RunEvaluation:
    """Score prediction files on the test split of a config's data; notes are logged."""
    dataset = registry.data.build(config.data, facts={"split": "test"})
    part = DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test")
    scored = find_scoring(dataset.info).score(part, config.metrics, path)
    for note in scored.notes:
        logger.warning("%s", note)
    return RunEvaluation(f"{path} on test", score_document(config.data, part, path, scored))


def compare_training_data(
    run: OpenRun, files: RunFiles, part: DataSubset, *, note: Callable[[str], object]
) -> Sequence[Finding]:
    """Compare data of another config with the training data of a run: findings on how they differ.

    Training data that cannot be read are replaced by the statistics that the run recorded; `note` receives that.
    """
    config, trained = run.config, files.config
    if CODE in config.checks.skip:
        return ()
    name = f"{trained.data.name}/train"
    try:
        training_inputs = sample_clouds(build_part(trained, "train"), trained, is_training=True)
    except UserError:
        training_inputs = CloudSample(files.inputs, name)
        note(f"{name}, which the run was trained on, cannot be read; the recorded statistics of the run are compared")
    origin = config.data.origins.get("root", config.data.location)
    findings = compare_sets(training_inputs, sample_clouds(part, config))
    locations = (dataclasses.replace(finding.where, file=origin.source, line=origin.line) for finding in findings)
    return [dataclasses.replace(finding, where=location) for finding, location in zip(findings, locations, strict=True)]


def assert_about_evaluation(
    overrides: Sequence[str], task: ComponentConfig, *, verb: str, also: Sequence[str] = ()
) -> None:
    """Raise UserError for a key that does not belong to evaluation: it would define another run or its training.

    `also` are keys that this verb may change in addition to those of evaluation.
    """
    task_arguments = registry.tasks.get_class(task).evaluation_arguments
    patterns = (*_EVALUATION_KEYS, *also, *(f"task.{name}" for name in sorted(task_arguments)))
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "evaluate.select":
            raise UserError(
                f"{verb}: evaluate.select chose the best weights of the run during training; it cannot change now"
            )
        is_task_argument = (
            key.startswith("task.") and key.split(".")[1] in task_arguments
        )  # also a value inside a block
        if not is_task_argument and not any(fnmatchcase(key, pattern) for pattern in patterns):
            raise UserError(f"{verb}: found {override!r}, allowed is key=value with {', '.join(patterns)}")


def override_evaluation(
    files: RunFiles, overrides: Sequence[str], data: Path | Mapping[str, Any] | RunConfig | None
) -> RunConfig:
    """Return the run's config with data and transforms of the config at `data`, and the overrides of other sections.

    The overrides apply to the config at `data`, or without it to the run's own.
    """
    config = files.config
    if not overrides and data is None:
        return config
    source = files.path if data is None else data
    overridden = read_config(config_path_of_run(source) if isinstance(source, Path) else source, overrides)
    if data is None:
        return overridden
    changed: dict[str, Any] = {"data": overridden.data, "transforms": overridden.transforms}
    for section in ("evaluate", "loader", "log", "checks"):
        keys = {o.partition("=")[0].strip().partition(".")[2] for o in overrides if o.strip().startswith(f"{section}.")}
        values = {key: getattr(getattr(overridden, section), key) for key in keys}
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    if any(o.partition("=")[0].strip() == "metrics" for o in overrides):
        changed["metrics"] = overridden.metrics
    if any(o.partition("=")[0].strip() in ("teacher", "teacher.from") for o in overrides):
        teacher, other_teacher = config.teacher, overridden.teacher
        changed["teacher"] = teacher and other_teacher and dataclasses.replace(teacher, source=other_teacher.source)
    task_keys = {o.partition("=")[0].strip() for o in overrides if o.strip().startswith("task.")}
    names = {key.split(".")[1] for key in task_keys}
    task_overrides = {name: value for name, value in overridden.task.arguments.items() if name in names}
    changed["task"] = dataclasses.replace(config.task, arguments={**config.task.arguments, **task_overrides})
    return dataclasses.replace(config, **changed)
